"""Trace a convolutional net as a graph of layers and the functions between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from ...core.errors import TargetError
from ...core.modes import evaluating

BATCH_NORM = nn.modules.batchnorm._BatchNorm
ADD, MUL = "add", "mul"
FUNCTIONS: Mapping[str, str] = {"add": ADD, "iadd": ADD, "add_": ADD, "mul": MUL, "mul_": MUL}


class _Layers(fx.Tracer):
    """Tracer that stops at layers: what torch has, what timm builds of one piece, batch norms."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return True for a module that becomes one node: a layer, or one without children."""
        # a module without children is a layer whatever its class
        alone = next(m.children(), None) is None
        is_layer = isinstance(m, BATCH_NORM | nn.Conv2d | nn.Linear)
        return is_layer or alone or super().is_leaf_module(m, module_qualified_name)


def traced(net: nn.Module, example: Tensor | None = None) -> fx.GraphModule:
    """Trace a net in evaluation as a graph of layers and functions that shares its modules.

    example: an input of the net; with one, the shape of every node's output is in its
    meta["shape"].
    Raises: TargetError for a net with a path that depends on its data, or that cannot read the
    example.
    """
    kind = type(net).__name__
    try:
        with evaluating(net):  # a function's `training` is a constant of the graph
            graph = _Layers().trace(net)
    except Exception as error:
        got = f"{kind}, whose path depends on its data ({str(error).partition(chr(10))[0]})"
        fix = "Use a net of torchvision's or timm's kind, without branches on numbers."
        raise TargetError("net to trace", got=got, want="one fixed graph", fix=fix) from error
    module = fx.GraphModule(net, graph, kind)
    if example is None:
        return module
    try:
        with evaluating(net), evaluating(module), torch.no_grad():
            ShapeProp(module).propagate(example)
    except Exception as error:
        got = f"{tuple(example.shape)} for {kind} ({str(error).partition(chr(10))[0]})"
        fix = "Give one picture as the net reads it, such as torch.randn(1, 3, 224, 224)."
        raise TargetError("example", got=got, want="an input of the net", fix=fix) from error
    for node in module.graph.nodes:
        # a node without a single tensor as its value has an empty shape
        metadata = node.meta.get("tensor_meta")
        node.meta["shape"] = tuple(metadata.shape) if isinstance(metadata, TensorMetadata) else ()
    return module


def function_of(node: fx.Node) -> str:
    """Return the name of the function that a node calls, "" if it calls a module.

    The spellings of additions and products become "add" and "mul".
    """
    if node.op not in ("call_function", "call_method"):
        return ""
    target: Any = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return FUNCTIONS.get(name, name)


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the layer that a node calls, or None."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def tensors_in(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that a node reads, in the order of its arguments."""
    return [a for a in node.args if isinstance(a, fx.Node)]
