"""A small learnable problem for each task, shared by the tests of tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from intarsia.train import (
    Classes,
    Heads,
    MultiLabel,
    NextItem,
    Pairs,
    Reconstruction,
    Regression,
    Task,
    Tokens,
)

WIDTH, ITEMS = 6, 9


class Sequences(nn.Module):
    """(B, T) -> logits (B, T, items), or of the last place only: the sum of what came before."""

    def __init__(self, *, every: bool = True) -> None:
        super().__init__()
        self.every = every
        self.read, self.write = nn.Embedding(ITEMS, WIDTH), nn.Linear(WIDTH, ITEMS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        output = self.write(self.read(input_ids))
        return output if self.every else output[:, -1]


def rows(count: int, seed: int) -> list[Tensor]:
    """Draw sessions in which the next item follows each one, and 1 follows 8."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(ITEMS - 1, (count,), generator=generator)
    return [(start + torch.arange(3 + i % 3)) % (ITEMS - 1) + 1 for i, start in enumerate(starts)]


def texts(count: int, seed: int) -> list[dict[str, Tensor]]:
    return [{"input_ids": row, "labels": row} for row in rows(count, seed)]


def histories(count: int, seed: int) -> list[tuple[Tensor, int]]:
    return [(row[:-1], int(row[-1])) for row in rows(count, seed)]


def noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def seen_as(label: Callable[[Tensor], Tensor]) -> Callable[[int, int], TensorDataset]:
    """Rows of noise, labelled by a function of them."""
    return lambda count, seed: TensorDataset(x := noise(count, seed), label(x))


def two_views(count: int, seed: int) -> TensorDataset:
    """A row, and the same row turned and blurred."""
    turn = noise(WIDTH, 99)
    x = noise(count, seed)
    return TensorDataset(x, x @ turn + 0.1 * noise(count, seed + 1))


class Towers(nn.Module):
    """An encoder for both sides, which has to undo the turn."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


def quadrant(x: Tensor) -> Tensor:
    return (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def auto_encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))


def linear(out: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(WIDTH, out)


@dataclass(frozen=True)
class Case:
    """A task with a model and data; `score` reaches `bar` after some epochs."""

    task: Task
    model: Callable[[], nn.Module]
    data: Callable[[int, int], Any]
    score: str
    bar: float
    epochs: int = 10

    def build(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.model()


GROUPS: Sequence[Sequence[int]] = ([0, 2], [1, 3])
CASES = {
    "classes": Case(Classes(), linear(4), seen_as(quadrant), "accuracy", 0.9),
    "tokens": Case(Tokens(), Sequences, texts, "accuracy", 0.95),
    "heads": Case(Heads(groups=GROUPS), linear(4), seen_as(quadrant), "own_task_accuracy", 0.9),
    "labels": Case(
        MultiLabel(),
        linear(WIDTH),
        seen_as(lambda x: (x > 0.5).long()),
        "mean_average_precision",
        0.95,
    ),
    "regression": Case(
        Regression(), linear(2), seen_as(lambda x: x[:, :2] - 2 * x[:, 2:4]), "r2", 0.95
    ),
    "items": Case(NextItem(k=2), Sequences, histories, "hit_rate_2", 0.95),
    "last-items": Case(
        NextItem(every=False, k=2),
        lambda: Sequences(every=False),
        histories,
        "reciprocal_rank",
        0.95,
    ),
    "pairs": Case(Pairs(group=4, k=3), Towers, two_views, "hit_rate_3", 0.5, epochs=20),
    "reconstruction": Case(Reconstruction(), auto_encoder, seen_as(quadrant), "psnr", 10.0),
}
