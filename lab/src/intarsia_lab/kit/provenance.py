"""Which code a claim's figure comes from: the commit, and a digest of the files it depends on.

A claim depends on its own module, on the modules of the laboratory that are reached from there by
imports, those inside functions too, and on the modules of the library that all of these name: by
imports, through the lists of public names, and by keys of cards, as in `card("lora")`: of a module
that is imported from, what these names use. With
formats and kernels come the C sources. What those modules of the library import in turn is under
every claim alike: the commit stands for it, since a digest of it would change with every commit.
A generated page is not published with a commit, so that its digest is `deep`: it follows the
imports of the library, too.
What computes nothing does not count (see `source`): words, layout, names of files and folders, and
ranges of settings. Neither do the targets and sentences in CLAIMS, nor what judges figures or names
their code, JUDGES: records are judged again whenever a rule changes, and no figure changes with it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import intarsia
from intarsia.core.registry import index

from .source import computing

LABORATORY, LIBRARY = Path(__file__).parents[1], Path(intarsia.__file__).parent
CHECKOUT = "lab/src/intarsia_lab/"  # where the laboratory stands in its repository
ROOT = LABORATORY.parents[2]  # of a checkout
COMPILED = ("formats", "kernels")  # folders of the library with modules that call C
# the rules, this module, what refuses, and what fetches and keeps bytes, which digests check:
# imports are followed, their own text computes no figure
JUDGES = frozenset(
    {
        *(f"intarsia_lab/kit/{name}.py" for name in ("control", "provenance", "source", "study")),
        *(f"intarsia/core/{name}.py" for name in ("checks", "errors", "schema")),
        *(f"intarsia/core/{name}.py" for name in ("files", "reading", "store")),
        "intarsia/data/packages.py",
    }
)
Names = frozenset[str] | None
"""Names that are imported from a file; None = all of it."""
CARDS = ("card", "by_name", "find")  # functions with a method's key as the first argument


@functools.cache
def code_digest(*modules: Path, deep: bool = False) -> str:
    """Return 16 hexadecimal digits of the code that modules depend on, see `dependencies`.

    modules: paths of files; deep: follow the imports of the library, too. Their order and places do
    not count.
    """
    reached = dependencies(*modules, deep=deep)
    texts = sorted(filter(None, (_code(path, names) for path, names in reached.items())))
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def dependencies(*modules: Path, deep: bool = False) -> dict[Path, Names]:
    """Return the files that modules depend on, themselves among them, and the names used of each.

    modules: paths; deep: follow the imports of the library's modules, too, not only of the
    laboratory's. Names are None for a file of which everything counts.
    """
    reached = dict[Path, Names]()
    pending: list[tuple[Path, Names]] = [(path, None) for path in modules]
    # the laboratory's imports are followed to the end, the library's one step
    while pending:
        path, names = pending.pop()
        follows = deep or path.is_relative_to(LABORATORY)
        if path not in reached and follows:
            pending += _named(path)
        earlier = reached.get(path, frozenset[str]())
        if follows or names is None or earlier is None:
            reached[path] = None
        else:
            reached[path] = earlier | names
    # compiled code is under every format and kernel, and is no module
    if any(_name(path).split("/")[1] in COMPILED for path in reached):
        reached |= dict.fromkeys((LIBRARY / "kernels" / "native").glob("*.[ch]"))
    return reached


def commit(*apart: Path) -> str:
    """Return the commit of this checkout, with "+" for changes that are not committed.

    apart: files and folders that may have changed. "" outside of a checkout, and without git.
    """
    inside = [path.resolve() for path in apart if path.resolve().is_relative_to(ROOT)]
    excluded = [f":(top,exclude){path.relative_to(ROOT).as_posix()}" for path in inside]
    try:
        if _git("rev-parse", "--show-prefix") != CHECKOUT:  # installed inside another repository
            return ""
        name = _git("describe", "--always", "--abbrev=12", "--exclude=*")
        return name + "+" * bool(_git("status", "--porcelain", "-uno", "--", ":/", *excluded))
    except (OSError, subprocess.SubprocessError):
        return ""


def unpack(name: str, folder: Path) -> bool:
    """Unpack the files of a commit into a folder; return False where this checkout lacks it."""
    archive = folder / "files.tar"
    try:
        _git("-C", str(ROOT), "archive", "--format=tar", "-o", str(archive), name)
    except (OSError, subprocess.SubprocessError):
        return False
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    archive.unlink()
    return True


def _git(*words: str) -> str:
    """Return the output of a git command in this checkout.  Raises: OSError, SubprocessError."""
    command = ("git", "-C", str(LABORATORY), *words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def _name(path: Path) -> str:
    """Return a file's path with its package before, as intarsia/routers/topk.py."""
    root = LABORATORY if path.is_relative_to(LABORATORY) else LIBRARY
    return path.relative_to(root.parent).as_posix()


@functools.cache
def _code(path: Path, names: Names = None) -> str:
    """Return the part of a file that computes, as far as names of it need it; "" for JUDGES."""
    if _name(path) in JUDGES:
        return ""
    text = path.read_text()
    if path.suffix != ".py":
        return text
    return computing(text, (LABORATORY.name, LIBRARY.name), names)


@functools.cache
def _named(path: Path) -> tuple[tuple[Path, Names], ...]:
    """Return the source files that one file names by imports, or by keys of methods, and
    the names.
    """
    if path.suffix != ".py":
        return ()
    files: list[tuple[Path, Names]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if (folder := _folder(path, node)) is not None:
                files += (file for alias in node.names for file in _home(folder, alias.name))
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            key = getattr(node.args[0], "value", None)
            if called in CARDS and isinstance(key, str) and key in index():
                files += ((file, None) for file in module_of(key))
    return tuple(files)


def module_of(key: str) -> list[Path]:
    """Return the file of the method with this key, in a list."""
    *folders, last = index()[key]["module"].split(".")
    return [file for file, _ in _home(LIBRARY.joinpath(*folders), last)]


def _folder(path: Path, node: ast.ImportFrom) -> Path | None:
    """Return the path, without a suffix, of the module that an import statement names."""
    parts = (node.module or "").split(".") if node.module else []
    # a relative import: one dot is the file's own folder
    if node.level:
        return path.parents[node.level - 1].joinpath(*parts)
    roots = {LABORATORY.name: LABORATORY, LIBRARY.name: LIBRARY}
    return roots[parts[0]].joinpath(*parts[1:]) if parts[0] in roots else None


def _home(module: Path, name: str) -> Iterator[tuple[Path, Names]]:
    """Yield the file that defines a name which is imported from a module, and the name there."""
    if module.with_suffix(".py").is_file():
        yield module.with_suffix(".py"), frozenset({name})
    elif (module / f"{name}.py").is_file():
        yield module / f"{name}.py", None
    elif (module / name / "__init__.py").is_file():
        yield module / name / "__init__.py", None
    else:
        listed = next(
            (p for p in (module / "__init__.pyi", module / "__init__.py") if p.is_file()), None
        )
        if listed is not None:
            yield from _listed(listed, name) or [(module / "__init__.py", None)]


def _listed(listed: Path, name: str) -> list[tuple[Path, Names]]:
    """Return the file of a public name, from the `from .x import name` of its package."""
    if name not in _modules(listed):
        return []
    module, own_name = _modules(listed)[name]
    return [*_home(listed.parent.joinpath(*module.split(".")), own_name)]


@functools.cache
def _modules(listed: Path) -> dict[str, tuple[str, str]]:
    """Return name -> (module, its name there) for what a package's list imports from its
    modules.
    """
    imports = (n for n in ast.parse(listed.read_text()).body if isinstance(n, ast.ImportFrom))
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in imports
        if node.level == 1 and node.module
        for alias in node.names
    }
