"""Results as `cells` gives them, made up: nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

MakeRow = Callable[..., dict[str, Any]]


def _layer(experts: int, drop: float) -> dict[str, Any]:
    table = [[10 * (e == c) + c for c in range(3)] for e in range(experts)]
    return {
        "path": "mlp", "experts": experts, "load": [10] * experts, "load_cv": 0.25, "active": 2.0,
        "gate_entropy": 0.5, "dropped": drop, "dropped_by_position": [drop] * 4,
        "dropped_by_place": [0.0, drop, drop, 2 * drop], "table": [*table, [0, 0, 0]],
        "specialisation": {"information": 0.3, "normalised": 0.4},
    }  # fmt: skip


@pytest.fixture
def make_row() -> MakeRow:
    """A cell's result; layers=0 is a dense model, text=False pictures."""

    def make(
        name: str = "topk", seed: int = 0, loss: float = 3.0, *, budget: str = "steps",
        layers: int = 2, drop: float = 0.0, text: bool = True, **changed: Any,
    ) -> dict[str, Any]:  # fmt: skip
        point = {"load_cv": 0.3, "active": 2.0, "gate_entropy": 0.6}
        row = {
            "name": name, "data": "austen" if text else "fashion-mnist", "seed": seed,
            "budget": budget, "steps": 100, "loss": loss, "accuracy": 0.3, "sees_later": False,
            "classes": ["space", "<script>alert(1)</script>", "word"], "router_time": 0.2,
            "parameters": {"total": 900, "routers": 64 if layers else 0, "experts": 400},
            "flops": {"total": 1e12 * (1 + seed), "rest": 0.0, "routers": 0.0, "experts": 0.0},
            "seconds": 2.0, "cpu_seconds": 1.5,
            "curve": [
                {"step": s, "flops": 1e10 * s * (1 + seed), "loss": loss + 1 / s,
                 "layers": [point] * layers} for s in (25, 50, 75, 100)
            ],
            "layers": [_layer(4, drop) for _ in range(layers)],
            "agreement": [{"information": 0.1, "normalised": 0.2}] * max(0, layers - 1),
        }  # fmt: skip
        if text:
            row |= {"bits_per_byte": loss / 2, "swapped_loss": loss + 0.1,
                      "loss_by_position": [loss + 0.3, loss, loss, loss]}  # fmt: skip
        return row | changed

    return make
