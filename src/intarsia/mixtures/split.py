"""A linear map whose weights are dealt out to disjoint experts (MoSA, arXiv:2312.02923)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Partition
from ..core.errors import ConfigError, ShapeError

SCALINGS = ("inverted", "paper")
DECAYS = ("owned", "delta", "official")


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
    Raises: ShapeError when they do not fit; ConfigError on a setting that is none of these.
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
        super().__init__()
        for what, got, allowed in (("scaling", scaling, SCALINGS), ("decay", decay, DECAYS)):
            if got not in allowed:
                raise ConfigError(what, got=repr(got), want=f"one of {allowed}", fix="Pick one.")
        if decay == "official" and (scaling, active) != ("paper", 1):
            raise ConfigError(
                "decay='official'", got=f"scaling={scaling!r}, active={active}",
                want="scaling='paper', active=1", fix="Use decay='owned' elsewhere.",
            )  # fmt: skip
        self.experts, self.active, self.scaling, self.decay = (
            partition.parts, active, scaling, decay,
        )  # fmt: skip
        self.in_features, self.out_features = base.in_features, base.out_features
        self.register_buffer("owner", partition["weight"].to(base.weight.device))
        # a start of zeros needs no tensor
        start = None if zero_start else base.weight.detach().clone()
        self.register_buffer("start", start)
        centred = decay == "delta" and start is not None
        self.weight = nn.Parameter(torch.zeros_like(base.weight) if centred else base.weight.data)
        self.biases = (
            None
            if base.bias is None
            else nn.Parameter(base.bias.data.expand(self.experts, -1).clone())
        )
        shrinks = decay == "official" and start is not None
        self.register_buffer("rho", torch.ones(self.experts) if shrinks else None)

    @property
    def gain(self) -> float:
        """c, by which the active part is multiplied in training."""
        return self.experts / self.active if self.scaling == "inverted" else 1.0

    def change(self) -> Tensor:
        """D = V - W0, (out, in)."""
        if self.start is None or self.decay == "delta":
            return self.weight
        return self.weight - self.start

    def expert_weight(self, gates: Tensor) -> Tensor:
        """W_S for each row of gates.  (G, N) -> (G, out, in)."""
        mask = gates.index_select(1, self.owner.flatten().int()).view(-1, *self.owner.shape)
        if self.start is None:
            return mask * self.weight * self.gain if self.gain != 1 else mask * self.weight
        if self.rho is not None:
            start = (gates @ self.rho.to(gates.dtype))[:, None, None] * self.start
            return start + mask * (self.weight - start)
        return self.start + mask * (self.change() * self.gain)

    def merged_weight(self) -> Tensor:
        """E[W_S] over uniform S, (out, in)."""
        share = self.gain * self.active / self.experts
        if self.rho is not None and self.start is not None:
            unowned = self.rho.sum() - self.rho[self.owner.long()]
            return (self.weight + unowned * self.start) / self.experts
        if self.start is None:
            return self.weight * share if share != 1 else self.weight
        if share == 1 and self.decay != "delta":
            return self.weight
        return self.start + share * self.change()

    def merged_bias(self) -> Tensor | None:
        """E[b_S], (out,)."""
        return None if self.biases is None else self.biases.mean(0)

    def merged(self) -> nn.Linear:
        """The plain linear layer that stands for the experts after training."""
        bias = self.merged_bias()
        layer = nn.Linear(
            self.in_features, self.out_features, bias is not None, device=self.weight.device,
            dtype=self.weight.dtype,
        )  # fmt: skip
        with torch.no_grad():
            layer.weight.copy_(self.merged_weight())
            if bias is not None:
                layer.bias.copy_(bias)
        return layer

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        if gates is None:
            return F.linear(x, self.merged_weight(), self.merged_bias())
        groups = gates.shape[0]
        if gates.shape[1] != self.experts or not groups or x.shape[0] % groups:
            raise ShapeError(
                "gates", got=f"{tuple(gates.shape)} for {x.shape[0]} rows",
                want=f"(G, {self.experts}) with G a divisor of the rows",
                fix="One gate row for each sample, or one for the batch.",
            )  # fmt: skip
        gates = gates.to(self.weight.dtype)
        weight = self.expert_weight(gates)  # (G, out, in)
        bias = None if self.biases is None else gates @ self.biases / self.active  # (G, out)
        if groups == 1:
            return F.linear(x, weight[0], None if bias is None else bias[0])
        rows = x.reshape(groups, -1, self.in_features)
        y = torch.bmm(rows, weight.transpose(1, 2).to(rows.dtype))
        if bias is not None:
            y = y + bias[:, None].to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def variance(self, x: Tensor) -> Tensor:
        """Variance of the output over the draw of S, summed over outputs.  (..., in) -> (...).

        With u_i = c M_i V x + b_i / k: k (N - k) / (N - 1) times the mean over i of
        |u_i - mean u|^2 (a k-subset drawn without replacement). Costs N masked products.
        """
        if self.experts == 1:
            return x.new_zeros(x.shape[:-1])
        k, n = self.active, self.experts
        eye = torch.eye(n, device=x.device, dtype=self.weight.dtype)
        masks = eye.index_select(1, self.owner.flatten().int()).view(n, *self.owner.shape)
        parts = masks * self.change() * self.gain  # (N, out, in)
        u = torch.einsum("...i,noi->n...o", x, parts.to(x.dtype))
        if self.biases is not None:
            shape = (n, *[1] * (x.dim() - 1), self.out_features)
            u = u + (self.biases / k).view(shape).to(u.dtype)
        return (u - u.mean(0)).square().sum(-1).mean(0) * (k * (n - k) / (n - 1))


def split_linear_naive(layer: SplitLinear, x: Tensor, gates: Tensor) -> Tensor:
    """The oracle of SplitLinear.forward: row by row, expert by expert, copies written out."""
    rows = x.shape[0] // gates.shape[0]
    start = torch.zeros_like(layer.weight) if layer.start is None else layer.start
    out = []
    for row in range(x.shape[0]):
        chosen = gates[row // rows].nonzero().flatten().tolist()
        weight, bias = start.clone(), torch.zeros(layer.out_features, dtype=x.dtype)
        for i in chosen:
            rho = 1.0 if layer.rho is None else layer.rho[i]
            weight = torch.where(
                layer.owner == i, start + layer.gain * layer.change(), weight * rho
            )
            if layer.biases is not None:
                bias = bias + layer.biases[i] / len(chosen)
        out.append(F.linear(x[row], weight, bias))
    return torch.stack(out)
