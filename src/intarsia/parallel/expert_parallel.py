"""Our exchange under transformers' own expert parallelism: one of its `EPImplementation`s.

transformers shards experts while a checkpoint is loaded (`DistributedConfig(ep_size=...)`), keeps
the rest by FSDP2, and asks a named implementation to bring tokens to their experts. This one sends
each row once to each process that has some of its experts, as `ExpertParallel` plans it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core import Routing
from ..core.errors import ConfigError
from ..mixtures.experts import Experts
from ..mixtures.fused_experts import mixed_by
from ..placement.placement import Placement
from ..processes.exchange import Meter
from .places import Called
from .sharded import Sharded

NAME = "intarsia"  # DistributedConfig(ep_implementation=NAME)


def register_exchange(meter: Meter | None = None) -> str:
    """Register this library's exchange of tokens for transformers' expert parallelism.

    Returns its name, for `ep_implementation=`. Then: AutoModelForCausalLM.from_pretrained(folder,
    distributed_config=DistributedConfig(fsdp_size=4, ep_size=4,
    ep_implementation=register_exchange())), in each of four processes.
    Layers are numbered in the order in which they are sharded, from 0 after each call. Each of D
    processes has E / D experts, in order. A row is sent once to each process that has at least one
    of its experts; transformers' own all_to_all sends it once for each expert.
    meter: counts bytes, by the steps of `ExpertParallel().plan`.

    Raises: ConfigError for a transformers without the interface (before 5.21), and, when a model is
    loaded, for processes that share a batch (tp_size > 1).
    """
    try:
        from transformers.distributed import expert_parallel as theirs
    except ImportError as error:
        import transformers

        got, fix = f"transformers {transformers.__version__}", "pip install -U 'transformers>=5.21'"
        want = "one with EPImplementationInterface, 5.21 or newer"
        raise ConfigError("expert parallelism", got=got, want=want, fix=fix) from error

    # one number per sharded layer, across all models that are loaded after this call
    numbers = itertools.count()

    class Exchange(theirs.EPImplementation):
        def __init__(self, experts: Any, ep_mesh: Any, tp_mesh: Any) -> None:
            """Prepare the exchange of one layer; each process has a contiguous group of experts."""
            super().__init__(experts, ep_mesh, tp_mesh)
            if tp_mesh.size() > 1:
                got, want = f"{tp_mesh.size()} processes that share a batch", "rows of its own each"
                fix = "Use tp_size=1, or ep_implementation='all_to_all'."
                raise ConfigError("expert parallelism", got=got, want=want, fix=fix)
            local, group = _Local(self.experts_forward, experts.num_experts), ep_mesh.get_group()
            experts_of_all = local.experts * ep_mesh.size()
            holds = Placement.contiguous(1, experts_of_all, ep_mesh.size()).holds[0]
            # expert e is on process e // (E / D), as transformers shards the weights
            part = Sharded(local, holds, group=group, meter=meter, layer=next(numbers))
            self.called = Called(part, experts_of_all)

        def __call__(self, *arguments: Any) -> Tensor:
            return self.called(*arguments)

    theirs.EPImplementationInterface.register(NAME, Exchange)
    return NAME


class _Local(Experts):
    """Experts of this process, computed by transformers' own function for them."""

    def __init__(self, function: Callable[..., Tensor], experts: int) -> None:
        super().__init__()
        self.function, self.experts = function, experts

    def mix(self, x: Tensor, routing: Routing) -> Tensor:
        return mixed_by(self.function, x, routing)

    def forward(self, rows: Tensor, expert: Tensor) -> Tensor:
        return self.function(rows, expert[:, None], rows.new_ones(len(rows), 1))

    def every(self, x: Tensor) -> Tensor:
        indices = (torch.full((len(x),), e, device=x.device) for e in range(self.experts))
        return torch.stack([self.forward(x, expert) for expert in indices], 1)
