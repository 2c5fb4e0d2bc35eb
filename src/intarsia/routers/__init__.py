"""Which expert? A file per paper; every router maps x (T, ...) to a Routing, and nothing else."""

from ..core.renamed import renamed
from .activation import ActivationGate as ActivationGate
from .comet import Comet as Comet
from .dselect import DSelectK as DSelectK
from .evomoe import EvoMoe as EvoMoe
from .evomoe import anneal as anneal
from .evomoe import diversify_ as diversify_
from .expert_choice import ExpertChoice as ExpertChoice
from .hash import Hash as Hash
from .moe_x import MoeX as MoeX
from .noisy_topk import NoisyTopK as NoisyTopK
from .permutation import PermutationSearch as PermutationSearch
from .permutation import search_step as search_step
from .random import RandomRouter as RandomRouter
from .random import random_routers as random_routers
from .recurrent import Recurrent as Recurrent
from .switch import Switch as Switch
from .task import TaskRouter as TaskRouter
from .topk import TopK as TopK
from .topk import TopKRouter as TopKRouter
from .topp import TopP as TopP
from .transport import Transport as Transport
from .transport import k_sparse_ot as k_sparse_ot

_IN_GATING = (
    "Encoded", "Router", "aux_loss", "balance", "entropy", "join", "learned_routers", "non_causal",
    "passes", "redraw", "rejoin", "set_ids", "set_valid", "start", "task_ids", "with_experts",
    "z_loss",
)  # fmt: skip
__getattr__ = renamed(
    __name__,
    {name: f"gating.{name}" for name in _IN_GATING}
    | {
        "Draws": "gating.RandomSource",
        "Dts": "routers.EvoMoe",
        "Seeing": "gating.ReadsExperts",
        "Sparsity": "routers.MoeX",
        "Thread": "gating.LayerState",
        "Threaded": "gating.PassesState",
        "drawing": "gating.random_sources",
        "seeing": "gating.expert_readers",
    },
)
