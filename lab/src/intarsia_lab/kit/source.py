"""What of a source file computes: its text without words, imports and what only refuses.

A figure does not change with a docstring, with the place of a file, or with a range that a setting
must be in. So a digest of code leaves them out, and a file can be moved, and a setting documented,
without a record that becomes one of older code.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Collection, Iterator, Sequence

# modules of errors, of functions that raise them or do nothing, and of declarations
REFUSING = ("core.checks", "core.errors", "core.schema")
BREAKS = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)

Cut = tuple[int, int, str]
"""Where a part begins and ends, in bytes, and what stands there instead."""


def computing(text: str, packages: Collection[str], names: Collection[str] | None = None) -> str:
    """Return the part of a source text that computes, in a form that layout does not change.

    Left out are docstrings, comments, imports within `packages`, the list CLAIMS, statements that
    only refuse, and of `setting(default, help, ...)` all but the default.
    text: the source of a Python file; packages: the ones with files that have their own digests;
    names: the names imported from it; what these do not use is left out, too.
    None = nothing is.
    """
    source = text.encode()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    # from the last cut to the first, so that the positions of the others stay right
    for begin, end, instead in _outermost(_cuts(ast.parse(text), starts, source, packages, names)):
        source = source[:begin] + instead.encode() + source[end:]
    return _flowing(source.decode())


def _outermost(cuts: Iterator[Cut]) -> list[Cut]:
    """Return the cuts that lie in no other one, the last first."""
    outermost: list[Cut] = []
    for cut in sorted(cuts, key=lambda cut: (cut[0], -cut[1])):
        if not outermost or cut[0] >= outermost[-1][1]:
            outermost.append(cut)
    return outermost[::-1]


def _cuts(
    tree: ast.Module,
    starts: list[int],
    source: bytes,
    packages: Collection[str],
    names: Collection[str] | None,
) -> Iterator[Cut]:
    """Yield the parts of a module that compute nothing, or nothing of what `names` need.

    starts: the byte at which each line of `source` begins.
    """
    refusing = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith(REFUSING)
        for alias in node.names
    }
    unused = _unused(tree, names) if names is not None else ()
    # a cut ends with its line: no two statements share one
    for statement in (*_idle(tree, refusing, packages), *unused):
        first = min(s.lineno for s in (statement, *getattr(statement, "decorator_list", ())))
        yield starts[first - 1], starts[statement.end_lineno or statement.lineno], ""
    # of `setting(default, help, ...)` the default stays, all else goes
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setting":
            named = [k.value for k in node.keywords if k.arg == "default"]
            if default := [*node.args[:1], *named]:
                begin, end = _span(default[0], starts)
                yield *_span(node, starts), source[begin:end].decode()


def _unused(tree: ast.Module, names: Collection[str]) -> list[ast.stmt]:
    """Return the statements of a module that define what some of its names do not use.

    A name that the module does not define itself may mean any of it, so that all are used.
    """
    defined = {name: node for node in tree.body for name in _defined(node)}
    if not {*names} <= {*defined}:
        return []
    running = [node for node in tree.body if not _defined(node)]
    # statements that define nothing run when the module is imported, whatever is used
    used, pending = {*names}, [*(defined[name] for name in names), *running]
    while pending:
        mentioned = {n.id for n in ast.walk(pending.pop()) if isinstance(n, ast.Name)}
        fresh = (mentioned & {*defined}) - used
        used |= fresh
        pending += [defined[name] for name in fresh]
    used_nodes = {id(defined[name]) for name in used}
    return [node for node in tree.body if _defined(node) and id(node) not in used_nodes]


def _defined(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a module defines, and does nothing else."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return [(a.asname or a.name).partition(".")[0] for a in aliases]
        case _:
            return []


def _span(node: ast.expr, starts: list[int]) -> tuple[int, int]:
    """Return where an expression begins and ends in its source, in bytes."""
    end_line, end = node.end_lineno or node.lineno, node.end_col_offset or 0
    return starts[node.lineno - 1] + node.col_offset, starts[end_line - 1] + end


def _idle(
    node: ast.AST, refusing: Collection[str], packages: Collection[str]
) -> Iterator[ast.stmt]:
    """Yield the statements within a node that compute nothing."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt) and _is_idle(child, refusing, packages):
            yield child
        else:
            yield from _idle(child, refusing, packages)


def _is_idle(statement: ast.stmt, refusing: Collection[str], packages: Collection[str]) -> bool:
    """Return whether a statement computes nothing: words, imports of ours, and refusals."""
    match statement:
        case ast.Pass() | ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Expr(value=ast.Call(func=ast.Name(id=name))):
            return name in refusing or name.startswith("check_")
        case ast.ImportFrom(module=module, level=level):
            return level > 0 or (module or "").partition(".")[0] in packages
        case ast.Assign(targets=[ast.Name(id="CLAIMS")]):
            return True
        # a declaration that several settings share
        case ast.Assign(value=ast.Call(func=ast.Name(id="Setting"))):
            return True
        case ast.If(body=[*_, ast.Raise(exc=ast.Call(func=ast.Name(id=name)))], orelse=[]):
            return name in refusing
        case ast.FunctionDef(name="__post_init__", body=body):
            return all(_is_idle(inner, refusing, packages) for inner in body)
        case _:
            return False


def _flowing(text: str) -> str:
    """Return a text with a line for each statement, whatever its layout was."""
    lines = text.splitlines()
    depth, begins, depths = 0, True, dict[int, int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        row, column = token.start
        if token.type == tokenize.COMMENT:
            lines[row - 1] = lines[row - 1][:column]
        elif token.type in BREAKS:
            depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
            begins = True
        # the first token of a statement: those after it may stand on further lines
        elif begins and token.type != tokenize.NL:
            depths[row], begins = depth, False
    return _joined(lines, depths)


def _joined(lines: Sequence[str], depths: dict[int, int]) -> str:
    """Return physical lines as logical ones. depths: number of a logical line's first -> depth."""
    parts = list[str]()
    for row, line in enumerate(lines, start=1):
        # other lines continue a statement
        if row in depths:
            parts.append(f"\n{depths[row]}|")
        parts.append("".join(line.split()))
    # a comma before a closing bracket is layout, too
    return re.sub(r",(?=[)\]}])", "", "".join(parts)).strip()
