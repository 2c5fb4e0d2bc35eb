"""Ternary rows as words of a dictionary: the words, and a product that decodes them on the way."""

from .dictionary import Dictionary as Dictionary
from .dictionary import dictionary as dictionary
from .naive import digits_of as digits_of
from .naive import ternary as naive_ternary
from .naive import words_of as words_of
from .native import bound as bound
from .native import ternary as ternary

__all__ = ["Dictionary", "bound", "dictionary", "digits_of", "naive_ternary", "ternary", "words_of"]
