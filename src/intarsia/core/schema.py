"""Settings of a run, each declared once: a field with its type, default, help and range.

    @dataclass(frozen=True)
    class Training:
        epochs: int = setting(20, "Passes over the training images.", least=1)

        def __post_init__(self) -> None:
            check(self)

The options of the command line, the checks before torch is imported, completion, `--config`,
experiment.json and docs/settings.md are made from these fields; of a method's settings the card
index and its page are. A module of a run's settings imports no torch and has no `from __future__
import annotations`: the types of its options are read as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from .errors import ConfigError, UnknownChoice, UnknownKeyword

Kind = TypeVar("Kind")
Words = Sequence[str] | Callable[[], Sequence[str]]
"""A closed list, or a function that returns it: one that reads a file is called when needed."""
METADATA = "setting"
LIMITS = ("choices", "least", "above", "below", "most")
"""The fields of a `Setting` that limit a value."""
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
SEVERAL = (tuple, list, Sequence)
PLAIN: Mapping[Any, type] = {bool: bool, int: Integral, float: Real, str: str, Path: Path}
NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    Path: "a path",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The declaration of one setting, next to the type and the default of its field.

    help: one sentence for `--help` and the docs.
    least, above, below, most: the range of a number: least <= x, above < x, x < below, x <= most;
    of several numbers each has it.
    choices: the only words that are valid, or the only numbers.  suffix: a word may have settings
    of its own behind a colon.  offers: words that completion offers among others.
    test: raises an error for a value that the range does not refuse.  fix: the end of every error.
    flag, short: the option, where it is not called as the field; "" = `--field-name`.
    panel: the heading of the option in `--help`; "" = the heading of the field's class.
    unit: the word that stands for the value in `--help`, such as "minutes"; "" = its type.
    python: it is set in Python only, and is neither an option nor part of experiment.json.
    also: its names in other libraries, which a constructor takes, too, see `AlsoNamed`.
    """

    help: str
    least: float | None = None
    above: float | None = None
    below: float | None = None
    most: float | None = None
    choices: Words = ()
    suffix: bool = False
    offers: Words = ()
    test: Callable[[Any], None] | None = None
    fix: str = ""
    flag: str = ""
    short: str = ""
    panel: str = ""
    unit: str = ""
    python: bool = False
    also: tuple[str, ...] = ()

    def check(self, name: str, value: Any, kind: Any) -> None:
        """Refuse a value that its field cannot have.

        Raises: ConfigError for another type or a number out of range; UnknownChoice for a word that
        is none of the choices; what `test` raises.
        """
        # None stands for "not set", which no range or choice restricts
        if value is None and fits(None, kind):
            return
        if not fits(value, kind):
            listed = isinstance(value, str) and fits((value,), kind)
            fix = f"Give a list: [{value!r}]." if listed else self.fix
            fix = fix or "Give a value of that type."
            raise ConfigError(name, got=repr(value), want=in_words(kind), fix=fix)
        items = cast("Sequence[Any]", value if is_several(value) else (value,))
        for item in items:
            if isinstance(item, Real) and not self._in_range(_as_float(item)):
                fix = self.fix or f"Try {self._example()}."
                want, got = self.range_in_words(name.lstrip("-")), cast(object, value)
                raise ConfigError(name, got=got, want=want, fix=fix)
        if choices := words(self.choices):
            for item in items:
                self._check_choice(name, item, choices)
        if self.test is not None:
            self.test(value)

    def _check_choice(self, name: str, item: Any, choices: Sequence[Any]) -> None:
        if isinstance(item, str):
            # an objective or a schedule has settings of its own: two_pass:add=1
            item = item.partition(":")[0].partition("+")[0] if self.suffix else item
            if item not in choices:
                raise UnknownChoice(name, item, map(str, choices), fix=self.fix)
        # a number among words, as in `scale: float | str`, is none of the listed words
        elif item not in choices and not any(isinstance(choice, str) for choice in choices):
            fix, want = self.fix or "Choose one of them.", f"one of {', '.join(map(str, choices))}"
            raise ConfigError(name, got=item, want=want, fix=fix)

    def _in_range(self, value: float) -> bool:
        """Return True if `value` is in the declared range; NaN and infinity never are."""
        return (
            abs(value) < math.inf
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )

    def _example(self) -> float:
        """Return a number in the declared range, as an example for an error."""
        if self.below is not None or self.above is not None:
            return 0.1
        return 0 if self.least is None else self.least

    def limits(self, name: str) -> str:
        """Return the valid words, or the range of a number, as the docs show it; "" without any."""
        if valid := words(self.choices):
            return f"one of {', '.join(map(str, valid))}"
        bounds = (self.least, self.above, self.below, self.most)
        return self.range_in_words(name) if any(bound is not None for bound in bounds) else ""

    def range_in_words(self, name: str) -> str:
        """Return the range as an error and the docs show it, such as "at least 1"."""
        # a bound is inclusive or exclusive, never both
        low = f"{self.least} <= " if self.least is not None else ""
        low = f"{self.above} < " if self.above is not None else low
        if self.below is not None:
            return f"{low}{name} < {self.below}"
        if self.most is not None and self.least is not None:
            return f"{self.least} ... {self.most}"
        if self.most is not None:
            return f"{low}{name} <= {self.most}"
        if self.above is not None:
            return f"above {self.above}"
        return f"at least {self.least}" if self.least is not None else "a finite number"


def _as_float(value: Real) -> float:
    """Return a number as a float; infinity for a whole number that no float can hold."""
    try:
        return float(value)
    except OverflowError:  # a whole number that no float can hold
        return math.inf


def setting(
    default: Any = MISSING,
    help: str | Setting = "",
    *,
    factory: Callable[[], Any] | None = None,
    hash: bool | None = None,
    **declared: Any,
) -> Any:
    """Return a dataclass field with its declaration, see `Setting`; MISSING = it must be given.

    help: the sentence, or a declaration that several dataclasses share. factory: makes the default,
    instead of `default`, where it is made again for each instance. hash: False leaves the field out
    of the instance's hash, as `dataclasses.field` has it.
    """
    shared = help if isinstance(help, Setting) else Setting(help=help)
    metadata = {METADATA: dataclasses.replace(shared, **declared)}
    if factory is not None:
        return field(default_factory=factory, hash=hash, metadata=metadata)
    return field(default=default, hash=hash, metadata=metadata)


class AlsoNamed(ABCMeta):
    """Class of settings that may be given by their names in other libraries, as `Lora(r=8)`."""

    # type checkers read the constructor that is written
    if not typing.TYPE_CHECKING:

        def __call__(cls, *args: Any, **given: Any) -> Any:
            """Build the settings.  Raises: UnknownKeyword."""
            return super().__call__(*args, **own_names(cls, given))

        @property
        def __signature__(cls) -> inspect.Signature:
            """The constructor's own signature."""
            parameters = [*inspect.signature(cls.__init__).parameters.values()][1:]
            return inspect.Signature(parameters)


def own_names(kind: type, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return keywords of a dataclass's constructor by the names that they have here.

    Raises: UnknownKeyword for one that is no setting, ConfigError for one that is given twice.
    """
    if not given or not is_dataclass(kind):
        return given
    parameters = inspect.signature(kind).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return given
    also = {other: item.name for item, declared in settings_of(kind) for other in declared.also}
    named: dict[str, Any] = {}
    for word, value in given.items():
        name = word if word in parameters else also.get(word, word)
        if name not in parameters:
            raise UnknownKeyword(f"setting of {kind.__name__}", word, parameters)
        if name in named:
            fix = f"Give {name} alone."
            raise ConfigError(f"{name} of {kind.__name__}", got="two", want="one", fix=fix)
        named[name] = value
    return named


def help_of(item: dataclasses.Field[Any]) -> str:
    """Return the help of a declared field with its limits; "" for a field that is not declared.

    Words that the help explains are not listed again.
    """
    if METADATA not in item.metadata:
        return ""
    declared: Setting = item.metadata[METADATA]
    limits, sentence = declared.limits(item.name), declared.help.rstrip(".")
    valid = words(declared.choices)
    if valid and all(f'"{word}"' in sentence for word in valid):
        return sentence
    return f"{sentence}; {limits}" if limits else sentence


def words(listed: Words) -> Sequence[str]:
    """Return a closed list, read now if it is a function."""
    return listed() if callable(listed) else listed


def settings_of(*kinds: type) -> Iterator[tuple[dataclasses.Field[Any], Setting]]:
    """Yield every declared field of dataclasses with its declaration, in order."""
    for kind in kinds:
        for item in fields(cast(Any, kind)):
            if METADATA in item.metadata:
                yield item, item.metadata[METADATA]


def options_of(*kinds: type) -> Iterator[tuple[dataclasses.Field[Any], Setting]]:
    """Yield the settings in `settings_of` that are options, which JSON can hold."""
    return ((item, declared) for item, declared in settings_of(*kinds) if not declared.python)


def option_name(item: dataclasses.Field[Any]) -> str:
    """Return the option of a field, as `--batch-size`."""
    declared: Setting = item.metadata[METADATA]
    return declared.flag.split("/")[-1] or f"--{item.name.replace('_', '-')}"


def check(settings: object) -> None:
    """Check every declared field of a dataclass; its `__post_init__` calls this.

    settings: the dataclass's instance.
    Raises: as `Setting.check`.
    """
    kinds = types_of(type(settings))
    for item in fields(cast(Any, settings)):
        if (declared := item.metadata.get(METADATA)) is not None:
            declared.check(item.name, getattr(settings, item.name), kinds.get(item.name, object))


@functools.cache
def types_of(kind: type) -> Mapping[str, Any]:
    """Return the types of a dataclass's fields by name; {} if one cannot be resolved.

    In the modules of methods annotations are postponed, so that they are text.
    """
    if not any(isinstance(item.type, str) for item in fields(cast(Any, kind))):
        return {item.name: item.type for item in fields(cast(Any, kind))}
    try:
        return get_type_hints(kind)
    except NameError:  # a type that only type checkers import
        return {}


def to_json(settings: object) -> dict[str, Any]:
    """Return the options of a dataclass, and of those inside it, as one flat mapping for JSON."""
    values: dict[str, Any] = {}
    for name, is_option in _fields_of(type(settings)):
        value = getattr(settings, name)
        if is_dataclass(value):
            values |= to_json(value)
        elif is_option:
            values[name] = (
                list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value
            )
    return values


@functools.cache  # a search writes the same few classes some hundred thousand times
def _fields_of(kind: type) -> tuple[tuple[str, bool], ...]:
    """Return the name of each field of a dataclass, and whether it is an option."""
    options = {item.name for item, _ in options_of(kind)}
    return tuple((item.name, item.name in options) for item in fields(cast(Any, kind)))


def from_json(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """Build the dataclass that `to_json` wrote; names that it does not have are ignored.

    Raises: as `check`; ConfigError for a setting that must be given and is not.
    """
    # a value that is missing takes the field's default
    new: dict[str, Any] = {}
    for item in fields(cast(Any, kind)):
        # settings inside settings share one flat JSON object
        if isinstance(item.type, type) and is_dataclass(item.type):
            new[item.name] = from_json(item.type, values)
        elif item.name in values:
            value = values[item.name]
            new[item.name] = tuple(cast("list[Any]", value)) if isinstance(value, list) else value
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(item.name, got="nothing", want="a value", fix="Add it.")
    return kind(**new)


def members(kind: Any) -> list[Any]:
    """Return the types in a union, the narrowest first and text last.

    A text is read as the first type that fits: "3" as a whole number, "0.5" as a number.
    """
    union = get_origin(kind) in (typing.Union, types.UnionType)
    order = (type(None), bool, int, float)
    kinds = list(get_args(kind)) if union else [kind]
    # the narrowest type first: "3" is an int before it is a float, and text last
    return sorted(kinds, key=lambda k: order.index(k) if k in order else len(order))


def is_several(value: Any) -> bool:
    """Return True for a sequence or an array with one axis; a text is a single word."""
    if isinstance(value, str):
        return False
    return isinstance(value, Sequence) or len(getattr(value, "shape", ())) == 1


def fits(value: Any, kind: Any) -> bool:
    """Return True if a value is of a type, as settings count it; True for unknown types.

    A whole number may stand for a float; True is no number; a list, or an array with one axis, may
    stand for a tuple.
    """
    for member in members(kind):
        if get_origin(member) in SEVERAL:
            if not is_several(value):
                continue
            if all(fits(item, get_args(member)[0]) for item in cast("Sequence[object]", value)):
                return True
        elif member in (None, type(None)):
            if value is None:
                return True
        elif member not in PLAIN or _is_a(cast(object, value), member):
            return True
    return False


def _is_a(value: object, kind: type) -> bool:
    # Python counts True as a number
    return isinstance(value, PLAIN[kind]) and isinstance(value, bool) == (kind is bool)


def read(subject: str, text: str, kind: Any) -> Any:
    """Parse a text as a value of a type; an empty text is None where that is allowed.

    kind: the type, or a union (the first member that fits is taken). Raises: ConfigError for a text
    that is no such value.
    """
    for member in members(kind):
        value, valid = _read(text, member)
        if valid:
            return value
    raise ConfigError(subject, got=repr(text), want=in_words(kind), fix=_example_of(subject, kind))


def written(value: Any) -> str:
    """Return a value as the text that `read` reads."""
    if value is None:
        return ""
    if isinstance(value, tuple | list):
        return ",".join(map(written, cast("Sequence[Any]", value)))
    return str(value)


def _read(text: str, kind: Any) -> tuple[Any, bool]:
    """Parse a text as a type that is no union; (anything, False) where it is not of that type."""
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
    if get_origin(kind) in SEVERAL:
        items = [item.strip() for item in text.split(",") if item.strip()]
        values = [_read(item, get_args(kind)[0]) for item in items]
        return tuple(v for v, _ in values), bool(values) and all(valid for _, valid in values)
    return None, False


def in_words(kind: Any) -> str:
    """Describe a type in words, for errors, such as "nothing or a whole number"."""
    return " or ".join(map(_member_in_words, members(kind)))


def _member_in_words(kind: Any) -> str:
    """Describe a type that is no union."""
    if kind is type(None):
        return "nothing"
    if get_origin(kind) in SEVERAL:
        return f"{NAMES.get(get_args(kind)[0], 'values')}, or several with commas"
    return NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def _example_of(subject: str, kind: Any) -> str:
    """Return an example of a setting's value for an error, such as "For example: epochs=4"."""
    examples: dict[Any, str] = {int: "4", float: "0.1", bool: "true", str: "gelu"}
    several = {tuple[item, ...]: "0,1,2" if item is int else examples[item] for item in examples}
    first = next((k for k in members(kind) if k in examples | several), str)
    return f"For example: {subject}{'=' if ' ' in subject else ' '}{(examples | several)[first]}"
