"""A report as data: sentences, tables and figures in sections; four renderers make text of it.

    report = Report("Spans of 2 layers", sentences, (Section("Results", (table, figure)),))
    page.html(report)      # one file for a browser
    markdown.report(report), latex.report(report), terminal.show(report, console)

A family of pages computes a `Report` and nothing else. A block that depends on a choice of the
reader names it in `when`; a `PageControl` of the same key offers the choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .looks import Look
from .table import Table

When = Mapping[str, str | int]
"""Key of a control -> the value at which something is shown; empty = always."""


@dataclass(frozen=True)
class Note:
    """A paragraph.  kind: "" for text, "remark" for small print, "missing" for a missing part."""

    text: str
    kind: str = "remark"
    when: When = field(default_factory=dict)


class Drawing(Protocol):
    """A chart or a map as data, which can draw itself."""

    def svg(self, label: str) -> str:
        """Return the drawing.  label: a description, for readers who cannot see it."""
        ...


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption.

    name: "plot-NAME" is its id.  alt: what a reader who cannot see it is told.  picture: an
    address of image data, instead of a drawing.  title: begins the caption, in bold.
    legend: (colour, name) of the drawn things.  scale: ends of the colours, as text.
    """

    name: str
    alt: str
    drawing: Drawing | None = None
    title: str = ""
    caption: str = ""
    picture: str = ""
    legend: tuple[tuple[int | str, str], ...] = ()
    scale: tuple[str, str] | None = None
    when: When = field(default_factory=dict)

    @property
    def svg(self) -> str:
        """The drawing as SVG; "" for a picture."""
        return self.drawing.svg(self.alt) if self.drawing is not None else ""


@dataclass(frozen=True)
class Facts:
    """Names and values.  code: values are set as code; large: as an answer to read first."""

    rows: tuple[tuple[str, str], ...]
    code: bool = False
    large: str = ""


@dataclass(frozen=True)
class Listing:
    """Lines of a list."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Commands:
    """Lines to copy into a shell."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Thumbnail:
    """A small picture as image data, with its caption.  pixels: keep its pixels when enlarged."""

    picture: str
    alt: str
    title: str = ""
    caption: str = ""
    pixels: bool = False


@dataclass(frozen=True)
class Gallery:
    """Thumbnails, or one line of a few."""

    pictures: tuple[Thumbnail, ...]
    title: str = ""


@dataclass(frozen=True)
class PageControl:
    """A choice of the reader.

    key: what `when` names.  kind: "select" or "radio" for one option, "checkbox" for any number.
    options: (value, label).  chosen: values at first, () = the first one, or all of checkboxes.
    looks: the mark of each option.
    """

    key: str
    label: str
    options: tuple[tuple[str | int, str], ...]
    kind: str = "select"
    chosen: tuple[str | int, ...] = ()
    looks: tuple[Look, ...] = ()

    def is_chosen(self, value: str | int) -> bool:
        """Return True if an option is selected when the page opens.  value: the option's."""
        # without a choice all boxes are ticked, and of a list the first entry is taken
        values = [option for option, _ in self.options]
        return value in (self.chosen or (values if self.kind == "checkbox" else values[:1]))


@dataclass(frozen=True)
class Panels:
    """Facts that a click on a figure shows: a drawn cell names the number of its panel.

    figure: its figures are named FIGURE-...  hint: stands there before the first click.
    panels: a heading, and text, facts, commands and links of each run.
    """

    figure: str
    hint: str
    panels: tuple[tuple[str, tuple[Mapping[str, object], ...]], ...]


@dataclass(frozen=True)
class Container:
    """Container that belong together.

    kind: "" one below the other with `title` as their heading; "pair" side by side; "fold" closed
    until a reader opens it, with `title` as its summary.
    """

    blocks: tuple[Block, ...]
    title: str = ""
    kind: str = ""
    when: When = field(default_factory=dict)


Block = (
    Table | Note | Figure | Facts | Listing | Commands | Gallery | PageControl | Panels | Container
)


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.  anchor: its id, "" = from the title."""

    title: str
    blocks: tuple[Block, ...]
    anchor: str = ""


@dataclass(frozen=True)
class Report:
    """Sentences with the result, reasons to read it with care, and sections.

    eyebrow: who wrote it, above the title.
    """

    title: str
    sentences: tuple[str, ...]
    sections: tuple[Section, ...] = ()
    notices: tuple[str, ...] = ()
    eyebrow: str = "intarsia"

    def blocks(self) -> Iterator[Block]:
        """Yield every block of the report in order, those inside other blocks as well."""
        for section in self.sections:
            yield from inside(section.blocks)

    def tables(self) -> list[Table]:
        """Return all tables."""
        return [block for block in self.blocks() if isinstance(block, Table)]

    def figures(self) -> dict[str, Figure]:
        """Return all figures by name."""
        return {block.name: block for block in self.blocks() if isinstance(block, Figure)}

    def controls(self) -> dict[str, PageControl]:
        """Return all controls by key."""
        return {block.key: block for block in self.blocks() if isinstance(block, PageControl)}

    def notes(self) -> list[str]:
        """Return the text of all notes."""
        return [block.text for block in self.blocks() if isinstance(block, Note)]


def inside(blocks: Sequence[Block]) -> Iterator[Block]:
    """Yield blocks, and the blocks that they contain, in their order."""
    for block in blocks:
        yield block
        if isinstance(block, Container):
            yield from inside(block.blocks)


def present(*blocks: Block | None) -> tuple[Block, ...]:
    """Return the blocks that are not None."""
    return tuple(block for block in blocks if block is not None)
