"""The verbs: `apply` any change to a model; `adapt` and `upcycle` are two changes by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, PeftModel
from torch import nn

from ..core import Method
from ..core.change import Change
from ..core.errors import ConfigError
from ..core.registry import by_name
from ..gating import RouterConfig
from ..hosts.attach.adapt import Adapt, PublishedRecipe
from ..hosts.attach.through_peft import AdaptByPeft
from ..hosts.changing import apply_change, apply_plan
from ..mixtures.capacity import Capacity
from ..routers import TopK
from ..sparse.swap.upcycle import Upcycle, check_plain, check_unadapted, upcycle_step
from .saved import load, save

NAMED = ("adapter", "router", "baseline", "recipe", "change")  # kinds that change a model


def apply(
    model: nn.Module,
    change: Change | Method | PeftConfig | RouterConfig | str,
    batches: Iterable[Any] = (),
    *,
    seed: int = 0,
    name: str = "default",
) -> nn.Module:
    """Change a model, in place if possible, and return the changed model.

    change: settings of an adapter, a baseline, a recipe or a change, see `intarsia list`. An
      adapter's settings stand for `Adapt(method)`, a config of PEFT, as `LoraConfig(r=8)`, for
      PEFT's own adapter, a router's settings for `Upcycle(router)`, and a name, such as "lora", for
      its default settings.
    batches: for changes that read calibration data, as the model takes them.
    seed: of new weights and draws.  name: the adapter's, if it is one.

    Changes stack on one model, which keeps a list of them: `intarsia.save` writes it with the
    weights, and `intarsia.load` applies the same changes to a pretrained model again.

    Raises: what the change raises; ConfigError for anything else. The model is then as it was.
    """
    return apply_change(model, as_change(change), batches, seed=seed, name=name)


def as_change(settings: Any) -> Change:
    """Return the change that the settings of a method, or its name, stand for.

    Raises: ConfigError; UnknownName for a name that the list does not have.
    """
    if isinstance(settings, str):
        settings = by_name(settings, *NAMED)
    if isinstance(settings, Change):
        return settings
    # a recipe prepares a method, an adapter has roles of layers, a router builds gates for
    # experts
    if isinstance(settings, PeftConfig):
        return AdaptByPeft(settings)
    if isinstance(settings, PublishedRecipe):
        return Adapt(settings.method, recipe=settings)
    if isinstance(settings, Method):
        return Adapt(settings)
    if isinstance(settings, RouterConfig) and not isinstance(settings, type):
        return Upcycle(settings)
    want = "settings of an adapter, a router, a baseline, a recipe or a change"
    fix = "`intarsia list` shows them; pass a name, or an instance such as intarsia.Lora(rank=8)."
    raise ConfigError("change", got=type(settings).__name__, want=want, fix=fix)


def adapt(
    model: nn.Module,
    method: Method | PeftConfig | str = "lora",
    *,
    name: str = "default",
    targets: Sequence[str] | str | None = None,
    layers: Sequence[int] | None = None,
    head: Sequence[str] | str | None = "auto",
    seed: int = 0,
    classes: Sequence[str] | None = None,
    target_modules: Sequence[str] | str | None = None,
) -> PeftModel:
    """Freeze a pretrained model and add a method's trainable modules to it, in place.

    method: settings of an adapter, or the name of one with its default settings, as "lora"; see
      `intarsia list`. Target modules that are left open are chosen by the model. Or a config of
      PEFT, as `peft.LoraConfig(r=8)`: PEFT's own adapter, as `get_peft_model` makes it.
    name: the adapter's; call again with another name to add one, inactive, to an adapted model.
    targets, layers, head, classes: see `Adapt`.  target_modules: PEFT's name of `targets`.
    seed: fixes, with each layer's path, the first weights and draws, so that two methods at one
      seed start from the same projections.

    Random experts are drawn again in each call of the model, and by nothing else: for a part
    of it, such as `forward_features`, call `intarsia.gating.redraw(model)` before every batch. With
    gradient checkpointing, go backward before the next call, which forgets the draw.

    Raises: TargetError if a target matches nothing or cannot be adapted; ConfigError for a name
    in use, or a method that is no adapter; UnknownName for no method. The model is then as it was.
    """
    if target_modules is not None:
        if targets is not None:
            fix = "Give targets alone."
            raise ConfigError("targets", got="target_modules, too", want="one of them", fix=fix)
        targets = target_modules
    if isinstance(method, PeftConfig):
        if classes is not None:
            want, fix = "none: PEFT's files have no place for names", "Leave classes out."
            raise ConfigError("classes", got=list(classes), want=want, fix=fix)
        change: Change = AdaptByPeft(method, targets, layers, head)
        return cast(PeftModel, apply_change(model, change, seed=seed, name=name))
    # a name stands for the method's default settings
    settings: Any = by_name(method, "adapter") if isinstance(method, str) else method
    if not isinstance(settings, Method):
        fix = 'Pass "lora", or an instance such as intarsia.Lora(rank=8); others: intarsia.apply.'
        got = (
            f"{settings.__name__}, a class"
            if isinstance(settings, type)
            else type(settings).__name__
        )
        raise ConfigError("method", got=got, want="the settings or the name of an adapter", fix=fix)
    change = Adapt(settings, targets, layers, head, classes)
    return cast(PeftModel, apply_change(model, change, seed=seed, name=name))


def upcycle(
    model: nn.Module,
    router: RouterConfig | str = TopK(),  # noqa: B008 - frozen
    *,
    experts: int | Sequence[int] | None = None,
    how: str = "copies",
    layers: Sequence[int] | None = None,
    capacity: Capacity | None = None,
    residual: str | None = None,
    fraction: float = 0.1,
    act: str | None = None,
    seed: int = 0,
    sees_later: bool = False,
) -> nn.Module:
    """Replace MLPs of a timm or transformers model by mixtures of experts, in place.

    router: settings of a router, or its name, as "switch"; experts ... act: see `Upcycle`.
    seed: fixes, with each path, the routers' weights and other draws.
    sees_later: allow, in a decoder, a router or capacity policy by which a token's experts depend
    on later tokens.

    Nothing is frozen. `intarsia.fit` adds the routers' losses; `intarsia.save` saves.

    Raises: TargetError for MLPs of another kind, adapted models and layers that are not there;
    ConfigError for settings that cannot be. The model is then as it was.
    """
    router = by_name(router, "router") if isinstance(router, str) else router
    change = Upcycle(router, experts, how, layers, capacity, residual, fraction, act)  # pyright: ignore
    # `sees_later` is no setting of the change, and so is in no saved folder
    return apply_plan(model, change.plan(model, seed=seed, sees_later=sees_later))


def save_mixture(model: nn.Module, folder: str | Path) -> Path:
    """Save a model with mixtures and without adapters, see `save`.

    Raises: ConfigError for a model that is not upcycled; TargetError for one with adapters.
    """
    check_unadapted(model)
    if upcycle_step(model) is None:
        subject, fix = "model", "Call intarsia.upcycle(model), or save it with intarsia.save."
        raise ConfigError(subject, got="one that was not upcycled", want="one that was", fix=fix)
    return save(model, folder)


def load_mixture(model: nn.Module, folder: str | Path) -> nn.Module:
    """Load a folder into a plain model, see `load`.

    Raises: TargetError for a model that is a mixture already.
    """
    check_plain(model)
    return load(model, folder)
