"""The table of a sheet, for terminal, Markdown and page; the sentences above it and below."""

from __future__ import annotations

from collections.abc import Sequence

from intarsia.reports import numbers
from intarsia.reports.statistics import ALPHA, holm
from intarsia.reports.table import Column, Entry, Table
from intarsia.reports.wording import capital, joined

from .findings import RouterResults, RouterSheet, mean_loss

MANY = 3  # differences to one baseline that chance makes something of
SHARES = ("accuracy", "router_time")
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("bits_per_byte", "Bits/byte", "Test loss in bits, by the bytes that are predicted"),
    ("accuracy", "Accuracy, %", "Share of right answers on the test part"),
    (
        "load_cv",
        "Load CV",
        "Standard deviation over mean of the experts' loads on the test part, "
        "0 = even: mean over layers",
    ),
    (
        "gate_entropy",
        "Entropy",
        "Of a token's weights as shares, in nats, 0 = one expert: mean over tokens and layers",
    ),
    ("active", "Active", "Experts of a token on the test part: mean over layers"),
    (
        "dropped",
        "Dropped, %",
        "Share of a token's pairs that full experts leave out while training: mean over layers",
    ),
    (
        "agreement",
        "Agreement",
        "Normalised mutual information, 2 I / (H + H), of the first "
        "experts in consecutive layers: mean over the pairs",
    ),
    (
        "specialisation",
        "Special.",
        "Normalised mutual information of a token's first expert "
        "and its class or kind: mean over layers",
    ),
    ("router_parameters", "Router", "Parameters of all routers"),
    ("operations", "Operations", "Of training, in matrix products"),
    ("router_time", "Time, %", "The routers' share of the time of the mixtures' forwards"),
    ("cpu_seconds", "CPU", "Processor time of training: mean over seeds"),
)


def table_of(sheet: RouterSheet) -> Table:
    """Return the table of a sheet, with a line for every router: means over its seeds."""
    # columns that are empty for all routers are left out
    used = [column for column in COLUMNS if _is_shown(sheet, column[0])]
    columns = [
        Column("Contender", "The router, or what else is its own", numeric=False),
        Column("Test loss", "Nats a token or picture: mean ± sample standard deviation over seeds"),
        *(Column(title, meaning) for _, title, meaning in used),
    ]
    base = sheet.baseline
    if base is not None:
        meaning = f"Test loss minus {base.name}'s at the same seed: below 0 is better"
        columns.insert(2, Column("Difference", meaning))
    rows = tuple(
        _row(contender, sheet, [name for name, _, _ in used]) for contender in sheet.contenders
    )
    return Table(
        caption=caption(sheet),
        columns=tuple(columns),
        rows=rows,
        best=None,  # a loss for each seed has no interval over texts by which one could be it
        baseline=sheet.contenders.index(base) if base else None,
        notes=tuple(notes(sheet)),
    )


def _is_shown(sheet: RouterSheet, name: str) -> bool:
    """Return True if the table has a column for a measure: some run has a value of it."""
    if name == "accuracy":
        return not sheet.text
    values = [v for contender in sheet.contenders for v in contender.by_seed(name).values()]
    return any(values) if name == "dropped" else bool(values)


def _row(contender: RouterResults, sheet: RouterSheet, names: Sequence[str]) -> tuple[Entry, ...]:
    """Return a router's line: name, loss, difference to the baseline, and further measures."""
    base = sheet.baseline
    loss = contender.spread("loss")
    assert loss is not None
    cells = [
        Entry(contender.name),
        Entry(loss.text(".3f"), full=", ".join(_per_seed(contender))),
        *(_entry(contender, base, name) for name in names),
    ]
    if base is not None:
        # next to the loss, as the column is
        cells.insert(2, _difference(contender, base))
    return tuple(cells)


def _per_seed(contender: RouterResults) -> list[str]:
    return [f"seed {seed}: {value:.4f}" for seed, value in contender.by_seed("loss").items()]


def _difference(contender: RouterResults, base: RouterResults) -> Entry:
    """Format a router's difference of loss to the baseline, paired by seed."""
    if contender is base:
        return Entry("baseline")
    difference = contender.difference(base)
    if difference is None:
        return Entry("", "no seed in common")
    spread = difference.spread
    text = numbers.signed(spread.mean, 3)
    if spread.deviation is not None:
        text += f" ± {spread.deviation:.3f}"
    ratio = contender.ratio(base, "loss")
    remark = f"lower in {difference.behind} of {difference.n}" if difference.n > 1 else ""
    return Entry(text, remark, f"{difference.mean:+.5f}, ratio {ratio:.4f}")


def _entry(contender: RouterResults, base: RouterResults | None, name: str) -> Entry:
    """Format a measure of a router, averaged over seeds; empty if no run has it."""
    spread = contender.spread(name)
    if spread is None:
        return Entry("")
    mean = spread.mean
    if name in (*SHARES, "dropped"):
        return Entry(f"{100 * mean:.1f}", full=f"{mean:.5f}")
    if name == "operations":
        # as a multiple of the baseline's
        ratio = contender.ratio(base, name) if base else None
        counted = numbers.count(round(mean))
        return Entry(counted if ratio is None else numbers.ratio(ratio), full=f"{round(mean):,}")
    if name == "router_parameters":
        return Entry(numbers.count(round(mean)), full=f"{round(mean):,}")
    if name == "cpu_seconds":
        return Entry(f"{mean:.0f} s", full=f"{mean:.2f} s")
    return Entry(f"{mean:.3f}" if name == "bits_per_byte" else f"{mean:.2f}", full=f"{mean:.5f}")


def caption(sheet: RouterSheet) -> str:
    """Return the caption of a sheet's table: the data, steps, seeds and baseline of the numbers."""
    seeds = joined([str(seed) for seed in sheet.seeds])
    text = f"{capital(sheet.title)}, {_steps(sheet)}, "
    text += f"{'seeds' if len(sheet.seeds) > 1 else 'seed'} {seeds}"
    if sheet.baseline is not None:
        text += f"; differences and ratios are to {sheet.baseline.name}"
    return text + "."


def _steps(sheet: RouterSheet) -> str:
    """Return the number of training steps in words, as a range where runs differ."""
    steps = sorted({row["steps"] for contender in sheet.contenders for row in contender.rows})
    if len(steps) == 1:
        return numbers.plural(steps[0], "step")
    return f"{steps[0]:,} to {steps[-1]:,} steps"


def notes(sheet: RouterSheet) -> list[str]:
    """Return the warnings that a reader of a sheet's table needs."""
    lines: list[str] = []
    if len(sheet.seeds) == 1:
        lines.append("One seed: how much chance is in a difference is not known.")
    # routers by which later tokens affect earlier ones
    late = [contender.name for contender in sheet.contenders if contender.rows[0]["sees_later"]]
    if late:
        lines.append(
            f"Later tokens had a say in {joined(late)}: on a text the loss may be one that no "
            "generation would have."
        )
    uneven = [
        contender.name for contender in sheet.contenders if len(contender.rows) < len(sheet.seeds)
    ]
    if uneven:
        lines.append(f"Not with every seed: {joined(uneven)}.")
    return [*lines, *of_many(sheet)]


def of_many(sheet: RouterSheet) -> list[str]:
    """Return a sentence on what chance makes of many differences to one baseline."""
    from scipy.stats import t

    base = sheet.baseline
    if base is None:
        return []
    p: dict[str, float] = {}
    below = 0.0
    for contender in sheet.contenders:
        pairs = contender.difference(base) if contender is not base else None
        # seeds that agree to the last digit have no test
        if pairs is None or not pairs.spread.deviation:
            continue
        below += 0.5**pairs.n
        ratio = abs(pairs.mean) * pairs.n**0.5 / pairs.spread.deviation
        p[contender.name] = float(2 * t.sf(ratio, pairs.n - 1))
    if len(p) < MANY:
        return []
    after = [
        name for name, value in zip(p, holm([*p.values()]), strict=True) if (value or 0.0) < ALPHA
    ]
    verb = "differs" if len(after) < 2 else "differ"
    return [
        f"Differences to {base.name} are not corrected for their number: of {len(p)} equal "
        f"contenders chance alone puts {below:.1f} below it with every seed. After Holm's "
        f"correction (Student's test over seeds) {joined(after) or 'none'} {verb}."
    ]


def sentence(sheet: RouterSheet) -> str:
    """Return the result of a sheet in a sentence."""
    best, base = sheet.best, sheet.baseline
    loss = best.spread("loss")
    assert loss is not None
    ends = loss.text(".3f")
    if base is None:
        return f"On {sheet.title}, {best.name} ends with a test loss of {ends}."
    text = f"On {sheet.title}, {best.name} has the lowest mean test loss, {ends}"
    # None if the best is the baseline, or no seed is shared
    difference = best.difference(base) if best is not base else None
    if difference is None:
        # without a baseline to compare with, the second best router
        second = sorted(sheet.contenders, key=mean_loss)[1]
        gap = mean_loss(second) - loss.mean
        return f"{text}; next is {second.name}, {numbers.signed(gap, 3)}."
    text += f": {numbers.signed(difference.mean, 3)} to {base.name}"
    return f"{text}, lower in {difference.behind} of {numbers.plural(difference.n, 'seed')}."
