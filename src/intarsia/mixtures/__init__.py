"""How do parts combine?"""

from .split import SplitLinear as SplitLinear
