"""How the command line behaves around every verb: errors, Ctrl-C, tables and JSON."""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any, cast

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from typer import BadParameter
from typer.core import TyperGroup

from ..core.errors import ConfigError, printable
from ..core.plugins import LABORATORY, VERBS, plugins
from ..core.quiet import quiet
from ..runs import INTERRUPTED
from .groups import GROUPS, HOMES, LABORATORY_MARK, group_of

SOME_FAILED, USER_ERROR = 1, 2
WORDS = "intarsia.words"
SHOWN = 200  # characters of another library's error
NO_ROOM = re.compile(
    "not enough memory|can't allocate|cannot allocate|out of memory|unable to mmap"
    "|size calculation overflowed|multiplication overflow|failed to map segment",
    re.IGNORECASE,
)
ANYWHERE = ("--debug", "--quiet", "-q")
PIPE = 200  # characters of a line where there is no terminal


def whole_text(text: str | None) -> str | None:
    """Return a text of the command line.  Raises: ConfigError for bytes that are no UTF-8."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        got, fix = "bytes that are no UTF-8", "Set the terminal to UTF-8, or give the text again."
        raise ConfigError(f"text {text!r}", got=got, want="a text", fix=fix) from error
    return text


def note(line: str) -> None:
    """Print a line of progress on stderr: stdout is for results."""
    if not quiet():
        warn(line)


def warn(line: str) -> None:
    """Print a line on stderr that --quiet does not silence: a result is not as requested."""
    Console(stderr=True, soft_wrap=True).print(escape(printable(line)), highlight=False)


def say(line: str) -> None:
    """Print lines of a result on stdout."""
    print(printable(line), flush=True)


def show_json(data: Any) -> None:
    """Print data as JSON on stdout, and nothing else there."""
    # NaN and Infinity are no JSON: strict readers would refuse the whole text.
    text = json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False)
    say(text)


def _finite(data: Any) -> Any:
    """Return the data with None for NaN and infinity, which JSON does not have."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: str = "",
    pipe: int | None = None,
) -> None:
    """Print a table on stdout.

    title: "" for none; columns: their names; rows: cells as texts. right: names of the columns of
    numbers, with commas, which are aligned at the right. pipe: characters of a line where there is
    no terminal, None = PIPE.
    """
    table = Table(title=printable(title) or None, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        # Numbers are aligned at the right and never broken over two lines.
        number = column in right.split(",")
        side: Any = "right" if number else "left"
        # nothing is cut: a title has a line for each word where the table is too wide
        whole = [*column.split(), *(printable(row[place]) for row in rows if number)]
        widest = max(map(len, whole), default=0)
        table.add_column(column, justify=side, min_width=widest, overflow="fold")
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    show_rich(table, pipe)


def show_rich(table: RenderableType, pipe: int | None = None) -> None:
    """Print a table of rich on stdout.  pipe: as `show_table` takes it."""
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=room(pipe))
    console.print(table)


def room(pipe: int | None = None) -> int:
    """Return the characters of a line: of the terminal, or `pipe` where there is none."""
    terminal = Console()
    # a pipe has no width: lines as long as they need to be
    return terminal.width if terminal.is_terminal else pipe or PIPE


# keywords of the library in its errors, as options
OPTIONS = {
    "on_error='skip'": "--skip-unreadable",
    "resume=True": "--resume",
    "workers=0": "--workers 0",
    "clip=1.0": "--clip 1.0",
    "clip=None": "no --clip",
    "select='last'": "--select last",
    "precision='bf16'": "--precision bf16",
    "targets=[...]": "--target NAME",
    "val=0": "--val 0",
    "negative numbers count from the last": "--last-blocks takes so many at most",
    "sees_later=True": "--sees-later",
    "Lower shots, or pass fewer=True": "Lower --shots",
}


def in_words(text: str) -> str:
    """Return a text of the library with options instead of its keywords."""
    for keyword, option in OPTIONS.items():
        text = text.replace(keyword, option)
    return text


def show_error(error: Exception) -> None:
    """Print an error of the library as a panel: the value got, the value wanted, and the fix."""
    parts = {name: str(getattr(error, name, "")) for name in ("got", "want", "fix")}
    # A fix is written for Python; on the command line it must name options.
    parts["fix"] = in_words(parts["fix"])
    lines = [f"[bold]{name:<5}[/bold]{escape(printable(text))}" for name, text in parts.items()]
    # brackets in a message are text, not rich's markup
    title = escape(printable(f"{type(error).__name__}: {getattr(error, 'what', '')}"))
    panel = Panel("\n".join(lines), title=title, title_align="left", border_style="red")
    Console(stderr=True).print(panel, highlight=False)


class Verbs(TyperGroup):
    """The verbs, with the verbs of other distributions that are installed.

    A verb is imported when it is called. Errors of the library become one panel and exit code 2,
    Ctrl-C a clean stop.
    """

    def __init__(self, **settings: Any) -> None:
        """Begin with the names of all commands; each is imported when it is called."""
        super().__init__(**settings)
        # typer suggests one of these names for a mistyped one
        self.commands = cast(Any, dict.fromkeys(HOMES))

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, in the groups in which the help shows them."""
        names = (*HOMES, *plugins(VERBS))
        # Grouped as the help shows them, further distributions' verbs last.
        grouped = [name for group in GROUPS.values() for name in group if name in names]
        return [*grouped, *(name for name in names if name not in grouped)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name, imported now; None for an unknown name.

        ctx: unused, but typer passes it. Further commands come from installed packages.
        Raises: ConfigError for a command of the package intarsia-lab where that is not installed.
        """
        # Import each command once: completion asks for the same one many times.
        if (command := self.commands.get(cmd_name)) is not None:
            return command
        if cmd_name in HOMES:
            function = resolve_name(f"{__package__}.{HOMES[cmd_name]}")
        elif cmd_name in plugins(VERBS):
            function = plugins(VERBS)[cmd_name].load()
        elif cmd_name in LABORATORY:
            got, want = "intarsia alone", "the distribution intarsia-lab beside it"
            fix = "In a clone of the repository: pip install ./lab"
            raise ConfigError(f"verb {cmd_name!r}", got=got, want=want, fix=fix)
        else:
            return None
        self.commands[cmd_name] = _command_of(cmd_name, function)
        _hide_types_of_flags(self.commands[cmd_name], ctx)
        return self.commands[cmd_name]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help of the program itself."""
        _hide_types_of_flags(self, ctx)
        super().format_help(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Keep the words of a verb, for the error of one that is no value of its option."""
        ctx.meta[WORDS] = list(args)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:
        """Run the command; turn errors of the library and Ctrl-C into messages and exit codes."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            warn(f"Stopped. {stop}".strip())
            raise typer.Exit(INTERRUPTED) from stop
        except BadParameter as error:
            # typer's message names the option but not the value that was wrong.
            if word := _word(ctx.meta.get(WORDS, ()), getattr(error.param, "opts", ())):
                error.message = f"{word!r}: {error.message}"
            raise
        except Exception as error:
            # An error that is none of the library's is a bug: its traceback is needed.
            reported = error if _is_ours(error) else _too_large(error)
            if reported is None:
                raise
            if ctx.params.get("debug"):
                Console(stderr=True).print_exception()
            show_error(reported)
            raise typer.Exit(USER_ERROR) from error


def _command_of(name: str, function: Any) -> Any:
    holder = typer.Typer(add_completion=False, rich_markup_mode="rich")
    if isinstance(function, typer.Typer):
        holder.add_typer(function, name=name, rich_help_panel=group_of(name))
    else:
        holder.command(name, rich_help_panel=group_of(name))(function)
    command = typer.main.get_group(holder).commands[name]
    if name in LABORATORY:
        command.short_help = f"{LABORATORY_MARK} {command.get_short_help_str(1000)}"
    inner = command.commands.values() if isinstance(command, TyperGroup) else ()
    for below in (command, *inner):
        below.help = reflowed(below.help or "")
    return command


def reflowed(text: str) -> str:
    """Return a help with each paragraph in one line, so that the terminal alone breaks it.

    text: a docstring, cleaned; its examples, and lines that are set in, keep their own lines.
    """
    lines: list[str] = []
    joins = False  # whether the line before is prose
    for line in text.splitlines():
        prose = bool(line) and not line.startswith((" ", "Example:"))
        if prose and joins:
            lines[-1] += f" {line}"
        else:
            lines.append(line)
        joins = prose
    return "\n".join(lines)


def _hide_types_of_flags(command: Any, ctx: Any) -> None:
    """Show a flag as --json in the help, not as --json <bool>; of a group also those below."""
    # --help is none of a command's parameters: it has to be asked for, where there is a context
    for parameter in (*command.params, ctx and command.get_help_option(ctx)):
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    for below in getattr(command, "commands", {}).values():
        if below is not None:
            _hide_types_of_flags(below, ctx)


def _word(words: Sequence[str], names: Sequence[str]) -> str:
    """Return the last value that the command line gives to an option."""
    last = ""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in names:
            last = value if equals else after
    return last


def _is_ours(error: Exception) -> bool:
    """Return True for an error of this library: its message is enough without a traceback."""
    # the class is looked at, not imported: `--help` must not wait for torch
    return any(
        (c.__module__, c.__name__) == ("intarsia.core.errors", "IntarsiaError")
        for c in type(error).__mro__
    )


def _too_large(error: Exception) -> ConfigError | None:
    """Return the error for what does not fit into memory; None for another kind of error."""
    text = next(iter(str(error).splitlines()), "")
    is_full = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    says_so = isinstance(error, RuntimeError | ImportError) and NO_ROOM.search(text)
    if not (is_full or says_so):
        return None
    return ConfigError(
        "memory",
        got=f"{type(error).__name__}: {text[:SHOWN]}",
        want="sizes that fit into the memory of this machine",
        fix="Give smaller numbers, or a smaller model; --debug says where it was.",
    )


def arguments(argv: Sequence[str]) -> list[str]:
    """Move `--debug` and `--quiet`, which may stand anywhere, in front of the verb."""
    # typer knows options of the group only in front of the verb.
    rest = [a for a in argv if a not in ANYWHERE]
    return [*(a for a in ANYWHERE if a in argv), *rest]
