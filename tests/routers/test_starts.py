"""First weights of routers are drawn from the distributions that their docstrings name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from intarsia.routers import (
    Comet,
    Cosine,
    DSelectK,
    EvoMoe,
    ExpertChoice,
    NoisyTopK,
    PermutationSearch,
    Recurrent,
    ReMoe,
    Switch,
    TaskRouter,
    TopK,
    TopP,
    Transport,
)
from intarsia.routers.union import UnionGate

from ..toys import seeded

WIDTH = 256
ROUTERS: dict[str, Any] = {
    "comet": Comet(experts=32, active=4, gamma=0.5),
    "cosine": Cosine(experts=32, width=128, std=0.3, tau=0.25),
    "dselect": DSelectK(experts=32, active=4, gamma=0.5),
    "evomoe": EvoMoe(experts=32),
    "choice": ExpertChoice(experts=32, std=0.3),
    "noisy": NoisyTopK(experts=32, std=0.3),
    "permutation": PermutationSearch(TopK(32)),
    "recurrent": Recurrent(experts=32, hidden=64, std=0.3),
    "relu": ReMoe(experts=32),
    "switch": Switch(experts=32, std=0.3),
    "topk": TopK(experts=32, std=0.3, bias=True),
    "topp": TopP(experts=32, std=0.3),
    "transport": Transport(experts=32, std=0.3),
    "union": UnionGate(experts=32, std=0.3),
}
# of each parameter: its deviation if it is normal, its largest size if it is uniform
STARTS: dict[str, dict[str, tuple[str, float]]] = {
    "comet": {
        "splits": ("uniform", 0.005), "offsets": ("constant", 0),
        "leaves": ("uniform", 0.05), "leaf_offsets": ("uniform", 0.05),
    },
    "cosine": {
        "project.weight": ("uniform", 1 / 16), "project.bias": ("uniform", 1 / 16),
        "directions": ("normal", 0.3), "log_scale": ("constant", 4),
    },
    "dselect": {"bits": ("uniform", 0.005), "mix": ("uniform", 0.05)},
    "evomoe": {"weight": ("normal", 0.02)},
    "choice": {"weight": ("normal", 0.3)},
    "noisy": {"gate": ("normal", 0.3), "spread": ("constant", 0)},
    "permutation": {"gate.weight": ("normal", 0.02), "scores": ("uniform", 0.05)},
    "recurrent": {
        "weight": ("normal", 0.3), "down": ("normal", 1 / 16),
        "cell.weight_ih": ("uniform", 1 / 8), "cell.weight_hh": ("uniform", 1 / 8),
        "cell.bias_ih": ("constant", 0), "cell.bias_hh": ("constant", 0),
    },
    "relu": {"weight": ("normal", 0.02)},
    "switch": {"weight": ("normal", 0.3)},
    "topk": {"weight": ("normal", 0.3), "bias": ("constant", 0)},
    "topp": {"weight": ("normal", 0.3)},
    "transport": {"weight": ("normal", 0.3)},
    "union": {"weight": ("normal", 0.3), "bias": ("constant", 0)},
}  # fmt: skip


def check_start(weight: torch.Tensor, kind: str, size: float) -> None:
    """Raise AssertionError unless many draws of such a distribution would be these."""
    rough = 6 / weight.numel() ** 0.5
    if kind == "constant":
        assert torch.equal(weight, torch.full_like(weight, size))
        return
    deviation = size if kind == "normal" else size / 3**0.5
    assert abs(float(weight.mean())) < rough * deviation
    assert float(weight.std()) == pytest.approx(deviation, rel=rough)
    largest = float(weight.abs().max())
    assert largest <= size if kind == "uniform" else largest > 2 * size


@pytest.mark.parametrize("name", ROUTERS)
def test_first_weights_have_their_distribution(name: str) -> None:
    router = ROUTERS[name].build(WIDTH, generator=seeded())
    weights = {n: p.detach() for n, p in router.named_parameters()}
    assert set(weights) == set(STARTS[name])
    for parameter, (kind, size) in STARTS[name].items():
        weight = weights[parameter]
        check_start(weight.exp() if parameter == "log_scale" else weight, kind, size)


def test_logits_of_a_new_task_are_drawn_as_the_first_ones_were() -> None:
    router = TaskRouter(tasks=40, skills=8, heads=4, generator=seeded())
    first = router.logits.detach().clone()
    check_start(first, "uniform", 1e-3)
    router.add_task(seeded(1))
    assert torch.equal(router.logits[:-1], first) and router.tasks == 41
    assert 0 < float(router.logits[-1].detach().abs().max()) <= 1e-3
