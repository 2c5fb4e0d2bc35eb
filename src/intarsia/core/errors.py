"""Every error is a small conversation: what went wrong, the value got, the values wanted, the fix.

IntarsiaError
├── ConfigError        an argument or a method's setting           (ValueError)
├── ShapeError         a tensor's or a layer's shape               (ValueError)
├── UnknownName        a name that is not known; did you mean ...  (LookupError)
│   ├── UnknownKeyword a keyword of a class of settings            (TypeError)
│   └── UnknownChoice  a setting's word                            (ConfigError)
├── DataError          images, labels, splits                      (ValueError)
├── TargetError        where cells may be attached                 (ValueError)
├── CheckpointError    a file that is damaged, foreign or of another model
├── FoldError          a cell that cannot become plain weights
├── ExportError        a model that cannot be written in a format, or comes back different
├── TrainingError      a run that cannot continue (loss is not finite, disk is full)
├── ConformanceError   a method that breaks its kind's contract    (AssertionError)
├── MissingExtra       an optional dependency that is not installed (ImportError)
└── AssetError         a package of weights or data that cannot be had
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import ClassVar

SHOWN, SHOWN_LENGTH = 10, 100  # names of a list in an error, characters of a name of a file
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Escape control characters, which may stand in a file's name, as \\x1b for a terminal."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def some_of(names: Sequence[str]) -> str:
    """Return the first names of a list that a file may have made long, and how many there are."""
    cut = [name[:SHOWN_LENGTH] for name in names[:SHOWN]]
    return f"{cut}" if len(names) <= SHOWN else f"{cut} and {len(names) - SHOWN:,} more"


class IntarsiaError(Exception):
    """`what: got ..., want .... fix` as one readable line, and the four parts as attributes.

    got: an exception of another library is shown as its type and its text, one of ours as its text.
    """

    def __init__(self, what: str, *, got: object, want: object, fix: str) -> None:
        """Build the message "what: got X, want Y. fix"; got: a value, or an exception."""
        # KeyError's own text is only the key: the type says what it means
        if isinstance(got, Exception) and not isinstance(got, IntarsiaError):
            got = f"{type(got).__name__}: {got}"
        self.what, self.got, self.want, self.fix = what, got, want, fix
        super().__init__(printable(f"{what}: got {got}, want {want}. {fix}"))

    def __reduce__(self) -> tuple[object, ...]:
        # keyword-only arguments would be lost on the way between processes
        return _rebuild, (type(self), self.what, self.got, self.want, self.fix)


def _rebuild(
    cls: type[IntarsiaError], subject: str, got: object, want: object, fix: str
) -> IntarsiaError:
    """Build an error again when it is unpickled, without calling the `__init__` of its class."""
    # a subclass may have an __init__ of its own, with other arguments
    error = cls.__new__(cls)
    IntarsiaError.__init__(error, subject, got=got, want=want, fix=fix)
    return error


class ConfigError(IntarsiaError, ValueError):
    """An argument or a setting that no method can work with."""


class ShapeError(IntarsiaError, ValueError):
    """A tensor or a layer of the wrong shape."""


class DataError(IntarsiaError, ValueError):
    """Images, labels or splits that cannot be used as they are."""


class TargetError(IntarsiaError, ValueError):
    """A place in the model where a cell cannot be attached."""


class CheckpointError(IntarsiaError):
    """A file that is damaged, foreign, or belongs to another model."""


class FoldError(IntarsiaError):
    """A cell that cannot become plain weights of the model it sits in."""


class ExportError(IntarsiaError):
    """A model that cannot be written in another format, or comes back from it different."""


class TrainingError(IntarsiaError):
    """A run that cannot continue; the last good state is kept."""


class ConformanceError(IntarsiaError, AssertionError):
    """A method that does not do what its kind, or one of its card's tags, says."""


class AssetError(IntarsiaError):
    """A package of weights or data that cannot be obtained or is not the expected one."""


class MissingExtra(IntarsiaError, ImportError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"optional dependency {package!r}",
            got="not installed",
            want="installed",
            fix=f"Run: pip install 'intarsia[{extra}]'",
        )


class UnknownName(IntarsiaError, LookupError):
    """A name that is not in a closed list: the nearest names first, and ten of them at most.

    listed: a command, or a call, that prints all of them, for a list that may be longer.
    fix: what else is to be said, such as why a name that one might expect is not among them.
    near: the names that are spelled alike.
    """

    near: tuple[str, ...] = ()
    lead: ClassVar[str] = "unknown "

    def __init__(
        self, kind: str, name: str, choices: Iterable[str], listed: str = "", *, fix: str = ""
    ) -> None:
        """Build the error of a name that is not among the choices; similar names come first."""
        # listed: where all names are listed, said only where there are too many to show
        names = sorted(choices)
        parts = (name, name.rpartition(".")[2])  # a setting may be said with its whole path
        # the whole name first, then its last part
        matches = (difflib.get_close_matches(part, names, n=3) for part in parts)
        near = next((some for some in matches if some), list[str]())
        # a name that is known to be meant goes before names that are only spelled alike
        near = [] if fix.startswith("Did you mean") else near
        self.near = tuple(near)
        # the likely ones lead the list, which may be cut
        displayed = [*near, *(candidate for candidate in names if candidate not in near)][:SHOWN]
        want = f"one of {', '.join(displayed)}"
        fix = f"Did you mean {' or '.join(near)}? {fix}".strip() if near else fix
        fix = fix or "Choose one of them."
        # a long list is cut; the command that prints all of it is named instead
        if hidden := len(names) - len(displayed):
            want += f" and {hidden} more"
            fix += f" All {len(names)}: {listed}" if listed else ""
        super().__init__(f"{self.lead}{kind}", got=repr(name), want=want, fix=fix)

    def __reduce__(self) -> tuple[object, ...]:
        rebuild, parts = super().__reduce__()
        return rebuild, parts, {"near": self.near}


class UnknownKeyword(UnknownName, TypeError):
    """A keyword that a class of settings does not have."""


class UnknownChoice(UnknownName, ConfigError):
    """A word that is none of a setting's choices."""

    lead = ""


def disk_error(path: object, error: Exception) -> TrainingError:
    """Return the error for a file that could not be written."""
    return TrainingError(
        f"writing to {path}",
        got=error,
        want="a disk with room that can be written to",
        fix="Free some space, or choose another place; what was there before is intact.",
    )
