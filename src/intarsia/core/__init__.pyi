"""The nouns: Partition, Cell, Routing, Format; and what a method says of itself."""

from .card import Card as Card
from .card import Paper as Paper
from .cell import Cell as Cell
from .cell import Method as Method
from .cell import Site as Site
from .claim import Claim as Claim
from .claim import Result as Result
from .format import Format as Format
from .format import nbytes as nbytes
from .partition import Partition as Partition
from .partition import intersect as intersect
from .partition import union as union
from .pattern import Blocks as Blocks
from .pattern import NofM as NofM
from .routing import Routing as Routing
