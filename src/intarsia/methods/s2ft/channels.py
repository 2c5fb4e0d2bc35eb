"""Choice of the channels and heads that S2FT trains, at random or by score, over all layers."""

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
    """Fill in a method's channels by its `selection`, for `intarsia.adapt`.

    Each share is spent on all its layers at once, so that layers get uneven counts. Heads are
    chosen as KV groups. The model is left as it is.

    method: the settings, without channels; batches: a few for calibration, as the model takes them:
      a tensor, a mapping of keywords, or (x, y), where the model gets x. Where there is an
      `attention_mask`, padding does not count.
    loss: (model, batch) -> scalar, for selection="gradient"; None = the output's own `loss`.
    apart: methods with channels that are not chosen, so that adapters do not overlap.
    targets, layers: as in `adapt`. seed: of the random selection.
    Raises: TargetError for layers without a share, and heads that cannot be separated; ConfigError
      for missing data and a share that selects nothing.
    """
    groups = _sites_by_family(model, method, targets, layers)
    sites = {site.path: site for family_sites in groups.values() for site in family_sites}
    # a model lists each layer once: the scores of all are read in one pass over the data
    scores = _channel_scores(model, method, sites, batches, loss, seed)
    units = {path: couple.units for couple in couples(model) for path in couple.paths}
    channels_of_paths: dict[str, str] = {}
    for family, family_sites in groups.items():
        counts = {site.path: _unit_count(site, family, units) for site in family_sites}
        ranked = {
            s.path: _rank_units(
                method, scores[s.path], counts[s.path], _channels_of_others(apart, s, family)
            )
            for s in family_sites
        }
        # All layers of a family compete for the family's share.
        label = top_units(ranked, getattr(method, family))
        for site in family_sites:
            selected_units = label.mask(site.path, 0).nonzero()[:, 0]
            first, width = span(site, family)
            if len(selected_units):
                unit_width = width // counts[site.path]
                # A unit is a run of channels; a head's channels are selected together.
                ids = (
                    first
                    + (selected_units[:, None] * unit_width + torch.arange(unit_width)).flatten()
                )
                channels_of_paths[site.path] = spell(ids.tolist())
    # The model's order, so that equal choices are equal settings.
    order = [path for path, _ in walk(model) if path in channels_of_paths]
    return replace(method, channels=tuple((path, channels_of_paths[path]) for path in order))


def _rank_units(method: S2ft, scores: Tensor, units: int, excluded: Tensor) -> Tensor:
    """Compute a score for each unit (a channel or a head) from its channels' scores, (units,)."""
    # scores: (width,) of the channels; excluded: (width,) bool, channels of units that get -inf
    by_unit = scores.view(units, -1)
    # chance is one draw for a head, whatever its width; a score is its mean square
    unit_scores = by_unit[:, 0] if method.selection == "random" else by_unit.square().mean(1)
    sign = 1 if method.order == "largest" else -1
    return (sign * unit_scores).masked_fill(excluded.view(units, -1).any(1), -torch.inf)


def _sites_by_family(
    model: nn.Module,
    method: S2ft,
    targets: Sequence[str] | str | None,
    layers: Sequence[int] | None,
) -> dict[str, list[Site]]:
    """Return the layers to choose channels in, with their widths, by family."""
    groups: dict[str, list[Site]] = {name: [] for name in method.shares}
    for site in find_sites(model, method, targets, layers):
        family = method.family(site.path)
        if family is not None:
            groups[family].append(site)
        elif targets is not None:
            subject = f"target {site.path!r}"
            want = "a down, up, output or value projection whose share is above 0"
            fix = "Target other layers, or set its share: S2ft(up=0.03)."
            raise TargetError(subject, got="a layer with no share of channels", want=want, fix=fix)
    # A share above 0 that no layer has would be ignored without a word.
    for family, family_sites in groups.items():
        if not family_sites:
            subject, want = f"share {family!r}", "at least one layer of that kind"
            got = f"{getattr(method, family)}, and no layer for it"
            raise TargetError(subject, got=got, want=want, fix=f"Set {family}=0, or target layers.")
    return groups


def _unit_count(site: Site, family: str, known_units: dict[str, int]) -> int:
    """Return how many units (channels or KV groups) the selectable width of a layer has."""
    width = span(site, family)[1]
    if family in ("down", "up"):
        count = known_units.get(site.path, width)
        if count != width:
            subject, fix = f"share {family!r} at {site.path!r}", "Set up=0."
            want = "one each: a gate and its values in one layer are not told apart"
            raise TargetError(
                subject, got=f"{width} outputs for {count} channels", want=want, fix=fix
            )
        return width
    # attention: the units are KV groups
    if site.path not in known_units:
        got = "an attention whose heads cannot be told apart"
        want = "head_dim or num_heads, and query, key and value of whole heads"
        fix = f"Set {family}=0, or name channels yourself: S2ft(channels=...)."
        raise TargetError(f"heads at {site.path!r}", got=got, want=want, fix=fix)
    return known_units[site.path]


def _channels_of_others(apart: Sequence[S2ft], site: Site, family: str) -> Tensor:
    """Return a mask of a layer's channels that other adapters train, (width,) bool."""
    first, width = span(site, family)
    excluded = torch.zeros(width, dtype=torch.bool)
    for method in apart:
        if (text := dict(method.channels).get(site.path)) is not None:
            excluded[torch.tensor(read(text)) - first] = True
    return excluded


def _channel_scores(
    model: nn.Module,
    method: S2ft,
    sites: dict[str, Site],
    batches: Iterable[Any],
    loss: Loss | None,
    seed: int,
) -> dict[str, Tensor]:
    """Compute a score for each selectable channel of a layer: path -> (width,)."""
    kind = method.selection
    if kind == "random":
        return {path: _random_scores(method, site, seed) for path, site in sites.items()}
    batches = list(batches)
    if kind != "weight" and not batches:
        subject = f"selection {kind!r}"
        fix = "Adapt with what intarsia.methods.choose_channels(model, method, batches) returns."
        raise ConfigError(subject, got="no calibration data", want="a few batches", fix=fix)
    modules = {path: unwrapped(m) for path, m in walk(model) if path in sites}
    families = {path: _trained_family(method, site) for path, site in sites.items()}
    # Columns of `down` and `output` are scored at their inputs, the others at their outputs.
    sides = {path: (side_of(f), span(sites[path], f)) for path, f in families.items()}
    weights = {p: m.get_parameter("weight").detach().flatten(1) for p, m in modules.items()}
    if kind == "gradient":
        weights = _weight_gradients(model, modules, batches, loss)
    norms = {path: _slice_norms(w, *sides[path]) for path, w in weights.items()}
    if kind in ("weight", "gradient"):
        return norms
    active = _activation_norms(model, modules, sides, batches)
    return active if kind == "activation" else {p: norms[p] * active[p] for p in norms}


def _trained_family(method: S2ft, site: Site) -> str:
    """Return the family of a layer, such as "down", which `_sites_by_family` has checked."""
    family = method.family(site.path)
    assert family is not None  # _sites_by_family leaves other layers out
    return family


def _random_scores(method: S2ft, site: Site, seed: int) -> Tensor:
    """Draw a random score for each selectable channel of a layer, (width,)."""
    # Python's hash differs between processes.
    digest = hashlib.sha256(f"{seed}:{site.path}".encode()).digest()
    # seeded by the path, so that the draw does not depend on which other layers are targeted
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return torch.rand(span(site, _trained_family(method, site))[1], generator=generator)


Slice = tuple[str, tuple[int, int]]  # side, (first channel, number)


def _slice_norms(weight: Tensor, side: str, channel_range: tuple[int, int]) -> Tensor:
    """Compute the norm of each selectable channel's column or row of a weight, (number,)."""
    # weight: (out, in); channel_range: (first, number) of the selectable channels
    norms = weight.float().norm(dim=0 if side == "inputs" else 1)
    return norms.narrow(0, *channel_range).cpu()


def _activation_norms(
    model: nn.Module, modules: dict[str, nn.Module], sides: dict[str, Slice], batches: Sequence[Any]
) -> dict[str, Tensor]:
    """Compute the root mean square of each channel over all positions that are no padding."""
    # sides: path -> (side, (first, number)) of the layer's "inputs" or "outputs"
    outputs = [path for path, (side, _) in sides.items() if side != "inputs"]
    with evaluating(model), torch.no_grad(), observing(modules, outputs=outputs) as observer:
        for batch in batches:
            inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
            masked = "attention_mask" in _batch_keys(inputs)
            observer.mask = inputs["attention_mask"].bool() if masked else None
            call(model, inputs)
    # a layer that no batch reached has zeros, as many as the last selectable channel needs
    statistics = {
        path: observer.found.get(path, Statistics.none(first + number))
        for path, (_, (first, number)) in sides.items()
    }
    return {p: s.mean_square.sqrt().narrow(0, *sides[p][1]) for p, s in statistics.items()}


def _batch_keys(batch: Any) -> Any:
    return () if isinstance(batch, Tensor) else batch.keys()


def _weight_gradients(
    model: nn.Module, modules: dict[str, nn.Module], batches: Sequence[Any], loss: Loss | None
) -> dict[str, Tensor]:
    """Sum the gradient of each layer's weight over the batches, (out, in) each."""
    weights: dict[str, Any] = {path: m.weight for path, m in modules.items()}
    was_trained = {path: w.requires_grad for path, w in weights.items()}
    total = {path: torch.zeros_like(w.detach()).flatten(1) for path, w in weights.items()}
    try:
        with evaluating(model), torch.enable_grad():
            for w in weights.values():
                # Frozen weights are opened for these gradients alone, and closed again below.
                w.requires_grad_(True)
            for batch in batches:
                value = (loss or _loss_of_output)(model, batch)
                for path, gradient in zip(
                    weights, torch.autograd.grad(value, list(weights.values())), strict=True
                ):
                    total[path] += gradient.flatten(1)
    finally:
        for path, w in weights.items():
            w.requires_grad_(was_trained[path])
    return total


def _loss_of_output(model: nn.Module, batch: Any) -> Tensor:
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    output = call(model, inputs)
    value = output.get("loss") if isinstance(output, Mapping) else None  # outputs of transformers
    if not isinstance(value, Tensor):
        got = "outputs without a loss"
        fix = "Pass loss=lambda model, batch: ..., or batches with labels."
        raise ConfigError("selection 'gradient'", got=got, want="a loss to differentiate", fix=fix)
    return value


def spell(ids: Iterable[int]) -> str:
    """Format channel numbers as text, with ranges as "first-last": "3,7,9-12"."""
    ranges: list[list[int]] = []
    for i in sorted(ids):
        if ranges and ranges[-1][1] == i - 1:
            ranges[-1][1] = i
        else:
            ranges.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def read(text: str) -> list[int]:
    """Parse channel numbers from text such as "3,7,9-12", the inverse of `spell`.

    Raises: ConfigError for other text, or numbers that do not increase.
    """
    numbers, fix = list[int](), "Take them from intarsia.methods.choose_channels."
    for range_text in text.split(","):
        first, _, last = range_text.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()) or range_text.endswith("-"):
            want = "numbers and ranges, such as '3,7,9-12'"
            raise ConfigError("channels", got=repr(text), want=want, fix=fix)
        numbers += range(int(first), int(last or first) + 1)
    if not numbers or sorted(set(numbers)) != numbers:
        want = "each channel once, in increasing order"
        raise ConfigError("channels", got=repr(text), want=want, fix=fix)
    return numbers


def side_of(family: str) -> str:
    """Return the side on which a family selects: "inputs" (columns) or "outputs" (rows)."""
    return "inputs" if family in ("down", "output") else "outputs"


def span(site: Site, family: str) -> tuple[int, int]:
    """Return (first, number) of the selectable channels; a fused layer's values are its last third.

    family: "down", "up", "output" or "value".
    Raises: TargetError for a fused layer with outputs that are not three equal parts.
    """
    if side_of(family) == "inputs":
        return 0, site.inputs
    if family != "value" or site.path.rpartition(".")[2] != "qkv":
        return 0, site.outputs
    if site.outputs % 3:
        subject, got = f"values in the fused layer {site.path!r}", f"{site.outputs} outputs"
        want = "equally many queries, keys and values"
        raise TargetError(subject, got=got, want=want, fix="Set value=0.")
    return 2 * site.outputs // 3, site.outputs // 3
