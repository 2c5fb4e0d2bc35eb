"""Plant each fault of the list in a copy of the tree, and see which tests fail: `make faults`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .planting import faults, sample
from .running import answers, look_for, note


def main() -> int:
    words = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    words.add_argument("--system", action="append", default=[], help="only this one, by its name")
    words.add_argument("--only", default="", help="only faults whose sentence has these words")
    words.add_argument("--sample", type=int, help="so many of them, drawn by --seed")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--jobs", type=int, default=1, help="so many at a time")
    file = "append each answer to this file, and plant nothing again that it answers"
    words.add_argument("--answers", type=Path, help=file)
    arguments = words.parse_args()
    some = [fault for fault in faults() if not arguments.system or fault.system in arguments.system]
    some = [fault for fault in some if arguments.only in fault.says]
    if not some:
        words.error("got no fault of that system or with these words, want one at least")
    some = sample(some, arguments.sample, arguments.seed) if arguments.sample else some
    earlier = answers(arguments.answers, some) if arguments.answers else []
    survived = sum(not answer.by for answer in earlier)
    if earlier:
        print(f"{len(some) - len(earlier)} of {len(some)} are left", flush=True)
    for number, answer in enumerate(look_for(some, arguments.jobs, earlier), len(earlier) + 1):
        if arguments.answers:
            note(arguments.answers, answer)
        survived += not answer.by
        outcome = f"caught by {answer.by}" if answer.by else "SURVIVED"
        print(
            f"{number}/{len(some)} {answer.fault.system}: {answer.fault.says} {outcome}", flush=True
        )
    print(f"{len(some) - survived} of {len(some)} caught")
    return int(survived > 0)


if __name__ == "__main__":
    raise SystemExit(main())
