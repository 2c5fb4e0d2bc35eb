"""Numbers as people read them."""

from __future__ import annotations

from .sheet import Spread

MINUS = "\N{MINUS SIGN}"
MICRO = "\N{MICRO SIGN}"
PREFIXES = {1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1: "", 1e-3: "m", 1e-6: MICRO, 1e-9: "n"}


def percent(share: float, digits: int = 1) -> str:
    """Return a share in percent: 0.8071 -> "80.7 %"."""
    return f"{100 * share:.{digits}f} %"


def accuracy(spread: Spread) -> str:
    """Return a mean share in percent: "80.7 ± 0.4 %"; without ± for one seed."""
    return f"{bare(spread)} %"


def bare(spread: Spread) -> str:
    """Return a mean share in percent without its unit: "80.7 ± 0.4"."""
    return in_percent(spread).text()


def points(spread: Spread) -> str:
    """Return a difference in percentage points: "+2.1 ± 0.6"."""
    shares = in_percent(spread)
    mean = signed(shares.mean)
    return mean if shares.deviation is None else f"{mean} ± {shares.deviation:.1f}"


def in_percent(spread: Spread) -> Spread:
    """Return the mean and deviation of shares in percent, that is times 100."""
    deviation = spread.deviation
    return Spread(100 * spread.mean, None if deviation is None else 100 * deviation, spread.n)


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign; one that rounds to zero has none.  digits: after the point."""
    # rounded first: a minus before 0.0 would look like a difference
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def interval(low: float, high: float, digits: int = 1) -> str:
    """Return an interval of differences in percentage points: "[+0.4, +2.1]"."""
    return f"[{signed(100 * low, digits)}, {signed(100 * high, digits)}]"


def probability(p: float) -> str:
    """Return a p-value: 0.012, < 0.001."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(n: int) -> str:
    """Return a count in three digits with a prefix: 950, 48.4 k, 1.23 M ... T."""
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        # 999 950 would round to 1000 k
        if n >= size * 0.9995:
            return f"{_three_digits(n / size)} {unit}"
    return str(n)


def seconds(value: float) -> str:
    """Return a time as text: 4.2 s, 38 s, 5 min 12 s, 2 h 03 min."""
    if value < 10:
        return f"{value:.1f} s"
    rounded = round(value)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def size(n: int) -> str:
    """Return a number of bytes in decimal units: 980 MB, 1.32 GB."""
    # below what would round to 1.00 GB
    if n < 10**9 * 0.9995:
        return f"{max(1, round(n / 10**6))} MB" if n >= 10**6 else f"{n / 1000:.0f} kB"
    return f"{_three_digits(n / 10**9)} GB"


def prefix_of(value: float) -> tuple[float, str]:
    """Return the unit prefix that suits a value: its factor and letter, 4.85e-5 -> (1e-6, "µ")."""
    # 999.95 would round to 1000
    fitting = (size for size in PREFIXES if abs(value) >= size * 0.9995)
    size = next(fitting, 1)
    return size, PREFIXES[size]


def prefixed(value: float, unit: str) -> str:
    """Return three digits with the prefix of their size: 4.85e-5, "s" -> "48.5 µs"."""
    size, prefix = prefix_of(value)
    return f"{_three_digits(value / size) if value else 0} {prefix}{unit}"


def ratio(value: float) -> str:
    """Return a ratio in three digits: 1.05×."""
    return f"{_three_digits(value)}×"


def plural(n: int, noun: str, plural_form: str | None = None) -> str:
    """Return a number with its noun: 1 picture, 2 pictures, 1,000 pictures."""
    return f"{n:,} {noun if n == 1 else plural_form or noun + 's'}"


def _three_digits(value: float) -> str:
    # the limits are where a value would round to four digits
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}"
