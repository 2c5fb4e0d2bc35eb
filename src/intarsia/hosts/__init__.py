"""Model surgery: where cells go in a host model, how they get there, and how they come out."""

from ..core.renamed import renamed
from .attach.adapt import Adapt as Adapt
from .attach.as_lora import as_lora as as_lora
from .delta.cells import attach_delta as attach_delta
from .delta.cells import delta_of as delta_of
from .delta.combine import combine as combine
from .delta.sparse_delta import SparseDelta as SparseDelta
from .out.export import export_timm as export_timm
from .out.fold import fold as fold
from .out.graphs import export_onnx as export_onnx
from .out.graphs import export_program as export_program
from .out.pack import code_head as code_head
from .out.pack import pack as pack
from .out.pack import packed_size as packed_size
from .out.pack import unpack as unpack
from .saved import load as load
from .saved import save as save
from .swap.experts import expert_loads as expert_loads
from .swap.experts import merge_mixtures as merge_mixtures
from .swap.experts import prune_experts as prune_experts
from .swap.student import student_of as student_of
from .swap.upcycle import Upcycle as Upcycle
from .swap.upcycle import looks_ahead as looks_ahead
from .swap.upcycle import places_in as places_in
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
