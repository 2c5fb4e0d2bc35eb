"""Which code a claim's figure comes from: the commit, and a digest of the files it depends on.

A claim depends on its own module and on the modules of this package that are reached from there by
imports, those inside functions too, by names of a package's `__init__`, and by keys of cards, as
in `card("lora")`; with the native kernels come their C sources. Docstrings, lines of comment and
blank lines do not count, nor do the files of `WORDS`. Versions of other packages stand in the
record's line of the machine.

Imports are found by a regular expression: parsing the package takes four seconds, this a fraction
of one. Code that a method chooses by a computed name is not seen.
"""

from __future__ import annotations

import functools
import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ..core.registry import index

PACKAGE = Path(__file__).parents[1]
WORDS = ("core/errors.py", "core/folders.py")
"""Files that decide no figure: they word errors."""
NATIVE, CHECKOUT = "kernels/native", "src/intarsia/"
DOCSTRING = re.compile(r'^[ \t]*[rR]?"""(?:[^"\\]|\\.|"(?!""))*"""[ \t]*\n', re.M)
COMMENT = re.compile(r"^[ \t]*(?:#[^\n]*)?\n", re.M)
FROM = re.compile(r"^[ \t]*from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+(?:\(([^)]*)\)|([^\n]+))", re.M)
CARD = re.compile(r'\b(?:card|by_name|find)\(\s*"(\w+)"')


@functools.cache
def code_digest(module: Path) -> str:
    """Return 16 hexadecimal digits of the code that a claim's module depends on."""
    whole = hashlib.sha256()
    for path in sorted(dependencies(module)):
        whole.update(f"{path.relative_to(PACKAGE).as_posix()}\0{_code(path)}\0".encode())
    return whole.hexdigest()[:16]


def dependencies(module: Path) -> set[Path]:
    """Return the files of this package that a module depends on, itself among them."""
    reached: set[Path] = set()
    left = [module]
    while left:
        path = left.pop()
        if path in reached or path.relative_to(PACKAGE).as_posix() in WORDS:
            continue
        reached.add(path)
        left += _imported(path)
    return reached


def commit() -> str:
    """Return the commit of this checkout, with "+" for changes beside it; "" outside of one."""
    try:
        if _git("rev-parse", "--show-prefix") != CHECKOUT:  # installed inside another repository
            return ""
        return _git("describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*words: str) -> str:
    command = ("git", "-C", str(PACKAGE), *words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


@functools.cache
def _code(path: Path) -> str:
    """Return a file without docstrings, lines of comment and blank lines."""
    text = path.read_text()
    return COMMENT.sub("", DOCSTRING.sub("", text)) if path.suffix == ".py" else text


@functools.cache
def _imported(path: Path) -> tuple[Path, ...]:
    """Return the files that one file names: by imports, by keys of cards, and C sources."""
    if path.suffix != ".py":
        return ()
    code = _code(path)
    targets = [target for base, names in _imports(code) for target in _targets(path, base, names)]
    for key in CARD.findall(code):
        if key in index():
            targets += _home(PACKAGE, index()[key]["module"].split("."))
    if path.parent == PACKAGE / NATIVE:
        targets += [*path.parent.glob("*.c"), *path.parent.glob("*.h")]
    return tuple(targets)


def _imports(code: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each `from X import a, b` as ("X", ["a", "b"])."""
    for base, several, line in FROM.findall(code):
        names = re.sub(r"#[^\n]*", "", several or line).split(",")
        yield base, [name.split()[0] for name in names if name.strip()]


def _targets(path: Path, base: str, names: list[str]) -> Iterator[Path]:
    """Yield the files of names that a file imports from `base`, relative or not."""
    dots = len(base) - len(base.lstrip("."))
    parts = [part for part in base.lstrip(".").split(".") if part]
    if not dots:
        if parts[:1] != [PACKAGE.name]:
            return
        folder, parts = PACKAGE, parts[1:]
    else:
        folder = path.parents[dots - 1]
    for name in names:
        yield from _home(folder, [*parts, name])


def _home(folder: Path, parts: list[str]) -> Iterator[Path]:
    """Yield the file of a dotted name below a folder: a module, or the one that a package names."""
    *modules, last = parts
    for place in (folder.joinpath(*parts), folder.joinpath(*modules)):
        if place.with_suffix(".py").is_file():
            yield place.with_suffix(".py")
            return
    package = folder.joinpath(*modules)
    stub = package / "__init__.pyi"
    listed = stub if stub.is_file() else package / "__init__.py"
    if (folder.joinpath(*parts) / "__init__.py").is_file():  # a package, by its attributes
        yield folder.joinpath(*parts) / "__init__.py"
        return
    if not listed.is_file():
        return
    homes = {name: base for base, names in _imports(_code(listed)) for name in names}
    base = homes.get(last, "")
    if base.startswith(".") and base != ".":
        yield from _home(package, [*base.lstrip(".").split("."), last])
    else:
        yield package / "__init__.py"
