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
from ...hosts.anatomy.traced import ADD, BATCH_NORM, MUL, function_of, module_of, tensors_in
from ...kernels.chw import Window

ACT_MODULES: Mapping[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Identity: "none",
}
OF_TIMM = {"timm.layers.activations.Sigmoid": "sigmoid"}  # its gates in RegNetY
ACT_FUNCTIONS = ("relu", "relu6", "hardswish", "silu", "sigmoid", "hardsigmoid")
UNKNOWN = "?"  # an activation that no kernel computes
NOTHING = ("Identity", "Dropout", "Dropout2d", "DropPath")  # in evaluation
LARGEST, STRIDES = 11, 4  # largest side and stride of a convolution's kernel


@dataclass
class DenseStep:
    """Layer as a step of a native program, with its weight still dense, or without one.

    Values, the tensors between layers, are numbered: the step reads value `src`, writes `dst`, and
    adds or multiplies `other` if there is one. acts: activations before and after that addition.
    """

    name: str
    kind: str  # "spmm" (1x1), "conv", "depthwise", "linear", "act", "pool", "max", ...
    src: int  # numbers of values: src is read, dst written, other added or multiplied
    dst: int
    other: int | None = None
    acts: tuple[str, str] = ("none", "none")
    window: Window = Window()
    tensors: dict[str, Tensor] = field(default_factory=lambda: dict[str, Tensor]())


@dataclass
class Cluster:
    """Run of adjacent layers that native kernels compute in one call.

    Each tensor between layers is a numbered value. values: node of the graph -> number of its
    value.
    inputs: the same for tensors that come from outside. vectors: values that are vectors, not maps.
    count: number of the next value. kxk: convolutions of k x k are computed on codes, in groups,
    and with an addition behind them, and maxima and timm's sigmoid are steps; False as in nets that
    were saved before.
    before: the cluster can be called in front of this node; None = at the end.
    """

    layers: list[DenseStep] = field(default_factory=lambda: list[DenseStep]())
    values: dict[fx.Node, int] = field(default_factory=lambda: dict[fx.Node, int]())
    inputs: dict[fx.Node, int] = field(default_factory=lambda: dict[fx.Node, int]())
    vectors: set[int] = field(default_factory=lambda: set[int]())
    before: fx.Node | None = None
    count: int = 0
    kxk: bool = True

    def is_vector(self, node: fx.Node) -> bool:
        """Return True if a layer of this cluster computes the node, one vector for each picture."""
        return node in self.values and self.values[node] in self.vectors

    def outputs(self) -> dict[fx.Node, int]:
        """Return the nodes of this cluster that others read -> the numbers of their values."""
        return {
            node: value
            for node, value in self.values.items()
            if any(user not in self.values for user in node.users)
        }

    def new(self) -> int:
        """Number a new value, and return its number."""
        self.count += 1
        return self.count - 1

    def read(self, node: fx.Node) -> int:
        """Return the number of the value that a node computes.

        If the node is outside the cluster, its value becomes an input of the cluster.
        """
        if node in self.values:
            return self.values[node]
        if node not in self.inputs:
            self.inputs[node] = self.new()
            if len(node.meta["shape"]) == 2:
                self.vectors.add(self.inputs[node])
        return self.inputs[node]


def clusters_of(graph: fx.GraphModule, kxk: bool = True) -> list[Cluster]:
    """Split a traced net into runs of layers that native kernels can compute, in order.

    graph: trace by torch.fx with nodes that know their shapes; kxk: as of `Cluster`.
    """
    clusters: list[Cluster] = []
    current, done = Cluster(kxk=kxk), set[fx.Node]()
    for node in graph.graph.nodes:
        if node in done or node.op in ("placeholder", "get_attr"):
            continue
        # a node that kernels do not know ends the cluster, and the next one may begin behind it
        if node.op == "output" or not _take_node(graph, current, node):
            current.before = node
            clusters.append(current)
            current = Cluster(kxk=kxk)
        done |= current.values.keys()
    # a cluster in which nothing is computed would only change the layout
    return [cluster for cluster in clusters if cluster.layers]


def _take_node(graph: fx.GraphModule, cluster: Cluster, node: fx.Node) -> bool:
    """Add a node, and the nodes fused with it, to a cluster, if native kernels can compute it."""
    inputs, module = tensors_in(node), module_of(graph, node)
    if not inputs or any(len(n.meta["shape"]) not in (2, 4) for n in (*inputs, node)):
        return False
    # a kind is a class of modules, or the names of functions that compute the same
    for kind, take in TAKES:
        if isinstance(module, kind) if isinstance(kind, type) else function_of(node) in kind:
            return take(graph, cluster, node, module)
    name = type(module).__name__
    # dropout and the like pass their input on: the node is another name for it
    if (name in NOTHING and name != "Identity") or isinstance(module, nn.Identity):
        cluster.values[node] = cluster.read(inputs[0])
        return True
    act = _act_of(cluster, module, node)
    if act and len(inputs[0].meta["shape"]) == 4 and inputs[0] in cluster.values | cluster.inputs:
        if cluster.read(inputs[0]) in cluster.vectors:
            return False
        return _append(
            cluster, DenseStep(str(node.target), "act", 0, 0, acts=(act, "none")), node, inputs[0]
        )
    return False


def _act_of(cluster: Cluster, module: nn.Module | None, node: fx.Node) -> str:
    """Return the name of the activation that a node computes; "" for another node."""
    if module is not None:
        name = f"{type(module).__module__}.{type(module).__name__}"
        of_timm = OF_TIMM.get(name, "") if cluster.kxk else ""
        return ACT_MODULES.get(type(module), of_timm)
    name = function_of(node)
    return name if name in ACT_FUNCTIONS else ""


def _append(cluster: Cluster, layer: DenseStep, node: fx.Node, source: fx.Node) -> bool:
    """Append a layer with one input to a cluster; return True, as the functions that call it do."""
    layer.src, layer.dst = cluster.read(source), cluster.new()
    cluster.layers.append(layer)
    cluster.values[node] = layer.dst
    return True


def _take_convolution(graph: fx.GraphModule, cluster: Cluster, node: fx.Node, conv: Any) -> bool:
    """Add a convolution to a cluster, fused with the batch norm, activation and sum behind it."""
    source = tensors_in(node)[0]
    flat = cluster.is_vector(source)
    window = _window(conv) if _is_plain(conv, nn.Conv2d, "Conv2dSame") else None
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1
    grouped = conv.groups > 1 and not depthwise
    if window is None or (grouped and not cluster.kxk) or (flat and window.size > 1):
        return False
    # 1. the kind of the product; behind a global pool a 1x1 convolution is a linear layer
    plain = window._replace(same=False) == Window()
    kind = "depthwise" if depthwise else "spmm" if plain else "conv"
    if flat:
        if conv.groups > 1:
            return False
        kind = "linear"
    weight, bias = _weight_and_bias(conv)
    if grouped:
        weight = ungrouped(weight, conv.groups)
    layer = DenseStep(str(node.target), kind, cluster.read(source), cluster.new(), window=window)
    nodes = [node]
    # 2. the batch norm goes into the weights, and the activation inside it into the step
    norm = _only_user(graph, nodes, BATCH_NORM)
    norm_module: Any = None if norm is None else module_of(graph, norm)
    if (
        norm is not None
        and norm_module.running_mean is not None
        and (act := _act_inside(norm_module)) != UNKNOWN
    ):
        weight, bias = folded(weight, bias, norm_module)
        nodes = [*nodes, *_between(node, norm), norm]
        layer.acts = (act, "none")
    _fuse_into(graph, cluster, layer, nodes)
    layer.tensors = {"weight": _step_weight(weight, kind), "bias": bias}
    cluster.layers.append(layer)
    cluster.values |= dict.fromkeys(nodes, layer.dst)
    if flat:
        cluster.vectors.add(layer.dst)
    return True


def ungrouped(weight: Tensor, groups: int) -> Tensor:
    """Return the weight of a grouped convolution as that of a plain one, 0 between the groups.

    weight: (out, in / groups, k, k).
    """
    of_groups = weight.unflatten(0, (groups, -1))
    plain = weight.new_zeros(groups, of_groups.shape[1], groups, *weight.shape[1:])
    plain[range(groups), :, range(groups)] = of_groups
    return plain.flatten(2, 3).flatten(0, 1)


def _step_weight(weight: Tensor, kind: str) -> Tensor:
    """Reshape a convolution's weight as kernels read it."""
    # "depthwise" -> (channels, k, k), "linear" -> (out, in), others stay (out, in, k, k)
    if kind == "depthwise":
        return weight[:, 0].contiguous()
    return weight.flatten(1).contiguous() if kind == "linear" else weight.contiguous()


def _fuse_into(
    graph: fx.GraphModule, cluster: Cluster, layer: DenseStep, nodes: list[fx.Node]
) -> None:
    """Fuse a layer with the activation behind it and, for a convolution, with an addition."""
    kinds = ("spmm", "conv") if cluster.kxk else ("spmm",)
    while (reader := _only_reader(nodes[-1])) is not None:
        module = module_of(graph, reader)
        act = _act_of(cluster, module, reader)
        if type(module).__name__ in NOTHING or act == "none":
            nodes.append(reader)
            continue
        # the step computes act2(act1(W x + b) + other): what comes next must fit that order
        first, second = layer.acts
        if act and layer.other is None and first == "none":
            layer.acts = (act, "none")
        elif act and layer.other is not None and second == "none":
            layer.acts = (first, act)
        elif function_of(reader) == ADD and layer.kind in kinds and layer.other is None:
            addends = [n for n in tensors_in(reader) if n is not nodes[-1]]
            same_shape = addends and addends[0].meta["shape"] == reader.meta["shape"]
            if (
                not _is_binary(reader)
                or not same_shape
                or addends[0] not in cluster.values | cluster.inputs
            ):
                return
            layer.other = cluster.read(addends[0])
        else:
            return
        nodes.append(reader)


def _only_reader(node: fx.Node) -> fx.Node | None:
    """Return the node that reads another, if it is the only one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _only_user(graph: fx.GraphModule, nodes: list[fx.Node], kind: type) -> fx.Node | None:
    """Return the only reader of the last node, if its module is of a class; None otherwise."""
    user = _only_reader(nodes[-1])
    while user is not None and type(module_of(graph, user)).__name__ in NOTHING:
        user = _only_reader(user)
    return user if user is not None and isinstance(module_of(graph, user), kind) else None


def _between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """List the nodes between two nodes, each the only reader of the one before."""
    nodes: list[fx.Node] = []
    node = _only_reader(first)
    while node is not None and node is not last:
        nodes.append(node)
        node = _only_reader(node)
    return nodes


def _is_binary(node: fx.Node) -> bool:
    """Return True if a function has two arguments and no more, as a factor `alpha` would be."""
    return len(node.args) == 2 and not node.kwargs


def _is_plain(layer: nn.Module, kind: type[nn.Module], *names: str) -> bool:
    """Return True if a layer has its class's own forward, or its class has one of the names."""
    return type(layer).forward is kind.forward or type(layer).__name__ in names


def _act_inside(norm: Any) -> str:
    """Return the activation inside one of timm's norms; UNKNOWN if kernels do not know it."""
    act = activation_of(norm)
    return "none" if act is None else ACT_MODULES.get(type(act), UNKNOWN)


def _weight_and_bias(layer: Any) -> tuple[Tensor, Tensor]:
    """Return weight and bias in float32, a bias of zeros for none."""
    weight = layer.weight.detach().float()
    bias = layer.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().float()


def folded(weight: Tensor, bias: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """Fold a batch norm into the convolution before it: g (W x + b - m) / s + beta.

    weight: W, (out, ...); bias: b, (out,); norm: with mean m, deviation s, scale g and shift beta.
    Returns the new weight and bias, float32.
    """
    # in double, since the sums are rounded to float32 only once
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = 0 if norm.bias is None else norm.bias.detach().double()
    moved = (bias.double() - norm.running_mean.double()) * scale + shift
    by_row = scale.view(-1, *[1] * (weight.dim() - 1))
    return (weight.double() * by_row).float(), moved.float()


def _window(conv: Any) -> Window | None:
    """Return kernel size, stride and padding of a square convolution without dilation."""
    sides = {*conv.kernel_size}
    if len(sides) != 1 or len({*conv.stride}) != 1 or {*conv.dilation} != {1}:
        return None
    if conv.stride[0] > STRIDES:
        return None
    if conv.padding_mode != "zeros" or (size := sides.pop()) > LARGEST:
        return None
    same_padding = type(conv).__name__ == "Conv2dSame"  # timm's layer that pads as TensorFlow does
    if isinstance(conv.padding, str):
        if conv.padding == "same" and (size % 2 == 0 or conv.stride[0] > 1):
            return None
        # torch pads "same" evenly only for odd sides and stride 1
        pads = (size // 2, size // 2) if conv.padding == "same" else (0, 0)
    else:
        # with Conv2dSame the padding depends on the picture's size, and is computed later
        pads = (0, 0) if same_padding else conv.padding
    # the same on both sides
    top, left = pads
    return Window(size, conv.stride[0], top, left, top, left, same_padding)


def _take_norm(graph: fx.GraphModule, cluster: Cluster, node: fx.Node, norm: Any) -> bool:
    """Add a batch norm on its own to a cluster, as a depthwise 1x1 convolution."""
    source, act = tensors_in(node)[0], _act_inside(norm)
    if cluster.is_vector(source) or act == UNKNOWN:
        return False
    if norm.running_mean is None or len(node.meta["shape"]) != 4:
        return False
    # scale and shift of each channel
    ones = torch.ones(norm.num_features, 1, 1)
    weight, bias = folded(ones, torch.zeros(norm.num_features), norm)
    layer = DenseStep(str(node.target), "depthwise", 0, 0, acts=(act, "none"))
    layer.tensors = {"weight": weight, "bias": bias}
    return _append(cluster, layer, node, source)


def _take_pool(graph: fx.GraphModule, cluster: Cluster, node: fx.Node, pool: Any) -> bool:
    """Add the mean over all positions of each channel to a cluster."""
    source = tensors_in(node)[0]
    # the kernels know only the mean over all positions
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        is_global = pool.output_size in (1, (1, 1), [1, 1])
    else:
        axes: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        name: str = function_of(node)
        if name == "adaptive_avg_pool2d":
            is_global = axes in (1, (1, 1), [1, 1])
        else:
            is_global = isinstance(axes, (tuple, list)) and {int(a) % 4 for a in axes} == {2, 3}
    if not is_global or len(source.meta["shape"]) != 4 or source not in cluster.values:
        return False
    if cluster.read(source) in cluster.vectors:
        return False
    _append(cluster, DenseStep(str(node.target), "pool", 0, 0), node, source)
    cluster.vectors.add(cluster.values[node])
    return True


def _take_maximum(graph: fx.GraphModule, cluster: Cluster, node: fx.Node, pool: Any) -> bool:
    sides: list[int] = []
    for numbers in (pool.kernel_size, pool.stride, pool.padding):
        several = (numbers,) if isinstance(numbers, int) else tuple(numbers)
        if len({*several}) != 1:
            return False
        sides.append(several[0])
    size, stride, zeros = sides
    plain = pool.dilation in (1, (1, 1)) and not pool.ceil_mode and not pool.return_indices
    source = tensors_in(node)[0]
    if not (cluster.kxk and plain) or cluster.is_vector(source) or len(source.meta["shape"]) != 4:
        return False
    layer = DenseStep(
        str(node.target), "max", 0, 0, window=Window(size, stride, zeros, zeros, zeros, zeros)
    )
    return _append(cluster, layer, node, source)


def _take_flatten(graph: fx.GraphModule, cluster: Cluster, node: fx.Node, module: Any) -> bool:
    """Add a flatten of a pooled vector, which changes nothing, to a cluster."""
    source = tensors_in(node)[0]
    if cluster.is_vector(source):
        cluster.values[node] = cluster.values[source]
        return True
    return False


def _take_linear(graph: fx.GraphModule, cluster: Cluster, node: fx.Node, linear: Any) -> bool:
    """Add a linear layer on a pooled vector to a cluster, fused with the activation behind it."""
    source = tensors_in(node)[0]
    if not cluster.is_vector(source):
        return False
    if len(node.meta["shape"]) != 2 or not _is_plain(linear, nn.Linear, "Linear", "PackedLinear"):
        return False
    weight, bias = _weight_and_bias(linear)
    layer = DenseStep(str(node.target), "linear", cluster.read(source), cluster.new())
    layer.tensors = {"weight": weight, "bias": bias}
    nodes = [node]
    _fuse_into(graph, cluster, layer, nodes)
    cluster.layers.append(layer)
    cluster.values |= dict.fromkeys(nodes, layer.dst)
    cluster.vectors.add(layer.dst)
    return True


def _take_binary(graph: fx.GraphModule, cluster: Cluster, node: fx.Node, module: Any) -> bool:
    """Add a sum of two maps, or a product of a map and a vector, to a cluster."""
    inputs = tensors_in(node)
    if len(inputs) != 2 or not _is_binary(node) or not any(n in cluster.values for n in inputs):
        return False
    # either operand may be the map
    for a, b in (inputs, inputs[::-1]):
        same_shape = a.meta["shape"] == b.meta["shape"] == node.meta["shape"]
        flat = [cluster.is_vector(n) for n in (a, b)]
        kind = function_of(node)
        adds = kind == ADD and same_shape and not any(flat) and len(node.meta["shape"]) == 4
        scales = kind == MUL and not flat[0] and flat[1] and len(a.meta["shape"]) == 4
        if adds or (scales and len(b.meta["shape"]) == 4):
            layer = DenseStep(str(node.target), "add" if adds else "scale", 0, 0, cluster.read(b))
            return _append(cluster, layer, node, a)
    return False


Take = Callable[[fx.GraphModule, Cluster, fx.Node, Any], bool]
TAKES: tuple[tuple[Any, Take], ...] = (
    (nn.Conv2d, _take_convolution),
    (BATCH_NORM, _take_norm),
    (nn.Linear, _take_linear),
    (nn.AdaptiveAvgPool2d, _take_pool),
    (nn.MaxPool2d, _take_maximum),
    (nn.Flatten, _take_flatten),
    (("mean", "adaptive_avg_pool2d"), _take_pool),
    (("flatten",), _take_flatten),
    ((ADD, MUL), _take_binary),
)
"""Kind of module, or names of functions, and the function that takes such a node."""
