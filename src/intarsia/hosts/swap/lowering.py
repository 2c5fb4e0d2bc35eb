"""From the graph of a net to clusters of steps that kernels in CHW carry out.

A cluster is a run of layers that they know; what stands between clusters stays in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...core.foreign import activation_of
from ...kernels.chw import Window
from ..anatomy.traced import ADD, BATCH_NORM, MUL, function_of, module_of, tensors_in

ACT_MODULES: Mapping[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Identity: "none",
}
ACT_FUNCTIONS = ("relu", "relu6", "hardswish", "silu", "sigmoid", "hardsigmoid")
NOTHING = ("Identity", "Dropout", "Dropout2d", "DropPath")  # in evaluation
LARGEST, STRIDES = 11, 4  # side of a kernel, and its stride at most


@dataclass
class DenseStep:
    """A step whose weight is dense still, or that has none."""

    name: str
    kind: str
    src: int
    dst: int
    other: int | None = None
    acts: tuple[str, str] = ("none", "none")
    window: Window = Window()
    tensors: dict[str, Tensor] = field(default_factory=lambda: dict[str, Tensor]())


@dataclass
class Cluster:
    """Layers that follow each other, which values they read, and which others read.

    before: the node in front of which the cluster can be called; None = at the end.
    """

    layers: list[DenseStep] = field(default_factory=lambda: list[DenseStep]())
    values: dict[fx.Node, int] = field(default_factory=lambda: dict[fx.Node, int]())
    inputs: dict[fx.Node, int] = field(default_factory=lambda: dict[fx.Node, int]())
    flat: set[int] = field(default_factory=lambda: set[int]())
    before: fx.Node | None = None
    count: int = 0

    def outputs(self) -> dict[fx.Node, int]:
        """Its nodes that others read."""
        return {
            node: value
            for node, value in self.values.items()
            if any(user not in self.values for user in node.users)
        }

    def new(self) -> int:
        """The number of a value that is not there yet."""
        self.count += 1
        return self.count - 1

    def read(self, node: fx.Node) -> int:
        """The number of a value, which becomes an input if the cluster did not make it."""
        if node in self.values:
            return self.values[node]
        if node not in self.inputs:
            self.inputs[node] = self.new()
            if len(node.meta["shape"]) == 2:
                self.flat.add(self.inputs[node])
        return self.inputs[node]


def clusters_of(graph: fx.GraphModule) -> list[Cluster]:
    """The clusters of a traced net with shapes, in order."""
    found: list[Cluster] = []
    now, done = Cluster(), set[fx.Node]()
    for node in graph.graph.nodes:
        if node in done or node.op in ("placeholder", "get_attr"):
            continue
        if node.op == "output" or not _take(graph, now, node):
            now.before = node
            found.append(now)
            now = Cluster()
        done |= now.values.keys()
    return [cluster for cluster in found if cluster.layers]


def _take(graph: fx.GraphModule, now: Cluster, node: fx.Node) -> bool:
    """Whether a cluster can do what a node does; then it has it, and what is fused with it."""
    inputs, module = tensors_in(node), module_of(graph, node)
    if not inputs or any(len(n.meta["shape"]) not in (2, 4) for n in (*inputs, node)):
        return False
    for kind, take in TAKES:
        if isinstance(module, kind) if isinstance(kind, type) else function_of(node) in kind:
            return take(graph, now, node, module)
    name = type(module).__name__
    if (name in NOTHING and name != "Identity") or isinstance(module, nn.Identity):
        now.values[node] = now.read(inputs[0])
        return True
    act = _act_of(module, node)
    if act and len(inputs[0].meta["shape"]) == 4 and inputs[0] in now.values | now.inputs:
        if now.read(inputs[0]) in now.flat:
            return False
        return _made(
            now, DenseStep(str(node.target), "act", 0, 0, acts=(act, "none")), node, inputs[0]
        )
    return False


def _act_of(module: nn.Module | None, node: fx.Node) -> str:
    """The activation that a node is; "" for anything else."""
    if module is not None:
        return ACT_MODULES.get(type(module), "")
    name = function_of(node)
    return name if name in ACT_FUNCTIONS else ""


def _made(now: Cluster, layer: DenseStep, node: fx.Node, source: fx.Node) -> bool:
    layer.src, layer.dst = now.read(source), now.new()
    now.layers.append(layer)
    now.values[node] = layer.dst
    return True


def _convolution(graph: fx.GraphModule, now: Cluster, node: fx.Node, conv: Any) -> bool:
    """A convolution with the batch norm, the activation and the addition behind it."""
    source = tensors_in(node)[0]
    flat = source in now.values and now.values[source] in now.flat
    window = _window(conv) if _plain(conv, nn.Conv2d, "Conv2dSame") else None
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1
    if window is None or (conv.groups > 1 and not depthwise) or (flat and window.size > 1):
        return False
    plain = window._replace(same=False) == Window()
    kind = "depthwise" if depthwise else "spmm" if plain else "conv"
    if flat:
        if depthwise:
            return False
        kind = "linear"
    weight, bias = _numbers(conv)
    layer = DenseStep(str(node.target), kind, now.read(source), now.new(), window=window)
    nodes = [node]
    norm = _only_user(graph, nodes, BATCH_NORM)
    own: Any = None if norm is None else module_of(graph, norm)
    if norm is not None and own.running_mean is not None and (act := _act_inside(own)) != "?":
        weight, bias = folded(weight, bias, own)
        nodes = [*nodes, *_between(node, norm), norm]
        layer.acts = (act, "none")
    _fuse(graph, now, layer, nodes)
    layer.tensors = {"weight": _shaped(weight, kind), "bias": bias}
    now.layers.append(layer)
    now.values |= dict.fromkeys(nodes, layer.dst)
    if flat:
        now.flat.add(layer.dst)
    return True


def _shaped(weight: Tensor, kind: str) -> Tensor:
    """As steps want it: (out, k, k) of a depthwise, (out, in) of a linear one."""
    if kind == "depthwise":
        return weight[:, 0].contiguous()
    return weight.flatten(1).contiguous() if kind == "linear" else weight.contiguous()


def _fuse(graph: fx.GraphModule, now: Cluster, layer: DenseStep, nodes: list[fx.Node]) -> None:
    """Take in the activation, and for 1x1 an addition, that alone reads the last of the nodes."""
    while (behind := _reader(nodes[-1])) is not None:
        module = module_of(graph, behind)
        act = _act_of(module, behind)
        if type(module).__name__ in NOTHING or act == "none":
            nodes.append(behind)
            continue
        first, second = layer.acts
        if act and layer.other is None and first == "none":
            layer.acts = (act, "none")
        elif act and layer.other is not None and second == "none":
            layer.acts = (first, act)
        elif function_of(behind) == ADD and layer.kind == "spmm" and layer.other is None:
            others = [n for n in tensors_in(behind) if n is not nodes[-1]]
            same = others and others[0].meta["shape"] == behind.meta["shape"]
            if not _bare(behind) or not same or others[0] not in now.values | now.inputs:
                return
            layer.other = now.read(others[0])
        else:
            return
        nodes.append(behind)


def _reader(node: fx.Node) -> fx.Node | None:
    """The only node that reads one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _only_user(graph: fx.GraphModule, nodes: list[fx.Node], kind: type) -> fx.Node | None:
    """The only reader of the last node, past what does nothing, if it is a module of a kind."""
    at = _reader(nodes[-1])
    while at is not None and type(module_of(graph, at)).__name__ in NOTHING:
        at = _reader(at)
    return at if at is not None and isinstance(module_of(graph, at), kind) else None


def _between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes from one to another that each is the only reader of the one before."""
    found: list[fx.Node] = []
    at = _reader(first)
    while at is not None and at is not last:
        found.append(at)
        at = _reader(at)
    return found


def _bare(node: fx.Node) -> bool:
    """Whether a function has two arguments and no more, as a factor `alpha` would be."""
    return len(node.args) == 2 and not node.kwargs


def _plain(layer: nn.Module, kind: type[nn.Module], *known: str) -> bool:
    """Whether a layer does what its kind does; one that standardises its weight does not."""
    return type(layer).forward is kind.forward or type(layer).__name__ in known


def _act_inside(norm: Any) -> str:
    """The activation that timm's norms bring with them."""
    act = activation_of(norm)
    return "none" if act is None else ACT_MODULES.get(type(act), "?")


def _numbers(layer: Any) -> tuple[Tensor, Tensor]:
    weight = layer.weight.detach().float()
    bias = layer.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().float()


def folded(weight: Tensor, bias: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """A convolution's numbers with the batch norm behind it: g (w x + b - m) / s + beta."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = 0 if norm.bias is None else norm.bias.detach().double()
    moved = (bias.double() - norm.running_mean.double()) * scale + shift
    by_row = scale.view(-1, *[1] * (weight.dim() - 1))
    return (weight.double() * by_row).float(), moved.float()


def _window(conv: Any) -> Window | None:
    """A square window without dilation; None for others."""
    sides = {*conv.kernel_size}
    if len(sides) != 1 or len({*conv.stride}) != 1 or {*conv.dilation} != {1}:
        return None
    if conv.stride[0] > STRIDES:
        return None
    if conv.padding_mode != "zeros" or (size := sides.pop()) > LARGEST:
        return None
    same = type(conv).__name__ == "Conv2dSame"  # timm's: TensorFlow's zeros
    if isinstance(conv.padding, str):
        if conv.padding == "same" and (size % 2 == 0 or conv.stride[0] > 1):
            return None
        pads = (size // 2, size // 2) if conv.padding == "same" else (0, 0)
    else:
        pads = (0, 0) if same else conv.padding
    top, left = pads
    return Window(size, conv.stride[0], top, left, top, left, same)


def _norm(graph: fx.GraphModule, now: Cluster, node: fx.Node, norm: Any) -> bool:
    """A batch norm by itself: a depthwise 1x1 convolution."""
    source, act = tensors_in(node)[0], _act_inside(norm)
    if source in now.values and now.values[source] in now.flat or act == "?":
        return False
    if norm.running_mean is None or len(node.meta["shape"]) != 4:
        return False
    ones = torch.ones(norm.num_features, 1, 1)
    weight, bias = folded(ones, torch.zeros(norm.num_features), norm)
    layer = DenseStep(str(node.target), "depthwise", 0, 0, acts=(act, "none"))
    layer.tensors = {"weight": weight, "bias": bias}
    return _made(now, layer, node, source)


def _pool(graph: fx.GraphModule, now: Cluster, node: fx.Node, pool: Any) -> bool:
    """The mean of every channel."""
    source = tensors_in(node)[0]
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        whole = pool.output_size in (1, (1, 1), [1, 1])
    else:
        axes: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        name: str = function_of(node)
        if name == "adaptive_avg_pool2d":
            whole = axes in (1, (1, 1), [1, 1])
        else:
            whole = isinstance(axes, (tuple, list)) and {int(a) % 4 for a in axes} == {2, 3}
    if not whole or len(source.meta["shape"]) != 4 or source not in now.values:
        return False
    if now.read(source) in now.flat:
        return False
    _made(now, DenseStep(str(node.target), "pool", 0, 0), node, source)
    now.flat.add(now.values[node])
    return True


def _flatten(graph: fx.GraphModule, now: Cluster, node: fx.Node, module: Any) -> bool:
    source = tensors_in(node)[0]
    if source in now.values and now.values[source] in now.flat:
        now.values[node] = now.values[source]
        return True
    return False


def _linear(graph: fx.GraphModule, now: Cluster, node: fx.Node, linear: Any) -> bool:
    source = tensors_in(node)[0]
    if source not in now.values or now.values[source] not in now.flat:
        return False
    if len(node.meta["shape"]) != 2 or not _plain(linear, nn.Linear, "Linear", "PackedLinear"):
        return False
    weight, bias = _numbers(linear)
    layer = DenseStep(str(node.target), "linear", now.read(source), now.new())
    layer.tensors = {"weight": weight, "bias": bias}
    nodes = [node]
    _fuse(graph, now, layer, nodes)
    now.layers.append(layer)
    now.values |= dict.fromkeys(nodes, layer.dst)
    now.flat.add(layer.dst)
    return True


def _two(graph: fx.GraphModule, now: Cluster, node: fx.Node, module: Any) -> bool:
    """An addition of maps, or a map times a vector."""
    inputs = tensors_in(node)
    if len(inputs) != 2 or not _bare(node) or not any(n in now.values for n in inputs):
        return False
    for a, b in (inputs, inputs[::-1]):
        same = a.meta["shape"] == b.meta["shape"] == node.meta["shape"]
        flat = [n in now.values and now.values[n] in now.flat for n in (a, b)]
        kind = function_of(node)
        adds = kind == ADD and same and not any(flat) and len(node.meta["shape"]) == 4
        scales = kind == MUL and not flat[0] and flat[1] and len(a.meta["shape"]) == 4
        if adds or (scales and len(b.meta["shape"]) == 4):
            layer = DenseStep(str(node.target), "add" if adds else "scale", 0, 0, now.read(b))
            return _made(now, layer, node, a)
    return False


Take = Callable[[fx.GraphModule, Cluster, fx.Node, Any], bool]
TAKES: tuple[tuple[Any, Take], ...] = (
    (nn.Conv2d, _convolution),
    (BATCH_NORM, _norm),
    (nn.Linear, _linear),
    (nn.AdaptiveAvgPool2d, _pool),
    (nn.Flatten, _flatten),
    (("mean", "adaptive_avg_pool2d"), _pool),
    (("flatten",), _flatten),
    ((ADD, MUL), _two),
)
"""A kind of module, or names of functions, and what takes it."""
