from .bitmask import Bitmask as Bitmask
from .blockint import BlockInt as BlockInt
from .columns import Columns as Columns
from .dense import Dense as Dense
from .gaussian import Gaussian as Gaussian
from .gqsa import GroupSparse as GroupSparse
from .row_blocks import RowBlocks as RowBlocks
from .ternary import Ternary as Ternary
