"""`--set name=value` as a method's config: each value read as its field's type.

method("mosa", ["experts=4", "over=lora", "over.rank=8"]) == Mosa(over=Lora(rank=8), experts=4)
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any, cast, get_args, get_type_hints

from ..core import Card, Method, registry
from ..core.change import Change
from ..core.checks import at_least
from ..core.errors import ConfigError, UnknownName
from ..core.method_settings import MethodSettings
from ..core.registry import card, find, index, keys, method_key, method_to_dict, settings_to_dict
from ..core.schema import in_words, read, written
from ..folders.verbs import as_change
from ..gating import RouterConfig
from ..hosts.attach.adapt import Adapt, PublishedRecipe
from ..schedules import FixedMask
from ..sparse.prune.pruner import Pruner
from ..train import OBJECTIVES, Objective, Training
from .experiment import GLOBS, HEADS, TEACHER, Adapted, objectives, schedules

Tree = dict[str, Any]


def pairs(settings: Iterable[str]) -> dict[str, str]:
    """Return "name=value" texts as a mapping.  Raises: ConfigError for other ones, or repeats."""
    values: dict[str, str] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(
                "--set", got=repr(text), want="name=value", fix="For example: --set experts=4"
            )
        if name in values:
            raise ConfigError(
                f"--set {name}", got="it twice", want="it once", fix="Take one of them out."
            )
        values[name] = value.strip()
    return values


def known() -> tuple[str, ...]:
    """Return the keys of all that can be done to a model: what `--method` takes."""
    return tuple(key for kind in ("adapter", "baseline", "recipe", "change") for key in keys(kind))


def method(key: str, settings: Sequence[str], start: Any = None, among: Any = None) -> Any:
    """Return the settings of a method, changed by the name=value texts of `--set`.

    settings: such as "experts=4" or "over.rank=8". start: settings to change, None for the
    defaults. among: names to choose from, None = all that can be done to a model.
    Raises: UnknownName for a method or a setting that does not exist, ConfigError for a value that
    is not of its type or that the method refuses.
    """
    # misspelt names are refused with the nearest ones
    if key not in (among or known()):
        raise UnknownName("method", key, among or known(), registry.LISTED)
    return _build(card(key), pairs(settings), start, "")


def chosen(adapted: Adapted, training: Training) -> Any:
    """Return the settings of the method of an experiment.

    adapted: names the method, its --set values, and how many of the last blocks it is limited to,
    which is a setting of baselines that have it. training: a published recipe takes the rate, the
    epochs and the batch size from it.
    Raises: as `method` does; ConfigError for a setting that has an option of its own, and for
    places that the method does not have.
    """
    _check_places(adapted)
    values = pairs(adapted.settings)
    start = None
    # a recipe has settings that the training has, too: there is one place for each to be given
    if adapted.method in keys("recipe"):
        recipe = card(adapted.method).config
        shared = {f.name for f in dataclasses.fields(training)} & set(settings_to_dict(recipe()))
        for name in shared & values.keys():
            subject, fix = f"--set {name}", f"Use --{name.replace('_', '-')} {values[name]}."
            raise ConfigError(
                subject, got=f"{name}={values[name]}", want="it as an option", fix=fix
            )
        start = recipe.for_training(training)
    config = method(adapted.method, adapted.settings, start)
    # an adapter's blocks are places of the change, see `change_of`
    if (blocks := layers(adapted)) is None or "last_blocks" not in settings_to_dict(config):
        return config
    if "last_blocks" in values:
        got = f"{values['last_blocks']}, and --last-blocks {adapted.last_blocks}"
        raise ConfigError("--set last_blocks", got=got, want="one of them", fix="Leave one out.")
    return with_settings(config, last_blocks=len(blocks))


def change_of(
    config: Any, adapted: Adapted, classes: Sequence[str] | None = None, **places: Any
) -> Change:
    """Return the change that a method makes to a model, at the places that an experiment names.

    places: further fields of `Adapt`, such as head=None.
    """
    # an adapter has places of its own; another change takes blocks only if it has such a setting
    change, blocks = as_change(config), layers(adapted)
    if isinstance(change, Adapt):
        targets = list(adapted.targets) or None
        return dataclasses.replace(
            change, targets=targets, layers=blocks, classes=classes, **places
        )
    place = {} if blocks is None else {"layers": tuple(blocks)}
    return change.with_settings(**place) if place.keys() <= {*settings_to_dict(change)} else change


def describe_method(method: Any) -> str | dict[str, Any]:
    """Return a method as run.json stores it.

    An adapter is stored with every setting; another method with those that differ from the
    defaults.
    """
    method = method.method if isinstance(method, PublishedRecipe) else method
    key = method_key(method)
    if key in keys():
        return method_to_dict(method)
    # a setting that is not written is a default of this version, which the record names
    start, now = settings_to_dict(card(key).config()), settings_to_dict(method)
    changed = {name: value for name, value in now.items() if value != start[name]}
    return {"method": key} | changed if changed else key


def layers(adapted: Adapted) -> range | None:
    """Return the numbers of the blocks that are adapted, counted from the end; None = all.

    adapted: in which last_blocks=2 gives range(-2, 0).
    Raises: ConfigError for less than one.
    """
    if adapted.last_blocks is None:
        return None
    at_least("--last-blocks", adapted.last_blocks, 1, "Try 6.")
    return range(-adapted.last_blocks, 0)


def _check_places(adapted: Adapted) -> None:
    """Refuse --last-blocks and --target for methods that have no such places."""
    if adapted.method not in known() or adapted.method in (*keys(), *keys("recipe")):
        return
    # baselines, pruners and other changes have no cells to place
    names = settings_to_dict(card(adapted.method).config())
    prunes = index()[adapted.method]["family"] in GLOBS
    numbered = names.keys() & {"last_blocks", "layers"} and not prunes
    last_refused = adapted.last_blocks is not None and not numbered
    refused = ["--last-blocks"] * last_refused + ["--target"] * bool(adapted.targets)
    if refused:
        roles, them = "roles" in names, "it" if len(refused) == 1 else "them"
        globs = "layers" if "layers" in names else "base.layers"
        named = f"Use --set {globs}='*.mlp.*', or leave {them} out." if prunes else ""
        raise ConfigError(
            f"{' and '.join(refused)} with method {adapted.method!r}",
            got="places for cells",
            want="its own settings for them" if roles or prunes else "none: it adds no cells",
            fix="Use --set roles=qkv." if roles else named or f"Leave {them} out.",
        )


def _build(card: Card, values: Mapping[str, str], start: Any, above: str) -> Any:
    """Build the settings of a method from texts."""
    if values and not settings_to_dict(card.config()):
        subject = f"--set with method {card.key!r}"
        got = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ConfigError(subject, got=got, want="none: it has no settings", fix="Leave --set out.")
    start = start if start is not None else card.config()
    return _changed(start, values, above, f"setting of {card.key!r}")


def _changed(start: Any, values: Mapping[str, str], above: str, subject: str) -> Any:
    """Return a config with some of its values replaced by values read from text."""
    hints = _hints(start)
    direct = {name: value for name, value in values.items() if "." not in name}
    # step 1: part the values of this config from the values of configs inside it, by the first dot
    inner: dict[str, dict[str, str]] = {}
    for name, value in values.items():
        outer, dot, rest = name.partition(".")
        if outer not in hints:
            raise UnknownName(subject, f"{above}{name}", hints)
        if dot:
            inner.setdefault(outer, {})[rest] = value
    # step 2: read each value as its field's type, or build the config inside
    new: dict[str, Any] = {}
    for name in {**direct, **inner}:
        path, hint = f"{above}{name}", hints[name]
        options, plain = _methods_in(hint), _plain_in(hint)
        # `name=` alone means None, where the field allows it
        if direct.get(name) == "" and type(None) in get_args(hint):
            new[name] = None
        elif options:
            new[name] = _inner(
                path, options, direct.get(name), inner.get(name, {}), getattr(start, name)
            )
        elif plain and name in inner:
            now = getattr(start, name) or plain()
            new[name] = _changed(now, inner[name], f"{path}.", f"setting of {name!r}")
        elif name in inner:
            raise ConfigError(
                f"--set {path}.{next(iter(inner[name]))}",
                got=f"{name} is no method",
                want=f"{path}=value",
                fix=f"Its type is {in_words(hint)}.",
            )
        else:
            new[name] = read(f"--set {path}", direct[name], hint)
    return with_settings(start, **new)


def _hints(config: Any) -> dict[str, Any]:
    """Return the type of each setting of a method, by name; of the value where none is declared."""
    types = get_type_hints(type(config))
    return {
        name: types.get(name) or (tuple[str, ...] if isinstance(now, list) else type(now))
        for name, now in settings_to_dict(config).items()
    }


def with_settings(config: Any, **new: Any) -> Any:
    """Return a config with other values."""
    if isinstance(config, MethodSettings):
        return config.with_settings(**new)
    return dataclasses.replace(config, **new)


def _inner(
    path: str, options: dict[str, Card], key: str | None, values: Mapping[str, str], start: Any
) -> Any:
    """Build the settings of a method inside another one's, as `over` of a mixture."""
    now = next((k for k, option in options.items() if option.config is type(start)), None)
    if key is not None and key not in options:
        raise UnknownName(f"method for --set {path}", key, options, registry.LISTED)
    # the method that was named, else the present one, else the first that the type allows
    choice = key or now or next(iter(options))
    return _build(options[choice], values, start if choice == now else None, f"{path}.")


def _methods_in(hint: Any) -> dict[str, Card]:
    """Return the methods and routers that the type of a setting allows, by name."""
    kinds: list[Any] = list(get_args(hint) or (hint,))
    for protocol, kind in ((Method, "adapter"), (RouterConfig, "router")):
        if protocol in kinds:
            return {key: card(key) for key in keys(kind)}
    # a class's name finds its card, so that no method is imported to be listed
    listed = {
        entry["config"].rpartition(".")[2]: key for key, entry in index().items() if entry["config"]
    }
    names = [cast(type, c).__name__ for c in kinds if dataclasses.is_dataclass(c)]
    return {listed[name]: card(listed[name]) for name in names if name in listed}


def _plain_in(hint: Any) -> Any:
    """Return the dataclass in a field's type that is no method, such as `Capacity`."""
    kinds: list[Any] = list(get_args(hint) or (hint,))
    return next((c for c in kinds if dataclasses.is_dataclass(c)), None)


def objective(text: str, method: MethodSettings | None = None) -> Objective:
    """Return an objective by name, with settings after a colon, as two_pass:add=1,reg=0.5.

    text: the name and settings; after "task_heads+" it is the objective of each task's head.
    method: its own objective (`trained_by`), if it has one, is used in the place of "plain".
    Raises: UnknownName for a name or a setting that does not exist.
    """
    if text in ("plain", HEADS):
        return (method and method.trained_by) or OBJECTIVES["plain"]
    name, _, rest = text.removeprefix(f"{HEADS}+").partition(":")
    if name in keys("objective"):
        # the teacher is a model and no setting: `teacher_of` reads it
        return configured("objective", name, card(name).config, rest, {TEACHER})
    if name not in OBJECTIVES:
        raise UnknownName("objective", name, objectives())
    function = OBJECTIVES[name]
    # an objective is a function: its settings are the keywords that it takes
    hints, settings = get_type_hints(function), inspect.signature(function).parameters.values()
    names = [p.name for p in settings if p.kind is inspect.Parameter.KEYWORD_ONLY]
    values: Tree = {}
    for key, value in pairs(part for part in rest.split(",") if part).items():
        if key not in names:
            raise UnknownName(f"setting of objective {name!r}", key, names)
        values[key] = read(f"--objective {name}:{key}", value, hints[key])
    return partial(function, **values) if values else function


def teacher_of(text: str) -> str | None:
    """Return the name of an objective's teacher: squarehead:teacher=smollm2."""
    return pairs(part for part in text.partition(":")[2].split(",") if part).get(TEACHER)


def configured(
    kind: str, name: str, config: Any, rest: str, without: Set[str] = frozenset()
) -> Any:
    """Build a dataclass from settings in text, as density=0.25,every=10.

    kind, name: of the object to build, such as "schedule" and "rigl", for errors. without: settings
    in it that are left out.
    Raises: UnknownName for a setting that does not exist; ConfigError for an impossible value.
    """
    hints, names = get_type_hints(config), [f.name for f in dataclasses.fields(config)]
    values: Tree = {}
    for setting, value in pairs(part for part in rest.split(",") if part).items():
        if setting not in names:
            raise UnknownName(f"setting of {kind} {name!r}", setting, names)
        if setting not in without:
            values[setting] = read(f"--{kind} {name}:{setting}", value, hints[setting])
    return config(**values)


def schedule(text: str | None) -> Any:
    """Return a schedule of masks by name, with settings after a colon: rigl:density=0.25,every=10.

    text: None gives None.
    Raises: UnknownName for a name or a setting that does not exist.
    """
    if text is None:
        return None
    name, _, rest = text.partition(":")
    key = find(name, "schedule")
    config: Any = card(key).config
    if index()[key]["family"] != "sparse training":
        raise UnknownName("schedule", name, schedules())
    return configured("schedule", name, config, rest)


def schedule_of(text: str | None, method: Any) -> dict[str, Any]:
    """Return the keyword of `fit` for a schedule of masks; empty without one.

    text: the schedule, None = none was named; then what a pruner has set to 0 stays 0.
    """
    masks = schedule(text)
    if masks is None and isinstance(method, Pruner) and method.density < 1:
        masks = FixedMask()
    return {} if masks is None else {"schedule": masks}


def words(config: object, start: object | None = None) -> tuple[str, ...]:
    """Return the `--set` values that turn one method's settings into another's.

    start: those to change, None = the defaults of config's class.
    """
    start = type(config)() if start is None else start
    texts: list[str] = []
    for field in dataclasses.fields(cast(Any, config)):
        now, before = getattr(config, field.name), getattr(start, field.name)
        if now == before:
            continue
        if dataclasses.is_dataclass(now):
            # another method inside is named first; then come its settings, from its own defaults
            replaced = type(now) is not type(before)
            texts += [f"{field.name}={method_key(cast(Method, now))}"] if replaced else []
            inner = words(cast(Method, now), None if replaced else before)
            texts += [f"{field.name}.{word}" for word in inner]
        else:
            texts.append(f"{field.name}={written(now)}")
    return tuple(texts)
