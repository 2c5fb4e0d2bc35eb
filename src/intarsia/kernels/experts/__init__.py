"""sum_e G_te expert_e(x_t) over the pairs (token t, expert e) of a routing, of weight G_te.

naive.py: the definitions. rows.py: experts that are any functions, slice by slice. grouped.py:
products of sorted rows with a matrix for each expert. mlps.py: a mixture of MLPs as one operator,
on the rows that blocks.py lays out. native.py: the same in one call of C, without a backward.
segments.py: the pairs of an expert as sequences, for attention. stacks.py: the parameters that are
such stacks. flops.py: the cost of the operators.
Plain tensors only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import flops as flops
from .acts import act_name as act_name
from .grouped import grouped as grouped
from .mlps import mix_mlps as mix_mlps
from .mlps import mixed_mlps as mixed_mlps
from .naive import mix_naive as mix_naive
from .naive import mlps_naive as mlps_naive
from .rows import AllTokens as AllTokens
from .rows import PairsByExpert as PairsByExpert
from .rows import Slices as Slices
from .rows import Weighted as Weighted
from .rows import add_mix as add_mix
from .rows import by_expert as by_expert
from .rows import ends_of as ends_of
from .rows import group_pairs as group_pairs
from .segments import Segments as Segments
from .stacks import stacked_matrices as stacked_matrices


def fused(act: nn.Module, x: Tensor, *, learned: bool) -> str | None:
    """Return the name of an activation if `mixed_mlps` can compute experts with it, else None.

    x: the input, which must be on the CPU; learned: a backward will follow. The operator then keeps
      rows for it; their number depends on the experts' loads, which a compiled graph cannot know.
    """
    if x.device.type != "cpu" or (learned and torch.compiler.is_compiling()):
        return None
    return act_name(act)
