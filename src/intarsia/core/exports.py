"""A package's public names, listed once: in the stub next to its file, for type checkers.

Each is imported when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .guesses import COMMANDS, ELSEWHERE, checked
from .registry import index

SHOWN = 12  # names of a namespace in an error
ROOT = Path(__file__).parents[1]
TOPICS = frozenset(
    {"codec", "coding", "experts", "memory", "offloading", "privacy"}
    | {"recommend", "search", "senses", "spans", "sparse"}
)
"""Namespaces whose names are chosen by hand; those of the other folders come from their cards."""


def homes(stub: Path) -> dict[str, str]:
    """Map a stub's names to modules, relative to its package; a module of the package itself to "".

    A module outside the package begins with a dot for each folder up: ".hosts.swap".
    """
    # a stub has relative imports only: module and names
    imports = (n for n in ast.parse(stub.read_text()).body if isinstance(n, ast.ImportFrom))
    return {
        alias.name: "." * (n.level - 1) + (n.module or "")
        for n in imports
        if n.level
        for alias in n.names
    }


@functools.cache
def namespaces() -> Mapping[str, str]:
    """Map every public name to the namespace in which a user finds it, "" for the top level.

    Of several namespaces the top level goes before the topics (`intarsia.sparse`), and these before
    the packages (`intarsia.methods`).
    """
    top = homes(ROOT / "__init__.pyi")
    spaces = [name for name, module in top.items() if not module]
    places: dict[str, str] = {}
    # packages first: topics then overwrite their names, and the top level both
    for space in sorted(spaces, key=TOPICS.__contains__):
        places |= dict.fromkeys(homes(_listing(space)), space)
    return places | {name: "" for name, module in top.items() if module}


def _listing(space: str) -> Path:
    """Return the file that lists a namespace's names: its stub, or else its `__init__.py`."""
    stubs = (ROOT / f"{space}.pyi", ROOT / space / "__init__.pyi")
    return next((stub for stub in stubs if stub.is_file()), ROOT / space / "__init__.py")


def _other_than_a_name(name: str) -> str:
    """Return the words for a method of PEFT, which has no name of its own here; "" for others."""
    method = name.casefold().removesuffix("config")
    is_pefts = f"peft-{method}" in index()
    return f". Did you mean {public_path('PeftMethod')}({method!r})?" if is_pefts else ""


def public_path(name: str) -> str:
    """Return how a user writes a public name: "intarsia.Lora", "intarsia.routers.TopP"."""
    return ".".join(filter(None, ("intarsia", namespaces()[name], name)))


def exports(
    module: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` for a module that imports names when used.

    module: its `__name__`; file: its `__file__`. The public names, and the modules that define
    them, are read from the stub next to it, the same path with the ending .pyi.
    """
    modules = homes(Path(file).with_suffix(".pyi"))
    package = module if Path(file).stem == "__init__" else module.rpartition(".")[0]
    names = sorted(modules, key=str.casefold)

    def get(name: str) -> Any:
        """Import and return a public object of the package: its `__getattr__`."""
        if name not in modules:
            same_spelling = [n for n in names if n.casefold() == name.casefold()]
            near = same_spelling or difflib.get_close_matches(name, names)
            fix = f". Did you mean {' or '.join(near)}?" if near else ""
            elsewhere = [n for n in namespaces() if n.casefold() == name.casefold()]
            if not near and elsewhere:
                fix = f". Did you mean {public_path(elsewhere[0])}?"
            if not fix and len(names) <= SHOWN:
                fix = f". It has {', '.join(names)}."
            if name in namespaces():
                fix = f". It is {public_path(name)}."
            if package == "intarsia" and name in COMMANDS:
                fix = f". It is a command: {COMMANDS[name]}"
            # what other libraries call it, unless this module has a name like it
            if not same_spelling and (meant := ELSEWHERE.get(name.casefold())):
                fix = f". Did you mean {public_path(meant)}?"
            fix = fix or _other_than_a_name(name)
            # without its object: Python would suggest a second time at the end of the same line
            raise AttributeError(f"module {module!r} has no attribute {name!r}{fix}", name=name)
        # a submodule that is public as a whole
        if not modules[name]:
            return importlib.import_module(f"{package}.{name}")
        home = importlib.import_module(f".{modules[name]}", package)
        public = getattr(home, name)
        # packages hand functions to each other, which compare them: users' own names are checked
        verbs = module.removeprefix("intarsia.") in {"intarsia", *TOPICS}
        return checked(public, f"{module}.{name}", functions=verbs)

    return get, lambda: names, names
