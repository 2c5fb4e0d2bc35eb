"""Which layers of a convolutional net share their channels, and a new order of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ...core.errors import TargetError
from ...core.foreign import groups_of
from .reorder import reorder
from .traced import ADD, BATCH_NORM, MUL, function_of, module_of, tensors_in, traced

SAME_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh),
    *(nn.LeakyReLU, nn.ELU, nn.Mish, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample),
)
SAME_NAMED = ("DropPath", "Swish", "HardSwish", "HardSigmoid", "FastAdaptiveAvgPool")  # of timm
SAME_FUNCTIONS = (
    *("relu", "relu6", "hardswish", "silu", "gelu", "sigmoid", "hardsigmoid", "tanh", "dropout"),
    *("flatten", "mean", "adaptive_avg_pool2d", "max_pool2d", "avg_pool2d", "contiguous"),
)
POOLS = ("mean", "adaptive_avg_pool2d")


@dataclass
class ChannelGroup:
    """Channels that must be reordered together, with the paths of the layers that share them.

    makes: layers that output them; reads: layers that take them as inputs; follows: norms and
    depthwise convolutions, which have one value for each.  fixed: the reason why their order cannot
    change, "" if it can.  size: number of channels.
    """

    makes: list[str] = field(default_factory=lambda: list[str]())
    reads: list[str] = field(default_factory=lambda: list[str]())
    follows: list[str] = field(default_factory=lambda: list[str]())
    fixed: str = ""
    size: int = 0


@dataclass
class _Value:
    """Channels that a node computes, of a group; pooled: they are vectors, no longer maps."""

    group: int
    pooled: bool = False


class _GroupFinder:
    """Visitor of a traced net that finds groups of channels, by union-find."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph, self.groups, self.parent = graph, list[ChannelGroup](), list[int]()
        self.values: dict[fx.Node, _Value] = {}
        self.pooled: set[str] = set()  # layers that read vectors
        self.inputs: set[str] = set()  # layers that read the net's input

    def new(self, fixed: str = "", size: int = 0) -> int:
        """Add a group and return its number."""
        self.groups.append(ChannelGroup(fixed=fixed, size=size))
        self.parent.append(len(self.parent))
        return self.parent[-1]

    def root(self, number: int) -> int:
        """Return the number of the group that a group was joined to."""
        while self.parent[number] != number:
            number = self.parent[number]
        return number

    def at(self, number: int) -> ChannelGroup:
        """Return the joined group of a number."""
        return self.groups[self.root(number)]

    def join(self, first_number: int, second_number: int) -> int:
        """Join two groups of channels, which then have one order."""
        a, b = self.root(first_number), self.root(second_number)
        if a != b:
            first, second = self.groups[a], self.groups[b]
            for name in ("makes", "reads", "follows"):
                getattr(first, name).extend(getattr(second, name))
            first.fixed, first.size = first.fixed or second.fixed, first.size or second.size
            self.parent[b] = a
        return a

    def visit(self, node: fx.Node) -> None:
        """Find the group of the channels that a node computes."""
        if node.op == "placeholder":
            self.values[node] = _Value(self.new("the net's input"))
            return
        inputs = [self.values[n] for n in tensors_in(node) if n in self.values]
        if node.op == "output":
            for value in _nested_nodes(node.args):
                self.at(self.values[value].group).fixed = "the net's output"
            return
        module = module_of(self.graph, node)
        path = str(node.target)
        if isinstance(module, nn.Conv2d | nn.Linear):
            self.values[node] = self._visit_layer(path, module, inputs[0])
        elif isinstance(module, BATCH_NORM):
            self.at(inputs[0].group).follows.append(path)
            self.values[node] = inputs[0]
        elif isinstance(module, SAME_MODULES) or type(module).__name__ in SAME_NAMED:
            pooled = inputs[0].pooled or isinstance(module, nn.AdaptiveAvgPool2d)
            self.values[node] = _Value(inputs[0].group, pooled)
        elif function_of(node) in SAME_FUNCTIONS:
            pooled = inputs[0].pooled or function_of(node) in POOLS
            self.values[node] = _Value(inputs[0].group, pooled)
        elif function_of(node) in (ADD, MUL) and inputs:
            group = inputs[0].group
            for operand in inputs[1:]:
                # operands of a sum or product must have their channels in one order
                group = self.join(group, operand.group)
            self.values[node] = _Value(group, all(value.pooled for value in inputs))
        else:
            description = (
                type(module).__name__ if module is not None else function_of(node) or node.op
            )
            got, want = (
                f"{description} at {node.name!r}",
                "layers whose channels are known to go along",
            )
            fix = "Leave this net as it is: blocks of rows work without a new order."
            raise TargetError("order of channels", got=got, want=want, fix=fix)

    def _visit_layer(self, path: str, layer: Any, value: _Value) -> _Value:
        """Record a convolution or linear layer in its groups; return the channels it computes."""
        if value.pooled:
            self.pooled.add(path)
        if self.at(value.group).fixed == "the net's input":
            self.inputs.add(path)
        outs = len(layer.weight)
        groups = groups_of(layer)
        # a depthwise convolution keeps channel i at place i
        if groups > 1 and groups == layer.in_channels == layer.out_channels:
            self.at(value.group).follows.append(path)
            return value
        if groups > 1:
            # each group reads consecutive channels, which must stay together
            self.at(value.group).fixed = f"{path}, a convolution of {groups} groups"
            return _Value(self.new(f"{path}, a convolution of {groups} groups", outs), value.pooled)
        self.at(value.group).reads.append(path)
        new_group = self.new(size=outs)
        self.groups[new_group].makes.append(path)
        return _Value(new_group, value.pooled)


def _nested_nodes(args: Any) -> Iterator[fx.Node]:
    nodes: list[fx.Node] = []
    map_arg(args, lambda n: nodes.append(n) or n)
    yield from nodes


@dataclass(frozen=True)
class Channels:
    """Groups of channels of a net, and the layers that may be sparse.

    layers: paths of 1x1 and k x k convolutions and linear layers, without those that read the net's
    input or make its output (stem, classifier), depthwise ones, and layers of vectors (squeeze,
    excitation).
    """

    groups: tuple[ChannelGroup, ...]
    layers: tuple[str, ...]

    @property
    def free(self) -> tuple[ChannelGroup, ...]:
        """Groups in which the order can change."""
        return tuple(g for g in self.groups if not g.fixed and g.makes)


def channels_of(net: nn.Module) -> Channels:
    """Find the groups of channels of a convolutional net; residual additions join groups.

    Raises: TargetError for a net that cannot be traced, a weight that two layers share, a layer
    that is called twice, or an operation that is not known, each by name.
    """
    graph = traced(net)
    _refuse_shared(net, graph)
    walk = _GroupFinder(graph)
    for node in graph.graph.nodes:
        walk.visit(node)
    # groups that were joined into another are left out
    groups = [g for i, g in enumerate(walk.groups) if walk.root(i) == i]
    ends = {p for g in groups if g.fixed == "the net's output" for p in g.makes}
    paths = [p for g in groups for p in g.makes]
    order = {str(n.target): i for i, n in enumerate(graph.graph.nodes)}
    # stem, squeeze-and-excite and classifier stay dense
    dense = walk.inputs | walk.pooled | ends
    layers = sorted((p for p in paths if p not in dense), key=lambda p: order[p])
    return Channels(tuple(groups), tuple(layers))


def _refuse_shared(net: nn.Module, graph: fx.GraphModule) -> None:
    """Check that no two layers share a weight, and that no layer is called twice."""
    owner: dict[int, str] = {}
    called: set[str] = set()
    for node in graph.graph.nodes:
        module, path = module_of(graph, node), str(node.target)
        if module is None or not list(module.parameters(recurse=False)):
            continue
        names = {id(p): path for p in module.parameters(recurse=False)}
        sharer = path if path in called else next((owner[i] for i in names if i in owner), "")
        if sharer:
            got = f"a weight of {path!r} that {sharer!r} uses, too"
            fix = "Give each its own, or prune without a new order."
            raise TargetError("order of channels", got=got, want="a weight a layer", fix=fix)
        called.add(path)
        owner |= names


@torch.no_grad()
def reorder_channels(net: nn.Module, group: ChannelGroup, order: Tensor) -> None:
    """Reorder a group's channels, in place: channel i becomes the former channel order[i].

    net: the model; its outputs stay the same; order: (channels,) int64. Rows of the layers that
    make the channels, values of batch norms and depthwise convolutions, and columns of the layers
    that read them are reordered.
    """
    for path in (*group.makes, *group.follows):
        reorder(net.get_submodule(path), order, 0, fresh=True)
    for path in group.reads:
        layer: Any = net.get_submodule(path)
        # behind a flattened map, each channel has one column for each pixel
        pixels = layer.weight.shape[1] // len(order)
        columns = (order[:, None] * pixels + torch.arange(pixels)).flatten()
        reorder(layer, columns, 1, fresh=True)


def orders_to_json(
    groups: tuple[ChannelGroup, ...], orders: Mapping[int, Tensor]
) -> list[list[int]]:
    """Return the order of each group as a list of channel numbers, [] for an unchanged one.

    groups: those that may change; orders: place in `groups` -> order, (channels,).
    """
    return [orders[i].tolist() if i in orders else [] for i in range(len(groups))]
