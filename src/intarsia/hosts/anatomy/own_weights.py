"""A model's own weights: by name, which of them a method may change, and back as they were held."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn

from ...core.errors import ConfigError
from ..attach.adapt import find_heads
from .blocks import base_of, unwrapped, walk


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The host's parameters by their names without adapters; a tied one has all of its names."""
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
    """(weights to choose from, weights of the heads); norms are in neither, tied ones in one, once.

    trunk: choose from what models of all tasks have, without the layers of a language model or
    another task behind it.
    Raises: ConfigError for a name or glob that matches no parameter.
    """
    own = own_parameters(model)
    for glob in maskable:
        if not any(fnmatchcase(n, glob) for n in own):
            what, fix = f"maskable {glob!r}", f"The first of the model's own: {list(own)[:3]}."
            raise ConfigError(what, got="no parameter of that name", want="names or globs", fix=fix)
    inside = tuple(f"{head}." for head in find_heads(model))
    heads = {n: p for n, p in own.items() if n.startswith(inside)} if inside else {}
    modules = dict(walk(model))
    shared = _trunk(base_of(model)) if trunk else ""
    seen = {id(p) for p in heads.values()}
    found: dict[str, nn.Parameter] = {}
    for n, p in own.items():
        wanted = any(fnmatchcase(n, glob) for glob in maskable) and p.is_floating_point()
        wanted = wanted and n.startswith(shared)
        if wanted and id(p) not in seen and not is_norm(modules[n.rpartition(".")[0]]):
            found[n] = p
            seen.add(id(p))
    return found, heads


def _trunk(host: nn.Module) -> str:
    """How the names of a transformers model's trunk begin; "" where all of the model is one."""
    name = getattr(host, "base_model_prefix", "")
    return f"{name}." if name and isinstance(getattr(host, name, None), nn.Module) else ""


def is_norm(module: nn.Module) -> bool:
    """By its type's name, which every library's norms have."""
    return "norm" in type(unwrapped(module)).__name__.lower()


@contextmanager
def handed_back(model: nn.Module) -> Iterator[Callable[[Iterable[nn.Parameter]], None]]:
    """Gives `train(parameters)`, which freezes the others; flags and types end as they began."""
    held = [(p, p.requires_grad, p.data) for p in model.parameters()]

    def retyped() -> None:
        # mixed precision casts what is frozen, for good: what it cast is put back
        for parameter, _, data in held:
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
        for parameter, flag, _ in held:
            parameter.requires_grad_(flag)
