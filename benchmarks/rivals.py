"""Where another runtime is the better choice, time and quality together: docs/benchmarks/rivals.md.

    python benchmarks/rivals.py --write        # the page, of the figures in rivals.json

`benchmarks/decode.py --write` measures the language models and writes their figures into
rivals.json, which `compress`, `bench sparse` and `doctor` read.
"""

from __future__ import annotations

from collections.abc import Sequence

from frame import PAGES, markdown, parser, read

from intarsia.formats.rivals import KINDS, rivals

ABOUT = """\
What a user would pick instead, each at its best setting, with its quality in the same row:
perplexity on a text, or top-1 accuracy on 500 photographs of the 1,000 classes, that nothing was
calibrated on. A format of ours that is slower and worse than another row serves nobody:
`intarsia compress` warns before it writes one, and `intarsia doctor` and `intarsia bench sparse`
say the same in a line. [Fold and export](../how-to/fold-and-export.md) writes the files for the
others. OpenVINO's int8 was calibrated on 40 pictures, without training. What `export --int8` wrote
of the same net, by onnxruntime's quantiser, gave 86 % of 300 crops of photographs float32's class,
in .46 of its time; its accuracy on the 500 has not been measured."""


def tables() -> list[str]:
    """Return the page's tables."""
    lines: list[str] = []
    for kind in KINDS:
        table = rivals(kind)
        head = ("runs in", table.unit, "MB read", table.quality, "beaten by")
        rows: list[Sequence[str]] = []
        for choice in table.choices:
            pair = table.better(choice.format, choice.bits) if choice.format else None
            beaten = pair[0].name if pair and pair[1] == choice else ""
            shown = (
                "-" if value is None else f"{value:g}"
                for value in (choice.megabytes, choice.quality)
            )
            rows.append((choice.name, f"{choice.ms:g}", *shown, beaten))
        lines += [f"## {table.net}", "", f"{table.measured}, {table.instructions}.", ""]
        lines += [*markdown(head, rows), "", f"    {table.command}", ""]
    return lines


def main() -> None:
    args = read(parser(__doc__, threads=1, reps=1))
    title = "# Where another runtime is the better choice"
    page = "\n".join([title, "", ABOUT, "", *tables()])
    print(page)
    if args.write:
        (PAGES / "rivals.md").write_text(page)


if __name__ == "__main__":
    main()
