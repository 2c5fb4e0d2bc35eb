"""`--set name=value` as a method's config: each value read as its field's type.

method("mosa", ["experts=4", "over=lora", "over.rank=8"]) == Mosa(over=Lora(rank=8), experts=4)
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast, get_args, get_origin, get_type_hints

from ..core import Card, Method
from ..core.errors import ConfigError, UnknownName
from ..core.registry import card, keys, method_key
from ..hosts.baselines import settings_of
from ..methods import Official
from ..train import OBJECTIVES, Objective, Training
from .experiment import BASELINES, Adapted

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
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


def method(key: str, settings: Sequence[str], start: Method | None = None) -> Method:
    """The config of a method with what `--set` says; `start` is what the rest is left at.

    Raises: UnknownName for a method or a setting that does not exist, ConfigError for a value that
    is not of its type or that the method refuses.
    """
    if key not in keys():
        raise UnknownName("method", key, keys())
    return _build(card(key), pairs(settings), start, "")


def official(settings: Sequence[str], training: Training) -> Official:
    """MoSA's published recipe for the epochs, learning rate and batch size of a training.

    A tenth of the epochs warms up, as in the paper, unless `warmup_epochs` is set.
    Raises: as `method` does; ConfigError for a setting that has an option of its own.
    """
    given = pairs(settings)
    own = {name: getattr(training, name) for name in ("lr", "epochs", "batch_size")}
    for name in own.keys() & given.keys():
        raise ConfigError(
            f"--set {name}", got=f"{name}={given[name]}", want="it as an option",
            fix=f"Use --{name.replace('_', '-')} {given[name]}.",
        )  # fmt: skip
    start = Official(**own, warmup_epochs=max(1, training.epochs // 10))
    found = dataclasses.replace(card("mosa"), key="official", config=Official)
    return _build(found, given, start, "")


def baseline(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """What `--set` says of a baseline, by name.

    Raises: UnknownName for a setting that does not exist, ConfigError for a value that is not of
    the type of its default.
    """
    known, given = settings_of(name), pairs(settings)
    if given and not known:
        raise ConfigError(
            f"--set with method {name!r}", got=", ".join(settings),
            want="none: it has no settings", fix="Leave --set out.",
        )  # fmt: skip
    for key in given:
        if key not in known:
            raise UnknownName(f"setting of {name!r}", key, known)
    hints = {
        key: tuple[str, ...] if isinstance(start, tuple) else type(start)
        for key, start in known.items()
    }
    return {key: value_of(f"--set {key}", text, hints[key]) for key, text in given.items()}


def layers(asked: Adapted) -> range | None:
    """The blocks that get cells, None = all.  Raises: ConfigError for less than one."""
    count = asked.last_blocks
    if count is not None and count < 1:
        raise ConfigError("--last-blocks", got=count, want="at least 1", fix="Try 6.")
    return None if count is None else range(-count, 0)


def of_baseline(asked: Adapted) -> dict[str, Any]:
    """What is set of a baseline, the last blocks among it.

    Raises: as `baseline` and `layers` do; ConfigError for places that it does not have, and for
    last blocks that are said twice.
    """
    name, found = asked.method, BASELINES[asked.method]
    chosen = baseline(name, asked.settings)
    last_refused = asked.last_blocks is not None and not found.in_blocks
    refused = ["--last-blocks"] * last_refused + ["--target"] * bool(asked.targets)
    if refused:
        peft, them = found.family == "peft", "it" if len(refused) == 1 else "them"
        raise ConfigError(
            f"{' and '.join(refused)} with method {name!r}", got="places for cells",
            want="its own settings for them" if peft else "none: it adds no cells",
            fix="Use --set roles=qkv." if peft else f"Leave {them} out.",
        )  # fmt: skip
    if layers(asked) is None:
        return chosen
    if "last_blocks" in chosen:
        raise ConfigError(
            "--set last_blocks", got=f"{chosen['last_blocks']}, and --last-blocks "
            f"{asked.last_blocks}", want="one of them", fix="Leave one out.",
        )  # fmt: skip
    return {"last_blocks": asked.last_blocks} | chosen


def said_of_baseline(asked: Adapted) -> str | dict[str, Any]:
    """A baseline for a run's record: its name, with what is not at its default where anything is.

    Raises: as `of_baseline` does.
    """
    known = settings_of(asked.method)
    given = {name: v for name, v in of_baseline(asked).items() if v != known[name]}
    return {"method": asked.method} | given if given else asked.method


def _build(found: Card, given: Mapping[str, str], start: Any, above: str) -> Any:
    """A card's config; names in `given` may lead into a method inside, name.inner=value."""
    every = get_type_hints(found.config)
    # a class may hold more than its settings
    hints = {f.name: every[f.name] for f in dataclasses.fields(cast(Any, found.config))}
    own = {name: value for name, value in given.items() if "." not in name}
    inner: dict[str, dict[str, str]] = {}
    for name, value in given.items():
        outer, dot, rest = name.partition(".")
        if outer not in hints:
            raise UnknownName(f"setting of {found.key!r}", f"{above}{name}", hints)
        if dot:
            inner.setdefault(outer, {})[rest] = value
    start = start if start is not None else found.config()
    new: dict[str, Any] = {}
    for name in {**own, **inner}:
        where = f"{above}{name}"
        options = _methods_in(hints[name])
        if own.get(name) == "" and type(None) in get_args(hints[name]):
            new[name] = None
        elif options:
            new[name] = _inner(
                where, options, own.get(name), inner.get(name, {}), getattr(start, name)
            )
        elif name in inner:
            raise ConfigError(
                f"--set {where}.{next(iter(inner[name]))}", got=f"{name} is no method",
                want=f"{where}=value", fix=f"Its type is {_shown(hints[name])}.",
            )  # fmt: skip
        else:
            new[name] = value_of(f"--set {where}", own[name], hints[name])
    return dataclasses.replace(start, **new)


def _inner(
    where: str, options: dict[str, Card], key: str | None, given: Mapping[str, str], start: Any
) -> Any:
    """A method inside a method: chosen by its key, or the one that is there, with its settings."""
    now = next((k for k, found in options.items() if found.config is type(start)), None)
    if key is not None and key not in options:
        raise UnknownName(f"method for --set {where}", key, options)
    chosen = key or now or next(iter(options))
    return _build(options[chosen], given, start if chosen == now else None, f"{where}.")


def _methods_in(hint: Any) -> dict[str, Card]:
    """The methods and routers that a field's type allows, by key; `Method` itself allows all."""
    kinds: list[Any] = list(get_args(hint) or (hint,))
    if Method in kinds:
        return {key: card(key) for key in keys()}
    classes = [c for c in kinds if dataclasses.is_dataclass(c)]
    # a card stands in the module of its config, and has that module's name
    found = (card(cast(type, c).__module__.rpartition(".")[2]) for c in classes)
    return {one.key: one for one in found}


def value_of(what: str, text: str, hint: Any) -> Any:
    """Text as a value of an annotated type; nothing after the = is None where that is allowed.

    Raises: ConfigError with what was got and wanted.
    """
    for kind in _kinds(hint):
        value, fits = _read(text, kind)
        if fits:
            return value
    raise ConfigError(what, got=repr(text), want=_shown(hint), fix=_hint_for(what, hint))


def _kinds(hint: Any) -> list[Any]:
    """The members of a type, text last: "0.5" is a number wherever it can be one."""
    union = get_origin(hint) in (typing.Union, types.UnionType)
    order = (type(None), bool, int, float)
    members = list(get_args(hint)) if union else [hint]
    return sorted(members, key=lambda k: order.index(k) if k in order else len(order))


def _read(text: str, kind: Any) -> tuple[Any, bool]:
    if kind is type(None):
        return None, text == ""
    if kind is bool:
        return BOOLEANS.get(text.lower()), text.lower() in BOOLEANS
    if kind in (int, float):
        try:
            return kind(text), True
        except ValueError:
            return None, False
    if kind is str:
        return text, text != ""
    if get_origin(kind) is tuple:
        items = [item.strip() for item in text.split(",") if item.strip()]
        read = [_read(item, get_args(kind)[0]) for item in items]
        return tuple(value for value, _ in read), bool(read) and all(fits for _, fits in read)
    return None, False


NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def _shown(hint: Any) -> str:
    """A type in words."""
    names = [
        "nothing" if kind is type(None)
        else f"{NAMES.get(get_args(kind)[0], 'values')}, or several with commas"
        if get_origin(kind) is tuple
        else NAMES.get(kind, str(kind))
        for kind in _kinds(hint)
    ]  # fmt: skip
    return " or ".join(names)


def _hint_for(what: str, hint: Any) -> str:
    examples = {int: "4", float: "0.1", bool: "true", str: "gelu"}
    kind = next((k for k in _kinds(hint) if k in examples), str)
    return f"For example: {what}={examples[kind]}"


HEADS = "task_heads"


def objective(text: str) -> Objective:
    """An objective by name, with its settings behind a colon: two_pass:add=1,reg=0.5.

    Behind "task_heads+" it is the one that each task's head has; alone, that is "plain".
    Raises: UnknownName for a name or a setting that does not exist.
    """
    if text == HEADS:
        text = "plain"
    name, _, rest = text.removeprefix(f"{HEADS}+").partition(":")
    if name not in OBJECTIVES:
        raise UnknownName("objective", name, (*OBJECTIVES, HEADS))
    function = OBJECTIVES[name]
    hints = get_type_hints(function)
    known = [
        p.name for p in inspect.signature(function).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]  # fmt: skip
    given: Tree = {}
    for key, value in pairs(part for part in rest.split(",") if part).items():
        if key not in known:
            raise UnknownName(f"setting of objective {name!r}", key, known)
        given[key] = value_of(f"--objective {name}:{key}", value, hints[key])
    return partial(function, **given) if given else function


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
        elif isinstance(now, tuple):
            found.append(f"{field.name}={','.join(map(str, now))}")
        else:
            found.append(f"{field.name}={'' if now is None else now}")
    return tuple(found)
