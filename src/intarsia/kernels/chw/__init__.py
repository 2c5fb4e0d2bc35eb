"""Nets of convolutions at batch 1, channels first: a program of steps on maps of pixels.

steps.py: what a step is, and the shapes it makes.  naive.py: the definition, in torch.  native.py:
the same by native/chw.c, one call for many steps.
"""

from .naive import NaiveProgram as NaiveProgram
from .native import NativeProgram as NativeProgram
from .native import available as available
from .steps import ACTS as ACTS
from .steps import ProgramStep as ProgramStep
from .steps import Window as Window
from .steps import shapes_of as shapes_of
