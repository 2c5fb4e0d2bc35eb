"""The definition of each step of native/decoder.c and native/attention.c, in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .steps import (
    AddStep,
    AttendStep,
    ClipStep,
    DecoderStep,
    EmbedStep,
    MixStep,
    NormStep,
    ProductStep,
    RotateStep,
    RouteStep,
    SquashStep,
    Value,
)

ACT: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class NaiveDecoder:
    """Steps on rows of float32, by name.

    Each row is a token with the slot of its text and its place there. New keys and values of all
    rows are written before any row attends, so that rows of one text may be the tokens of a prompt.
    """

    def __init__(self, steps: Sequence[DecoderStep]) -> None:
        self.steps = tuple(steps)

    def __call__(self, tokens: Tensor, slots: Tensor, places: Tensor) -> Tensor:
        """Carry out the program for N tokens; return the result of the last step, (N, width)."""
        # (N,) each: a row's token, the number of its text in the cache, its position in the text
        memory: dict[str, Tensor] = {}
        _carry_out(self.steps, memory, tokens, slots, places)
        return _read(memory, self.steps[-1].dst)


def _carry_out(
    steps: Sequence[DecoderStep],
    memory: dict[str, Tensor],
    tokens: Tensor,
    slots: Tensor,
    places: Tensor,
) -> None:
    for step in steps:
        _write(memory, step.dst, _result(step, memory, tokens, slots, places))


def _read(memory: Mapping[str, Tensor], value: Value) -> Tensor:
    """Return the columns of a value, (N, width)."""
    return memory[value.name][:, value.first : value.first + value.width]


def _write(memory: dict[str, Tensor], value: Value, result: Tensor) -> None:
    """Write a result into its value's columns, or as whole rows if the value is all of them."""
    before = memory.get(value.name)
    if value.first == 0 and (before is None or before.shape[1] == value.width):
        memory[value.name] = result
    else:
        assert before is not None  # programs write a value of several parts as a whole at first
        before[:, value.first : value.first + value.width] = result


def _result(
    step: DecoderStep, memory: dict[str, Tensor], tokens: Tensor, slots: Tensor, places: Tensor
) -> Tensor:
    """Compute the result of a step, (N, width)."""
    # tokens, slots, places: (N,) each
    if isinstance(step, EmbedStep):
        return step.scale * step.table[tokens].float()
    if isinstance(step, ClipStep):
        return _read(memory, step.dst).clamp(-step.limit, step.limit)
    if isinstance(step, SquashStep):
        return _squashed(_read(memory, step.dst), step.limit)
    if isinstance(step, RotateStep):
        return _rotated(_read(memory, step.dst), step, places)
    if isinstance(step, AttendStep):
        return _attended(step, memory, slots, places)
    # All other kinds of steps read one value, and some a second.
    x = _read(memory, step.src)
    if isinstance(step, NormStep):
        return _normed(x, step)
    if isinstance(step, RouteStep):
        return _routed(x, step)
    if isinstance(step, MixStep):
        return _mixed(x, _read(memory, step.gates), step)
    if isinstance(step, ProductStep):
        y = step.matmul(x)
        return y if step.bias is None else y + step.bias.float()
    operand = _read(memory, step.other)
    return x + operand if isinstance(step, AddStep) else ACT[step.act](x) * operand


def _normed(x: Tensor, step: NormStep) -> Tensor:
    """Normalise each `step.size` numbers of a row: a LayerNorm if centred, else an RMSNorm."""
    # x: (N, width)
    parts = x.unflatten(1, (-1, step.size))
    if step.centred:
        parts = parts - parts.mean(2, keepdim=True)
    parts = parts * (parts.square().mean(2, keepdim=True) + step.eps).rsqrt()
    return (parts if step.weight is None else parts * step.weight.float()).flatten(1)


def _squashed(x: Tensor, limit: float) -> Tensor:
    """Return limit tanh(x / limit)."""
    return limit * (x / limit).tanh()


def _rotated(x: Tensor, step: RotateStep, places: Tensor) -> Tensor:
    """Apply rotary positions to each head.  x: (N, heads * size) -> the same shape."""
    heads = x.unflatten(1, (step.heads, -1))
    cos, sin = (t[places].float()[:, None] for t in (step.cos, step.sin))  # (N, 1, turned)
    # Some models rotate the first numbers of a head alone.
    turned, rest = heads[..., : cos.shape[-1]], heads[..., cos.shape[-1] :]
    first, second = turned.chunk(2, -1)
    turned = turned * cos + torch.cat((-second, first), -1) * sin
    return torch.cat((turned, rest), -1).flatten(1)


def _attended(
    step: AttendStep, memory: Mapping[str, Tensor], slots: Tensor, places: Tensor
) -> Tensor:
    """Write new keys and values into the cache, and attend to it.  -> (N, heads * size)."""
    # slots, places: (N,), the number of each row's text in the cache, its position there
    keys, values, sink = step.cache
    groups, length = keys.shape[1], keys.shape[2]
    # a ring behind the sink: write before any row attends, rows of a prompt see each other
    ring = max(1, length - sink)
    written = torch.where(places < sink, places, sink + (places - sink) % ring)
    for cached, value in ((keys, step.key), (values, step.value)):
        cached[slots, :, written] = _read(memory, value).unflatten(1, (groups, -1)).to(cached)
    query = _read(memory, step.query).unflatten(1, (groups, step.heads // groups, -1))
    scores = torch.einsum("nghd,ngpd->nghp", query, keys[slots].float()) * step.scale
    scores = _squashed(scores, step.limit) if step.limit else scores
    # the text position of the key that an entry of the cache holds, for each row: (N, length)
    index, last = torch.arange(length), places[:, None]
    place = torch.where(index < sink, index, last - (last - index) % ring)
    near = last - place < step.window if step.window else place >= 0
    # A row sees the sink, and of the rest the last `window` places, or all before it.
    mask = (place <= last) & (index < sink) | (place >= sink) & near
    weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    return torch.einsum("nghp,ngpd->nghd", weights, values[slots].float()).flatten(1)


def _routed(scores: Tensor, step: RouteStep) -> Tensor:
    """Return a weight for the experts with the largest scores, and 0 for the others, (N, E)."""
    best, experts = scores.topk(step.active, 1)
    if step.share == "softmax":
        weights = scores.softmax(1).gather(1, experts)
    else:
        weights = best.sigmoid() if step.share == "sigmoid" else best.softmax(1)
    return torch.zeros_like(scores).scatter(1, experts, weights)


def _mixed(x: Tensor, gates: Tensor, step: MixStep) -> Tensor:
    """Add up the outputs of each row's experts, times their gates.  -> (N, width)."""
    y, reader = torch.zeros_like(x), step.reader
    # a gate of 0: the row does not go to the expert
    loads = (gates != 0).sum(0).tolist()
    used = [expert for expert, rows in enumerate(loads) if rows]
    if reader is not None:
        reader.begin(used)
    try:
        for expert in used:
            if reader is not None:
                reader.bring(expert)
            # a reader brings each expert's weights into the one program that there is then
            program = step.experts[0 if reader is not None else expert]
            rows = gates[:, expert].nonzero().flatten()
            memory = {step.rows.name: x[rows]}
            nowhere = rows.new_zeros(0)  # no step of an expert reads tokens or places
            _carry_out(program, memory, nowhere, nowhere, nowhere)
            y[rows] += gates[rows, expert, None] * _read(memory, step.rows)
    finally:
        if reader is not None:
            reader.end()
    return y
