"""Generated from the fields of settings: `python -m intarsia_lab.pages.settings` writes all of it.

The keywords of `fit` for type checkers, train/options.py, and docs/settings.md.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from intarsia.cli.options import PANELS, OnCommandLine, OtherTasks, SensesOptions
from intarsia.cli.processes import ProcessOptions
from intarsia.core.files import write_text
from intarsia.core.registry import INDEX
from intarsia.core.schema import Setting, in_words, option_name, settings_of, words, written
from intarsia.train import settings
from intarsia.train.settings import Recipe, Running, Training

OPTIONS = INDEX.parents[1] / "train" / "options.py"
ONLY_COMMAND_LINE = (OnCommandLine, OtherTasks, SensesOptions, ProcessOptions)
HEAD = '''"""The keywords of `fit` for type checkers: every field of Training, Recipe and Running.

Written by `python -m intarsia_lab.pages.settings` from train/settings.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from ..processes.parallelism import Parallelism
from ..schedules import ByFit, LayerSchedule, SparseSchedule
from .settings import ClassWeights, LrFactor, OptimizerFactory, Schedule
from .stack import Seat


class Options(TypedDict, total=False):
    """Keywords of `fit`."""

'''
PAGE = """# Settings of a run

Every setting of a run is one field of a dataclass. The option of `intarsia fit`, the keyword of
`intarsia.fit`, the checks, completion and the entry in experiment.json are made from it, and this
page by `python -m intarsia_lab.pages.settings`. Settings without an option are for Python only;
options without a keyword are for the command line only.
"""


def options_text() -> str:
    """Return the text of train/options.py: the keywords of `fit`, with types for type checkers.

    The types are those in the source of the settings' classes.
    """
    lines: list[str] = []
    # the source, since a type as an object has lost how it was written
    for node in ast.parse(inspect.getsource(settings)).body:
        if isinstance(node, ast.ClassDef) and node.name in (
            kind.__name__ for kind in (Training, Recipe, Running)
        ):
            for item in node.body:
                if isinstance(item, ast.AnnAssign):
                    kind = item.annotation
                    quoted = isinstance(kind, ast.Constant)
                    text = str(kind.value) if quoted else ast.unparse(kind)
                    # a keyword may be a path in words, which the field makes a Path
                    text = text.replace("Path", "str | Path")
                    lines.append(f"    {ast.unparse(item.target)}: {text}\n")
    return HEAD + "".join(lines)


def page() -> str:
    """Return the text of docs/settings.md: a table of the settings of each class."""
    return "\n".join([PAGE, *_tables()])


def _tables() -> Iterator[str]:
    """Yield the lines of a section with a table for each class of settings."""
    for kind, panel in PANELS.items():
        only = ", on the command line only" if kind in ONLY_COMMAND_LINE else ""
        yield f"## Settings: {panel[0].lower() + panel[1:]} (`{kind.__name__}`){only}\n"
        yield '<div class="cards options" markdown="1">\n'
        yield "| setting | option | type | default | range | help |\n|---|---|---|---|---|---|"
        for item, declared in settings_of(kind):
            # a setting for Python alone has no option
            option = "" if declared.python or item.name == "data" else f"`{option_name(item)}`"
            # annotations are text where a module postpones them
            plain = item.type if not isinstance(item.type, str) else None
            cells = (
                f"`{item.name}`",
                option,
                in_words(plain) if plain is not None else f"`{item.type}`".replace(" | ", " or "),
                _default(item),
                _range(item.name, declared),
                declared.help,
            )
            yield f"| {' | '.join(cells)} |"
        yield "\n</div>\n"


def _default(item: Any) -> str:
    """Return a setting's default as the page writes it, "" for None and where there is none."""
    stated = item.default not in (None, (), MISSING)
    return f"`{written(item.default)}`" if stated else ""


def _range(name: str, declared: Setting) -> str:
    """Return what a setting may be: its valid words, or the range of a number."""
    if valid := words(declared.choices):
        return ", ".join(f"`{word}`" for word in valid)
    return declared.limits(name)


def write(docs: Path) -> None:
    """Write the keywords and the page.  docs: the folder of the documentation."""
    write_text(OPTIONS, options_text())
    write_text(docs / "settings.md", page())


if __name__ == "__main__":
    write(Path("docs"))
