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
from ..core.registry import card, find, index, keys, method_key, method_to_dict, settings_to_dict
from ..core.schema import in_words, read, written
from ..gating import RouterConfig
from ..hosts import Adapt, as_change
from ..hosts.prune.pruner import Pruner
from ..schedules import FixedMask
from ..train import OBJECTIVES, Objective, Training
from .experiment import GLOBS, HEADS, TEACHER, Adapted, objectives, schedules

Tree = dict[str, Any]


def pairs(settings: Iterable[str]) -> dict[str, str]:
    """name=value as a mapping.  Raises: ConfigError for anything else, or a name given twice."""
    found: dict[str, str] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(
                "--set", got=repr(text), want="name=value", fix="For example: --set experts=4"
            )
        if name in found:
            raise ConfigError(
                f"--set {name}", got="it twice", want="it once", fix="Take one of them out."
            )
        found[name] = value.strip()
    return found


def known() -> tuple[str, ...]:
    """The keys of all that can be done to a model: what `--method` takes."""
    return tuple(key for kind in ("adapter", "baseline", "recipe", "change") for key in keys(kind))


def method(key: str, settings: Sequence[str], start: Any = None, among: Any = None) -> Any:
    """The settings of a method with what `--set` says; `start` is what the rest is left at.

    among: the keys to choose from, None = what can be done to a model.

    Raises: UnknownName for a method or a setting that does not exist, ConfigError for a value that
    is not of its type or that the method refuses.
    """
    if key not in (among or known()):
        raise UnknownName("method", key, among or known(), registry.LISTED)
    return _build(card(key), pairs(settings), start, "")


def chosen(asked: Adapted, training: Training) -> Any:
    """The settings of the method of an experiment.

    A recipe takes the rate, the epochs and the batch size from the training. Last blocks are a
    setting of a baseline that has them.
    Raises: as `method` does; ConfigError for a setting that has an option of its own, and for
    places that the method does not have.
    """
    _check_places(asked)
    given = pairs(asked.settings)
    start = None
    if asked.method in keys("recipe"):
        config = card(asked.method).config
        own = {f.name for f in dataclasses.fields(training)} & set(settings_to_dict(config()))
        for name in own & given.keys():
            what, fix = f"--set {name}", f"Use --{name.replace('_', '-')} {given[name]}."
            raise ConfigError(what, got=f"{name}={given[name]}", want="it as an option", fix=fix)
        start = config.for_training(training)
    found = method(asked.method, asked.settings, start)
    if (blocks := layers(asked)) is None or not hasattr(found, "last_blocks"):
        return found
    if "last_blocks" in given:
        got, want = f"{given['last_blocks']}, and --last-blocks {asked.last_blocks}", "one of them"
        raise ConfigError("--set last_blocks", got=got, want=want, fix="Leave one out.")
    return with_settings(found, last_blocks=len(blocks))


def change_of(
    found: Any, asked: Adapted, classes: Sequence[str] | None = None, **places: Any
) -> Change:
    """What settings do to a model, at the places of an experiment.

    classes: their names, kept with an adapter.  places: of `Adapt`, such as head=None.
    """
    change, blocks = as_change(found), layers(asked)
    if isinstance(change, Adapt):
        targets = list(asked.targets) or None
        return dataclasses.replace(
            change, targets=targets, layers=blocks, classes=classes, **places
        )
    if blocks is not None and hasattr(change, "layers"):
        return dataclasses.replace(cast(Any, change), layers=tuple(blocks))
    return change


def said(found: Any) -> str | dict[str, Any]:
    """A method for a run's record: cells with all settings, another change with those set."""
    found = getattr(found, "method", found) if hasattr(found, "prepare") else found
    key = method_key(found)
    if key in keys():
        return method_to_dict(found)
    start, now = settings_to_dict(card(key).config()), settings_to_dict(found)
    given = {name: value for name, value in now.items() if value != start[name]}
    return {"method": key} | given if given else key


def layers(asked: Adapted) -> range | None:
    """The blocks that get cells, None = all.  Raises: ConfigError for less than one."""
    if asked.last_blocks is None:
        return None
    at_least("--last-blocks", asked.last_blocks, 1, "Try 6.")
    return range(-asked.last_blocks, 0)


def _check_places(asked: Adapted) -> None:
    """Raises: ConfigError for --last-blocks or --target with a method that has no such places."""
    if asked.method not in known() or asked.method in (*keys(), *keys("recipe")):
        return
    own = settings_to_dict(card(asked.method).config())
    prunes = index()[asked.method]["family"] in GLOBS
    numbered = own.keys() & {"last_blocks", "layers"} and not prunes
    last_refused = asked.last_blocks is not None and not numbered
    refused = ["--last-blocks"] * last_refused + ["--target"] * bool(asked.targets)
    if refused:
        roles, them = "roles" in own, "it" if len(refused) == 1 else "them"
        globs = "layers" if "layers" in own else "base.layers"
        named = f"Use --set {globs}='*.mlp.*', or leave {them} out." if prunes else ""
        raise ConfigError(
            f"{' and '.join(refused)} with method {asked.method!r}",
            got="places for cells",
            want="its own settings for them" if roles or prunes else "none: it adds no cells",
            fix="Use --set roles=qkv." if roles else named or f"Leave {them} out.",
        )


def _build(found: Card, given: Mapping[str, str], start: Any, above: str) -> Any:
    """A card's config; names in `given` may lead into a method inside, name.inner=value."""
    if given and not settings_to_dict(found.config()):
        what = f"--set with method {found.key!r}"
        got = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ConfigError(what, got=got, want="none: it has no settings", fix="Leave --set out.")
    start = start if start is not None else found.config()
    return _changed(start, given, above, f"setting of {found.key!r}")


def _changed(start: Any, given: Mapping[str, str], above: str, what: str) -> Any:
    """A dataclass with values read from text."""
    hints = _hints(start)
    own = {name: value for name, value in given.items() if "." not in name}
    inner: dict[str, dict[str, str]] = {}
    for name, value in given.items():
        outer, dot, rest = name.partition(".")
        if outer not in hints:
            raise UnknownName(what, f"{above}{name}", hints)
        if dot:
            inner.setdefault(outer, {})[rest] = value
    new: dict[str, Any] = {}
    for name in {**own, **inner}:
        where, hint = f"{above}{name}", hints[name]
        options, plain = _methods_in(hint), _plain_in(hint)
        if own.get(name) == "" and type(None) in get_args(hint):
            new[name] = None
        elif options:
            new[name] = _inner(
                where, options, own.get(name), inner.get(name, {}), getattr(start, name)
            )
        elif plain and name in inner:
            now = getattr(start, name) or plain()
            new[name] = _changed(now, inner[name], f"{where}.", f"setting of {name!r}")
        elif name in inner:
            raise ConfigError(
                f"--set {where}.{next(iter(inner[name]))}",
                got=f"{name} is no method",
                want=f"{where}=value",
                fix=f"Its type is {in_words(hint)}.",
            )
        else:
            new[name] = read(f"--set {where}", own[name], hint)
    return with_settings(start, **new)


def _hints(config: Any) -> dict[str, Any]:
    """The settings of a config, with their types; of one that is no field, its value's."""
    every = get_type_hints(type(config))
    return {
        name: every.get(name) or (tuple[str, ...] if isinstance(now, list) else type(now))
        for name, now in settings_to_dict(config).items()
    }


def with_settings(config: Any, **new: Any) -> Any:
    """A config with other values."""
    change = getattr(config, "with_settings", None) or partial(dataclasses.replace, config)
    return change(**new)


def _inner(
    where: str, options: dict[str, Card], key: str | None, given: Mapping[str, str], start: Any
) -> Any:
    """A method inside a method: chosen by its key, or the one that is there, with its settings."""
    now = next((k for k, found in options.items() if found.config is type(start)), None)
    if key is not None and key not in options:
        raise UnknownName(f"method for --set {where}", key, options, registry.LISTED)
    chosen = key or now or next(iter(options))
    return _build(options[chosen], given, start if chosen == now else None, f"{where}.")


def _methods_in(hint: Any) -> dict[str, Card]:
    """The methods and routers that a field's type allows, by key; the protocols allow all."""
    kinds: list[Any] = list(get_args(hint) or (hint,))
    for protocol, kind in ((Method, "adapter"), (RouterConfig, "router")):
        if protocol in kinds:
            return {key: card(key) for key in keys(kind)}
    listed = {
        entry["config"].rpartition(".")[2]: key for key, entry in index().items() if entry["config"]
    }
    names = [cast(type, c).__name__ for c in kinds if dataclasses.is_dataclass(c)]
    return {listed[name]: card(listed[name]) for name in names if name in listed}


def _plain_in(hint: Any) -> Any:
    """The dataclass in a field's type that is no method, such as `Capacity`."""
    kinds: list[Any] = list(get_args(hint) or (hint,))
    return next((c for c in kinds if dataclasses.is_dataclass(c)), None)


def objective(text: str, found: object = None) -> Objective:
    """An objective by name, with its settings behind a colon: two_pass:add=1,reg=0.5.

    found: a method, whose own `trained_by`, if it has that, stands in the place of "plain".
    Behind "task_heads+" it is the one that each task's head has; alone, that is "plain".
    Raises: UnknownName for a name or a setting that does not exist.
    """
    if text in ("plain", HEADS):
        return getattr(found, "trained_by", OBJECTIVES["plain"])
    name, _, rest = text.removeprefix(f"{HEADS}+").partition(":")
    if name in keys("objective"):
        return configured("objective", name, card(name).config, rest, {TEACHER})
    if name not in OBJECTIVES:
        raise UnknownName("objective", name, objectives())
    function = OBJECTIVES[name]
    hints, settings = get_type_hints(function), inspect.signature(function).parameters.values()
    known = [p.name for p in settings if p.kind is inspect.Parameter.KEYWORD_ONLY]
    given: Tree = {}
    for key, value in pairs(part for part in rest.split(",") if part).items():
        if key not in known:
            raise UnknownName(f"setting of objective {name!r}", key, known)
        given[key] = read(f"--objective {name}:{key}", value, hints[key])
    return partial(function, **given) if given else function


def teacher_of(text: str) -> str | None:
    """The name of an objective's teacher: squarehead:teacher=smollm2."""
    return pairs(part for part in text.partition(":")[2].split(",") if part).get(TEACHER)


def configured(what: str, name: str, config: Any, rest: str, others: Set[str] = frozenset()) -> Any:
    """A config with settings behind a colon, but for those of `others`.

    Raises: UnknownName for a setting that does not exist; ConfigError for a value that cannot be.
    """
    hints, known = get_type_hints(config), [f.name for f in dataclasses.fields(config)]
    given: Tree = {}
    for setting, value in pairs(part for part in rest.split(",") if part).items():
        if setting not in known:
            raise UnknownName(f"setting of {what} {name!r}", setting, known)
        if setting not in others:
            given[setting] = read(f"--{what} {name}:{setting}", value, hints[setting])
    return config(**given)


def schedule(text: str | None) -> Any:
    """A schedule of masks by name, with its settings behind a colon: rigl:density=0.25,every=10.

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
    """The keyword of `fit` for a schedule of masks; nothing without one.

    What a pruner has set to 0 stays 0, unless another schedule is asked for.
    """
    found = schedule(text)
    if found is None and isinstance(method, Pruner) and method.density < 1:
        found = FixedMask()
    return {} if found is None else {"schedule": found}


def words(config: object, start: object | None = None) -> tuple[str, ...]:
    """The `--set` values that turn `start` (None = the defaults) into a config, a dataclass."""
    start = type(config)() if start is None else start
    found: list[str] = []
    for field in dataclasses.fields(cast(Any, config)):
        now, before = getattr(config, field.name), getattr(start, field.name)
        if now == before:
            continue
        if dataclasses.is_dataclass(now):
            other = type(now) is not type(before)
            found += [f"{field.name}={method_key(cast(Method, now))}"] if other else []
            inner = words(cast(Method, now), None if other else before)
            found += [f"{field.name}.{word}" for word in inner]
        else:
            found.append(f"{field.name}={written(now)}")
    return tuple(found)
