"""Channel numbers as text, and which channels of a layer S2FT selects from."""

from __future__ import annotations

from collections.abc import Iterable

from ...core import Site
from ...core.errors import ConfigError, TargetError


def spell(ids: Iterable[int]) -> str:
    """Channel numbers as text, with ranges as "first-last": "3,7,9-12"."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def read(text: str) -> list[int]:
    """Parse the text of `spell`.  Raises: ConfigError for other text."""
    ids, fix = list[int](), "Take them from intarsia.methods.choose_channels."
    for run in text.split(","):
        first, _, last = run.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()) or run.endswith("-"):
            want = "numbers and ranges, such as '3,7,9-12'"
            raise ConfigError("channels", got=repr(text), want=want, fix=fix)
        ids += range(int(first), int(last or first) + 1)
    if not ids or sorted(set(ids)) != ids:
        want = "each channel once, in increasing order"
        raise ConfigError("channels", got=repr(text), want=want, fix=fix)
    return ids


def side_of(family: str) -> str:
    """Whether a family selects the layer's "inputs" (columns) or "outputs" (rows)."""
    return "inputs" if family in ("down", "output") else "outputs"


def span(site: Site, family: str) -> tuple[int, int]:
    """(first, number) of the selectable channels; a fused layer's values are its last third.

    Raises: TargetError for a fused layer whose outputs are not three equal parts.
    """
    if side_of(family) == "inputs":
        return 0, site.inputs
    if family != "value" or site.path.rpartition(".")[2] != "qkv":
        return 0, site.outputs
    if site.outputs % 3:
        what, got = f"values in the fused layer {site.path!r}", f"{site.outputs} outputs"
        want = "equally many queries, keys and values"
        raise TargetError(what, got=got, want=want, fix="Set value=0.")
    return 2 * site.outputs // 3, site.outputs // 3
