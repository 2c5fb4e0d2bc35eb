"""SparseByteNN: blocks of output rows, and an order of channels for them (arXiv:2310.19509)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.change import Change, Plan
from ..core.errors import TargetError
from ..core.schema import check, setting
from ..hosts.anatomy.channel_groups import Channels, channels_of, orders_to_json, reorder_channels
from ..partitions.row_blocks import row_order
from ..schedules import Gradual
from ..sparse.swap.upcycle import check_unadapted


@dataclass(frozen=True)
class SparseByteNn(Change):
    """An order of a convolutional net's channels in which pruned blocks of rows keep most.

    A block is `rows` consecutive outputs x one input x its whole kernel, and is kept or 0 as a
    whole: score sum |w|. The net is rearranged first: each layer's outputs get an order pi, which
    goes to rows, bias, batch norm and depthwise convolutions behind, and to the columns of all that
    read them; layers that a residual addition joins have one pi, their norms side by side. The
    outputs stay the same, to rounding.

    net = intarsia.apply(net, SparseByteNn(density=0.7)); fit(net, train), which prunes by blocks
    along `Gradual` over 60 % of the steps; intarsia.compress(net, Chw(), example).
    Raises: ConfigError for settings that cannot be; TargetError in `plan`, by name, for a weight
    that layers share, a layer or a join that is not known, or a net with adapters. Not for
    transformers.
    Source: abstract; patterns, the order and its Hungarian step are ours (the nearest published
    scheme is 1xN pruning, arXiv:2105.14713).
    """

    density: float = setting(
        0.7,
        "The share of blocks that is kept, for which the order is chosen, in 1x1 and k x k "
        "layers; stem, depthwise, squeeze and excitation and classifier stay dense.",
        above=0,
        most=1,
        fix="Try 0.7.",
    )
    rows: int = setting(4, "The consecutive outputs of a block.", least=1)
    rounds: int = setting(
        3,
        "The rounds of the assignment of rows to blocks behind the greedy start; 0 = the start "
        "alone.",
        least=0,
    )

    stores = "all"

    def __post_init__(self) -> None:
        check(self)

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Choose the order of each group of channels, and the layers to prune."""
        check_unadapted(host)
        channels = channels_of(host)
        if not channels.layers:
            got, want = f"none in {type(host).__name__}", "convolutions between stem and classifier"
            raise TargetError("layers to prune", got=got, want=want, fix="Use a deeper net.")
        orders = self._row_orders(host, channels)
        decided = {"orders": orders_to_json(channels.free, orders), "layers": list(channels.layers)}
        return Plan(self, seed, decided)

    def _row_orders(self, host: nn.Module, channels: Channels) -> dict[int, Tensor]:
        """Return the new order of each free group of channels, by the group's number."""
        orders: dict[int, Tensor] = {}
        for i, group in enumerate(channels.free):
            # Only layers that are pruned by blocks of their own rows have a say in the order.
            paths = [path for path in group.makes if path in channels.layers]
            weights = [_kernel_norms(host.get_submodule(path)) for path in paths]
            if weights and self.rows > 1 and self.density < 1:
                # Greedy start, then `rounds` of assigning rows to blocks (the Hungarian method).
                orders[i] = row_order(weights, self.rows, self.density, self.rounds)
        return orders

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Reorder the channels of the net as planned, in place."""
        groups = channels_of(host).free
        for group, order in zip(groups, plan.decided["orders"], strict=True):
            # An empty order: no layer that is pruned writes these channels.
            if order:
                reorder_channels(host, group, torch.tensor(order))
        return host

    def scheduled(self, plan: Plan, schedule: Any) -> Any:
        """Return the pruning schedule of a training on the reordered net.

        schedule: the user's, None = `Gradual` by blocks of `rows`; a `Gradual` without layers gets
        these layers and rows.
        """
        layers = tuple(plan.decided["layers"])
        if schedule is None:
            return Gradual(self.density, rows=self.rows, layers=layers)
        if isinstance(schedule, Gradual) and schedule.layers is None:
            return replace(schedule, rows=self.rows, layers=layers)
        return schedule


def _kernel_norms(layer: Any) -> Tensor:
    """Compute sum |w| of each kernel of a convolution, (out, in)."""
    weight = layer.weight.detach().float().abs().cpu()
    # A depthwise or k x k kernel is kept or pruned as a whole: only its sum matters.
    return weight.reshape(*weight.shape[:2], -1).sum(-1)


CARD = Card(
    "sparse_bytenn",
    kind="change",
    config=SparseByteNn,
    paper=Paper(
        "2310.19509",
        2023,
        "SparseByteNN: A Novel Mobile Inference Acceleration Framework Based on Fine-Grained Group "
        "Sparsity",
    ),
    summary="A CNN's channels get an order in which blocks of rows keep most, and are then pruned.",
    family="sparse training",
    names=("SparseByteNN",),
    tiny={"density": 0.5, "rows": 2},
)
