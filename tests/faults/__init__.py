"""Faults that the tests must see: a list, and what plants each in a copy of the tree."""
