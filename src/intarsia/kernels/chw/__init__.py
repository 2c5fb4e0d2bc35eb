"""Nets of convolutions at batch 1, channels first: a program of steps on maps of pixels.

steps.py: what a step is, and the shapes it makes.  naive.py: the definition, in torch.  native.py:
the same by native/chw.c, one call for many steps.
"""

from .naive import Program as NaiveProgram
from .native import Program as NativeProgram
from .native import available
from .steps import ACTS, Step, Window, shapes_of

__all__ = ["ACTS", "NaiveProgram", "NativeProgram", "Step", "Window", "available", "shapes_of"]
