"""What a verb writes: checked before its work by one rule, and held until it ends."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from ..core.errors import ConfigError
from ..core.files import reserved
from ..core.locks import held

_HELD: ContextVar[ExitStack] = ContextVar("held")
PAGE = '<meta name="generator" content="intarsia'
"""Words at the start of every page that this library writes."""
REPORTS = {".md": "<!-- intarsia report -->", ".tex": "% intarsia report"}
"""The same for reports in other forms, by the end of their names."""


@contextmanager
def holding() -> Iterator[None]:
    """Run a command inside the `with` block, and release the paths that it locked at the end."""
    # A context variable, not a global: verbs of several threads hold their own paths.
    with ExitStack() as stack:
        # `target` and `hold` find the stack of their verb by the context variable, without a
        # parameter through every call.
        before = _HELD.set(stack)
        try:
            yield
        finally:
            _HELD.reset(before)


def target(
    path: Path | None,
    example: str,
    *,
    option: str = "--out",
    mark: str = "",
    written_names: Collection[str] = (),
) -> Path:
    """Return the path that a command will write, locked for other processes until the command ends.

    An existing target is replaced only if this command wrote it: a file with its mark, or a folder
    with only its own files, see `core.files.reserved`. path: None is refused. example: a value of
    the option, for the error. option: its name. mark: words in each file of this command.
    written_names: the files in a folder of this command.
    Raises: ConfigError for no path, for something else in its place, and for a path that another
    process works on; TrainingError where nothing can be written.
    """
    if path is None:
        fix = f"For example: {option} {example}"
        raise ConfigError(option, got="nothing", want="what to write", fix=fix)
    # released when the command ends, however it ends
    _HELD.get().enter_context(reserved(path, mark=mark, own=written_names))
    return path


def finished_names(path: Path | None, state: Path, kind: str) -> list[str]:
    """Return the names of the files in a finished result that a killed command left behind.

    The command was killed after it wrote its result and before it removed its state, so that it may
    write the result again. An empty list: there is no such result, or another command's.
    path: the folder of the result; state: what the command keeps next to it until it ends; kind:
    the name of a file that every result of this command has.
    """
    if path is None or not state.exists() or not (path / kind).is_file():
        return []
    return [file.name for file in path.iterdir()]


def page_target(path: Path | None) -> None:
    """Lock the path of an HTML page that a command will write, if any.  Raises: as `target`."""
    if path is not None:
        target(path, "page.html", mark=PAGE)


def hold(path: Path) -> None:
    """Lock a file or folder that the command is going to change, until the command ends.

    path: of the file or folder. Raises: ConfigError if another process has locked it.
    """
    _HELD.get().enter_context(held(path))
