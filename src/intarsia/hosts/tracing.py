"""Recording who goes where: of stock sparse models and of our own mixtures, as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core import Routing
from ..core.errors import DataError, TargetError
from ..core.modes import evaluating
from ..mixtures.experts import StackedExperts
from ..mixtures.experts_function import StockExperts, arguments, stock_experts
from ..mixtures.mixture import Mixture, spread
from ..placement.trace import NONE, Trace
from .anatomy.compare import call
from .anatomy.gates import HostedRouter, own_gate
from .anatomy.gates import probabilities as probabilities_of

Report = Callable[[str], None]


def _empty() -> dict[str, tuple[Tensor, Tensor]]:
    return {}


@dataclass
class Recorder:
    """The newest forward's experts and weights of each layer, (T, k) each, by path."""

    seen: dict[str, tuple[Tensor, Tensor]] = field(default_factory=_empty)


@contextmanager
def recording(model: nn.Module, *, probabilities: bool = False) -> Iterator[Recorder]:
    """Inside, each forward's routing is kept; outputs are the same bits.

    probabilities: of a stock model, every expert of each token with the gate's probability.
    Raises: TargetError for a model without experts, or gates whose probabilities are not known.
    """
    found = Recorder()
    stock = stock_experts(model)
    if probabilities:
        hooks = [
            stock_gate(model, path).register_forward_hook(_every(found, path)) for path in stock
        ]
    else:
        hooks = [
            of.module.register_forward_pre_hook(_stock(found, path), with_kwargs=True)
            for path, of in stock.items()
        ]
    hooks += [m.router.register_forward_hook(_own(found, path)) for path, m in own_mixtures(model)]
    if not hooks:
        got, fix = f"a {type(model).__name__} without experts", "Use a sparse model, or upcycle it."
        raise TargetError("model to trace", got=got, want="mixtures of experts", fix=fix)
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def stock_gate(model: nn.Module, path: str) -> nn.Module:
    """The host's own gate beside the experts at a path.

    Raises: TargetError for none, or a router put in its place.
    """
    block = model.get_submodule(path.rpartition(".")[0])
    gate = own_gate(block)
    if gate is None or isinstance(gate, HostedRouter):
        got = "a router in its place" if gate is not None else f"none in {type(block).__name__}"
        fix = "Use the stock model, before upcycle(...) gives it another router."
        raise TargetError(f"gate beside {path!r}", got=got, want="the host's own", fix=fix)
    return gate


def own_mixtures(model: nn.Module) -> list[tuple[str, Mixture]]:
    """Our mixtures in a model, by path, in order."""
    return [(path, m) for path, m in model.named_modules() if isinstance(m, Mixture)]


def _stock(into: Recorder, path: str) -> Callable[..., None]:
    def keep(_: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        _, index, weights = arguments(given, named)
        into.seen[path] = index.detach().cpu(), weights.detach().float().cpu()

    return keep


def _every(into: Recorder, path: str) -> Callable[..., None]:
    def keep(gate: nn.Module, _: Any, output: Any) -> None:
        p = probabilities_of(gate, output).detach().cpu()  # (T, E)
        into.seen[path] = torch.arange(p.shape[1]).expand(p.shape), p

    return keep


def _own(into: Recorder, path: str) -> Callable[..., None]:
    def keep(_: Any, given: tuple[Any, ...], routing: Routing) -> None:
        into.seen[path] = in_columns(spread(routing, given[0]))

    return keep


def in_columns(routing: Routing) -> tuple[Tensor, Tensor]:
    """A routing as (T, k) experts, -1 where a token has fewer, and their weights."""
    some = routing.weight.detach().float().cpu() != 0  # padding may have pairs, of weight 0
    token, expert = routing.token.cpu()[some], routing.expert.cpu()[some]
    weight = routing.weight.detach().float().cpu()[some]
    order = token.argsort(stable=True)
    token = token[order]
    counts = torch.bincount(token, minlength=routing.tokens)
    place = torch.arange(len(token)) - (counts.cumsum(0) - counts)[token]
    k = max(1, int(counts.max())) if len(counts) else 1
    experts = torch.full((routing.tokens, k), NONE)
    weights = torch.zeros(routing.tokens, k)
    experts[token, place], weights[token, place] = expert[order], weight[order]
    return experts, weights


@torch.no_grad()
def trace(
    model: nn.Module,
    texts: Iterable[Any],
    *,
    probabilities: bool = False,
    progress: Report = lambda _: None,
) -> Trace:
    """Run texts through a sparse model and keep each token's experts in every layer.

    texts: rows of `load_texts`, or batches: token ids (B, T), pictures, or a mapping of keywords
    with `attention_mask` for padding, which is not kept. Each row is a sequence. Before any
    capacity. The model, in evaluation, says what it says without.
    probabilities: every token has all E experts, its weights are the gate's probabilities: what
    `attribute_experts` reads. Of mixtures of ours the weights are those of the routing, as ever.

    Raises: TargetError for a model without experts, or one whose layers see different tokens;
    DataError for no texts.
    """
    parts: list[dict[str, Tensor]] = []
    sequences = tokens = 0
    with evaluating(model), recording(model, probabilities=probabilities) as recorder:
        for batch in texts:
            inputs = _inputs(batch)
            recorder.seen.clear()
            call(model, inputs)
            part = _rows(inputs, recorder.seen, sequences)
            sequences = int(part["sequence"].max()) + 1 if len(part["sequence"]) else sequences
            parts.append(part)
            tokens += len(part["sequence"])
            if len(parts) % 16 == 0:
                progress(f"{tokens} tokens of {sequences} sequences")
    if not tokens:
        raise DataError("texts", got="no tokens", want="some rows of text", fix="Pass a few rows.")
    k = max(part["expert"].shape[2] for part in parts)
    wide = [_widened(part, k) for part in parts]
    joined = {n: torch.cat([part[n] for part in wide]) for n in wide[0]}
    named, about = _about(model)
    experts = max(stock.experts for stock in named.values())
    token = joined.pop("token", None)
    return Trace(**joined, experts=experts, token=token, names=tuple(named), about=about)


def _inputs(batch: Any) -> dict[str, Tensor] | Tensor:
    """A batch as the model takes it; a single row becomes a batch."""
    if isinstance(batch, Mapping):
        given = {n: t for n, t in cast("Mapping[str, Tensor]", batch).items() if n != "labels"}
        return {n: t[None] if t.dim() == 1 else t for n, t in given.items()}
    rows = cast(Tensor, batch[0] if isinstance(batch, tuple | list) else batch)
    if rows.is_floating_point():
        return rows
    return {"input_ids": rows[None] if rows.dim() == 1 else rows}


def _rows(
    inputs: dict[str, Tensor] | Tensor, seen: Mapping[str, tuple[Tensor, Tensor]], first: int
) -> dict[str, Tensor]:
    """One batch's rows: sequence, position, expert, weight and token, padding left out."""
    whole = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    counts = {path: len(index) for path, (index, _) in seen.items()}
    if not counts or len(set(counts.values())) > 1 or next(iter(counts.values())) % len(whole):
        got = f"{counts or 'no tokens'} of {len(whole)} sequences"
        want, fix = "the same tokens in every layer", "Trace a decoder or an encoder by itself."
        raise TargetError("layers to trace", got=got, want=want, fix=fix)
    each = next(iter(counts.values())) // len(whole)
    k = max(index.shape[1] for index, _ in seen.values())
    expert = torch.stack([_padded(index, k, NONE) for index, _ in seen.values()], 1)
    weight = torch.stack([_padded(w, k, 0.0) for _, w in seen.values()], 1)
    found = {
        "expert": expert.to(torch.int16),
        "weight": weight,
        "sequence": first + torch.arange(len(whole)).repeat_interleave(each),
        "position": torch.arange(each).repeat(len(whole)),
    }
    if isinstance(inputs, Tensor):
        return found
    if "input_ids" in inputs:
        found["token"] = inputs["input_ids"].flatten().cpu()
    if (mask := inputs.get("attention_mask")) is not None:
        found = {name: t[mask.flatten().bool().cpu()] for name, t in found.items()}
    return found


def _padded(t: Tensor, k: int, value: float) -> Tensor:
    return nn.functional.pad(t, (0, k - t.shape[-1]), value=value)


def _widened(part: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    return part | {
        "expert": _padded(part["expert"], k, NONE),
        "weight": _padded(part["weight"], k, 0.0),
    }


def _about(model: nn.Module) -> tuple[dict[str, StockExperts], dict[str, str]]:
    """The layers, in the order in which they stand in the model, and what a trace says of it."""
    named = stock_experts(model)
    for path, mixture in own_mixtures(model):
        of = mixture.experts
        stacked = isinstance(of, StackedExperts)
        hidden, width = of.up.shape[1:] if stacked else (0, 0)
        gated = stacked and of.gate is not None
        named[path] = StockExperts(path, mixture, of.experts, width, hidden, gated)
    order = {path: i for i, (path, _) in enumerate(model.named_modules())}
    named = dict(sorted(named.items(), key=lambda item: order[item[0]]))
    about = {"model": type(model).__name__}
    kinds = {(stock.width, stock.hidden, stock.gated) for stock in named.values()}
    if len(kinds) == 1 and math.prod(next(iter(kinds))[:2]):
        width, hidden, gated = next(iter(kinds))
        about |= {"width": str(width), "hidden": str(hidden), "gated": str(gated).lower()}
    return named, about
