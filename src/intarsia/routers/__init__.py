"""Which expert? A file per paper; every router maps x (T, ...) to a Routing, and nothing else."""

from ..core.exports import exports

_IN_GATING = (
    *("Encoded", "Router", "aux_loss", "balance", "entropy", "join", "learned_routers"),
    *("non_causal", "passes", "redraw", "rejoin", "set_ids"),
    *("set_valid", "start", "task_ids", "with_experts", "z_loss"),
)
_OLD = {name: f"gating.{name}" for name in _IN_GATING} | {
    "Draws": "gating.RandomSource",
    "Dts": "routers.EvoMoe",
    "Seeing": "gating.ReadsExperts",
    "Sparsity": "routers.MoeX",
    "Thread": "gating.LayerState",
    "Threaded": "gating.PassesState",
    "drawing": "gating.random_sources",
    "seeing": "gating.expert_readers",
}

__getattr__, __dir__, __all__ = exports(__name__, __file__, _OLD)
