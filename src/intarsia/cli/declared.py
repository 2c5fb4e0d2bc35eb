"""Options of the command line, made of the settings that they fill.

A verb names the dataclass of its settings as the type of a parameter, and gets an instance:

    @with_options()
    def serve(models: Models, limits: Limits, threads: Threads = None) -> None:

Each setting is then an option: its name, help, range, choices and default are the declared ones,
and its value is checked when it is read. `option` makes the option of a single setting.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

import typer

from ..core.registry import declaration
from ..core.schema import (
    SEVERAL,
    Setting,
    fits,
    members,
    options_of,
    read,
    types_of,
    words,
    written,
)
from . import completing

Verb = TypeVar("Verb", bound=Callable[..., None])
ENDLESS = 2**32  # an upper bound that nobody reaches is not shown


def option_row(panel: str | None, name: str, kind: Any, default: Any, declared: Setting) -> Any:
    """Return a parameter of a command, from which typer builds an option under a panel."""
    option = declared.flag or f"--{name.replace('_', '-')}"
    # typer reads "/--no-x" as an option without a positive form only if a space comes first.
    names = (f" {option}" if option.startswith("/") else option, declared.short)
    typed, reader = _typed(kind, option)
    info = typer.Option(
        *filter(None, names),
        help=_help(name, declared),
        metavar=declared.unit.upper() or None,
        rich_help_panel=panel,
        show_default=not option.startswith("/"),  # what the option turns off
        autocompletion=completing.of_setting(name, declared),
        parser=reader,
    )
    # An option that may be repeated has None for "not given", as typer knows no empty tuple.
    default = None if default == () else written(default) if _is_list(default) else default
    default = Parameter.empty if default is MISSING else default
    return Parameter(
        name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[typed, info]
    )


def _is_list(value: object) -> bool:
    return isinstance(value, tuple)


def _help(name: str, declared: Setting) -> str:
    """Return the help of an option, with the words or the range that it does not say itself."""
    sentence, valid = declared.help.rstrip("."), words(declared.choices)
    if valid:
        matches = [re.search(rf"(?<!\w){re.escape(str(word))}(?!\w)", sentence) for word in valid]
        return f"{sentence}." if all(matches) else f"{sentence} ({', '.join(map(str, valid))})."
    ends = [end for end in (declared.below, declared.most) if end is not None and end < ENDLESS]
    # that a count is no less than 0 or 1 goes without saying
    informative = ends or (declared.least or 0) > 1
    limits = declared.limits(name)
    return f"{sentence} ({limits})." if informative and limits not in sentence else f"{sentence}."


def _typed(kind: Any, option: str) -> tuple[Any, Callable[[str], Any] | None]:
    """Return a type that typer knows for `kind`, and the reader of a text if it is a union."""
    kinds = [member for member in members(kind) if member is not type(None)]
    for several in (member for member in kinds if get_origin(member) in SEVERAL):
        item = get_args(several)[0]
        # A list of words: the option is repeated on the command line; numbers have commas.
        if item in (str, Path):
            return list[item] | None, None
        return (str | None if fits(None, kind) else str), None
    # A word among the types takes any text; the setting's own check then judges it.
    if str in kinds:
        return (str | None if fits(None, kind) else str), None
    # Such as int | float: one reader decides between them by the text.
    if len(kinds) > 1:
        return float | None, partial(read, option, kind=kind)
    return kind, None


def option(kind: type, name: str, **changes: Any) -> Any:
    """Return the option of one setting, for a parameter of a command that has its own default."""
    declared = next(declared for item, declared in options_of(kind) if item.name == name)
    row = _row(name, types_of(kind)[name], None, dataclasses.replace(declared, **changes))
    return row.annotation.__metadata__[0]


def rows_of(kind: type) -> list[Parameter]:
    """Return the options of a dataclass of settings."""
    return [
        _row(item.name, types_of(kind)[item.name], item.default, declared)
        for item, declared in options_of(kind)
    ]


def of_method(key: str, *names: str, **helps: str) -> tuple[Parameter, ...]:
    """Return the options of settings of a method, as its card declares them.

    key: the method's; names: the settings'; helps: of those with a paper's symbols in their own.
    """
    rows: list[Parameter] = []
    for name in names:
        kind, default, declared = declaration(key, name)
        if name in helps:
            declared = dataclasses.replace(declared, help=helps[name])
        rows.append(_row(name, kind, default, declared))
    return tuple(rows)


def _row(name: str, kind: Any, default: Any, declared: Setting) -> Parameter:
    row = option_row(declared.panel or None, name, kind, default, declared)
    return checked(row, kind, declared)


def checked(row: Parameter, kind: Any, declared: Setting) -> Parameter:
    """Return an option with a value that is checked when it is read, as the setting's is."""
    name = declared.flag.split("/")[-1] or f"--{row.name.replace('_', '-')}"

    def check(value: Any) -> Any:
        # several numbers are one word, with commas
        value = (
            read(name, value, kind) if isinstance(value, str) and not fits(value, kind) else value
        )
        if value is not None:
            declared.check(name, value, kind)
        return value

    row.annotation.__metadata__[0].callback = check
    return row


def with_options(options: tuple[Parameter, ...] = ()) -> Callable[[Verb], Verb]:
    """Return a decorator that makes options of the parameters that are dataclasses of settings.

    options: further ones, which the command gets as keywords.
    """

    def add(verb: Verb) -> Verb:
        """Give the command `verb` the signature from which typer builds it."""
        signature = inspect.signature(verb, eval_str=True)
        named = [p for p in signature.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        kinds: dict[str, type] = {
            p.name: p.annotation
            for p in named
            if isinstance(p.annotation, type) and dataclasses.is_dataclass(p.annotation)
        }
        parameters = [
            row.replace(kind=Parameter.KEYWORD_ONLY)
            for p in named
            for row in (rows_of(kinds[p.name]) if p.name in kinds else [p])
        ]
        parameters += [p.replace(kind=Parameter.KEYWORD_ONLY) for p in options]

        @functools.wraps(verb)
        def call(**values: Any) -> None:
            for name, kind in kinds.items():
                values[name] = _filled(kind, values)
            verb(**values)

        called: Any = call
        called.__signature__ = signature.replace(parameters=parameters)
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return cast(Verb, called)

    return add


def _filled(kind: Any, values: dict[str, Any]) -> Any:
    filled: dict[str, Any] = {}
    for item, _ in options_of(kind):
        value = values.pop(item.name)
        # an option that may be repeated is None where it is not given
        value = tuple(value) if isinstance(value, list) else value
        filled[item.name] = () if value is None and item.default == () else value
    return kind(**filled)
