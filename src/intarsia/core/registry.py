"""The closed list of methods, and methods as JSON: a key and plain settings, never a path.

The list is the card index, cards.json, which `python -m intarsia_lab.pages.methods` writes from the
cards in the methods' files. Reading it imports no method: an optional dependency breaks one method
and no more, a list or a refusal needs no torch, and a file can only ever choose from this list.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .card import Card, Paper
from .errors import ConfigError, UnknownName
from .method_settings import MethodSettings
from .schema import LIMITS, Setting, fits, in_words, types_of

if TYPE_CHECKING:
    from .cell import Method

INDEX = Path(__file__).with_name("cards.json")
KEY = "method"
LISTED = "intarsia list"
"""The command that prints every method, for an error."""


NAMES = Path(__file__).with_name("names.txt")
"""Closed lists whose modules take seconds to import; `python -m intarsia.cli.names` writes it."""


def read_lists(path: Path) -> Mapping[str, tuple[str, ...]]:
    """Read a file of lists, with "list: word" in each line; return the words of each list."""
    lists: dict[str, tuple[str, ...]] = {}
    for line in path.read_text().splitlines():
        name, word = line.split(": ", 1)
        # in the file's order, which is the order that help shows
        lists[name] = (*lists.get(name, ()), word)
    return lists


@functools.cache
def listed(name: str) -> tuple[str, ...]:
    """Return one of the closed lists of names.txt, such as "set" for the named image sets."""
    return read_lists(NAMES)[name]


@functools.cache
def index() -> Mapping[str, Mapping[str, Any]]:
    """Return the card index: key -> kind, module below `intarsia`, paper, settings, ..."""
    return json.loads(INDEX.read_text())


PLAIN: Mapping[str, Any] = {
    **{kind.__name__: kind for kind in (int, float, str, bool)},
    **{f"{kind.__name__} | None": kind | None for kind in (int, float, str)},
    **{f"tuple[{kind.__name__}, ...]": tuple[kind, ...] for kind in (int, float, str)},
    "Sequence[str]": tuple[str, ...],
}
"""Types of settings as the index has them, which an option of the command line can have."""


def declaration(key: str, name: str) -> tuple[Any, Any, Setting]:
    """Return the type, the default and the declaration of a method's setting, out of the index."""
    entry = next(entry for entry in index()[key]["settings"] if entry["name"] == name)
    default = entry["default"]
    limits = {limit: entry[limit] for limit in LIMITS if limit in entry}
    default = tuple(cast("list[Any]", default)) if isinstance(default, list) else default
    return PLAIN[entry["type"]], default, Setting(help=entry["help"], **limits)


class _Listed(Card):
    """A card of the index; what only the method's module holds is read there when asked for."""

    def __getattr__(self, name: str) -> Any:
        """Return `config` or `tiny` of a catalogue entry; the method's module is imported."""
        if name not in ("config", "tiny"):
            raise AttributeError(name)
        # the only import of a method's module
        module = importlib.import_module(f"intarsia.{index()[self.key]['module']}")
        return getattr(next(c for c in cards_in(module) if c.key == self.key), name)


def cards_in(module: Any) -> tuple[Card, ...]:
    """Return the cards of a method's module: its CARD, or all its CARDS."""
    return (module.CARD,) if hasattr(module, "CARD") else tuple(module.CARDS)


def keys(kind: str = "adapter") -> tuple[str, ...]:
    """Return the keys of one kind; an adapter is a method that a host can attach."""
    return tuple(key for key, entry in index().items() if entry["kind"] == kind)


def unpredicted_policies() -> tuple[str, ...]:
    """Return the cache policies that need no predictions of the next step, as ExpertFlow's does."""
    return tuple(key for key in keys("cache") if key != "expertflow")


@functools.cache
def card(key: str) -> Card:
    """Return the catalogue's entry of a method; its module is imported only for `config` or `tiny`.

    key: the method's name.
    Raises: UnknownName if the catalogue has no such key.
    """
    if key not in index():
        raise UnknownName("method", str(key), index(), LISTED)
    entry = index()[key]
    # without __init__, which would ask for the config and so import the module
    listed_card = _Listed.__new__(_Listed)
    listed_card.__dict__.update(
        key=key,
        kind=entry["kind"],
        paper=Paper(**entry["paper"]),
        tags=frozenset(entry["tags"]),
        summary=entry["summary"],
        family=entry["family"],
        names=tuple(entry["names"]),
        exceptions=entry["exceptions"],
    )
    return listed_card


def recommenders() -> Mapping[str, tuple[str, ...]]:
    """Return the recommenders by the task of `intarsia fit` that trains them, the default first."""
    tasks: dict[str, tuple[str, ...]] = {}
    for key, entry in index().items():
        if (task := entry.get("data_of")) is not None:
            tasks[task] = (*tasks.get(task, ()), key)
    return tasks


def spelled(text: str) -> str:
    """Return a name without case, hyphens, spaces and signs: "MoE-X" and "moe_x" are one."""
    # NFKC: a full-width or superscript letter is its plain one
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in plain if letter.isalnum())


def paper_name(key: str) -> str:
    """Return a method's name as its paper writes it, where its card has it: "MoSA" of "mosa".

    key: of a method; any other text is returned as it is.
    """
    if key not in index():
        return key
    # a word of the title counts if it is written like no other word
    words = re.findall(r"[\w-]+", index()[key]["paper"]["title"])
    names = (*index()[key]["names"], *(word for word in words if word[1:] != word[1:].lower()))
    return next((name for name in names if spelled(name) == spelled(key)), key)


def find(name: str, *kinds: str) -> str:
    """Find the key of a method by that key or by a name in its paper, in any spelling.

    name: such as "MoE-X"; kinds: those to choose from, as "adapter"; all if none is given.
    Raises: UnknownName.
    """
    among = {key: entry for key, entry in index().items() if not kinds or entry["kind"] in kinds}
    # a key as it is written goes before names that spell alike
    if name in among:
        return name
    keys_by_name = {n: key for key, entry in among.items() for n in (key, *entry["names"])}
    # names that differ in case, hyphens or spaces are one
    plain = {spelled(n): key for n, key in keys_by_name.items()}
    if spelled(name) not in plain:
        raise UnknownName("method", name, keys_by_name, LISTED)
    return plain[spelled(name)]


def by_name(name: str, *kinds: str) -> Any:
    """Return the default settings of the method that `find` finds."""
    return card(find(name, *kinds)).config()


def method_key(method: object) -> str:
    """Return the key under which the catalogue lists a method.

    method: its settings, an instance such as Lora(rank=8).
    Raises: ConfigError if their class is not in the catalogue.
    """
    kind = type(method)
    # several cards may have one class, as the cards of PEFT's methods
    if isinstance(method, MethodSettings) and method.card_key in index():
        return method.card_key
    for key, entry in index().items():
        if f"{kind.__module__}.{kind.__name__}" == f"intarsia.{entry['config']}":
            return key
    got = f"{kind.__module__}.{kind.__qualname__}"
    fix = "Pass an instance, such as intarsia.Lora(rank=8)."
    raise ConfigError("method", got=got, want=f"the settings of one of {list(keys())}", fix=fix)


def method_to_dict(method: Method) -> dict[str, Any]:
    """Return {"method": key, setting: value, ...} for JSON; a method inside likewise."""
    return {KEY: method_key(method)} | settings_to_dict(method)


def settings_to_dict(config: object) -> dict[str, Any]:
    """Return the settings of a method by name, ready for JSON.

    config: a method's or router's dataclass. Methods inside become dicts, tuples lists.
    """
    if isinstance(config, MethodSettings):
        settings = config.settings_to_dict()
    else:
        settings = {f.name: getattr(config, f.name) for f in fields(cast(Any, config))}
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any) -> Any:
    """Return a setting's value ready for JSON: methods and settings as dicts, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        listed = any(type(value).__module__ == f"intarsia.{e['module']}" for e in index().values())
        return method_to_dict(cast("Method", value)) if listed else settings_to_dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in cast("list[Any]", value)]
    return value


def _live(value: Any) -> Any:
    """Return a value read from JSON as a setting: the reverse of `_plain`."""
    if isinstance(value, list):
        return tuple(cast("list[Any]", value))
    if not isinstance(value, Mapping) or KEY not in value:
        return cast(Any, value)
    # what a method is made of may be a router or a change, too
    allowed = (*keys(), *keys("router"), *keys("change"))
    return _from_dict(cast("Mapping[str, Any]", value), allowed)


def method_from_dict(settings: Mapping[str, Any]) -> Any:
    """Make the method that `method_to_dict` wrote; settings left out take their defaults.

    Raises: UnknownName for a key or a setting that does not exist; ConfigError for a value that the
    method refuses.
    """
    return _from_dict(settings, keys())


def _from_dict(settings: Mapping[str, Any], allowed: tuple[str, ...]) -> Any:
    if KEY not in settings:
        want = f"a {KEY!r} among them"
        fix = f"Add one of {list(allowed)}."
        raise ConfigError("method settings", got=sorted(settings), want=want, fix=fix)
    key = str(settings[KEY])
    if key not in allowed:
        raise UnknownName("method", key, allowed, LISTED)
    rest = {name: value for name, value in settings.items() if name != KEY}
    return settings_from_dict(card(key), rest)


def settings_from_dict(card: Card, settings: Mapping[str, Any]) -> Any:
    """Build the settings that `settings_to_dict` wrote; those left out take their defaults.

    card: the method's entry in the catalogue; settings: values by name, as JSON has them.
    Raises: as `method_from_dict`.
    """
    # a name is checked against the defaults before the config is made with it
    defaults = settings_to_dict(card.config())
    for name in settings:
        if name not in defaults:
            raise UnknownName(
                f"setting of {card.key!r}", str(name), defaults, f"intarsia show {card.key}"
            )
    values = {name: _live(value) for name, value in settings.items()}
    try:
        config = card.config(**values)
    except TypeError as error:
        subject, want = f"settings of {card.key!r}", "values of the right types"
        raise ConfigError(subject, got=values, want=want, fix=f"({error})") from error
    check_types(config)
    return config


def check_types(settings: object) -> None:
    """Check settings, and settings inside them, against the plain types that their fields declare.

    Fields of other types are not checked, and settings of PEFT neither, which fills in values of
    another type than it declares.
    Raises: ConfigError, with the field's name.
    """
    if not is_dataclass(settings) or type(settings).__module__.partition(".")[0] == "peft":
        return
    kinds = types_of(type(settings))
    for field in fields(settings):
        value, kind = getattr(settings, field.name), kinds.get(field.name)
        if is_dataclass(value) and not isinstance(value, type):
            check_types(value)
        elif kind is not None and not fits(value, kind):
            fix = "Give a value of that type."
            raise ConfigError(field.name, got=repr(value), want=in_words(kind), fix=fix)
