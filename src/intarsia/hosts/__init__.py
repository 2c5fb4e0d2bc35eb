"""Model surgery: where cells go in a host model, how they get there, and how they come out."""

from .adapt import adapt as adapt
from .export import export_timm as export_timm
from .fold import fold as fold
from .graphs import export_onnx as export_onnx
from .graphs import export_program as export_program
from .load import load as load
