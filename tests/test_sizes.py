"""Nothing grows past what can be read in one sitting; the lists of exceptions may only shrink."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"": ROOT / "src" / "intarsia", "lab/": ROOT / "lab" / "src" / "intarsia_lab"}
FILE_LINES, FUNCTION_LINES, DATACLASS_FIELDS = 500, 60, 8
NO_NAMES = frozenset({"utils", "util", "common", "helpers", "helper", "misc", "base", "manager"})

# "folder/file.py", "folder/file.py::function" or "folder/file.py::Class" -> why it is larger;
# those of the laboratory with lab/ before
EXCEPTIONS: dict[str, str] = {
    "runs/choosing/certainty.py::Certainty": "a record of one choice, no setting anyone passes on",
    "cli/index_steps.py::write_index": "wants to be split: begin, go on, finish",
    "runs/execute.py::_on_pictures": "wants to be split: data, model, training",
    "train/loop.py::Job": "the order for a run, which `fit` alone makes",
    "core/schema.py::Setting": "what a setting may declare, each with a default",
    "core/card.py::Card": "a record of one method, not a setting anyone passes on",
    "lab/bench/report/records.py::Done": "what a run leaves behind, not a setting anyone passes on",
    "lab/kit/study.py::Study": "a record of one experiment, not a setting anyone passes on",
    "lab/cli/benching.py::bench": "a signature: one line for each option, three lines of body",
    "lab/experiments/records.py::Record": "what a run leaves behind, no setting anyone passes on",
    "kernels/chw/steps.py::ProgramStep": "a row of the kernels' table, no setting anyone passes on",
    "kernels/decoder/steps.py::AttendStep": "a row of the kernels' table, as ProgramStep is",
    "reports/charts.py::Series": "a drawing as data, not a setting anyone passes on",
    "reports/heat_maps.py::HeatMap": "a drawing as data, not a setting anyone passes on",
    "reports/report.py::Figure": "a drawing as data, not a setting anyone passes on",
    "reports/table.py::Table": "rows as data, not a setting anyone passes on",
    "hosts/attach/config.py::IntarsiaConfig": "six of its fields are what PEFT asks of a config",
}

# "folder/file.py::function" -> why its docstring has several lines; one of a private one has one
DOCSTRINGS: dict[str, str] = {
    "runs/choosing/folded.py::Folded._train_parts": "wants to be cut to its first line",
    "runs/choosing/search.py::Search._best_places": "wants to be cut to its first line",
    "runs/choosing/search.py::Search._first_look": "wants to be cut to its first line",
    "runs/choosing/texts.py::TextSearch._untried": "wants to be cut to its first line",
}


def _is_dataclass(node: ast.ClassDef) -> bool:
    calls = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return any(getattr(c, "id", getattr(c, "attr", "")) == "dataclass" for c in calls)


def _fields(node: ast.ClassDef) -> int:
    """Count the fields; settings of a run that are declared with their help may be many."""
    defaults = [item.value for item in node.body if isinstance(item, ast.AnnAssign)]
    calls = [default.func for default in defaults if isinstance(default, ast.Call)]
    if any(getattr(call, "id", "") == "setting" for call in calls):
        return 0
    return sum(
        isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation)
        for item in node.body
    )


def oversized(text: str, place: str) -> Iterator[tuple[str, str]]:
    """Yield everything in a source text that is over its limit: (key, what).

    Lines of comments do not count in a function: they say where its steps begin.
    """
    source = text.splitlines()
    if (lines := len(source)) > FILE_LINES:
        yield place, f"{lines} lines, at most {FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = source[node.lineno - 1 : node.end_lineno]
            lines = sum(not line.lstrip().startswith("#") for line in inside)
            if lines > FUNCTION_LINES:
                yield f"{place}::{node.name}", f"{lines} lines, at most {FUNCTION_LINES}"
        elif isinstance(node, ast.ClassDef) and _is_dataclass(node):
            fields = _fields(node)
            if fields > DATACLASS_FIELDS:
                yield f"{place}::{node.name}", f"{fields} fields, at most {DATACLASS_FIELDS}"


@pytest.mark.thorough
def test_source_is_within_its_limits() -> None:
    sizes = {
        key: size
        for prefix, source in SOURCES.items()
        for path in sorted(source.rglob("*.py"))
        for key, size in oversized(path.read_text(), prefix + path.relative_to(source).as_posix())
    }
    too_large = {k: v for k, v in sizes.items() if k not in EXCEPTIONS}
    assert not too_large, "split it, or list it in EXCEPTIONS with a reason"
    assert not EXCEPTIONS.keys() - sizes.keys(), "no longer over its limit: take it off the list"
    assert all(EXCEPTIONS.values()), "an exception needs a reason"


def long_private_docstrings(text: str, place: str) -> Iterator[str]:
    """Yield every private function or class, dunders too, with a docstring of several lines."""
    nodes = [(node, "") for node in ast.parse(text).body]
    for node, owner in nodes:  # grows by what stands inside
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if named and node.name.startswith("_") and "\n" in (ast.get_docstring(node) or ""):
            yield f"{place}::{owner}{node.name}"
        inner = f"{owner}{node.name}." if named else owner
        inside = ast.iter_child_nodes(node)
        nodes += [(child, inner) for child in inside if not isinstance(child, ast.expr)]


@pytest.mark.thorough
def test_a_private_docstring_has_one_line() -> None:
    source = SOURCES[""]
    long = {
        key
        for path in sorted(source.rglob("*.py"))
        for key in long_private_docstrings(path.read_text(), path.relative_to(source).as_posix())
    }
    assert not long - DOCSTRINGS.keys(), "one sentence; the rest is a comment at its line"
    assert not DOCSTRINGS.keys() - long, "one line by now: take it off the list"


def test_a_private_docstring_of_two_lines_is_found() -> None:
    text = "class A:\n    def _f(self):\n        '''One.\n\n        Two.\n        '''"
    assert list(long_private_docstrings(text, "f.py")) == ["f.py::A._f"]
    assert list(long_private_docstrings(text.replace("_f", "f"), "f.py")) == []


def test_no_file_or_folder_has_a_name_that_says_nothing() -> None:
    paths = [p for folder in ("src", "lab", "tests", "scripts") for p in (ROOT / folder).rglob("*")]
    named = [p for p in paths if p.suffix == ".py" or p.is_dir()]
    empty = [p.relative_to(ROOT).as_posix() for p in named if p.stem.strip("_") in NO_NAMES]
    assert named and not empty


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("x = 1\n" * (FILE_LINES + 1), "f.py"),
        ("def g():\n" + "    x = 1\n" * FUNCTION_LINES, "f.py::g"),
        (
            "@dataclass(frozen=True)\nclass C:\n"
            + "".join(f"    a{i}: int = 0\n" for i in range(DATACLASS_FIELDS + 1)),
            "f.py::C",
        ),
    ],
    ids=["file", "function", "dataclass"],
)
def test_one_too_many_is_found(text: str, key: str) -> None:
    assert [k for k, _ in oversized(text, "f.py")] == [key]


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\n" * FILE_LINES,
        "def g():\n" + "    x = 1\n" * (FUNCTION_LINES - 1),
        "@dataclass\nclass C:\n"
        + "".join(f"    a{i}: int = 0\n" for i in range(DATACLASS_FIELDS))
        + "    K: ClassVar[int] = 1\n",
        "class Plain:\n" + "".join(f"    a{i}: int = 0\n" for i in range(20)),
        "@dataclass\nclass C:\n"
        + "".join(f"    a{i}: int = setting(0, 'Help.')\n" for i in range(20)),
    ],
    ids=["file", "function", "dataclass", "not a dataclass", "settings"],
)
def test_the_limit_itself_is_allowed(text: str) -> None:
    assert list(oversized(text, "f.py")) == []
