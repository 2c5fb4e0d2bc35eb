"""Nets of convolutions at batch 1, channels first: a program of steps on maps of pixels.

steps.py: the steps, and the shapes they make.  naive.py: the definition, in torch.  native.py: the
same by native/chw.c, one call for many steps.  coded.py: the tensors that native/chw_codes.c and
native/chw_plain.c read of steps with values and weights in codes of 8 bits.
"""

from .naive import NaiveProgram as NaiveProgram
from .native import NativeProgram as NativeProgram
from .native import available as available
from .steps import ACTS as ACTS
from .steps import Coding as Coding
from .steps import ProgramStep as ProgramStep
from .steps import Window as Window
from .steps import shapes_of as shapes_of
