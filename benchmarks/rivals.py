"""Where another runtime is the better choice, time and quality together: docs/benchmarks/rivals.md.

    python benchmarks/rivals.py --write        # the page, of the figures in rivals.json

`benchmarks/decode.py --write` measures the language models and `benchmarks/lite0.py --write` the
convolutional net; both write their figures into rivals.json, which `compress`, `bench sparse` and
`doctor` read.
"""

from __future__ import annotations

from frame import PAGES, markdown, parser, read

from intarsia.formats.rivals import KINDS, rivals

ABOUT = """\
What a user would pick instead, each at its best setting, with its quality in the same row:
perplexity on a text, or top-1 accuracy or agreement with the dense net on pictures, that nothing
was calibrated on. A format of ours that is slower and worse than another row serves nobody, nor
does one with more than twice the perplexity of dense 4 bits: `intarsia compress` warns before it
writes one, and `intarsia doctor` and `intarsia bench sparse` say the same in a line. [Fold and
export](../how-to/fold-and-export.md) writes the files for the others.

Each table is of one run, in which all took turns on one machine. Times of two tables are of two
runs, and are not compared, neither here nor by the commands."""


def tables() -> list[str]:
    """Return the page's tables."""
    lines: list[str] = []
    for kind in KINDS:
        table = rivals(kind)
        lines += [f"## {table.net}", ""]
        for run in table.runs:
            head = ("runs in", table.unit, "MB read", run.quality, "take instead")
            rows = [
                (
                    choice.name,
                    f"{choice.ms:g}",
                    *(
                        "-" if value is None else f"{value:g}"
                        for value in (choice.megabytes, choice.quality)
                    ),
                    better.choice.name if choice.format and (better := run.better(choice)) else "",
                )
                for choice in run.choices
            ]
            lines += [f"{run.day}, {run.machine}, {run.instructions}: {run.command}.", ""]
            lines += [*markdown(head, rows), ""]
        lines += [f"    {table.command}", ""]
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
