"""Find a model's own weights: by name, which of them a method may change, and undo its flags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn

from ...core.errors import ConfigError
from ..attach.adapt import find_heads
from .blocks import base_of, unwrapped, walk


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the model's parameters by their names without adapters.

    A tied parameter is listed under each of its names.
    """
    host = base_of(model)
    return {
        f"{path}.{name}" if path else name: parameter
        for path, module in walk(host)
        for name, parameter in unwrapped(module)._parameters.items()
        if parameter is not None
    }


def weights_of(
    model: nn.Module, maskable: tuple[str, ...], *, trunk: bool = False
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return the weights a method may choose from, and the weights of the heads, both by name.

    Heads are whole, with their norms; no other norm may be chosen. A tied weight is listed once.
    maskable: names or globs of the weights to choose from.  trunk: only weights that models of all
    tasks share, without the layers of a language model or another task behind them.
    Raises: ConfigError for a name or glob that matches no parameter.
    """
    parameters = own_parameters(model)
    for glob in maskable:
        if not any(fnmatchcase(n, glob) for n in parameters):
            subject, fix = (
                f"maskable {glob!r}",
                f"The first of the model's own: {list(parameters)[:3]}.",
            )
            raise ConfigError(
                subject, got="no parameter of that name", want="names or globs", fix=fix
            )
    # heads are trained whole: nothing in them is chosen
    inside = tuple(f"{head}." for head in find_heads(model))
    heads = {n: p for n, p in parameters.items() if n.startswith(inside)} if inside else {}
    modules = dict(walk(model))
    shared = _trunk_prefix(base_of(model)) if trunk else ""
    taken_ids = {id(p) for p in heads.values()}
    choices: dict[str, nn.Parameter] = {}
    for n, p in parameters.items():
        eligible = any(fnmatchcase(n, glob) for glob in maskable) and p.is_floating_point()
        eligible = eligible and n.startswith(shared)
        # a tied weight counts under the first of its names
        if eligible and id(p) not in taken_ids and not is_norm(modules[n.rpartition(".")[0]]):
            choices[n] = p
            taken_ids.add(id(p))
    return choices, heads


def _trunk_prefix(host: nn.Module) -> str:
    """Return the prefix of the names of a transformers model's trunk; "" if all of it is trunk."""
    name = getattr(host, "base_model_prefix", "")
    return f"{name}." if name and isinstance(getattr(host, name, None), nn.Module) else ""


def is_norm(module: nn.Module) -> bool:
    """Return True for a norm, by its type's name, as every library's norms have it."""
    return "norm" in type(unwrapped(module)).__name__.lower()


@contextmanager
def handed_back(model: nn.Module) -> Iterator[Callable[[Iterable[nn.Parameter]], None]]:
    """Yield a function that freezes all but some parameters; the flags are restored at the end.

    The types of the weights are restored, too, since mixed precision casts frozen ones.
    """
    originals = [(p, p.requires_grad, p.data) for p in model.parameters()]

    def retyped() -> None:
        # mixed precision casts frozen weights for good: those that it cast are put back
        for parameter, _, data in originals:
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)

    def train(parameters: Iterable[nn.Parameter]) -> None:
        retyped()
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)

    try:
        yield train
    finally:
        retyped()
        for parameter, flag, _ in originals:
            parameter.requires_grad_(flag)
