"""Read the words that others use for a setting, and refuse a call that nothing here takes.

A keyword with exactly one meaning here is read as it, with a warning that says the name it has
here; every other one is refused with the call that was meant.

`exports` passes each public object through `checked` when it is first used, so that no function and
no class has a list of its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .errors import CallError, UnknownKeyword, UnknownName
from .guessed_words import ATTRIBUTES, HOLDERS, LIKE, REMOVED, SAME
from .registry import by_name

CHECKED = "__checked__"
"""The attribute of a wrapped function that holds the function itself."""


def translated(name: str, value: Any, known: Mapping[str, Any]) -> str:
    """Return "density=0.5" for sparsity=0.5, and so on; "" where no translation is known."""
    same = (name, *SAME.get(name, ()), *LIKE.get(name, ()))
    # a setting of this call comes before one that a method, a format or a router has
    meant = next((n for place in (known, HOLDERS) for n in same if n in place), "")
    if removed := _as_density(name, value):
        meant, value = removed
    if not meant:
        return ""
    if meant in known:
        return _in_words(meant, value)
    holder, keyword = HOLDERS.get(meant, ("", ""))
    return f"{holder}({_in_words(meant, value)}) as {keyword}" if keyword in known else ""


def _in_words(name: str, value: Any) -> str:
    """Return "rank=8"; the name alone of a value that has no short text."""
    return f"{name}={value!r}" if isinstance(value, bool | int | float | str) else name


def _as_density(name: str, value: Any) -> tuple[str, float] | None:
    """Return ("density", 0.25) for sparsity=0.75; None for a keyword that is no such share."""
    # 1 or more is a number of weights, which this library has no word for
    is_share = isinstance(value, float) and 0 <= value < 1
    return ("density", round(1 - value, 6)) if name in REMOVED and is_share else None


def checked(thing: Any, name: str, *, functions: bool, methods: bool) -> Any:
    """Return a public object that answers a wrong call in words; a class is changed in place.

    name: as a user writes it, such as "intarsia.sparsify"; functions: wrap functions, too, which
    are then other objects than their modules'; methods: check a class's methods, not its
    constructors alone. Functions of other libraries, those that take any keyword, and everything
    that cannot be called stay as they are.
    """
    if not getattr(thing, "__module__", "").startswith("intarsia"):
        return thing
    if inspect.isclass(thing):
        _check_class(thing, name, methods)
        return thing
    # it may come from another namespace, which has checked it under another name
    raw = vars(thing).get(CHECKED, thing) if inspect.isfunction(thing) else thing
    if not functions or not inspect.isfunction(raw) or _keywords(raw) is None:
        return thing
    call = _function_once(raw, name)
    # where it is public, so that other processes find the same object
    call.__module__, _, call.__qualname__ = name.rpartition(".")
    return call


@functools.cache
def _check_class(thing: type, name: str, methods: bool) -> None:
    """Let a class's constructors, and its methods, answer a wrong call in words."""
    home = next(kind for kind in thing.__mro__ if "__init__" in vars(kind))
    start = home.__init__
    if home.__module__.startswith("intarsia") and _keywords(start) is not None:
        home.__init__ = _refusing(start)
    ours = [kind for kind in thing.__mro__ if kind.__module__.startswith("intarsia")]
    for kind in ours if methods else [thing]:
        for word, member in list(vars(kind).items()):
            # forward is torch's to call, in every step
            if word.startswith("_") or word == "forward":
                continue
            if isinstance(member, classmethod) and _keywords(member.__func__) is not None:  # pyright: ignore
                setattr(kind, word, classmethod(_refusing(member.__func__, f"{name}.{word}")))  # pyright: ignore
            elif methods and isinstance(member, FunctionType) and _keywords(member) is not None:
                setattr(kind, word, _refusing(member, f"{kind.__name__}.{word}"))
    if not hasattr(thing, "__getattr__") and not getattr(thing, "_is_protocol", False):
        thing.__getattr__ = _missing  # pyright: ignore


def _missing(thing: Any, name: str) -> Any:
    """Refuse an attribute that an object does not have: its `__getattr__`."""
    # a property that has raised an AttributeError of its own raises it again
    kind: Any = thing.__class__
    # of its classes alone: `__name__` is a descriptor of `type`, and says nothing of an object
    bases: tuple[type, ...] = kind.__mro__
    static: Any = next((vars(base)[name] for base in bases if name in vars(base)), None)
    if hasattr(static, "__get__"):
        return static.__get__(thing, kind)
    raise NoSuchAttribute(kind, name)


class NoSuchAttribute(AttributeError):
    """An attribute that an object does not have; what was meant is looked up when it is shown."""

    def __init__(self, kind: Any, name: str) -> None:
        # without its object: Python would suggest a second time at the end of the same line
        super().__init__(kind, name, name=name)

    def __str__(self) -> str:
        kind: Any = self.args[0]
        name: str = self.args[1]
        names: list[str] = [n for n in dir(kind) if not n.startswith("_")]
        translations = [n for n in ATTRIBUTES.get(name, ()) if n in names]
        near = translations or difflib.get_close_matches(name, names)
        fix = f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(names)}."
        return f"{kind.__name__!r} object has no attribute {name!r}. {fix}"


@functools.cache
def _function_once(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the one object that stands for a public function under a name."""
    return _refusing(function, name)


def _keywords(function: Callable[..., Any]) -> dict[str, Any] | None:
    """Return the keywords of a function; None if it takes any, or is refusing already."""
    if CHECKED in getattr(function, "__dict__", ()):
        return None
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name: p for p in parameters if p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)}


def _refusing(function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
    """Wrap a function so that a call that cannot be is an error with the call that was meant."""

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        """Call the function.  Raises: UnknownKeyword, CallError, and what the function raises."""
        try:
            return function(*args, **keywords)
        except (AttributeError, TypeError) as error:
            refusal, corrected = None, None
            called = name or type(args[0]).__name__
            is_ours = type(error).__module__.startswith("intarsia")
            if not is_ours or isinstance(error, NoSuchAttribute):
                corrected = as_known(function, called, args, keywords)
                refusal = _refusal(function, called, args, keywords)
            if refusal is None:  # an error of the work itself
                raise
            cause = error if isinstance(error, AttributeError) else None
        if corrected is not None:  # the call has not begun: no function takes an unknown keyword
            return function(*corrected.args, **corrected.kwargs)
        raise refusal from cause

    setattr(call, CHECKED, function)
    return call


def as_known(
    function: Callable[..., Any], name: str, args: tuple[Any, ...], keywords: Mapping[str, Any]
) -> inspect.BoundArguments | None:
    """Return a call's arguments by the names that they have here, with a warning for each other.

    function: the called one, under this name; args, keywords: of the call. None where every
    keyword is known, or where one of the others cannot be read for certain.
    """
    parameters = _keywords(function) or {}
    known = {word: value for word, value in keywords.items() if word in parameters}
    signature = inspect.signature(function)
    try:
        bound = signature.bind_partial(*args, **known)
    except TypeError:
        return None
    hints = _hints_of(function) if len(known) < len(keywords) else {}
    readings: dict[str, Reading] = {}
    for word in [word for word in keywords if word not in known]:
        meaning = reading(word, keywords[word], parameters, hints, bound.arguments)
        # no parameter and no setting is given twice
        places = {earlier.place for earlier in readings.values()}
        places |= {(parameter, "") for parameter in bound.arguments}
        if meaning is None or meaning.place in places:
            return None
        readings[word] = meaning
    bound.arguments |= _joined(readings.values())
    # an argument may still be missing
    try:
        signature.bind(*bound.args, **bound.kwargs)
    except TypeError:
        return None
    for word, meaning in readings.items():
        text = f"{name}: {_in_words(word, keywords[word])} is read as {meaning.as_written()}"
        warnings.warn(text, stacklevel=3)
    return bound if readings else None


@dataclasses.dataclass(frozen=True)
class Reading:
    """Meaning of a keyword that a call does not have: the parameter that it sets, and to what.

    setting, base: where it is a setting of the parameter's own settings, such as `active` of a
    router's: its name, and the settings without it.
    """

    parameter: str
    value: Any
    setting: str = ""
    base: Any = None

    @property
    def place(self) -> tuple[str, str]:
        """Parameter and setting that it sets."""
        return self.parameter, self.setting

    def as_written(self) -> str:
        """Return the keyword that says the same: "rank=8", "router=intarsia.TopK(active=2)"."""
        text = _in_words(self.setting or self.parameter, self.value)
        return f"{self.parameter}={type(self.base).__name__}({text})" if self.setting else text


def _joined(readings: Iterable[Reading]) -> dict[str, Any]:
    """Return the keywords of readings; several settings of one parameter are one object."""
    joined: dict[str, Any] = {}
    for meaning in readings:
        if meaning.setting:
            # the next setting of the same object is set on this one's copy
            base = joined.get(meaning.parameter, meaning.base)
            joined[meaning.parameter] = dataclasses.replace(
                base, **{meaning.setting: meaning.value}
            )
        else:
            joined[meaning.parameter] = meaning.value
    return joined


def reading(
    word: str,
    value: Any,
    parameters: Mapping[str, Any],
    hints: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> Reading | None:
    """Return what an unknown keyword means for certain; None where it is not certain.

    word, value: the keyword; parameters, hints: the call's, by name; arguments: those it has. It
    is a parameter under another name (`SAME`), or a setting of one parameter's own settings.
    """
    names = (word, *SAME.get(word, ()))
    # others count the weights that go, this library those that stay
    if removed := _as_density(word, value):
        names, value = removed[:1], removed[1]
    for name in names:
        if name in parameters:
            kinds = _kinds_of(hints.get(name))
            return Reading(name, value) if not kinds or isinstance(value, kinds) else None
    # such as the router of `upcycle`: its `active` may stand in the call itself
    holders = [
        (parameter, base, name)
        for name in names
        for parameter, p in parameters.items()
        for base in _settings_of(arguments.get(parameter), p.default, hints.get(parameter))
        if any(field.name == name and field.init for field in dataclasses.fields(base))
    ]
    if not holders or any(holder[2] == holders[0][2] for holder in holders[1:]):
        return None
    parameter, base, name = holders[0]
    return Reading(parameter, value, name, base)


def _settings_of(passed: Any, default: Any, hint: Any) -> list[Any]:
    """Return the settings which a parameter may have: of a method's name, its default, its kinds.

    passed: what the call has for it, None = nothing; settings that are passed stay as they are.
    """
    if passed is not None and not isinstance(passed, str):
        return []
    named = default if passed is None else passed
    if isinstance(named, str):
        try:
            return [base] if dataclasses.is_dataclass(base := by_name(named)) else []
        except UnknownName:
            return []
    if dataclasses.is_dataclass(named):
        return [named]
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [kind() for kind in kinds if inspect.isclass(kind) and _has_defaults(kind)]


def _has_defaults(kind: type) -> bool:
    """Return True for a dataclass that can be built without an argument."""
    return dataclasses.is_dataclass(kind) and all(
        not f.init or {f.default, f.default_factory} != {dataclasses.MISSING}
        for f in dataclasses.fields(kind)
    )


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function as types; {} where one is for type checkers alone."""
    try:
        return get_type_hints(inspect.unwrap(function))
    except (AttributeError, NameError, TypeError):
        return {}


def _refusal(
    function: Callable[..., Any], name: str, args: tuple[Any, ...], keywords: Mapping[str, Any]
) -> TypeError | None:
    """Return the error for arguments that a function does not take; None if it takes them."""
    signature = inspect.signature(function)
    parameters = _keywords(function) or {}
    for bound in ("self", "cls"):
        parameters.pop(bound, None)
    # first an unknown keyword, for which Python and `bind` have no suggestion
    if strange := next((word for word in keywords if word not in parameters), None):
        meant = translated(strange, keywords[strange], parameters)
        fix = f"Did you mean {meant}?" if meant else ""
        return UnknownKeyword(f"keyword of {name}", strange, parameters, fix=fix)
    try:
        arguments = signature.bind(*args, **keywords).arguments
    except TypeError as error:
        want = f"{name.rpartition('.')[2]}({', '.join(_shown(parameters.values()))})"
        is_missing = str(error).startswith("missing")
        fix = "Give it." if is_missing else "Give each once; what follows the * by its name."
        if is_missing and function.__name__ == "__init__":
            fix = " or ".join((fix.rstrip("."), *_further_constructors(args[0].__class__))) + "."
        return CallError(f"call of {name}", got=str(error), want=want, fix=fix)
    hints = _hints_of(function)
    # classes are asked here alone, after the call has failed: what behaves like one is taken
    for word, value in arguments.items():
        kinds = _kinds_of(hints.get(word))
        if kinds and not isinstance(value, kinds):
            want = " or ".join(kind.__name__ for kind in kinds)
            got = f"{value.__name__}, a class" if inspect.isclass(value) else type(value).__name__
            builds = dataclasses.is_dataclass(value) and hasattr(type(value), "build")
            fix = f"Give what its build(...) returns: {got}(...).build(...)." if builds else ""
            if any(
                isinstance(value, _kinds_of(hints.get(o)) or ()) for o in arguments if o != word
            ):
                fix = f"In this order: {name}({', '.join(_shown(parameters.values()))})."
            return CallError(
                f"{word} of {name}", got=got, want=want, fix=fix or f"See help({name})."
            )
    return None


def _kinds_of(kind: Any) -> tuple[type, ...]:
    """Return the classes of which an annotated parameter is; () where that is not clear."""
    union = get_origin(kind) in (Union, UnionType)
    members = [get_origin(m) or m for m in (get_args(kind) if union else (kind,))]
    # a number of NumPy is one, too, and a protocol is no class to ask
    clear = all(inspect.isclass(m) and not getattr(m, "_is_protocol", False) for m in members)
    if not clear or {int, float, bool, object, Any} & set(members):
        return ()
    return tuple(members)


def _further_constructors(kind: type) -> list[str]:
    """Return the calls of a class's further constructors, such as "SparseIndex.build(...)"."""
    static = {word: inspect.getattr_static(kind, word) for word in dir(kind) if word[0] != "_"}
    return [f"{kind.__name__}.{w}(...)" for w, m in static.items() if isinstance(m, classmethod)]


def _shown(parameters: Iterable[inspect.Parameter]) -> Iterator[str]:
    """Yield parameters as a call has them: "model", "*", "name=..."."""
    starred = False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        yield p.name if p.default is p.empty else f"{p.name}=..."
