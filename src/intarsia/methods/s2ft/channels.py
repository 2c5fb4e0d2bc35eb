"""Which channels and heads of a host S2FT trains: shares of all layers, at random or by score."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core import Site
from ...core.errors import ConfigError, TargetError
from ...core.modes import evaluating
from ...hosts.anatomy.blocks import unwrapped, walk
from ...hosts.anatomy.compare import call
from ...hosts.anatomy.sites import find_sites
from ...partitions import top_units
from ...scores import Statistics, observing
from .couples import couples
from .spelling import read, side_of, span, spell

if TYPE_CHECKING:
    from .s2ft import S2ft

Loss = Callable[[nn.Module, Any], Tensor]


def choose_channels(
    model: nn.Module,
    method: S2ft,
    batches: Iterable[Any] = (),
    *,
    loss: Loss | None = None,
    apart: Sequence[S2ft] = (),
    targets: Sequence[str] | str | None = None,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> S2ft:
    """The method with its channels filled in, by its `selection`, for `intarsia.adapt`.

    Each share is spent on all its layers at once, so that layers get uneven counts. Heads are
    chosen as KV groups. The model is left as it is.

    batches: a few for calibration, as the model takes them: a tensor, a mapping of keywords, or
      (x, y), of which the model gets x. Where there is an `attention_mask`, padding does not count.
    loss: (model, batch) -> scalar, for selection="gradient"; None = the output's own `loss`.
    apart: methods whose channels are not chosen, so that adapters do not overlap.
    targets, layers: as in `adapt`. seed: of the random selection.
    Raises: TargetError for layers without a share, and heads that cannot be told apart; ConfigError
    for missing data and a share that selects nothing.
    """
    groups = _groups(model, method, targets, layers)
    sites = {site.path: site for found in groups.values() for site in found}
    # a model lists each layer once: the scores of all are read in one pass over the data
    scores = _scores(model, method, sites, batches, loss, seed)
    units = {path: couple.units for couple in couples(model) for path in couple.paths}
    chosen: dict[str, str] = {}
    for family, found in groups.items():
        counts = {site.path: _units(site, family, units) for site in found}
        ranked = {
            s.path: _ranked(method, scores[s.path], counts[s.path], _taken(apart, s, family))
            for s in found
        }
        label = top_units(ranked, getattr(method, family))
        for site in found:
            picked = label.mask(site.path, 0).nonzero()[:, 0]
            first, width = span(site, family)
            if len(picked):
                each = width // counts[site.path]
                ids = first + (picked[:, None] * each + torch.arange(each)).flatten()
                chosen[site.path] = spell(ids.tolist())
    order = [path for path, _ in walk(model) if path in chosen]
    return replace(method, channels=tuple((path, chosen[path]) for path in order))


def _ranked(method: S2ft, scores: Tensor, units: int, taken: Tensor) -> Tensor:
    """A score for each unit, higher is better, from those of its channels.  (units,)"""
    each = scores.view(units, -1)
    # chance is one draw for a head, whatever its width; a score is its mean square
    one = each[:, 0] if method.selection == "random" else each.square().mean(1)
    sign = 1 if method.order == "largest" else -1
    return (sign * one).masked_fill(taken.view(units, -1).any(1), -torch.inf)


def _groups(
    model: nn.Module,
    method: S2ft,
    targets: Sequence[str] | str | None,
    layers: Sequence[int] | None,
) -> dict[str, list[Site]]:
    """The sites of each share above 0."""
    groups: dict[str, list[Site]] = {name: [] for name in method.shares}
    for site in find_sites(model, method, targets, layers):
        family = method.family(site.path)
        if family is not None:
            groups[family].append(site)
        elif targets is not None:
            what = f"target {site.path!r}"
            want = "a down, up, output or value projection whose share is above 0"
            fix = "Target other layers, or set its share: S2ft(up=0.03)."
            raise TargetError(what, got="a layer with no share of channels", want=want, fix=fix)
    for family, found in groups.items():
        if not found:
            what, want = f"share {family!r}", "at least one layer of that kind"
            got = f"{getattr(method, family)}, and no layer for it"
            raise TargetError(what, got=got, want=want, fix=f"Set {family}=0, or target layers.")
    return groups


def _units(site: Site, family: str, known: dict[str, int]) -> int:
    width = span(site, family)[1]
    if family in ("down", "up"):
        count = known.get(site.path, width)
        if count != width:
            what, fix = f"share {family!r} at {site.path!r}", "Set up=0."
            want = "one each: a gate and its values in one layer are not told apart"
            raise TargetError(what, got=f"{width} outputs for {count} channels", want=want, fix=fix)
        return width
    if site.path not in known:
        got = "an attention whose heads cannot be told apart"
        want = "head_dim or num_heads, and query, key and value of whole heads"
        fix = f"Set {family}=0, or name channels yourself: S2ft(channels=...)."
        raise TargetError(f"heads at {site.path!r}", got=got, want=want, fix=fix)
    return known[site.path]


def _taken(apart: Sequence[S2ft], site: Site, family: str) -> Tensor:
    """(width,) bool: channels that other adapters have."""
    first, width = span(site, family)
    taken = torch.zeros(width, dtype=torch.bool)
    for other in apart:
        if (text := dict(other.channels).get(site.path)) is not None:
            taken[torch.tensor(read(text)) - first] = True
    return taken


def _scores(
    model: nn.Module,
    method: S2ft,
    sites: dict[str, Site],
    batches: Iterable[Any],
    loss: Loss | None,
    seed: int,
) -> dict[str, Tensor]:
    """A score for each channel that may be selected: path -> (width,)."""
    kind = method.selection
    if kind == "random":
        return {path: _random(method, site, seed) for path, site in sites.items()}
    batches = list(batches)
    if kind != "weight" and not batches:
        what = f"selection {kind!r}"
        fix = "Adapt with what intarsia.methods.choose_channels(model, method, batches) returns."
        raise ConfigError(what, got="no calibration data", want="a few batches", fix=fix)
    modules = {path: unwrapped(m) for path, m in walk(model) if path in sites}
    families = {path: _family(method, site) for path, site in sites.items()}
    ways = {path: (side_of(f), span(sites[path], f)) for path, f in families.items()}
    weights = {p: m.get_parameter("weight").detach().flatten(1) for p, m in modules.items()}
    if kind == "gradient":
        weights = _gradients(model, modules, batches, loss)
    norms = {path: _norms(w, *ways[path]) for path, w in weights.items()}
    if kind in ("weight", "gradient"):
        return norms
    active = _activations(model, modules, ways, batches)
    return active if kind == "activation" else {p: norms[p] * active[p] for p in norms}


def _family(method: S2ft, site: Site) -> str:
    family = method.family(site.path)
    assert family is not None  # _groups has seen to it
    return family


def _random(method: S2ft, site: Site, seed: int) -> Tensor:
    digest = hashlib.sha256(f"{seed}:{site.path}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return torch.rand(span(site, _family(method, site))[1], generator=generator)


Way = tuple[str, tuple[int, int]]  # side, (first channel, number)


def _norms(weight: Tensor, side: str, at: tuple[int, int]) -> Tensor:
    """The norm of each channel's column or row.  (out, in) -> (width,)."""
    norms = weight.float().norm(dim=0 if side == "inputs" else 1)
    return norms.narrow(0, *at).cpu()


def _activations(
    model: nn.Module, modules: dict[str, nn.Module], ways: dict[str, Way], batches: Sequence[Any]
) -> dict[str, Tensor]:
    """Root mean square of each channel over all positions that are no padding."""
    outputs = [path for path, (side, _) in ways.items() if side != "inputs"]
    with evaluating(model), torch.no_grad(), observing(modules, outputs=outputs) as seen:
        for batch in batches:
            given = batch[0] if isinstance(batch, (tuple, list)) else batch
            masked = "attention_mask" in _keys(given)
            seen.mask = given["attention_mask"].bool() if masked else None
            call(model, given)
    found = {  # a layer that no batch reached has zeros
        path: seen.found.get(path, Statistics.none(sum(at))) for path, (_, at) in ways.items()
    }
    return {p: s.mean_square.sqrt().narrow(0, *ways[p][1]) for p, s in found.items()}


def _keys(batch: Any) -> Any:
    return () if isinstance(batch, Tensor) else batch.keys()


def _gradients(
    model: nn.Module, modules: dict[str, nn.Module], batches: Sequence[Any], loss: Loss | None
) -> dict[str, Tensor]:
    """The gradient of each layer's weight, (out, in), summed over the batches."""
    weights: dict[str, Any] = {path: m.weight for path, m in modules.items()}
    asked = {path: w.requires_grad for path, w in weights.items()}
    total = {path: torch.zeros_like(w.detach()).flatten(1) for path, w in weights.items()}
    try:
        with evaluating(model), torch.enable_grad():
            for w in weights.values():
                w.requires_grad_(True)
            for batch in batches:
                value = (loss or _own_loss)(model, batch)
                for path, g in zip(
                    weights, torch.autograd.grad(value, list(weights.values())), strict=True
                ):
                    total[path] += g.flatten(1)
    finally:
        for path, w in weights.items():
            w.requires_grad_(asked[path])
    return total


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    given = batch[0] if isinstance(batch, (tuple, list)) else batch
    out = call(model, given)
    value = out.get("loss") if isinstance(out, Mapping) else None  # outputs of transformers
    if not isinstance(value, Tensor):
        got = "outputs without a loss"
        fix = "Pass loss=lambda model, batch: ..., or batches with labels."
        raise ConfigError("selection 'gradient'", got=got, want="a loss to differentiate", fix=fix)
    return value
