"""Posting lists: the k best of a query, and lists made of texts; definitions, and kernels in C."""

from .naive import PostingLists as PostingLists
from .naive import WordNumbers as WordNumbers
from .naive import best as best
from .naive import count as naive_count
from .naive import search as naive_search
from .naive import weights_of as weights_of
from .native import Searcher as Searcher
from .native import count as count
from .native import damaged as damaged
from .native import lengths as lengths
from .words import CompiledWordNumbers as CompiledWordNumbers
from .words import word_numbers as word_numbers

__all__ = [
    "CompiledWordNumbers",
    "PostingLists",
    "Searcher",
    "WordNumbers",
    "best",
    "count",
    "damaged",
    "lengths",
    "naive_count",
    "naive_search",
    "weights_of",
    "word_numbers",
]
