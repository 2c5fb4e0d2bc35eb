"""Selection of the layers that a schedule masks: by globs, "1x1" or "tables"."""

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
    """Return the trained weights that a schedule masks, by parameter name, each once.

    They are the weights of linear maps and convolutions; the weights of stacked experts are one
    tensor (E, out, in), named by its parameter.
    layers: globs of layers' paths, "1x1" (pointwise convolutions) or "tables" (embeddings); None =
      "*". A grouped convolution, or a layer of a router, is included only where a glob without "*"
      names it; an embedding where "tables" or more than "*" does, and one that shares its weight
      where its path does. computed: also include weights that a layer computes from others, as a
      weight norm does, which no mask reaches.
    Raises: ConfigError where a glob matches no layer, nothing is left, a table cannot be masked, or
      a weight is computed and `computed` is False.
    """
    # a weight that several layers share is masked where its path is named
    users = Counter(
        id(m.weight) for m in model.modules() if isinstance(m, (nn.Linear, *EMBEDDINGS))
    )
    weights: dict[str, Any] = {}
    used: set[str] = set()
    ids: set[int] = set()
    routers: list[str] = []
    for path, module in model.named_modules():
        conv = isinstance(module, nn.modules.conv._ConvNd)
        routers += [f"{path}."] if isinstance(module, Router) else []
        single = conv or isinstance(module, (nn.Linear, *EMBEDDINGS))
        names = ["weight"] if single else [*stacked_matrices(module)]
        for name in names:
            full_name = f"{path}.{name}".lstrip(".")
            place = path if name == "weight" else full_name
            globs = [g for g in layers or ["*"] if matches(place, module, g)]
            used |= set(globs)
            # grouped convolutions and routers stay dense unless a glob names them in full
            dense = (conv and module.groups > 1) or path.startswith(tuple(routers))
            weight: Any = getattr(module, name)
            left_out = dense and place not in globs
            if globs and isinstance(module, EMBEDDINGS):
                _check_table(place, module, users[id(weight)] > 1 and place not in globs)
            if globs and not left_out and not computed:
                _check_parameter(place, module, name)
            # two places may hold one parameter: it is masked once
            if globs and not left_out and weight.requires_grad and id(weight) not in ids:
                ids.add(id(weight))
                weights[full_name] = weight
    missing = [g for g in layers or () if g not in used]
    if missing or not weights:
        got = f"no layer for {missing}" if missing else "no layer that is trained"
        fix = "See model.named_modules(); '*' takes all linear maps and convolutions."
        raise ConfigError("layers to mask", got=got, want="layers of the model", fix=fix)
    return weights


def _check_parameter(path: str, module: nn.Module, name: str) -> None:
    """Raise ConfigError for a weight that is computed from parameters, as in a weight norm."""
    sources = (n for n, p in module.named_parameters() if p.requires_grad and n != "bias")
    if name not in module._parameters and any(sources):
        fix = "Take the weight norm off first, parametrize.remove_parametrizations(layer, 'weight')"
        fix += " or nn.utils.remove_weight_norm(layer), or name layers=... without it."
        got = "a weight that is computed from others"
        raise ConfigError(f"layer {path!r}", got=got, want="a parameter", fix=fix)


def _check_table(path: str, table: Any, shared: bool) -> None:
    """Raise ConfigError for an embedding with a shared weight, or with sparse gradients."""
    if shared:
        got = "a weight that another layer shares"
        fix = f"Name it to mask both: layers=({path!r},)."
        raise ConfigError(f"table {path!r}", got=got, want="one of its own", fix=fix)
    if table.sparse:
        got, fix = "sparse=True", "Use sparse=False: masks are chosen by whole gradients."
        raise ConfigError(f"table {path!r}", got=got, want="dense gradients", fix=fix)


def matches(path: str, module: nn.Module, glob: str) -> bool:
    """Return True if a glob names this layer.

    glob: a pattern of paths, "1x1" (pointwise convolutions) or "tables" (embeddings).
    """
    table = isinstance(module, EMBEDDINGS)
    # "*" takes no tables: most batches do not touch most of their rows
    if table and glob in ("*", TABLES) or glob == TABLES:
        return table and glob == TABLES
    if glob == POINTWISE:
        # a linear map has no kernel, so that "1x1" takes convolutions alone
        kernel = getattr(module, "kernel_size", None)
        return kernel is not None and set(kernel) == {1}
    return fnmatchcase(path, glob) or fnmatchcase(path, f"*.{glob}")
