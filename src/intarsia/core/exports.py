"""A package's public names, listed once: in the stub next to its file, for type checkers.

Each is imported when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from opcode import opmap
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import CallError
from .guessed_words import COMMANDS, ELSEWHERE
from .guesses import checked
from .registry import index

SHOWN = 12  # names of a namespace in an error
ROOT = Path(__file__).parents[1]
TOPICS = frozenset(
    {"codec", "coding", "experts", "memory", "offloading", "privacy"}
    | {"recommend", "search", "senses", "spans", "sparse"}
)
"""Namespaces whose names are chosen by hand; those of the other folders come from their cards."""


VALUES = frozenset({"schedules", "scores", "train"})
"""Namespaces with functions that are settings: these are compared, and stay the same objects."""
OPENED = frozenset(
    {"codec", "coding", "memory", "offloading", "placement", "privacy", "recommend", "search"}
)
"""Namespaces with objects that a user works with, by their methods."""
ENDINGS = ("config", "settings", "model", "adapter", "layer", "router", "pruner", "format")
"""What other libraries have at the end of a class's name."""
IMPORT_FROM = opmap["IMPORT_FROM"]


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


@functools.cache
def _classes_of(module: ModuleType) -> tuple[type, ...]:
    return tuple(
        thing
        for name, thing in vars(module).items()
        if isinstance(thing, type) and thing.__module__ == module.__name__ and name[0] != "_"
    )


def public_path(name: str) -> str:
    """Return how a user writes a public name: "intarsia.Lora", "intarsia.routers.TopP"."""
    return ".".join(filter(None, ("intarsia", namespaces()[name], name)))


class Namespace(ModuleType):
    """A package of this library: a name that it lacks, or its call, says what was meant."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # the import system sets each package in the one around it
        is_package = type(value) is ModuleType and hasattr(value, "__path__")
        if is_package and value.__name__ == f"{self.__name__}.{name}":
            value.__class__ = Namespace

    def __getattr__(self, name: str) -> Any:
        """Refuse a name that neither the module nor its `__getattr__` has."""
        asking = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        is_import = asking.f_code.co_code[asking.f_lasti] == IMPORT_FROM
        # a module that is being imported is found by the import system
        if is_import and f"{self.__name__}.{name}" not in sys.modules:
            # an AttributeError would lose its words: Python makes an ImportError of its own
            text = f"cannot import name {name!r} from {self.__name__!r}{hint(self.__name__, name)}"
            raise ImportError(text, name=self.__name__)
        raise NoSuchName(self.__name__, name)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Refuse a call.  Raises: CallError."""
        fix = hint(*self.__name__.rpartition(".")[::2]).removeprefix(". ")
        want = "a function or a class"
        raise CallError(f"call of {self.__name__}", got="a namespace", want=want, fix=fix)


class NoSuchName(AttributeError):
    """A name that a namespace does not have; what was meant is looked up when it is shown."""

    def __init__(self, module: str, name: str) -> None:
        # without its object: Python would suggest a second time at the end of the same line
        super().__init__(module, name, name=name)

    def __str__(self) -> str:
        module, name = self.args
        return f"module {module!r} has no attribute {name!r}{hint(module, name)}"


class _NoSuchModule:
    """The finder that is asked last: a module that no other finds is none of this library."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        """Refuse an unknown module below `intarsia`.  Raises: ModuleNotFoundError."""
        if name.startswith("intarsia."):
            parent, _, last = name.rpartition(".")
            raise ModuleNotFoundError(f"No module named {name!r}{hint(parent, last)}", name=name)


def hint(module: str, name: str) -> str:
    """Return what a name that a module does not have was meant for, as ". Did you mean Lora?"."""
    space = module.removeprefix("intarsia").lstrip(".")
    listing = _listing(space.replace(".", "/")) if space else ROOT / "__init__.pyi"
    names = sorted(homes(listing), key=str.casefold) if listing.suffix == ".pyi" else []
    same_spelling = [n for n in names if n != name and n.casefold() == name.casefold()]
    # what other libraries call it, unless this module has a name like it
    meant = ELSEWHERE.get(name.casefold())
    if meant and not same_spelling:
        return f". Did you mean {public_path(meant)}?"
    if not space and name in COMMANDS:
        return f". It is a command: {COMMANDS[name]}"
    # a long list is cut, and the call that shows all of it named
    rest = f" and {len(names) - SHOWN} more: dir({module})" if len(names) > SHOWN else ""
    listed = f" {module} has {', '.join(names[:SHOWN])}{rest}." if space and names else ""
    if name in namespaces() and name not in names:
        return f". It is {public_path(name)}.{listed}"
    if near := same_spelling or difflib.get_close_matches(name, set(names) - {name}):
        return f". Did you mean {' or '.join(near)}?"
    if path := _in_another_spelling(name):
        return f". Did you mean {path}?{listed}"
    if not listed:
        areas = ", ".join(n for n, home in homes(ROOT / "__init__.pyi").items() if not home)
        return f". Namespaces: {areas}; all names: dir(intarsia)."
    return f".{listed}"


def _in_another_spelling(name: str) -> str:
    """Return how a user writes the public name that is meant, wherever it is; "" for none."""
    plain = {n.casefold(): n for n in namespaces()}
    word = name.casefold()
    # LoraConfig is Lora, TopKRouter may be TopK
    for part in (word, *(word.removesuffix(end) for end in ENDINGS if word.endswith(end))):
        if part in plain:
            return public_path(plain[part])
        if f"peft-{part}" in index():  # a method of PEFT, which has no name of its own here
            return f"{public_path('PeftMethod')}({part!r})"
    near = difflib.get_close_matches(word, plain, n=1, cutoff=0.8)
    return public_path(plain[near[0]]) if near else ""


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
        if name not in modules:  # answered by Namespace
            raise AttributeError(name)
        # a submodule that is public as a whole
        if not modules[name]:
            return importlib.import_module(f"{package}.{name}")
        home = importlib.import_module(f".{modules[name]}", package)
        public = getattr(home, name)
        space = module.removeprefix("intarsia.")
        kinds = {"functions": space not in VALUES, "methods": space in OPENED}
        answering = checked(public, f"{module}.{name}", **kinds)
        for kind in _classes_of(home) if space in OPENED else ():  # what its functions return
            checked(kind, kind.__name__, **kinds)
        return answering

    sys.modules[module].__class__ = Namespace
    if module == "intarsia":
        sys.meta_path.append(_NoSuchModule)
    return get, lambda: names, names
