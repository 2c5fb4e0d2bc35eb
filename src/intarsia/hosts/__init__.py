"""Model surgery: where cells go in a host model, how they get there, and how they come out."""

from .adapt import adapt as adapt
from .combine import combine as combine
from .delta import SparseDelta as SparseDelta
from .delta_cells import attach_delta as attach_delta
from .delta_cells import delta_of as delta_of
from .experts import expert_loads as expert_loads
from .experts import merge_mixtures as merge_mixtures
from .experts import prune_experts as prune_experts
from .export import export_timm as export_timm
from .fold import fold as fold
from .graphs import export_onnx as export_onnx
from .graphs import export_program as export_program
from .load import load as load
from .mixture_file import load_mixture as load_mixture
from .mixture_file import save_mixture as save_mixture
from .pack import code_head as code_head
from .pack import pack as pack
from .pack import packed_size as packed_size
from .pack import unpack as unpack
from .permute import Permutation as Permutation
from .permute import co_permute as co_permute
from .slices import choose_channels as choose_channels
from .student import student_of as student_of
from .swap import looks_ahead as looks_ahead
from .swap import upcycle as upcycle
