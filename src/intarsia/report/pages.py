"""The methods' pages, from their cards: `python -m intarsia.report.pages` writes docs/methods."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..catalog import TAGS, cards, describe, example, shown
from ..core.card import KINDS

INDEX = """# Methods

Each method is one file with a card: its kind, settings, paper, and the tags that the conformance
suite checks in both directions. `intarsia list` prints the same cards, `intarsia show NAME` one of
them. These pages are generated from the cards by `python -m intarsia.report.pages`.
"""


def pages() -> dict[str, str]:
    """Text of every page by its file name, index.md among them."""
    found = [describe(card) for card in cards()]
    return {f"{card['name']}.md": page(card) for card in found} | {"index.md": index(found)}


def index(found: list[dict[str, Any]]) -> str:
    """The table of all methods, by kind."""
    lines = [INDEX]
    there = {card["kind"] for card in found}
    for kind in (kind for kind in KINDS if kind in there):
        lines += [f"## {kind.capitalize()}s", "", "| name | what it is | paper | tags |"]
        lines += ["|---|---|---|---|"]
        for card in found:
            if card["kind"] == kind:
                name, paper = card["name"], card["paper"]
                lines.append(
                    f"| [{name}]({name}.md) | {card['summary']} | "
                    f"[{paper['title']}]({paper['url']}), {paper['year']} | "
                    f"{', '.join(card['tags'])} |"
                )
        lines.append("")
    return "\n".join(lines)


def page(card: dict[str, Any]) -> str:
    """One method: summary, paper, class, what it says of itself, settings, tags, how to run it."""
    paper = card["paper"]
    lines = [
        f"# {card['name']}", "", card["summary"], "",
        f"[{paper['title']}]({paper['url']}) ({paper['year']}, arXiv:{paper['arxiv']}). "
        f"Kind: {card['kind']}; family: {card['family']}. In Python: `{card['python']}`.", "",
        "```text", card["doc"], "```", "",
        "## Settings", "", "| setting | type | default |", "|---|---|---|",
    ]  # fmt: skip
    for setting in card["settings"]:
        kind = setting["type"].replace("|", "\\|")
        lines.append(f"| `{setting['name']}` | `{kind}` | `{shown(setting['default'])}` |")
    if card["tags"]:
        lines += ["", "## Tags", ""]
        lines += [f"- `{tag}`: {TAGS[tag]}" for tag in card["tags"]]
    if card["kind"] == "adapter":
        command, python = example(card)
        lines += ["", "## Run it", "", "```sh", command, "```", "", "```python", python, "```"]
    return "\n".join([*lines, ""])


def write(folder: Path) -> list[Path]:
    """Write every page, and remove those of methods that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text)
    return [folder / name for name in made]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a page for each method from its card.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/methods"))
    write(parser.parse_args().folder)
