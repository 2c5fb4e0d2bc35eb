"""The closed list of methods, and methods as JSON: a key and plain settings, never a path.

The modules are named, not imported, so that an optional dependency breaks one method and no more,
and so that a file can only ever choose from this list.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

from .card import Card
from .cell import Method
from .errors import ConfigError, UnknownName

METHODS = (
    "adapters.bottleneck",
    "adapters.lora",
    "adapters.mos",
    "adapters.s2ft",
    "adapters.sparse",
    "adapters.ssf",
    "methods.adamix",
    "methods.bi",
    "methods.llava_mole",
    "methods.lt_sft",
    "methods.mixlora",
    "methods.mosa",
    "methods.poly",
    "mixtures.deepspeed_moe",
    "mixtures.residual",
    "mixtures.zcode_m3",
    "models.gaussian_moe",
    "routers.activation",
    "routers.comet",
    "routers.dselect",
    "routers.evomoe",
    "routers.expert_choice",
    "routers.hash",
    "routers.moe_x",
    "routers.noisy_topk",
    "routers.permutation",
    "routers.random",
    "routers.recurrent",
    "routers.switch",
    "routers.task",
    "routers.topk",
    "routers.topp",
    "routers.transport",
)
"""Modules with a CARD, below `intarsia`, sorted; the last part of each is its card's key."""

KEY = "method"
RENAMED = {"dts": "evomoe", "sparsity": "moe_x"}  # keys of files of one release ago
ATTACHED = ("adapters", "methods")  # folders of what a host can attach


def keys() -> tuple[str, ...]:
    """The keys of the methods that a host can attach; imports nothing."""
    split = (name.rpartition(".") for name in METHODS)
    return tuple(key for folder, _, key in split if folder in ATTACHED)


def card(key: str) -> Card:
    """The card of a method, whose module is imported now.

    Raises: UnknownName if the list has no such key.
    """
    key = RENAMED.get(key, key)
    for name in METHODS:
        if name.rpartition(".")[2] == key:
            return cast(Card, importlib.import_module(f"intarsia.{name}").CARD)
    raise UnknownName("method", str(key), (name.rpartition(".")[2] for name in METHODS))


def method_key(method: Method) -> str:
    """The key under which the list knows a method's settings.

    Raises: ConfigError if they are of a class that is not in the list.
    """
    kind = type(method)
    for name in METHODS:
        # the module of a live object is already imported: nothing else is read here
        if (
            kind.__module__ == f"intarsia.{name}"
            and card(key := name.rpartition(".")[2]).config is kind
        ):
            return key
    raise ConfigError(
        "method", got=f"{kind.__module__}.{kind.__qualname__}",
        want=f"the settings of one of {list(keys())}",
        fix="Pass an instance, such as intarsia.Mosa(experts=4).",
    )  # fmt: skip


def method_to_dict(method: Method) -> dict[str, Any]:
    """{"method": key, setting: value, ...}, ready for JSON; a method inside a method likewise."""
    return {KEY: method_key(method)} | settings_to_dict(method)


def settings_to_dict(config: object) -> dict[str, Any]:
    """The settings of any card's config, ready for JSON."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields(cast(Any, config))}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return method_to_dict(cast(Method, value))
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in cast("list[Any]", value)]
    return value


def _live(value: Any) -> Any:
    if isinstance(value, Mapping):
        # what a method is made of may be a router, too
        return _from_dict(
            cast("Mapping[str, Any]", value), tuple(n.rpartition(".")[2] for n in METHODS)
        )
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


def method_from_dict(settings: Mapping[str, Any]) -> Any:
    """The method that `method_to_dict` wrote; settings left out take their defaults.

    Raises: UnknownName for a key or a setting that does not exist; ConfigError for a value that the
    method refuses.
    """
    return _from_dict(settings, keys())


def _from_dict(settings: Mapping[str, Any], known: tuple[str, ...]) -> Any:
    if KEY not in settings:
        raise ConfigError(
            "method settings", got=sorted(settings), want=f"a {KEY!r} among them",
            fix=f"Add one of {list(known)}.",
        )  # fmt: skip
    key = RENAMED.get(str(settings[KEY]), str(settings[KEY]))
    if key not in known:
        raise UnknownName("method", key, known)
    rest = {name: value for name, value in settings.items() if name != KEY}
    return settings_from_dict(card(key), rest)


def settings_from_dict(found: Card, settings: Mapping[str, Any]) -> Any:
    """The config that `settings_to_dict` wrote; settings left out take their defaults.

    Raises: as `method_from_dict`.
    """
    known = [f.name for f in fields(cast(Any, found.config))]
    for name in settings:
        if name not in known:
            raise UnknownName(f"setting of {found.key!r}", str(name), known)
    given = {name: _live(value) for name, value in settings.items()}
    try:
        return found.config(**given)
    except TypeError as error:
        raise ConfigError(
            f"settings of {found.key!r}", got=given, want="values of the right types",
            fix=f"({error})",
        ) from error  # fmt: skip
