"""How do parts combine?"""

from .routed import RoutedCell as RoutedCell
from .soup import SoupLinear as SoupLinear
from .split import SplitLinear as SplitLinear
from .split_adamw import SplitAdamW as SplitAdamW
from .split_adamw import decay_groups as decay_groups
from .split_adamw import split_adamw as split_adamw
