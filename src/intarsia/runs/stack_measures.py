"""Measures of a stack of techniques: loss, bytes, operations, hits, traffic, times."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.modes import evaluating
from ..core.registry import card
from ..offloading.resident import offload
from ..placement.cache import replay
from ..placement.describe import demand
from ..placement.engines import ExpertSize, expert_parallel
from ..placement.placement import Placement
from ..placement.timeline import simulate
from ..placement.topology import Topology
from ..placement.trace import Trace
from ..sparse.swap.stock import gated_experts, skipping
from .stack_entries import DEVICES, Batch, Stacked, trace_of

SLOTS = 0.25
ITEM = 2  # bytes of a number that no format stores
LINKS = Topology.two_level(2, 2, intra=(300e9, 2e-6), inter=(25e9, 10e-6))


@dataclass(frozen=True)
class Measured:
    """Measures of a model with a stack of entries.

    each: cross-entropy of every sequence, nats a token; sent: bytes a token between devices;
    seconds: simulated on devices, and of this processor; exact: an offloaded one has the same bits.
    """

    names: tuple[str, ...]
    each: Tensor
    bytes: int
    operations: float
    hits: float
    sent: float | None
    seconds: tuple[float | None, float]
    exact: bool | None = None

    @property
    def loss(self) -> float:
        return float(self.each.mean())

    def row(self) -> dict[str, Any]:
        """Return the measures for JSON."""
        return {
            "entries": " + ".join(self.names) or "none",
            "cross_entropy": self.loss,
            "bytes": self.bytes,
            "operations": self.operations,
            "hit_rate": self.hits,
            "sent_bytes": self.sent,
            "simulated_seconds": self.seconds[0],
            "cpu_seconds": self.seconds[1],
        }


def measure(stacked: Stacked, names: tuple[str, ...], rows: Sequence[Batch]) -> Measured:
    """Measure a model with techniques: loss, bytes, operations, cache hits, traffic, times."""
    started = time.process_time()
    sequence_losses = losses(stacked.model, rows, stacked.below)
    cpu = time.process_time() - started
    trace = trace_of(stacked, rows)
    policy = card(stacked.policy or "expected").config().build(trace.layers, trace.experts)
    # a cache with room for a quarter of all experts
    slots = max(2, round(SLOTS * trace.layers * trace.experts))
    hits = replay(demand(trace, 1), policy, slots).rate
    # simulated; the seconds of this processor are measured
    sent, seconds = _on_devices(trace)
    exact = _offloaded_is_exact(stacked, rows[:1]) if stacked.policy else None
    return Measured(
        names,
        sequence_losses,
        stored_bytes(stacked),
        _operations(stacked, trace),
        hits,
        sent,
        (seconds, cpu),
        exact,
    )


@torch.no_grad()
def losses(model: Any, rows: Sequence[Batch], below: Mapping[str, float]) -> Tensor:
    """Return the cross-entropy of each sequence in nats a token, (S,) float64.

    below: router's path -> ratio of gates below which a token's second expert is skipped.
    """
    sequence_losses: list[Tensor] = []
    with evaluating(model), skipping(model, below):
        for batch in rows:
            logits = model(**batch).logits[:, :-1].float()
            # position t predicts token t + 1
            loss = F.cross_entropy(
                logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none"
            )
            sequence_losses.append(loss.double().mean(1))
    return torch.cat(sequence_losses)


def stored_bytes(stacked: Stacked) -> int:
    """Return the bytes of the tensors in a safetensors file with every weight, routers included."""
    return _payload(safetensors.torch.save(_tensors(stacked)))


def _payload(file: bytes) -> int:
    # a safetensors file begins with 8 bytes for the length of its header
    return len(file) - 8 - int.from_bytes(file[:8], "little")


def _tensors(stacked: Stacked) -> dict[str, Tensor]:
    """Return all tensors of the model as they would be stored, by name, to count their bytes."""
    paths = tuple(f"{path}." for path in gated_experts(stacked.model))
    tensors: dict[str, Tensor] = {}
    for name, p in stacked.model.named_parameters():  # a tied head is named once
        if not name.startswith(paths):
            tensors[name] = p.detach().bfloat16().contiguous()
    for path, name, expert, weight in stacked.matrices():
        for number, part in enumerate(stacked.stored.get((path, name, expert), (weight,))):
            key = f"{path}.{expert}.{name}.{number}"
            if stacked.format is None:
                tensors[key] = part.bfloat16().contiguous().clone()
            else:
                tensors |= {f"{key}.{n}": t for n, t in stacked.format.encode(part).items()}
    return tensors


def expected_bytes(stacked: Stacked) -> int:
    """Compute the bytes of a model's tensors from their shapes, to check `stored_bytes`.

    Two bytes for a number, or for experts what their format states for a matrix of that shape.
    """
    paths = tuple(f"{path}." for path in gated_experts(stacked.model))
    total = ITEM * sum(
        p.numel() for name, p in stacked.model.named_parameters() if not name.startswith(paths)
    )
    for path, name, expert, weight in stacked.matrices():
        for part in stacked.stored.get((path, name, expert), (weight,)):
            total += stacked.format.size(part.shape) if stacked.format else ITEM * part.numel()
    return total


def _operations(stacked: Stacked, trace: Trace) -> float:
    """Count a token's multiplications and additions: of its experts and all the rest."""
    paths = list(gated_experts(stacked.model))
    prefixes = tuple(f"{path}." for path in paths)
    # a tied embedding is the head's matrix, an untied one is looked up
    model = stacked.model
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    looked_up = None if head is not None and head.weight is words.weight else words.weight
    fixed = sum(
        p.numel()
        for name, p in stacked.model.named_parameters()
        if p.dim() == 2 and p is not looked_up and not name.startswith(prefixes)
    )
    # an expert costs its stored numbers each time that a token visits it
    cost = torch.zeros(trace.layers, trace.experts, dtype=torch.float64)
    for path, name, expert, weight in stacked.matrices():
        parts = stacked.stored.get((path, name, expert), (weight,))
        cost[paths.index(path), expert] += sum(part.numel() for part in parts)
    # a multiplication and an addition for each weight
    return 2 * (fixed + float((trace.load() * cost).sum()) / len(trace))


def _on_devices(trace: Trace) -> tuple[float | None, float | None]:
    """Simulate the model on several devices: return bytes a token between them, and seconds."""
    if trace.experts % DEVICES:
        return None, None
    # experts in their order, as many on each device
    placement = Placement.contiguous(trace.layers, trace.experts, DEVICES)
    plan = expert_parallel(trace, placement, ExpertSize.of(trace, ITEM), nodes=LINKS.nodes())
    return float(plan.bytes().sum()) / len(trace), simulate(plan, LINKS).seconds


def _offloaded_is_exact(stacked: Stacked, rows: Sequence[Batch]) -> bool:
    """Return True if losses are bit-equal with a quarter of the experts in memory."""
    with tempfile.TemporaryDirectory() as folder:
        stacked.model.save_pretrained(Path(folder, "model"))
        policy = card(stacked.policy or "expected").config()
        count = sum(layer.experts for layer in gated_experts(stacked.model).values())
        slots = max(2, round(SLOTS * count))
        # experts are loaded from disk as the router asks for them
        small: Any = offload(Path(folder, "model"), slots=slots, policy=policy)
        in_memory, two = (losses(m, rows, stacked.below) for m in (stacked.model, small))
        del small
    return torch.equal(in_memory, two)
