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
from ...hosts.tracing import stock_gate
from ...mixtures.experts_function import StockExperts, arguments, stock_experts

ROWS = 2048  # number of inputs of each layer that are recorded
LAYOUT = {"is_concatenated": True, "is_transposed": False, "has_bias": False, "has_gate": True}


@dataclass(frozen=True)
class ExpertInputs:
    """Recorded inputs of a layer's experts: tokens, the experts of each, and their gate weights.

    x: (N, d); expert: (N, k) int64; weight: (N, k).
    """

    x: Tensor
    expert: Tensor
    weight: Tensor

    def load(self, experts: int) -> Tensor:
        """Count the tokens of each expert, (E,) int64."""
        routed = self.expert[self.expert < experts]  # choices that are masked out have the number E
        return torch.bincount(routed, minlength=experts)

    def of(self, expert: int) -> Tensor:
        """Return the rows of x routed to an expert, or all rows if there are fewer than 8."""
        # too few rows do not characterise the expert
        some = (self.expert == expert).any(1)
        return self.x[some] if int(some.sum()) >= 8 else self.x


def gated_experts(model: nn.Module) -> dict[str, StockExperts]:
    """Return the experts of a transformers model, by path, if gate and up share one weight.

    Raises: TargetError for a model without such experts, or with another layout, as with biases.
    """
    stock = stock_experts(model)
    if not stock:
        got, fix = f"a {type(model).__name__} without stock experts", "Use a sparse model."
        raise TargetError("model", got=got, want="mixtures of experts of transformers", fix=fix)
    for path, experts in stock.items():
        deviations = [
            n for n, expected in LAYOUT.items() if getattr(experts.module, n) is not expected
        ]
        if deviations:
            got, fix = (
                f"experts with another {', '.join(deviations)}",
                "Use Mixtral, Qwen or OLMoE.",
            )
            raise TargetError(f"experts at {path!r}", got=got, want="gate|up, down", fix=fix)
    return stock


@torch.no_grad()
def expert_inputs(model: nn.Module, batches: Sequence[Any]) -> dict[str, ExpertInputs]:
    """Record inputs and routing of every layer's experts on calibration data.

    Returns path of the experts -> the first 2048 tokens with their routing.
    """
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def keep(path: str) -> Any:
        """Return a hook that records tokens and routing of the experts at a path."""

        def hook(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            # tokens (N, d), chosen experts (N, k) and their gates (N, k)
            values = [t.detach().cpu() for t in arguments(args, kwargs)]
            parts.setdefault(path, []).append((values[0].float(), values[1], values[2].float()))

        return hook

    stock = gated_experts(model)
    hooks = [
        experts.module.register_forward_pre_hook(keep(path), with_kwargs=True)
        for path, experts in stock.items()
    ]
    try:
        with evaluating(model):
            for batch in batches:
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        # batches are joined part by part: all tokens, all choices, all gates
        path: ExpertInputs(*(torch.cat(values)[:ROWS] for values in zip(*recorded, strict=True)))
        for path, recorded in parts.items()
    }


def parts_of(module: Any, expert: int) -> tuple[Tensor, Tensor]:
    """Return an expert's weights: gate over up (2h, d), and down (d, h)."""
    return module.gate_up_proj[expert], module.down_proj[expert]


@torch.no_grad()
def hidden_of(module: Any, expert: int, x: Tensor) -> Tensor:
    """Compute the input of an expert's `down`.  (N, d) -> (N, h)."""
    gate, up = F.linear(x, module.gate_up_proj[expert].float()).chunk(2, -1)
    return module.act_fn(gate) * up


@torch.no_grad()
def keep_stock_experts(model: Any, keep: Mapping[str, Sequence[int]]) -> None:
    """Keep only some experts of each layer, with their rows of the gate, in place.

    keep: path of the experts -> the numbers that stay, in their new order, as many in every layer.
    If fewer stay than a token is routed to, each token gets all of them.
    Raises: TargetError for layers that are left out, and routers that choose groups first.
    """
    counts = {len(numbers) for numbers in keep.values()}
    stock = gated_experts(model)
    if set(keep) != set(stock) or len(counts) != 1:
        got, fix = f"{sorted(counts)} experts in {len(keep)} layers", "Keep as many in each layer."
        raise TargetError("experts to keep", got=got, want=f"all {len(stock)} layers", fix=fix)
    if (groups := getattr(model.config, "n_group", None) or 1) > 1:
        got, fix = f"a router of {groups} groups of experts", "Use Mixtral, Qwen or OLMoE."
        raise TargetError("experts to keep", got=got, want="one that chooses experts", fix=fix)
    (count,) = counts
    for path, numbers in keep.items():
        module: Any = stock[path].module
        gate: Any = stock_gate(model, path)
        # the experts, and tensors of block and gate with one entry for each expert
        index = torch.tensor(list(numbers))
        for owner in (module, model.get_submodule(path.rpartition(".")[0]), *gate.modules()):
            _keep_rows(owner, index, stock[path].experts)
        # attributes and the configuration, so that the folder opens as a smaller stock model
        module.num_experts = gate.num_experts = count
        gate.top_k = min(gate.top_k, count)
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        if hasattr(model.config, name):
            setattr(model.config, name, count)
    model.config.num_experts_per_tok = min(model.config.num_experts_per_tok, count)


def _keep_rows(owner: nn.Module, index: Tensor, experts: int) -> None:
    """Select, in a module's own tensors that have one entry per expert, the entries that stay."""
    tensors = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
    for name, t in tensors:
        if t.dim() and len(t) == experts:
            rows = t[index].clone()
        elif t.shape == (1, experts):  # ERNIE's bias
            rows = t[:, index].clone()
        else:
            continue
        is_parameter = name in owner._parameters
        setattr(owner, name, nn.Parameter(rows, t.requires_grad) if is_parameter else rows)


@torch.no_grad()
def merge_stock_experts(model: Any, inputs: Mapping[str, ExpertInputs], count: int) -> None:
    """Merge experts with similar outputs, in place, until `count` are left in every layer.

    1. Cluster the experts by the cosine of their outputs on the layer's inputs (average linkage).
    2. In each cluster, match every expert's hidden units to the most used expert's by the
    Hungarian method, and average them, weighted by the experts' tokens. The most used expert's row
    of the gate stays.
    inputs: see `expert_inputs`.
    """
    stock = gated_experts(model)
    kept_experts: dict[str, list[int]] = {}
    for path, experts in stock.items():
        between("experts to keep", count, 1, experts.experts)
        module: Any = experts.module
        x, load = inputs[path].x[:256], inputs[path].load(experts.experts).double() + 1.0
        # 1. each expert's outputs for the same 256 inputs of the layer, (E, 256, d)
        outputs = torch.stack(
            [
                F.linear(hidden_of(module, e, x), module.down_proj[e].float())
                for e in range(experts.experts)
            ]
        )
        flat = F.normalize(outputs.flatten(1), dim=1)
        # 2. clusters by the cosine distance of these outputs
        distance = (1 - flat @ flat.T).clamp(min=0).double().numpy()
        label = torch.arange(experts.experts)
        if count < experts.experts:
            clusters = AgglomerativeClustering(count, metric="precomputed", linkage="average")
            label = torch.from_numpy(clusters.fit_predict(distance))
        # 3. each cluster becomes its most used member, with the mean of all members
        representatives: list[int] = []
        for cluster in range(count):
            members = (label == cluster).nonzero().flatten().tolist()
            representative = max(members, key=lambda e: (float(load[e]), -e))
            _average(module, representative, members, load)
            representatives.append(representative)
        kept_experts[path] = sorted(representatives)
    keep_stock_experts(model, kept_experts)


def _average(module: Any, representative: int, members: Sequence[int], load: Tensor) -> None:
    """Replace one expert by the mean of several, weighted by their tokens, in place."""
    # load: (E,), tokens of each expert
    units = _unit_vectors(module, representative)
    total = torch.zeros_like(units)
    for e in members:
        member_units = _unit_vectors(module, e)
        # the order of hidden units means nothing: match each unit to the most similar one
        order = linear_sum_assignment(-(units @ member_units.T).double().numpy())[1]
        total += float(load[e] / load[list(members)].sum()) * member_units[torch.from_numpy(order)]
    # back from rows (gate | up | down) of units to the stored layout
    d = module.down_proj.shape[1]
    module.gate_up_proj[representative].copy_(torch.cat([total[:, :d], total[:, d : 2 * d]]))
    module.down_proj[representative].copy_(total[:, 2 * d :].T)


def _unit_vectors(module: Any, expert: int) -> Tensor:
    """Return each hidden unit's gate row, up row and down column, (h, 3 d)."""
    gate_up, down = (w.detach().float() for w in parts_of(module, expert))
    gate, up = gate_up.chunk(2)
    return torch.cat([gate, up, down.T], 1)


@torch.no_grad()
def dense_from_most_used(model: Any, loads: Mapping[str, Tensor], count: int) -> None:
    """Keep the `count` most used experts, which then compute every token with equal weight.

    model: a sparse model of transformers, changed in place; loads: path of the experts -> (E,),
    tokens of each.
    """
    keep = {p: sorted(load.argsort(descending=True)[:count].tolist()) for p, load in loads.items()}
    keep_stock_experts(model, keep)
    for path in keep:
        gate: Any = stock_gate(model, path)
        # equal logits: every expert that is left has the same probability
        gate.weight.zero_()
        gate.top_k = count
    model.config.num_experts_per_tok = count


def factors(weight: Tensor, x: Tensor, energy: float) -> tuple[Tensor, Tensor] | None:
    """Factorise a weight W into U (o, r) and V (r, i), with the least error on given inputs.

    Truncates the SVD of W S, S = (x^T x / N + eps I)^1/2, which makes |(W - U V) S| least. The rank
    r is the least with sum_{j<=r} s_j^2 >= energy sum_j s_j^2, s the singular values.
    weight: W, (o, i); x: (N, i), inputs of the layer; energy: share in (0, 1].
    Returns None if the factors would be larger than W.
    """
    w = weight.detach().double()
    covariance = x.double().T @ x.double() / len(x)
    # damped, so that channels which calibration never used have an inverse
    covariance += (
        1e-3
        * covariance.diagonal().mean().clamp(min=1e-12)
        * torch.eye(len(covariance), dtype=covariance.dtype)
    )
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=1e-12).sqrt() @ vectors.T
    inverse = vectors / values.clamp(min=1e-12).sqrt() @ vectors.T
    # the error of W x equals the one of W S in the Frobenius norm: truncate there, undo S in V
    u, s, v = torch.linalg.svd(w @ root, full_matrices=False)
    energy_share = s.square().cumsum(0) / s.square().sum()
    r = int((energy_share < energy - 1e-12).sum()) + 1
    # two factors that are larger than the matrix gain nothing
    if r * sum(w.shape) >= w.numel():
        return None
    return (u[:, :r] * s[:r]).to(weight), (v[:r] @ inverse).to(weight)


@contextmanager
def skipping(model: nn.Module, below: Mapping[str, float]) -> Iterator[None]:
    """Skip, inside the `with`, a token's second expert if its gate weight is relatively small.

    The first expert then has the weight of both.
    below: path of the experts -> threshold for the ratio of second to first weight, such as its
    median on calibration text. Skipped experts are not computed under
    set_experts_implementation("eager").
    """

    def hook(path: str, experts: int) -> Any:
        """Return the hook of the gate at a path."""

        def skip(_: Any, __: Any, output: Any) -> Any:
            """Give the first expert the weight of both where the second weight is small.

            output: (logits, weights, experts) of the gate; the other arguments are unused, hooks
            get them.
            """
            logits, weight, index = output
            skipped = weight[:, 1:].sum(1) < below[path] * weight[:, 0]  # (T,)
            weight_alone = F.pad(weight.sum(1, keepdim=True), (0, weight.shape[1] - 1))
            index_alone = index.clone()
            index_alone[:, 1:] = experts  # no expert has this number: the eager function skips it
            return (
                logits,
                torch.where(skipped[:, None], weight_alone, weight),
                torch.where(skipped[:, None], index_alone, index),
            )

        return skip

    gates: dict[str, Any] = {path: stock_gate(model, path) for path in below}
    hooks = [gate.register_forward_hook(hook(p, len(gate.weight))) for p, gate in gates.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
