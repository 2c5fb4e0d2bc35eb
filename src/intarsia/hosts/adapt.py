"""Put a method's cells into a pretrained model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from peft import PeftModel
from torch import nn

from ..core import Method
from ..core.errors import ConfigError, TargetError
from ..core.heads import heads_of
from ..core.registry import KEY, method_to_dict
from .blocks import unwrapped, walk
from .config import IntarsiaConfig
from .peft import is_adapted
from .slices import planned
from .undo import undone_on_error


def find_heads(model: nn.Module) -> list[str]:
    """The classifiers of `heads_of` that have weights, by path."""
    own = [unwrapped(m) for m in heads_of(model)]
    return [
        p for p, m in walk(model)
        if any(unwrapped(m) is h for h in own) and next(m.parameters(), None) is not None
    ]  # fmt: skip


def adapt(
    model: nn.Module,
    method: Method,
    *,
    name: str = "default",
    targets: Sequence[str] | str | None = None,
    layers: Sequence[int] | None = None,
    head: Sequence[str] | str | None = "auto",
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> PeftModel:
    """Freeze a pretrained model and put a method's cells into it, in place.

    name: of the adapter; call again with another name to add one, inactive, to an adapted model.
    targets: module names, ends of names or globs, where the method's own places do not suit.
    layers: numbers of the blocks to adapt; negative ones count from the last.
    head: paths of modules trained and saved whole; "auto" finds the classifier, None trains none.
    seed: with each site's path, of the cells' first weights and draws, so that two methods at one
      seed start from the same projections.
    classes: their names, stored with the adapter and compared at load.

    Draws of random experts are made anew by each call of the model, and by nothing else: for a part
    of it, such as `forward_features`, call `intarsia.redraw(model)` before every batch. With
    gradient checkpointing, go backward before the next call, which forgets the draw.

    Raises: TargetError if a place matches nothing or cannot carry a cell; ConfigError for a name
    in use. The model is then as it was.
    """
    check_model(model, name)
    host = model.get_base_model() if is_adapted(model) else model
    heads = _heads(host, head)
    method, sites = planned(host, method, targets, layers, seed)
    for site in sites:
        if any(site.path == h or site.path.startswith(f"{h}.") for h in heads):
            raise TargetError(
                f"target {site.path!r}", got="a head, which is trained whole",
                want="a module of the trunk",
                fix="Pass head=None to leave the head to the adapter.",
            )  # fmt: skip
    options = method_to_dict(method)
    config = IntarsiaConfig(
        method=options.pop(KEY), options=options, seed=seed,
        target_modules=exactly(host, [site.path for site in sites]),
        modules_to_save=heads or None,
        origin={"classes": list(classes)} if classes is not None else None,
    )  # fmt: skip
    with undone_on_error(model, name):
        return attach(model, config, name)


def attach(model: nn.Module, config: IntarsiaConfig, name: str) -> PeftModel:
    """A PEFT model with the config's cells under a name; a plain model is wrapped first."""
    if is_adapted(model):
        model.add_adapter(name, config)
        _check_words(model)
        return model
    config.base_model_name_or_path = getattr(model, "name_or_path", None) or None
    adapted = PeftModel(model, config, name)
    _check_words(adapted)
    return adapted


def _check_words(model: PeftModel) -> None:
    """Raises: ConfigError for an adapter that is called as a module or weight is.

    PEFT saves an adapter as all weights in whose path no other adapter's name stands.
    """
    words: set[str] = set()
    for path in model.state_dict():
        parts = path.split(".")
        # behind these stands the adapter's own name
        words |= {
            word for before, word in zip(("", *parts), parts, strict=False)
            if before not in ("intarsia_cells", "modules_to_save")
        }  # fmt: skip
    if clash := sorted(words & set(model.peft_config)):
        raise ConfigError(
            "adapter name", got=repr(clash[0]), want="no word in the path of a weight",
            fix=f"Choose another, such as '{clash[0]}-adapter': weights would be lost when saved.",
        )  # fmt: skip


def check_model(model: nn.Module, name: str) -> None:
    """Raises: ConfigError if the model cannot take one more adapter of this name."""
    if isinstance(model, PeftModel) and not is_adapted(model):
        raise ConfigError(
            "model", got="a PeftModel with adapters of PEFT's own", want="a plain or adapted model",
            fix="Call model.unload() or model.merge_and_unload() first.",
        )  # fmt: skip
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise ConfigError(
            "adapter name", got=repr(name),
            want="a name without dots that torch does not use itself",
            fix="Letters, digits, - and _ are fine: 'solar-cells'.",
        )  # fmt: skip
    if is_adapted(model) and name in model.peft_config:
        raise ConfigError(
            "adapter name", got=repr(name), want=f"none of {sorted(model.peft_config)}",
            fix="Choose another name, or call model.delete_adapter first.",
        )  # fmt: skip


def exactly(host: nn.Module, paths: list[str]) -> set[str] | str:
    """What makes PEFT, which goes by the ends of names, choose these paths and no other."""
    names = [p for p, _ in walk(host)]
    if any(n.endswith(f".{p}") and n not in paths for n in names for p in paths):
        return "|".join(re.escape(p) for p in paths)
    return set(paths)


def _heads(host: nn.Module, head: Sequence[str] | str | None) -> list[str]:
    if head is None:
        return []
    names = [head] if isinstance(head, str) else list(head)
    names = find_heads(host) if names == ["auto"] else names
    paths = [p for p, _ in walk(host) if p]
    for wanted in names:
        # PEFT goes by the ends of names
        also = [p for p in paths if p.endswith(wanted) and p not in names]
        if wanted not in paths or also:
            raise TargetError(
                f"head {wanted!r}",
                got=f"the end of {also} too" if wanted in paths else "no module of that path",
                want="the path of one module, to be trained and saved whole",
                fix=f"The model's own: {find_heads(host) or 'none found'}; or pass head=None.",
            )  # fmt: skip
    return names
