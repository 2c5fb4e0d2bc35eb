"""Fewer and smaller experts in stock sparse models: kept, merged, skipped, of two factors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor, nn

from ...core.checks import between
from ...core.errors import TargetError
from ...core.modes import evaluating
from ...mixtures.experts_function import StockExperts, arguments, stock_experts
from ..tracing import stock_gate

ROWS = 2048  # of each layer's inputs that are kept while calibrating
LAYOUT = {"is_concatenated": True, "is_transposed": False, "has_bias": False, "has_gate": True}


@dataclass(frozen=True)
class SeenByExperts:
    """What a layer's experts had: x (N, d), expert (N, k), weight (N, k)."""

    x: Tensor
    expert: Tensor
    weight: Tensor

    def load(self, experts: int) -> Tensor:
        """Tokens of each expert, (E,) int64."""
        there = self.expert[self.expert < experts]
        return torch.bincount(there, minlength=experts)

    def of(self, expert: int) -> Tensor:
        """An expert's rows; all rows where it has fewer than 8."""
        some = (self.expert == expert).any(1)
        return self.x[some] if int(some.sum()) >= 8 else self.x


def gated_experts(model: nn.Module) -> dict[str, StockExperts]:
    """Stock experts with gate over up in one weight and no bias, by path.

    Raises: TargetError for a model without, or with another layout.
    """
    found = stock_experts(model)
    if not found:
        got, fix = f"a {type(model).__name__} without stock experts", "Use a sparse model."
        raise TargetError("model", got=got, want="mixtures of experts of transformers", fix=fix)
    for path, of in found.items():
        other = [n for n, want in LAYOUT.items() if getattr(of.module, n) is not want]
        if other:
            got, fix = f"experts with another {', '.join(other)}", "Use Mixtral, Qwen or OLMoE."
            raise TargetError(f"experts at {path!r}", got=got, want="gate|up, down", fix=fix)
    return found


@torch.no_grad()
def seen_by_experts(model: nn.Module, batches: Sequence[Any]) -> dict[str, SeenByExperts]:
    """Inputs and routing of every layer's experts on calibration batches, the first rows."""
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def keep(path: str) -> Any:
        def hook(_: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            some = [t.detach().cpu() for t in arguments(given, named)]
            parts.setdefault(path, []).append((some[0].float(), some[1], some[2].float()))

        return hook

    stock = gated_experts(model)
    hooks = [
        of.module.register_forward_pre_hook(keep(path), with_kwargs=True)
        for path, of in stock.items()
    ]
    try:
        with evaluating(model):
            for batch in batches:
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        path: SeenByExperts(*(torch.cat(some)[:ROWS] for some in zip(*found, strict=True)))
        for path, found in parts.items()
    }


def parts_of(module: Any, expert: int) -> tuple[Tensor, Tensor]:
    """(gate|up (2h, d), down (d, h)) of an expert."""
    return module.gate_up_proj[expert], module.down_proj[expert]


@torch.no_grad()
def hidden_of(module: Any, expert: int, x: Tensor) -> Tensor:
    """What an expert's `down` reads.  (N, d) -> (N, h)."""
    gate, up = F.linear(x, module.gate_up_proj[expert].float()).chunk(2, -1)
    return module.act_fn(gate) * up


@torch.no_grad()
def keep_stock_experts(model: Any, keep: Mapping[str, Sequence[int]]) -> None:
    """Only these experts of each layer, with their rows of the gate, in this order, in place.

    keep: path of the experts -> numbers, as many in every layer. Fewer than a token has: a token
    then has them all.
    Raises: TargetError for layers that are left out, and routers that choose groups first.
    """
    counts = {len(some) for some in keep.values()}
    stock = gated_experts(model)
    if set(keep) != set(stock) or len(counts) != 1:
        got, fix = f"{sorted(counts)} experts in {len(keep)} layers", "Keep as many in each layer."
        raise TargetError("experts to keep", got=got, want=f"all {len(stock)} layers", fix=fix)
    if (groups := getattr(model.config, "n_group", None) or 1) > 1:
        got, fix = f"a router of {groups} groups of experts", "Use Mixtral, Qwen or OLMoE."
        raise TargetError("experts to keep", got=got, want="one that chooses experts", fix=fix)
    (count,) = counts
    for path, some in keep.items():
        module: Any = stock[path].module
        gate: Any = stock_gate(model, path)
        index = torch.tensor(list(some))
        for owner in (module, model.get_submodule(path.rpartition(".")[0]), *gate.modules()):
            _keep_rows(owner, index, stock[path].experts)
        module.num_experts = gate.num_experts = count
        gate.top_k = min(gate.top_k, count)
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        if hasattr(model.config, name):
            setattr(model.config, name, count)
    model.config.num_experts_per_tok = min(model.config.num_experts_per_tok, count)


def _keep_rows(owner: nn.Module, index: Tensor, experts: int) -> None:
    """Of a module's own tensors with a row, or a number, for each expert: these."""
    tensors = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
    for name, t in tensors:
        if t.dim() and len(t) == experts:
            kept = t[index].clone()
        elif t.shape == (1, experts):  # ERNIE's bias
            kept = t[:, index].clone()
        else:
            continue
        own = name in owner._parameters
        setattr(owner, name, nn.Parameter(kept, t.requires_grad) if own else kept)


@torch.no_grad()
def merge_stock_experts(model: Any, seen: Mapping[str, SeenByExperts], count: int) -> None:
    """Experts whose outputs are alike become one, in place; `count` are left in every layer.

    Average-linkage clusters of the outputs' cosine on the layer's inputs; hidden units are aligned
    to those of the most used member by the Hungarian method, then averaged by use; its row of the
    gate stays.
    """
    stock = gated_experts(model)
    keep: dict[str, list[int]] = {}
    for path, of in stock.items():
        between("experts to keep", count, 1, of.experts)
        module: Any = of.module
        x, load = seen[path].x[:256], seen[path].load(of.experts).double() + 1.0
        made = torch.stack(
            [
                F.linear(hidden_of(module, e, x), module.down_proj[e].float())
                for e in range(of.experts)
            ]
        )
        flat = F.normalize(made.flatten(1), dim=1)
        apart = (1 - flat @ flat.T).clamp(min=0).double().numpy()
        label = torch.arange(of.experts)
        if count < of.experts:
            clusters = AgglomerativeClustering(count, metric="precomputed", linkage="average")
            label = torch.from_numpy(clusters.fit_predict(apart))
        heads: list[int] = []
        for cluster in range(count):
            members = (label == cluster).nonzero().flatten().tolist()
            head = max(members, key=lambda e: (float(load[e]), -e))
            _average(module, head, members, load)
            heads.append(head)
        keep[path] = sorted(heads)
    keep_stock_experts(model, keep)


def _average(module: Any, head: int, members: Sequence[int], load: Tensor) -> None:
    """Put the mean of experts, by use, into one of them; units aligned to its own."""
    own = _units(module, head)
    total = torch.zeros_like(own)
    for e in members:
        other = _units(module, e)
        order = linear_sum_assignment(-(own @ other.T).double().numpy())[1]
        total += float(load[e] / load[list(members)].sum()) * other[torch.from_numpy(order)]
    d = module.down_proj.shape[1]
    module.gate_up_proj[head].copy_(torch.cat([total[:, :d], total[:, d : 2 * d]]))
    module.down_proj[head].copy_(total[:, 2 * d :].T)


def _units(module: Any, expert: int) -> Tensor:
    """(h, 3 d): each hidden unit's gate row, up row and down column."""
    gate_up, down = (w.detach().float() for w in parts_of(module, expert))
    gate, up = gate_up.chunk(2)
    return torch.cat([gate, up, down.T], 1)


@torch.no_grad()
def dense_from_most_used(model: Any, loads: Mapping[str, Tensor], count: int) -> None:
    """The `count` most used experts, which every token has with equal weight, in place."""
    keep = {p: sorted(load.argsort(descending=True)[:count].tolist()) for p, load in loads.items()}
    keep_stock_experts(model, keep)
    for path in keep:
        gate: Any = stock_gate(model, path)
        gate.weight.zero_()
        gate.top_k = count
    model.config.num_experts_per_tok = count


def factors(weight: Tensor, x: Tensor, energy: float) -> tuple[Tensor, Tensor] | None:
    """U (o, r) and V (r, i), U V nearest to W where x has weight; r by the energy that is kept.

    The SVD of W S, S = (x^T x / n + eps)^1/2: the least r with sum_{j<=r} s_j^2 >= energy sum s^2.
    None where the factors would be larger than W.  weight: (o, i), x: (N, i).
    """
    w = weight.detach().double()
    c = x.double().T @ x.double() / len(x)
    c += 1e-3 * c.diagonal().mean().clamp(min=1e-12) * torch.eye(len(c), dtype=c.dtype)
    values, vectors = torch.linalg.eigh(c)
    root = vectors * values.clamp(min=1e-12).sqrt() @ vectors.T
    inverse = vectors / values.clamp(min=1e-12).sqrt() @ vectors.T
    u, s, v = torch.linalg.svd(w @ root, full_matrices=False)
    kept = s.square().cumsum(0) / s.square().sum()
    r = int((kept < energy - 1e-12).sum()) + 1
    if r * sum(w.shape) >= w.numel():
        return None
    return (u[:, :r] * s[:r]).to(weight), (v[:r] @ inverse).to(weight)


@contextmanager
def skipping(model: nn.Module, below: Mapping[str, float]) -> Iterator[None]:
    """Inside, a token with a second weight below that share of its first has one expert.

    below: path -> g2 / g1, such as a median on calibration text; the first then has the weight of
    both. Experts that are skipped are not computed under set_experts_implementation("eager").
    """

    def hook(path: str, experts: int) -> Any:
        def skip(_: Any, __: Any, output: Any) -> Any:
            logits, weight, index = output
            some = weight[:, 1:].sum(1) < below[path] * weight[:, 0]  # (T,)
            one = F.pad(weight.sum(1, keepdim=True), (0, weight.shape[1] - 1))
            alone = index.clone()
            alone[:, 1:] = experts  # nobody: the eager function passes over it
            return (
                logits,
                torch.where(some[:, None], one, weight),
                torch.where(some[:, None], alone, index),
            )

        return skip

    gates: dict[str, Any] = {path: stock_gate(model, path) for path in below}
    hooks = [gate.register_forward_hook(hook(p, len(gate.weight))) for p, gate in gates.items()]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
