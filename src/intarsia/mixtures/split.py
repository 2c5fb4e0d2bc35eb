"""A linear map with weights dealt out to disjoint experts (MoSA, arXiv:2312.02923)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Partition
from ..core.checks import between, one_of
from ..core.errors import ConfigError, ShapeError
from ..core.linear import plain_linear
from .routed import check_gates

SCALINGS = ("inverted", "paper")
DECAYS = ("owned", "delta", "official")


class _CountInBackward(torch.autograd.Function):
    """The identity; its backward adds 1 to the probe's gradient for each active expert."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, probe: Tensor, gates: Tensor) -> Tensor:
        """Return the value unchanged; the backward will count the active experts.

        value: any tensor on the way to the loss; probe: (N,), a tensor that gets the counts as its
          gradient; gates: (G, N), not 0 = the expert is active.
        """
        ctx.save_for_backward(gates)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the value's gradient, the probe's, (N,), 1 where an expert was active, None."""
        (gates,) = ctx.saved_tensors
        return grads[0], (gates != 0).any(0).float(), None


class SplitLinear(nn.Module):
    """N experts in one tensor: expert i = where(owner == i, V, W0), with a bias b_i of its own.

    N masked copies of a weight W0 that are trained apart only ever differ from W0 where they own
    the weight, so one trained tensor V, the owner of each entry and N biases say everything.

    With the set S of k active experts and D = V - W0:
      training   W_S = W0 + c * sum_{i in S} M_i * D,   b_S = mean_{i in S} b_i
      merged     W   = W0 + c * k / N * D,              b   = mean_i b_i       (the means over S)
    scaling: "paper", c = 1 (k = 1: the merge is the mean of the experts); "inverted", c = N / k
    (the merge is V itself, as with inverted dropout). k = N is the plain linear map in both.
    decay: what weight decay pulls on. "owned", V to 0 (AdamW on V); "delta", V to W0 (the
    parameter is D); "official", as N separate copies do: V to 0, and W0 of expert i shrinks by
    rho_i each time that expert is stepped. They differ only where W0 is not 0.

    x: (B, ..., in), gates: (G, N) of zeros and ones; G divides B, each gate serves B / G rows.
    zero_start: W0 = 0, as for the side of an adapter that starts at 0; stores no W0.
    `seen` tells an optimiser which experts had a gradient; "official" needs `SplitAdamW` for rho.
    Raises: ShapeError when shapes do not fit; ConfigError on a setting that is none of these, or a
    partition with weights that nobody owns.
    Source: paper, sections on splitting and merging; the one-tensor form is exact (see tests).
    """

    owner: Tensor
    start: Tensor | None
    rho: Tensor | None

    def __init__(
        self,
        base: nn.Linear,
        partition: Partition,
        *,
        active: int = 1,
        scaling: str = "inverted",
        decay: str = "owned",
        zero_start: bool = False,
    ) -> None:
        """Deal out a linear map's weight to N experts, and copy its bias for each of them."""
        super().__init__()
        _check(base, partition, active, scaling, decay)
        self.experts, self.active = partition.parts, active
        self.scaling, self.decay = scaling, decay
        self.in_features, self.out_features = base.in_features, base.out_features
        self.register_buffer("owner", partition["weight"].to(base.weight.device))
        # a start of zeros needs no tensor
        start = None if zero_start else base.weight.detach().clone()
        self.register_buffer("start", start)
        # the parameter is D where decay pulls to W0, and V otherwise
        centred = decay == "delta" and start is not None
        self.weight = nn.Parameter(torch.zeros_like(base.weight) if centred else base.weight.data)
        self.biases = (
            None
            if base.bias is None
            else nn.Parameter(base.bias.data.expand(self.experts, -1).clone())
        )
        shrinks = decay == "official" and start is not None
        self.register_buffer("rho", torch.ones(self.experts) if shrinks else None)
        # its gradient counts how often each expert was trained; neither parameter nor buffer, since
        # nobody needs to step, save or broadcast it
        self._probe = torch.zeros(self.experts, device=base.weight.device, requires_grad=True)

    @property
    def seen(self) -> Tensor:
        """The experts that had a gradient since `forget`.  (N,) bool."""
        counts = self._probe if self._probe.grad is None else self._probe.grad
        return counts.detach() > 0

    def forget(self) -> None:
        """Reset `seen`: no expert has had a gradient."""
        self._probe.grad = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SplitLinear:
        """Move or cast the module as torch does, and make a new counter of trained experts."""
        super()._apply(fn, recurse)
        # neither a parameter nor a buffer: torch does not move it
        self._probe = torch.zeros(self.experts, device=self.weight.device, requires_grad=True)
        return self

    @property
    def gain(self) -> float:
        """The factor c, by which the active part is multiplied in training."""
        return self.experts / self.active if self.scaling == "inverted" else 1.0

    def change(self) -> Tensor:
        """Return D = V - W0, the trained weight less the start, (out, in)."""
        if self.start is None or self.decay == "delta":
            return self.weight
        return self.weight - self.start

    def parts(self) -> Tensor:
        """Return the part c M_i D that each expert i adds to the start weight, (N, out, in).

        M_i: the mask of the entries that expert i owns; D: the trained change of the weight; c:
          `gain`. With decay="official", where each expert's start shrinks too, it returns the
          experts' whole weights.
        """
        label = torch.arange(self.experts, device=self.owner.device, dtype=self.owner.dtype)
        owned = self.owner == label[:, None, None]
        if self.rho is not None and self.start is not None:
            rho = self.rho.to(self.start.dtype)
            return torch.where(owned, self.weight, rho[:, None, None] * self.start)
        return torch.where(owned, self.change() * self.gain, 0.0)

    def expert_weight(self, gates: Tensor) -> Tensor:
        """Compute the layer's weight with some experts active, one weight for each row of gates.

        gates: (G, N) of zeros and ones, 1 = active.  -> (G, out, in): the start weight, plus the
          trained changes of the entries that active experts own, times `gain`.
        """
        # rho, with decay="official" alone: how far each expert's own copy of the start has shrunk
        if self.experts <= len(gates):
            # a sum of disjoint parts, so exact; one small GEMM is faster than a lookup per entry
            weight = (gates @ self.parts().flatten(1)).view(-1, *self.owner.shape)
            return weight if self.start is None or self.rho is not None else self.start + weight
        # more experts than gates: look up whether the owner of each entry is active
        owned = gates.index_select(1, self.owner.flatten().int()).view(-1, *self.owner.shape)
        if self.rho is not None and self.start is not None:
            start = (gates @ self.rho.to(gates.dtype))[:, None, None] * self.start
            return torch.where(owned > 0, self.weight, start)
        weight = owned * (self.change() * self.gain)
        return weight if self.start is None else self.start + weight

    def merged_weight(self) -> Tensor:
        """Compute the merged weight, (out, in): the mean over all sets of k active experts.

        It averages the `expert_weight` of each such set; k: `active`.
        """
        if self.rho is not None and self.start is not None:
            # an entry is V in its owner's copy, and rho_j W0 in every other copy j
            unowned = self.rho.sum() - self.rho[self.owner.long()]
            return (self.weight + unowned.to(self.start.dtype) * self.start) / self.experts
        # each expert is in a share k / N of the sets
        share = 1.0 if self.scaling == "inverted" else self.active / self.experts
        if share == 1 and (self.start is None or self.decay != "delta"):
            return self.weight
        change = self.change() * share
        return change if self.start is None else self.start + change

    def merged_bias(self) -> Tensor | None:
        """Return the mean of the experts' biases, (out,), or None without biases."""
        return None if self.biases is None else self.biases.mean(0)

    def merged(self) -> nn.Linear:
        """Return the plain linear layer that stands for the experts after training."""
        return plain_linear(self.merged_weight(), self.merged_bias())

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Apply one linear map, made of the active experts' parts of the weight and mean bias.

        x: (B, ..., in); gates: (G, N) of zeros and ones, 1 = active: a row for each B / G
          consecutive samples, G a divisor of B; None = the merged layer, the mean over all sets of
          k active experts.  -> (B, ..., out).
        """
        if gates is None or not x.shape[0]:
            return F.linear(x, self.merged_weight(), self.merged_bias())
        check_gates(gates, self.experts, len(x))
        groups = len(gates)
        gates = gates.to(self.weight.dtype)
        weight = self.expert_weight(gates)  # (G, out, in)
        bias = None if self.biases is None else gates @ self.biases / self.active  # (G, out)
        # the backward notes which experts were active: a forward without a loss trains none
        if weight.requires_grad:
            weight = _CountInBackward.apply(weight, self._probe, gates)
        elif bias is not None and bias.requires_grad:
            bias = _CountInBackward.apply(bias, self._probe, gates)
        if groups == 1:
            return F.linear(x, weight[0], None if bias is None else bias[0])
        rows, across = x.reshape(groups, -1, self.in_features), weight.transpose(1, 2)
        y = torch.bmm(rows, across) if bias is None else torch.baddbmm(bias[:, None], rows, across)
        return y.view(*x.shape[:-1], self.out_features)

    def variance(self, x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """Compute how much the output varies with the random choice of k of N experts.

        x: (..., in); scale: s, a factor of the output, a number or one for each output.  -> (...),
          the variance over the choice, summed over outputs.
        It is k (N - k) / (N - 1) times the mean over i of |s (u_i - mean u)|^2, as k of N experts
        are drawn without replacement; u_i = P_i x + b_i / k is the contribution of expert i, with
        P_i its part of the weight, see `parts`, and b_i its bias. Costs N masked products.
        """
        if self.experts == 1:
            return x.new_zeros(x.shape[:-1])
        # the variance of a sum of k draws without replacement from N
        k, n = self.active, self.experts
        u = torch.einsum("...i,noi->n...o", x, self.parts().to(x.dtype))
        if self.biases is not None:
            shape = (n, *[1] * (x.dim() - 1), self.out_features)
            u = u + (self.biases / k).view(shape).to(u.dtype)
        return ((u - u.mean(0)) * scale).square().sum(-1).mean(0) * (k * (n - k) / (n - 1))


def _check(base: nn.Linear, partition: Partition, active: int, scaling: str, decay: str) -> None:
    one_of("scaling", scaling, SCALINGS)
    one_of("decay", decay, DECAYS)
    fix = "k = 1 is the paper, k = experts is the plain layer."
    between("active", active, 1, partition.parts, fix=fix)
    if decay == "official" and (scaling, active) != ("paper", 1):
        got, want = f"scaling={scaling!r}, active={active}", "scaling='paper', active=1"
        raise ConfigError("decay='official'", got=got, want=want, fix="Use decay='owned'.")
    label = partition.label.get("weight")
    if label is None or label.shape != base.weight.shape:
        got, want = None if label is None else tuple(label.shape), tuple(base.weight.shape)
        fix = "Partition the shape of the layer's weight."
        raise ShapeError("partition of 'weight'", got=got, want=want, fix=fix)
    if bool((label < 0).any()):
        got = f"{int((label < 0).sum())} weights that nobody owns"
        fix = "Use random_disjoint, which deals out every weight."
        raise ConfigError("partition", got=got, want="none", fix=fix)


def split_linear_naive(layer: SplitLinear, x: Tensor, gates: Tensor) -> Tensor:
    """Compute SplitLinear.forward slowly, as a check: each sample, expert by expert.

    x: (B, ..., in); gates: (G, N), 1 = active, a row for each B / G consecutive samples.  -> (B,
      ..., out).
    """
    rows = x.shape[0] // gates.shape[0]
    start = torch.zeros_like(layer.weight) if layer.start is None else layer.start
    out = []
    for row in range(x.shape[0]):
        active = gates[row // rows].nonzero().flatten().tolist()
        weight, bias = start.clone(), torch.zeros(layer.out_features, dtype=x.dtype)
        for i in active:
            # expert i's own entries are trained; all others keep W0, decayed by rho
            rho = 1.0 if layer.rho is None else layer.rho[i]
            weight = torch.where(
                layer.owner == i, start + layer.gain * layer.change(), weight * rho
            )
            if layer.biases is not None:
                bias = bias + layer.biases[i] / len(active)
        out.append(F.linear(x[row], weight, bias))
    return torch.stack(out)
