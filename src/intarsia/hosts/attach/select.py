"""Train a part of the model as it is, as baselines do: nothing is added, the rest is frozen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn

from ...core.errors import ConfigError, UnknownName
from ..anatomy.blocks import BATCH_NORM, blocks, is_norm, walk
from .adapt import find_heads

PARTS = ("linear", "full", "bitfit", "norms", "last-k")


def train_part(model: nn.Module, part: str, *, blocks: int = 1, last_blocks: int = 0) -> nn.Module:
    """Freeze a model except for one part of it and its classifier, in place.

    part: "linear", the classifier alone; "full", everything; "bitfit", every bias; "norms", the
    weights and biases of every norm; "last-k", the last `blocks` blocks and all modules after them.
    blocks: for "last-k"; last_blocks: biases or norms only from that many last blocks on, 0 = all.
    Names stay the model's own, so that the trained weights are a plain state dict; PEFT's LNTuning
    trains the same norms, in copies that take their places.

    Raises: UnknownName for another part; ConfigError for a model without a head or without that
    part, or a wrong number of blocks.
    """
    if part not in PARTS:
        raise UnknownName("part of a model", part, PARTS)
    heads = find_heads(model)
    if not heads and part == "linear":
        subject, want = f"head of {type(model).__name__}", "a classifier to train"
        raise ConfigError(subject, got="none", want=want, fix="Use another method or model.")
    # the classifier is trained with every part
    learns = [p for head in heads for p in model.get_submodule(head).parameters()]
    last = partial(_last_blocks, "blocks", blocks)
    selectors = {"full": _all_parameters, "bitfit": _biases, "norms": _norms, "last-k": last}
    selected = list(selectors[part](model)) if part in selectors else []
    if last_blocks:
        last_ids = {id(p) for p in _last_blocks("last_blocks", last_blocks, model)}
        selected = [p for p in selected if id(p) in last_ids]
    if part in selectors and not selected:
        got = f"{type(model).__name__}, which has nothing of the kind"
        fix = "Use another method or model."
        raise ConfigError(f"method {part!r}", got=got, want="a model with that part", fix=fix)
    # checked first, so that an error leaves the flags alone
    model.requires_grad_(False)
    for parameter in (*learns, *selected):
        parameter.requires_grad_(True)
    return model


def _all_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    return model.parameters()


def _biases(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield biases, by name; the table of Swin's relative positions is none."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2].endswith("bias"):
            yield parameter


def _norms(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the weights and biases of all norms."""
    for module in model.modules():
        if is_norm(module) or isinstance(module, BATCH_NORM):
            yield from module.parameters(recurse=False)


def _last_blocks(subject: str, count: int, model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of the last blocks, and of all modules behind the first of them."""
    paths = [path for path, _ in blocks(model)]
    if not 1 <= count <= len(paths):
        want, fix = f"1 ... {len(paths)}", f"{type(model).__name__} has {len(paths)} blocks."
        raise ConfigError(subject, got=count, want=want, fix=fix)
    # walk order is the order of the forward in these models
    order = dict(walk(model))
    start = list(order).index(paths[-count])
    for module in list(order.values())[start:]:
        yield from module.parameters(recurse=False)
