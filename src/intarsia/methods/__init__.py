"""Papers that recombine the nouns."""

from .adamix import Adamix as Adamix
from .baselines import BitFit as BitFit
from .baselines import FullTuning as FullTuning
from .baselines import LastBlocks as LastBlocks
from .baselines import LinearProbe as LinearProbe
from .baselines import NormTuning as NormTuning
from .baselines import VptDeep as VptDeep
from .baselines import VptShallow as VptShallow
from .bi import BiAdapter as BiAdapter
from .llava_mole import LlavaMole as LlavaMole
from .lt_sft import LtSft as LtSft
from .mixlora import MixLora as MixLora
from .momentum import Momentum as Momentum
from .momentum import add_momentum as add_momentum
from .mosa import Mosa as Mosa
from .mosa import MosaCell as MosaCell
from .mosa import Mosl as Mosl
from .mosa import Official as Official
from .peft_methods import PeftMethod as PeftMethod
from .poly import Poly as Poly
from .s2ft.cell import S2ftCell as S2ftCell
from .s2ft.channels import choose_channels as choose_channels
from .s2ft.permute import Permutation as Permutation
from .s2ft.permute import co_permute as co_permute
from .s2ft.s2ft import S2ft as S2ft
