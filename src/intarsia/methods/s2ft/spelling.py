"""Text form of channel numbers, and the channels of a layer that S2FT selects from."""

from __future__ import annotations

from collections.abc import Iterable

from ...core import Site
from ...core.errors import ConfigError, TargetError


def spell(ids: Iterable[int]) -> str:
    """Format channel numbers as text, with ranges as "first-last": "3,7,9-12".

    ids: the numbers, in any order.
    """
    ranges: list[list[int]] = []
    for i in sorted(ids):
        if ranges and ranges[-1][1] == i - 1:
            ranges[-1][1] = i
        else:
            ranges.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def read(text: str) -> list[int]:
    """Parse channel numbers from text such as "3,7,9-12", the inverse of `spell`.

    Raises: ConfigError for other text, or numbers that do not increase.
    """
    numbers, fix = list[int](), "Take them from intarsia.methods.choose_channels."
    for range_text in text.split(","):
        first, _, last = range_text.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()) or range_text.endswith("-"):
            want = "numbers and ranges, such as '3,7,9-12'"
            raise ConfigError("channels", got=repr(text), want=want, fix=fix)
        numbers += range(int(first), int(last or first) + 1)
    if not numbers or sorted(set(numbers)) != numbers:
        want = "each channel once, in increasing order"
        raise ConfigError("channels", got=repr(text), want=want, fix=fix)
    return numbers


def side_of(family: str) -> str:
    """Return the side on which a family selects: "inputs" (columns) or "outputs" (rows)."""
    return "inputs" if family in ("down", "output") else "outputs"


def span(site: Site, family: str) -> tuple[int, int]:
    """Return (first, number) of the selectable channels; a fused layer's values are its last third.

    site: the layer, with its path and widths; family: "down", "up", "output" or "value".
    Raises: TargetError for a fused layer with outputs that are not three equal parts.
    """
    if side_of(family) == "inputs":
        return 0, site.inputs
    if family != "value" or site.path.rpartition(".")[2] != "qkv":
        return 0, site.outputs
    if site.outputs % 3:
        subject, got = f"values in the fused layer {site.path!r}", f"{site.outputs} outputs"
        want = "equally many queries, keys and values"
        raise TargetError(subject, got=got, want=want, fix="Set value=0.")
    return 2 * site.outputs // 3, site.outputs // 3
