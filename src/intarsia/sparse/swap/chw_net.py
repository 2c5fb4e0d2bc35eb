"""A traced net that runs: the layers and functions of its graph, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from .chw_cluster import ChwCluster

COPIED = ("pretrained_cfg", "default_cfg", "num_classes", "num_features", "config")


@dataclass(frozen=True)
class _Ref:
    """Reference to the result of an earlier call, by its number."""

    number: int


@dataclass(frozen=True)
class _NetCall:
    """Node of the traced graph: a module, function, method or attribute, with its arguments."""

    kind: str  # kind of node, as torch.fx names it
    target: Any
    args: Any
    kwargs: Any


class ChwNet(nn.Module):
    """Net in evaluation in which `ChwCluster` modules compute some of the layers.

    The other layers are as they were, and keep their paths, with "_" for "."; attributes by which
    timm describes a model are copied.
    """

    def __init__(self, graph: fx.GraphModule, net: nn.Module) -> None:
        """Copy the calls of a traced graph to a list, which `forward` carries out in order."""
        super().__init__()
        # results are kept in one list, so that a net needs no graph to run or to be pickled
        numbers = {node: i for i, node in enumerate(graph.graph.nodes)}
        calls: list[_NetCall] = []
        for node in graph.graph.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: _Ref(numbers[n]))  # pyright: ignore
            target: Any = node.target
            if node.op in ("call_module", "get_attr"):
                # names of modules may not contain dots, and the net is flat
                target = str(node.target).replace(".", "_")
                self._register_target(graph, node, target)
            calls.append(_NetCall(node.op, target, args, kwargs))
        self.calls = tuple(calls)
        # timm reads these of a model: the number of classes, sizes of pictures
        for name in COPIED:
            if hasattr(net, name):
                setattr(self, name, getattr(net, name))
        self.train(net.training)

    def _register_target(self, graph: fx.GraphModule, node: fx.Node, name: str) -> None:
        if node.op == "call_module":
            self.add_module(name, graph.get_submodule(str(node.target)))
            return
        owner, _, last = str(node.target).rpartition(".")
        value = getattr(graph.get_submodule(owner), last)
        # a constant of the forward becomes a buffer: it moves with the net, and is not trained
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.register_buffer(name, value)
        else:
            setattr(self, name, value)

    def forward(self, *args_of_net: Any) -> Any:
        """Compute the net's output by carrying out the recorded calls in order.

        args_of_net: the arguments of the original net, such as a picture (1, 3, H, W).
        """
        values: list[Any] = []
        inputs = iter(args_of_net)

        def resolve(argument: Any) -> Any:
            return values[argument.number] if isinstance(argument, _Ref) else argument

        for call in self.calls:
            # references become the results of the calls before
            args, kwargs = map_aggregate((call.args, call.kwargs), resolve)  # pyright: ignore
            if call.kind == "placeholder":
                result = next(inputs, args[0] if args else None)
            elif call.kind == "output":
                return args[0]
            elif call.kind == "call_module":
                result = self._modules[call.target](*args, **kwargs)  # pyright: ignore
            elif call.kind == "get_attr":
                result = getattr(self, call.target)
            elif call.kind == "call_method":
                result = getattr(args[0], call.target)(*args[1:], **kwargs)
            else:
                result = call.target(*args, **kwargs)
            values.append(result)
        return None

    @property
    def clusters(self) -> Mapping[str, ChwCluster]:
        """Parts that kernels carry out, by name."""
        return {n: m for n, m in self._modules.items() if isinstance(m, ChwCluster)}

    @property
    def left(self) -> tuple[str, ...]:
        """Names of the layers that stayed in torch."""
        return tuple(
            n for n, m in self._modules.items() if not isinstance(m, ChwCluster | nn.Identity)
        )

    @property
    def layout_changes(self) -> int:
        """Number of times that a picture goes from the net's layout to CHW or back."""
        return sum(len(c.inputs) + len(c.outputs) for c in self.clusters.values())
