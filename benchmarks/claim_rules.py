"""How often the rules of the claims give a false verdict where there is no effect.

python benchmarks/claim_rules.py    # seconds; the shares stand in docs/benchmarks/claim_rules.md
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from intarsia_lab.claims.verdicts import standing_of
from intarsia_lab.kit import NoControl, Result, Study

DRAWS = 2000
PAGE = Path("docs/benchmarks/claim_rules.md")
INTRODUCTION = """# False verdicts of the rules

`python benchmarks/claim_rules.py`: {draws:,} claims without any effect, with values that are normal
around their target. Wanted: at most 3 % on each side. *One design* is judged once. *Enlarged* is
looked at with five seeds first and, where these decide nothing, judged again with ten: by the rules
the five new ones count alone. *Moved target* is held against one that was set half a standard
deviation lower once a figure was known. Seeds of one run are independent here: sets that are
pooled, and items that seeds share, are not in this simulation.

Enlarging is above the 3 %, by all seeds and by fresh ones alike: two looks are two chances. A claim
that may be enlarged needs its looks and their levels before the first.

| design | holds, % | fails, % | holds if all seeds counted, % | fails if all seeds counted, % |
|---|---|---|---|---|
"""


def study(target: float = 0.0) -> Study:
    """Return a claim that asks for more than the target, with nothing behind it."""
    free = NoControl("Drawn numbers.")
    return Study("drawn", "Nothing.", "nothing", target, ">=", lambda *_: result(()), free)


def result(values: tuple[float, ...]) -> Result:
    """Return the result of drawn values, one for each seed."""
    return Result(float(np.mean(values)), float(np.std(values, ddof=1)), values)


def run_line(values: tuple[float, ...], of: Study) -> dict[str, object]:
    """Return the ledger's line of a run."""
    line: dict[str, object] = {"line": "run", "claim": of.key, "statistic": of.baseline}
    seeds = list(range(len(values)))
    line |= {"bound": of.bound, "seeds": seeds, "values": list(values), "interval": None}
    return line | {"figure": float(np.mean(values))}


def bar_line(of: Study) -> dict[str, object]:
    """Return the ledger's line of a bar."""
    line: dict[str, object] = {"line": "bar", "claim": of.key, "statistic": of.baseline}
    return line | {"sense": of.sense, "value": of.target}


def one_design(values: tuple[float, ...]) -> tuple[str, str]:
    """Return the word by the rules, and the word if all seeds counted."""
    bare = study().word(result(values))
    return study_word(study(), values, [bar_line(study())]), bare


def enlarged(values: tuple[float, ...]) -> tuple[str, str]:
    """Return both words of a claim that got five more seeds where five decided nothing."""
    first = study().word(result(values[:5]))
    if first != "not decided":
        return first, first
    lines = [bar_line(study()), run_line(values[:5], study())]
    return study_word(study(), values, lines), study().word(result(values))


def moved(values: tuple[float, ...]) -> tuple[str, str]:
    """Return both words of a claim with a target that was lowered after its figure was known."""
    lower = study(-0.5)
    lines = [bar_line(study()), run_line(values, study()), bar_line(lower)]
    return study_word(lower, values, lines), lower.word(result(values))


def study_word(of: Study, values: tuple[float, ...], lines: list[dict[str, object]]) -> str:
    """Return the verdict of the rules in one word."""
    # what lies inside of its interval needs no count of further seeds here
    if of.word(result(values)) == "not decided" and len(lines) == 1:
        return "not decided"
    return standing_of(of, result(values), range(len(values)), lines).word


def main() -> None:
    """Draw the claims, and write the page."""
    draw = np.random.default_rng(0)
    rows = ""
    for name, judge in (
        ("one design", one_design),
        ("enlarged", enlarged),
        ("moved target", moved),
    ):
        words = [judge(tuple(map(float, draw.normal(size=10)))) for _ in range(DRAWS)]
        by_rules, by_all = zip(*words, strict=True)
        misses = ("fails", "not reproduced at this scale")
        shares = [
            100 * sum(word in kinds for word in column) / DRAWS
            for column in (by_rules, by_all)
            for kinds in (("holds",), misses)
        ]
        rows += f"| {name} | {' | '.join(f'{share:.1f}' for share in shares)} |\n"
    PAGE.write_text(INTRODUCTION.format(draws=DRAWS) + rows)


if __name__ == "__main__":
    main()
