"""The files generated from the cards: `python -m intarsia_lab.pages.methods` writes all of them.

The card index, the top level's stub, docs/methods, and the table of methods in docs/reference.md.
A method's page has a line on its paper's experiment, from the records in docs/results.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intarsia.catalog import cards, describe, shown
from intarsia.core.card import KINDS
from intarsia.core.errors import DataError
from intarsia.core.files import read_json
from intarsia.core.registry import paper_name

from .index import write as write_index
from .method_figures import figure, refusal, when
from .prose import cell, markdown
from .results import lines_of_methods
from .running import command, program

INDEX = """# Methods

Each method is one file with a card: its kind, settings, paper, and the tags that the conformance
suite checks in both directions. `intarsia list` prints the same cards, `intarsia show NAME` one of
them. These pages are generated from the cards by `python -m intarsia_lab.pages.methods`.
"""
REFERENCE = """## Methods

The settings of every method, as in `intarsia.Lora(rank=8)`; generated from the card index.

"""
GUIDES = ("how-to", "start", "areas")  # folders of pages that show how a method is used
TITLE = re.compile(r"^# (.+)$", re.M)
REPOSITORIES = "https://github.com"
Record = dict[str, Any]


def records(folder: Path) -> list[Record]:
    """Return the JSON records of a folder by name."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def published(docs: Path) -> tuple[dict[str, str], list[Record], dict[str, str]]:
    """Return what belongs to a folder of docs: lines on results by arXiv number, records of
    reference outputs, and the texts of its guides, by their paths in it.
    """
    guides = [path for folder in GUIDES for path in sorted((docs / folder).glob("*.md"))]
    texts = {path.relative_to(docs).as_posix(): path.read_text() for path in guides}
    return lines_of_methods(docs / "results"), records(docs.parent / "tests" / "reference"), texts


def pages(
    results: Mapping[str, str],
    references: Sequence[Record] = (),
    guides: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the text of every page of docs/methods, by file name, index.md among them.

    results: arXiv number -> a line on its paper's experiment; references: records of comparisons
    with published code, from tests/reference; guides: path in docs -> text, of pages that show
    methods. A method has a page if its description has "doc", its docstring.
    """
    descriptions = [describe(card) for card in cards()]
    documented = [described for described in descriptions if "doc" in described]
    links = {described["config"]: f"{described['name']}.md" for described in documented}
    texts = {
        f"{described['name']}.md": page(described, results, references, guides or {}, links)
        for described in documented
    }
    return texts | {"index.md": index(descriptions)}


def index(descriptions: list[dict[str, Any]]) -> str:
    """Return the text of docs/methods/index.md: a table of all methods for each kind.

    descriptions: of the methods, from the index.
    """
    lines = [INDEX]
    present = {card["kind"] for card in descriptions}
    # in the order of KINDS, not of the alphabet: adapters first
    for kind in (kind for kind in KINDS if kind in present):
        lines += [f"## {kind.capitalize()}s", "", "| name | in short | paper | tags |"]
        lines += ["|---|---|---|---|"]
        for card in descriptions:
            if card["kind"] == kind:
                name, paper = paper_name(card["name"]), card["paper"]
                link = f"[{name}]({card['name']}.md)" if "doc" in card else name
                lines.append(
                    f"| {link} | {cell(card['summary'])} | "
                    f"[{paper['title']}]({paper['url']}), {paper['year']} | "
                    f"{', '.join(card['tags'])} |"
                )
        lines.append("")
    return "\n".join(lines)


def official(name: str, references: Sequence[Record]) -> str:
    """Return the section of a method's page that compares it with its paper's own code.

    name: of the method; references: records of comparisons, each with repository and commit.
    """
    heading = "\n## Compared with the official code\n"
    mine = [record for record in references if name in record["methods"]]
    if not mine:
        return f"{heading}\nIt was not compared with an official implementation."
    # a comparison has a row; what has no official code to compare with has a note
    rows, notes = [], []
    for record in mine:
        if record["repository"]:
            tree = f"{REPOSITORIES}/{record['repository']}/blob/{record['commit']}"
            source = f"[{record['repository']}]({tree}/{record['path']})"
            close = f"yes, to {record['tolerance']:g}" if record["tolerance"] else "yes, exactly"
            equal = close if record["equal"] else "**no**"
            rows.append(f"| `{record['function']}` of {source} | `{record['ours']}` | {equal} |")
        else:
            notes.append(
                f"Without official code, worked by hand in a test: {record['function']} "
                f"(`{record['worked']}`)."
            )
        notes += [record["differs"]] if record["differs"] else []
    table = ["\n| function | ours | equal |", "|---|---|---|", *dict.fromkeys(rows)] if rows else []
    return "\n".join(
        [heading.rstrip("\n"), *table, *(f"\n{note}" for note in dict.fromkeys(notes))]
    )


def _run_it(card: dict[str, Any], guides: Mapping[str, str]) -> list[str]:
    """Return the section on how to run a method: a command, Python, and the pages that show it."""
    lines = ["## Run it\n"]
    for language, text in (("sh", command(card)), ("python", program(card))):
        lines += [f"```{language}\n{text}\n```\n"] if text else []
    # a page shows it that has its class in code or its key in a command
    option = rf"--\w+ (?:\S*[,=])?{re.escape(card['name'])}(?=[\s,`@]|$)"
    named = re.compile(rf"\.{card['config']}\b|\b{card['config']}\(|{option}", re.M)
    examples = {TITLE.findall(text)[0]: path for path, text in guides.items() if named.search(text)}
    if examples:
        pages = ", ".join(f"[{title}](../{path})" for title, path in examples.items())
        lines += [f"Shown in: {pages}.\n"]
    return lines


def page(
    card: dict[str, Any],
    results: Mapping[str, str] | None = None,
    references: Sequence[Record] = (),
    guides: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
) -> str:
    """Return a method's page: summary, paper, class, docstring, how to run it, settings, tags.

    card: its description from the index; references: records of comparisons with official code;
    results, guides: see `pages`; links: name of a class -> page.
    """
    paper, title = card["paper"], paper_name(card["name"])
    spellings = [name for name in card["names"] if name != title]
    names = f"Also called: {', '.join(spellings)}. " if spellings else ""
    lines = [
        # the search has how-to pages first where both begin with the word that is looked for
        f"---\ntitle: Method {title}\n---\n\n# {title}\n\n{cell(card['summary'])}\n",
        *(f"{part}\n" for part in (figure(card), when(card)) if part),
        f"[{paper['title']}]({paper['url']}) ({paper['year']}, arXiv:{paper['arxiv']}). {names}"
        f"Name: `{card['name']}`; kind: {card['kind']}; family: {card['family']}. "
        f"In Python: `{card['python']}`.\n",
        *_run_it(card, guides or {}),
        f"## In detail\n\n{markdown(refusal(card['doc'])[0], links or {})}\n",
        '## Settings\n\n<div class="cards settings" markdown="1">\n',
        "| setting | type | default | meaning |\n|---|---|---|---|",
    ]
    for setting in card["settings"]:
        kind = setting["type"].replace(" | ", " or ")  # a bar would end the cell
        value, meaning = shown(setting["default"]), cell(setting["help"])
        default = f"`{value}`" if value else "none"
        lines.append(f"| `{setting['name']}` | `{kind}` | {default} | {meaning} |")
    lines.append("\n</div>")
    if card["exceptions"]:
        lines += ["", "## Laws of its kind that do not hold", ""]
        lines += [f"- `{law}`: {reason}" for law, reason in card["exceptions"].items()]
    # comparisons with the authors' code, and measurements made here
    lines.append(official(card["name"], references))
    if line := (results or {}).get(paper["arxiv"]):
        lines += ["", "## Measured", "", line]
    return "\n".join([*lines, ""])


def reference(text: str) -> str:
    """Return docs/reference.md with the table of methods renewed.

    text: the page as it is; all else in it stays. Raises: DataError without a section of
    methods.
    """
    # all between this heading and the next one is replaced
    before, heading, rest = text.partition(REFERENCE)
    if not heading:
        raise DataError(
            "reference page", got="no section of methods", want=REFERENCE, fix="Put it back."
        )
    rows = [
        f"| [`{card['config']}`](methods/{card['name']}.md) | {card['kind']} | "
        f"{cell(card['summary'])} |"
        for card in map(describe, cards())
        if "doc" in card
    ]
    table = "\n".join(["| class | kind | in short |", "|---|---|---|", *rows])
    return f"{before}{heading}{table}\n\n{rest[rest.index('## ') :]}"


def write(folder: Path) -> list[Path]:
    """Write every page of docs/methods; return their paths.

    folder: docs/methods, from which pages of methods that are gone are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = pages(*published(folder.parent))
    for old in folder.glob("*.md"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [folder / name for name in texts]


def write_all(docs: Path) -> None:
    """Write the card index, the stubs, the methods' pages, and their table in reference.md.

    docs: the folder of the documentation.
    """
    write_index()
    write(docs / "methods")
    page_of_names = docs / "reference.md"
    page_of_names.write_text(reference(page_of_names.read_text()))


if __name__ == "__main__":
    write_all(Path("docs"))
