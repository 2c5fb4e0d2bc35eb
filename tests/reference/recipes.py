"""A table of how each stored output was made: `python -m tests.reference.recipes` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

HERE = Path(__file__).parent
TABLE = HERE / "recipes.md"
HEAD = """# How the reference outputs were made

Each row: the official function was called on the stored inputs, changed as said, with these
versions and arguments. Where versions are kept, gradients in the named inputs are those of the sum
of its outputs, each weighted from -1 to 1 in the order of its elements. Where there are none, the
last column says what the outputs are.

"""
COLUMNS = (
    *("record", "repository, commit", "file", "call", "changed"),
    *("arguments", "versions", "gradients in"),
)


def records() -> dict[str, dict[str, Any]]:
    """Return what is known of each stored output, by its name."""
    paths = sorted(HERE.glob("*.safetensors"))
    return {p.stem: json.loads(p.with_suffix(".json").read_text()) for p in paths}


def table() -> str:
    """Return the page."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(_row(*item) for item in records().items())]
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(name: str, record: dict[str, Any]) -> list[str]:
    with safe_open(HERE / f"{name}.safetensors", "pt") as file:
        names = [k.removeprefix("out.") for k in file.keys() if k.startswith("out.grad")]  # noqa: SIM118
    versions = record.get("versions", {})
    return [
        name,
        f"{record['repository']} {record['commit'][:12]}",
        record["path"],
        record["function"],
        record["ported"],
        ", ".join(f"{k}={v}" for k, v in record["arguments"].items()),
        ", ".join(f"{k} {v}" for k, v in versions.items()) or "not kept",
        ", ".join(sorted(name.removeprefix("grad_") for name in names))
        or f"none: {record['without_gradients']}",
    ]


if __name__ == "__main__":
    TABLE.write_text(table())
