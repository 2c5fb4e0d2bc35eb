"""How do parts combine?"""

from .routed import RoutedCell as RoutedCell
from .soup import SoupLinear as SoupLinear
from .split import SplitLinear as SplitLinear
