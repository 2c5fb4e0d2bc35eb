"""Put a method's cells into a pretrained model, and load saved ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel, get_peft_model
from torch import nn

from ..core import Method
from ..core.errors import ConfigError, TargetError
from ..core.registry import KEY, method_to_dict
from .config import IntarsiaConfig
from .peft import is_adapted
from .sites import find_sites, unwrapped, walk


def find_heads(model: nn.Module) -> list[str]:
    """The classifier of a timm or transformers model, by path; none if it has none."""
    if callable(get := getattr(model, "get_classifier", None)):
        got = get()
        found = got if isinstance(got, tuple) else (got,)
    else:
        found = [getattr(model, n, None) for n in ("classifier", "head", "fc")]
    own = [unwrapped(m) for m in found if isinstance(m, nn.Module)]
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

    name: of the adapter; call again with another name to add one to an adapted model.
    targets: module names, ends of names or globs, where the method's own places do not suit.
    layers: numbers of the blocks to adapt; negative ones count from the last.
    head: modules trained and saved whole; "auto" finds the classifier, None trains none.
    seed: with each site's path, of the cells' first weights and draws, so that two methods at one
      seed start from the same projections.
    classes: their names, stored with the adapter and compared at load.

    Raises: TargetError if a place matches nothing or cannot carry a cell; ConfigError for a name
    in use.
    """
    host = model.get_base_model() if is_adapted(model) else model
    heads = _heads(host, head)
    sites = find_sites(host, method, targets, layers)
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
        target_modules={site.path for site in sites}, modules_to_save=heads or None,
        origin={"classes": list(classes)} if classes is not None else None,
    )  # fmt: skip
    if not is_adapted(model):
        return get_peft_model(model, config, name)
    if name in model.peft_config:
        raise ConfigError(
            "adapter name", got=repr(name), want=f"none of {sorted(model.peft_config)}",
            fix="Choose another name, or delete that adapter first.",
        )  # fmt: skip
    model.add_adapter(name, config)
    return model


def _heads(host: nn.Module, head: Sequence[str] | str | None) -> list[str]:
    if head is None:
        return []
    if head == "auto":
        return find_heads(host)
    names = [head] if isinstance(head, str) else list(head)
    paths = [p for p, _ in walk(host) if p]
    for wanted in names:
        if not any(p == wanted for p in paths):
            raise TargetError(
                f"head {wanted!r}", got="no module of that path",
                want="a module that is trained and saved whole",
                fix=f"The model's own: {find_heads(host) or 'none found'}.",
            )  # fmt: skip
    return names


def load(model: nn.Module, folder: str | Path, *, name: str = "default") -> PeftModel:
    """Load a saved adapter."""
    if is_adapted(model):
        model.load_adapter(str(folder), name)
        return model
    return PeftModel.from_pretrained(model, str(folder), adapter_name=name)
