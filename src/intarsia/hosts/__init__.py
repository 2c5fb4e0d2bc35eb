"""Model surgery: where cells go in a host model, how they get there, and how they come out."""

from ..core.renamed import renamed
from .adapt import Adapt as Adapt
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
from .pack import code_head as code_head
from .pack import pack as pack
from .pack import packed_size as packed_size
from .pack import unpack as unpack
from .saved import load as load
from .saved import save as save
from .student import student_of as student_of
from .swap import Upcycle as Upcycle
from .swap import looks_ahead as looks_ahead
from .swap import places_in as places_in
from .verbs import adapt as adapt
from .verbs import apply as apply
from .verbs import as_change as as_change
from .verbs import load_mixture as load_mixture
from .verbs import save_mixture as save_mixture
from .verbs import upcycle as upcycle

__getattr__ = renamed(
    __name__,
    {n: f"methods.{n}" for n in ("choose_channels", "co_permute", "Permutation")},
)
