"""Damage files and count how they are opened: `make fuzz COUNT=10000`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

# before any of them is imported
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch

from . import data, of_lab, records, saved
from .running import BAD, OUTCOMES, Case, Ended, Fuzz, counts

KINDS = (*saved.KINDS, *data.KINDS, *records.KINDS, *of_lab.KINDS)


def table(ends: list[Ended]) -> str:
    """The counts as a table of Markdown."""
    rows = counts(ends).items()
    head = ["| kind | " + " | ".join(OUTCOMES) + " |", "|---|" + "--:|" * len(OUTCOMES)]
    return "\n".join(
        [*head, *(f"| {name} | " + " | ".join(map(str, row.values())) + " |" for name, row in rows)]
    )


def show(end: Ended) -> None:
    """Print one case, with the command that repeats it."""
    case = end.case
    again = "--irregular" if case.seed is None else f"make fuzz SEED={case.seed} CASE={case.name}"
    print(f"{end.outcome}: {again}\n  {end.damage}\n{end.error}")


def main() -> int:
    words = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    words.add_argument("--count", type=int, default=500)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--irregular", action="store_true", help="files as pipes, devices ...")
    words.add_argument("--case", help="one case again, as it was printed: trace/17")
    words.add_argument("--kind", action="append", help="only these")
    words.add_argument("--json", type=Path, help="every case, as lines of JSON")
    arguments = words.parse_args()
    torch.set_num_threads(1)
    names = {arguments.case.partition("/")[0]} if arguments.case else set(arguments.kind or ())
    kinds = [kind for kind in KINDS if not names or kind.name in names]
    with tempfile.TemporaryDirectory(prefix="intarsia-fuzz-") as place:
        os.environ["INTARSIA_HOME"] = f"{place}/home"
        fuzz = Fuzz(kinds, Path(place))
        if arguments.case:
            number = int(arguments.case.partition("/")[2])
            for end in fuzz.run([Case(kinds[0], number, arguments.seed)]):
                show(end)
            return 0
        started, ends = time.monotonic(), list[Ended]()
        with (arguments.json or Path(os.devnull)).open("w") as out:
            cases = [*fuzz.cases(arguments.count, arguments.seed)]
            for end in fuzz.run([*cases, *fuzz.irregular()] if arguments.irregular else cases):
                ends.append(end)
                line = json.dumps([end.case.name, end.outcome, end.damage, end.error])
                print(line, file=out, flush=True)
                if end.outcome in BAD:
                    show(end)
    print(table(ends))
    print(f"{len(ends):,} files of {len(kinds)} kinds in {time.monotonic() - started:.0f} s")
    return int(any(end.outcome in BAD for end in ends))


if __name__ == "__main__":
    sys.exit(main())
