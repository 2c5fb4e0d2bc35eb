"""Which layers a schedule of masks is about: by globs, "1x1" or "tables"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..core.errors import ConfigError
from ..gating import Router
from ..kernels.experts import stacked_matrices

POINTWISE, TABLES = "1x1", "tables"
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def masked_weights(
    model: nn.Module, layers: Sequence[str] | None = None, *, computed: bool = False
) -> dict[str, Any]:
    """The weights of linear maps and convolutions that are trained, by parameter name, each once.

    Of stacked experts a weight is the stack (E, out, in), named by its parameter.
    layers: see `SparseSchedule`; a grouped convolution, or a layer of a router, only where a glob
    without "*" names it; an embedding where "tables" or more than "*" does, and one that shares its
    weight where its path does.  computed: with those that a layer computes anew from others, as a
    weight norm does, which no mask reaches.
    Raises: ConfigError where a glob matches no layer, nothing is left, a table cannot be masked, or
    a weight is computed and was not asked for.
    """
    users = Counter(
        id(m.weight) for m in model.modules() if isinstance(m, (nn.Linear, *EMBEDDINGS))
    )
    found: dict[str, Any] = {}
    used: set[str] = set()
    seen: set[int] = set()
    routers: list[str] = []
    for path, module in model.named_modules():
        conv = isinstance(module, nn.modules.conv._ConvNd)
        routers += [f"{path}."] if isinstance(module, Router) else []
        known = conv or isinstance(module, (nn.Linear, *EMBEDDINGS))
        own = ["weight"] if known else [*stacked_matrices(module)]
        for name in own:
            whole = f"{path}.{name}".lstrip(".")
            place = path if name == "weight" else whole
            globs = [g for g in layers or ["*"] if matches(place, module, g)]
            used |= set(globs)
            dense = (conv and module.groups > 1) or path.startswith(tuple(routers))
            weight: Any = getattr(module, name)
            left = dense and place not in globs
            if globs and isinstance(module, EMBEDDINGS):
                _check_table(place, module, users[id(weight)] > 1 and place not in globs)
            if globs and not left and not computed:
                _check_held(place, module, name)
            if globs and not left and weight.requires_grad and id(weight) not in seen:
                seen.add(id(weight))
                found[whole] = weight
    missing = [g for g in layers or () if g not in used]
    if missing or not found:
        got = f"no layer for {missing}" if missing else "no layer that is trained"
        fix = "See model.named_modules(); '*' takes all linear maps and convolutions."
        raise ConfigError("layers to mask", got=got, want="layers of the model", fix=fix)
    return found


def _check_held(path: str, module: nn.Module, name: str) -> None:
    """Raises: ConfigError for a weight that is trained by way of others, as in a weight norm."""
    others = (n for n, p in module.named_parameters() if p.requires_grad and n != "bias")
    if name not in module._parameters and any(others):
        fix = "Take the weight norm off first, parametrize.remove_parametrizations(layer, 'weight')"
        fix += " or nn.utils.remove_weight_norm(layer), or name layers=... without it."
        got = "a weight that is computed from others"
        raise ConfigError(f"layer {path!r}", got=got, want="a parameter", fix=fix)


def _check_table(path: str, table: Any, shared: bool) -> None:
    """Raises: ConfigError for an embedding that another layer shares, or of sparse gradients."""
    if shared:
        got, fix = (
            "a weight that another layer shares",
            f"Name it to mask both: layers=({path!r},).",
        )
        raise ConfigError(f"table {path!r}", got=got, want="one of its own", fix=fix)
    if table.sparse:
        got, fix = "sparse=True", "Use sparse=False: masks are chosen by whole gradients."
        raise ConfigError(f"table {path!r}", got=got, want="dense gradients", fix=fix)


def matches(path: str, module: nn.Module, glob: str) -> bool:
    """Whether a layer is one of those that a glob, "1x1" or "tables", names."""
    table = isinstance(module, EMBEDDINGS)
    if table and glob in ("*", TABLES) or glob == TABLES:
        return table and glob == TABLES
    if glob == POINTWISE:
        kernel = getattr(module, "kernel_size", None)
        return kernel is not None and set(kernel) == {1}
    return fnmatchcase(path, glob) or fnmatchcase(path, f"*.{glob}")
