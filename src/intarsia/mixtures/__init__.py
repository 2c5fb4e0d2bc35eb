"""How do parts combine?"""

from ..core.renamed import renamed
from .capacity import Capacity as Capacity
from .deepspeed_moe import DeepSpeedMoE as DeepSpeedMoE
from .experts import ExpertList as ExpertList
from .experts import Experts as Experts
from .experts import StackedExperts as StackedExperts
from .mixture import Mixture as Mixture
from .mixture import ResidualMixture as ResidualMixture
from .mixture import undropped as undropped
from .residual import AdamOnce as AdamOnce
from .residual import HeavyBall as HeavyBall
from .residual import Plain as Plain
from .residual import Residual as Residual
from .residual import Robust as Robust
from .residual import Update as Update
from .residual import wrap_residuals as wrap_residuals
from .routed import RoutedCell as RoutedCell
from .skills import SkillsCell as SkillsCell
from .soup import SoupLinear as SoupLinear
from .split import SplitLinear as SplitLinear
from .split_adamw import SplitAdamW as SplitAdamW
from .split_adamw import decay_groups as decay_groups
from .split_adamw import split_adamw as split_adamw
from .wide import ActivationL0 as ActivationL0
from .wide import WideMlp as WideMlp
from .wide import activation_l0 as activation_l0
from .wide import as_wide_mlp as as_wide_mlp
from .zcode_m3 import ZCodeM3 as ZCodeM3
from .zcode_m3 import merged as merged
from .zcode_m3 import prune as prune

__getattr__ = renamed(__name__, {"add_momentum": "methods.add_momentum"})
