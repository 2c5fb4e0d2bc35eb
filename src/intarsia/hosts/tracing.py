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
    """Record of the newest forward's routing: path of a layer -> (experts, weights).

    Each is (T, k) for T tokens with k experts.
    """

    routes: dict[str, tuple[Tensor, Tensor]] = field(default_factory=_empty)


@contextmanager
def recording(model: nn.Module, *, probabilities: bool = False) -> Iterator[Recorder]:
    """Record the routing of every forward inside the `with`; outputs keep their bits.

    probabilities: for a stock model, record every expert of each token with the gate's probability,
    not only those chosen. Yields the record, which each forward updates.
    Raises: TargetError for a model without experts, or gates without known probabilities.
    """
    recorder = Recorder()
    stock = stock_experts(model)
    # a stock gate's output has a probability for every expert; its experts' input, the chosen
    # ones
    if probabilities:
        hooks = [
            stock_gate(model, path).register_forward_hook(_probabilities_hook(recorder, path))
            for path in stock
        ]
    else:
        hooks = [
            experts.module.register_forward_pre_hook(_stock_hook(recorder, path), with_kwargs=True)
            for path, experts in stock.items()
        ]
    hooks += [
        m.router.register_forward_hook(_router_hook(recorder, path))
        for path, m in own_mixtures(model)
    ]
    if not hooks:
        got, fix = f"a {type(model).__name__} without experts", "Use a sparse model, or upcycle it."
        raise TargetError("model to trace", got=got, want="mixtures of experts", fix=fix)
    try:
        yield recorder
    finally:
        for hook in hooks:
            hook.remove()


def stock_gate(model: nn.Module, path: str) -> nn.Module:
    """Return the gate that a transformers model has for the experts at a path.

    Raises: TargetError for none, or a router that `upcycle` put in its place.
    """
    block = model.get_submodule(path.rpartition(".")[0])
    gate = own_gate(block)
    if gate is None or isinstance(gate, HostedRouter):
        got = "a router in its place" if gate is not None else f"none in {type(block).__name__}"
        fix = "Use the stock model, before upcycle(...) gives it another router."
        raise TargetError(f"gate beside {path!r}", got=got, want="the host's own", fix=fix)
    return gate


def own_mixtures(model: nn.Module) -> list[tuple[str, Mixture]]:
    """Return the mixtures of this library in a model, with their paths, in order."""
    return [(path, m) for path, m in model.named_modules() if isinstance(m, Mixture)]


def _stock_hook(recorder: Recorder, path: str) -> Callable[..., None]:
    """Return a hook that records which experts a layer of transformers is called with."""

    def keep(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        _, index, weights = arguments(args, kwargs)
        recorder.routes[path] = index.detach().cpu(), weights.detach().float().cpu()

    return keep


def _probabilities_hook(recorder: Recorder, path: str) -> Callable[..., None]:
    def keep(gate: nn.Module, _: Any, output: Any) -> None:
        p = probabilities_of(gate, output).detach().cpu()  # (T, E)
        recorder.routes[path] = torch.arange(p.shape[1]).expand(p.shape), p

    return keep


def _router_hook(recorder: Recorder, path: str) -> Callable[..., None]:
    def keep(_: Any, args: tuple[Any, ...], routing: Routing) -> None:
        recorder.routes[path] = in_columns(spread(routing, args[0]))

    return keep


def in_columns(routing: Routing) -> tuple[Tensor, Tensor]:
    """Return a routing as two (T, k) tensors: experts of each token, and their weights.

    k is the most experts that a token has; tokens with fewer have -1, with weight 0, in the others.
    """
    used = routing.weight.detach().float().cpu() != 0  # padded tokens may be routed, with weight 0
    token, expert = routing.token.cpu()[used], routing.expert.cpu()[used]
    weight = routing.weight.detach().float().cpu()[used]
    order = token.argsort(stable=True)
    token = token[order]
    counts = torch.bincount(token, minlength=routing.tokens)
    # column of an entry: its place among the entries of its token
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
    """Run texts through a sparse model and record each token's experts in every layer.

    model: run in evaluation; its outputs are not changed. texts: rows of `load_texts`, or batches:
    token ids (B, T), pictures, or a mapping of keywords with `attention_mask` for padding, which is
    left out. Each row is a sequence. Experts are recorded before any limit of capacity.
    probabilities: record all E experts of every token, with the gate's probabilities as weights,
    which `attribute_experts` reads. Mixtures of this library always record the weights of the
    routing.
    progress: is given a line of text from time to time.

    Raises: TargetError for a model without experts, or one with layers that see different tokens;
    DataError for no texts.
    """
    parts: list[dict[str, Tensor]] = []
    sequences = tokens = 0
    with evaluating(model), recording(model, probabilities=probabilities) as recorder:
        for batch in texts:
            inputs = _inputs(batch)
            recorder.routes.clear()
            call(model, inputs)
            part = _rows(inputs, recorder.routes, sequences)
            # sequences are numbered on from batch to batch
            sequences = int(part["sequence"].max()) + 1 if len(part["sequence"]) else sequences
            parts.append(part)
            tokens += len(part["sequence"])
            if len(parts) % 16 == 0:
                progress(f"{tokens} tokens of {sequences} sequences")
    if not tokens:
        raise DataError("texts", got="no tokens", want="some rows of text", fix="Pass a few rows.")
    # top-p routers give each batch another k
    k = max(part["expert"].shape[2] for part in parts)
    padded = [_widen_part(part, k) for part in parts]
    joined = {n: torch.cat([part[n] for part in padded]) for n in padded[0]}
    named, facts = _layers_and_facts(model)
    experts = max(stock.experts for stock in named.values())
    # pictures have no token ids
    token = joined.pop("token", None)
    return Trace(**joined, experts=experts, token=token, names=tuple(named), about=facts)


def _inputs(batch: Any) -> dict[str, Tensor] | Tensor:
    """Return a batch as the model takes it, without labels; a single row becomes a batch."""
    if isinstance(batch, Mapping):
        inputs = {n: t for n, t in cast("Mapping[str, Tensor]", batch).items() if n != "labels"}
        return {n: t[None] if t.dim() == 1 else t for n, t in inputs.items()}
    rows = cast(Tensor, batch[0] if isinstance(batch, tuple | list) else batch)
    if rows.is_floating_point():
        return rows
    return {"input_ids": rows[None] if rows.dim() == 1 else rows}


def _rows(
    inputs: dict[str, Tensor] | Tensor, routes: Mapping[str, tuple[Tensor, Tensor]], first: int
) -> dict[str, Tensor]:
    """Return the columns of a trace for one batch, padding left out; name -> (tokens, ...)."""
    sequences = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    counts = {path: len(index) for path, (index, _) in routes.items()}
    # one trace has one row of experts per token: an encoder and a decoder cannot share it
    if not counts or len(set(counts.values())) > 1 or next(iter(counts.values())) % len(sequences):
        got = f"{counts or 'no tokens'} of {len(sequences)} sequences"
        want, fix = "the same tokens in every layer", "Trace a decoder or an encoder by itself."
        raise TargetError("layers to trace", got=got, want=want, fix=fix)
    length = next(iter(counts.values())) // len(sequences)
    k = max(index.shape[1] for index, _ in routes.values())
    expert = torch.stack([_pad_columns(index, k, NONE) for index, _ in routes.values()], 1)
    weight = torch.stack([_pad_columns(w, k, 0.0) for _, w in routes.values()], 1)
    columns = {
        "expert": expert.to(torch.int16),
        "weight": weight,
        "sequence": first + torch.arange(len(sequences)).repeat_interleave(length),
        "position": torch.arange(length).repeat(len(sequences)),
    }
    if isinstance(inputs, Tensor):
        return columns
    if "input_ids" in inputs:
        columns["token"] = inputs["input_ids"].flatten().cpu()
    if (mask := inputs.get("attention_mask")) is not None:
        columns = {name: t[mask.flatten().bool().cpu()] for name, t in columns.items()}
    return columns


def _pad_columns(t: Tensor, k: int, value: float) -> Tensor:
    return nn.functional.pad(t, (0, k - t.shape[-1]), value=value)


def _widen_part(part: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    return part | {
        "expert": _pad_columns(part["expert"], k, NONE),
        "weight": _pad_columns(part["weight"], k, 0.0),
    }


def _layers_and_facts(model: nn.Module) -> tuple[dict[str, StockExperts], dict[str, str]]:
    """Return the layers with experts, in order, and facts on the model that a trace stores."""
    named = stock_experts(model)
    for path, mixture in own_mixtures(model):
        experts = mixture.experts
        stacked = isinstance(experts, StackedExperts)
        hidden, width = experts.up.shape[1:] if stacked else (0, 0)
        gated = stacked and experts.gate is not None
        named[path] = StockExperts(path, mixture, experts.experts, width, hidden, gated)
    # stock experts and mixtures of this library in one order
    order = {path: i for i, (path, _) in enumerate(model.named_modules())}
    named = dict(sorted(named.items(), key=lambda item: order[item[0]]))
    facts = {"model": type(model).__name__}
    kinds = {(stock.width, stock.hidden, stock.gated) for stock in named.values()}
    # the bytes of an expert follow from these; they are left out if layers differ in size
    if len(kinds) == 1 and math.prod(next(iter(kinds))[:2]):
        width, hidden, gated = next(iter(kinds))
        facts |= {"width": str(width), "hidden": str(hidden), "gated": str(gated).lower()}
    return named, facts
