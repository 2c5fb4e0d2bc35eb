"""Write pages that are made of others: home of README.md, the first hour of the notebook.

python scripts/front_pages.py          # these two, and the counts of README
python scripts/front_pages.py --run    # carry the notebook out in this folder first; wants photos/

A test compares the pages with what this writes, so that nothing is said twice by hand.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import re
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "first_hour.ipynb"
# pages of the repository that the site has under another name
ELSEWHERE = {
    "examples/README.md": "start/first-hour.md",
    "CONTRIBUTING.md": "how-to/add-a-method.md",
}
# README's sentence on the headlines, which is that of the page of results
COUNTED = re.compile(r"^The \d+ papers: (.*)\.$", re.M)
COUNTS = re.compile(r"(?<=headlines has an experiment here: ).*?(?= \(\[all of them\])", re.S)
INSIDE = re.compile(r"(## What is inside\n\n)((?:\|.*\n)+)")  # cards on a telephone, see site.css
CHOSEN = re.compile(r"```console\n(Chosen.*?)```", re.S)
WIDE = "---\nhide: [toc]\n---\n\n"  # a terminal's table in place of a list of headings
PICTURE = re.compile(
    r'<picture>\s*<source [^>]*srcset="docs/(?P<dark>[^"]+)">\s*'
    r'<img src="docs/(?P<light>[^"]+)" alt="(?P<alt>[^"]+)">\s*</picture>'
)


def counted(readme: str, results: str) -> str:
    """Return README's text with the counts that the page of results has."""
    sentence = COUNTED.findall(results)[0]
    return COUNTS.sub(lambda _: sentence, readme)


def home(readme: str) -> str:
    """Return README's text with the links and the picture of the site."""
    text = PICTURE.sub(
        lambda m: f"![{m['alt']}]({m['light']}#only-light)\n![{m['alt']}]({m['dark']}#only-dark)",
        readme,
    )
    for target, page in ELSEWHERE.items():
        text = text.replace(f"]({target})", f"]({page})")
    # the widest table of a terminal: site.css makes it fit beside the list of pages
    text = CHOSEN.sub(lambda m: f"``` {{.console .wide}}\n{_as_wide_as_its_table(m[1])}```", text)
    text = INSIDE.sub(r'\1<div class="cards" markdown="1">\n\n\2\n</div>\n', text)
    text = text.replace("[CITATION.cff](CITATION.cff)", "CITATION.cff").replace("](docs/", "](")
    return WIDE + text


def _as_wide_as_its_table(output: str) -> str:
    """Return what a command prints with its sentences broken where its widest table ends."""
    lines = output.splitlines()
    width = max(len(line) for line in lines if line.startswith("┃"))
    broken = (textwrap.wrap(line, width) if len(line) > width else [line] for line in lines)
    return "".join(f"{line}\n" for part in broken for line in part)


def first_hour(book: dict[str, Any]) -> str:
    """Return the notebook as a page: its text, its code, and what each cell printed."""
    parts: list[str] = []
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        printed = "".join("".join(_text(output)) for output in cell["outputs"]).rstrip()
        if printed:
            parts.append(f"```console\n{printed}\n```")
    return WIDE + "\n\n".join(parts) + "\n"


def _text(output: dict[str, Any]) -> list[str]:
    """Return the lines of one output of a cell."""
    return output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"]


def carry_out(book: dict[str, Any]) -> None:
    """Run the cells of a notebook in order, and put what they print into it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for cell in book["cells"]:
        if cell["cell_type"] != "code":
            continue
        count += 1
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = _run("".join(cell["source"]), names)
        lines = printed.getvalue().splitlines(keepends=True)
        cell["execution_count"] = count
        cell["outputs"] = (
            [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
        )
        if value is not None:
            data = {"text/plain": repr(value).splitlines(keepends=True)}
            result = {"data": data, "execution_count": count, "metadata": {}}
            cell["outputs"].append({**result, "output_type": "execute_result"})


def _run(source: str, names: dict[str, Any]) -> object:
    """Run one cell, and return the value of its last line where that is an expression."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if isinstance(last, ast.Expr):
        tree.body.pop()
    exec(compile(tree, "cell", "exec"), names)  # noqa: S102 - a notebook of this repository
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # noqa: S307


def pages() -> dict[Path, str]:
    """Return the text of README and of all other pages by their file."""
    results = (ROOT / "docs" / "results.md").read_text()
    readme = counted((ROOT / "README.md").read_text(), results)
    return {
        ROOT / "README.md": readme,
        ROOT / "docs" / "index.md": home(readme),
        ROOT / "docs" / "start" / "first-hour.md": first_hour(json.loads(NOTEBOOK.read_text())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", action="store_true", help="carry the notebook out first")
    if parser.parse_args().run:
        book = json.loads(NOTEBOOK.read_text())
        carry_out(book)
        NOTEBOOK.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
