"""A token of a decoder as a program of steps on rows of numbers, for one text or several.

steps.py: what a step is.  naive.py: the definition, in torch.  native.py: the same by
native/decoder.c, one call for all steps.
"""

from .naive import NaiveDecoder as NaiveDecoder
from .native import NativeDecoder as NativeDecoder
from .steps import ACTS as ACTS
from .steps import SHARES as SHARES
from .steps import AddStep as AddStep
from .steps import AttendStep as AttendStep
from .steps import ClampStep as ClampStep
from .steps import ClipStep as ClipStep
from .steps import DecoderStep as DecoderStep
from .steps import EmbedStep as EmbedStep
from .steps import ExpertReader as ExpertReader
from .steps import ExpertStep as ExpertStep
from .steps import GateStep as GateStep
from .steps import LayerCache as LayerCache
from .steps import MixStep as MixStep
from .steps import NormStep as NormStep
from .steps import ProductStep as ProductStep
from .steps import RotateStep as RotateStep
from .steps import RouteStep as RouteStep
from .steps import SquashStep as SquashStep
from .steps import Value as Value
