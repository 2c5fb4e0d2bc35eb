"""What a file says of devices and links, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ..core.checks import above, at_least
from ..core.errors import ConfigError, DataError, UnknownName
from ..core.files import read_json

OF_DEVICES = ("flops", "load", "memory")
KEYS = ("nodes", "each", "intra", "inter", *OF_DEVICES)
GIGABYTE = 1e9


def read_topology(path: str | Path) -> dict[str, Any]:
    """Read a JSON file of devices as the arguments of `Topology.two_level`.

    Raises: DataError for another file; as `arguments_of`.
    """
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        fix = 'For example: {"nodes": 2, "each": 4, "intra": {"gbps": 300}}'
        raise DataError(f"topology {path}", got=error, want="a JSON file", fix=fix) from error
    if not isinstance(record, dict):
        got = type(record).__name__
        raise DataError(f"topology {path}", got=got, want="a JSON object", fix="Write one.")
    return arguments_of(cast("dict[str, Any]", record))


def arguments_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that `Topology.from_dict` explains as arguments of `two_level`.

    Raises: UnknownName for another entry; ConfigError for missing or wrong values.
    """
    for name in record:
        if name not in KEYS:
            raise UnknownName("entry of a topology", str(name), KEYS)
    arguments: dict[str, Any] = {}
    try:
        for name in ("nodes", "each"):
            arguments[name] = int(record[name])
            at_least(name, arguments[name], 1)
        for name in ("intra", "inter"):
            if name in record:
                level = record[name]
                pair = float(level["gbps"]) * GIGABYTE, float(level.get("us", 0)) * 1e-6
                above(f"gbps of {name}", pair[0], 0, "Try 25.")
                arguments[name] = pair
        return arguments | {name: float(record[name]) for name in OF_DEVICES if name in record}
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        want = 'as {"nodes": 2, "each": 4, "intra": {"gbps": 300, "us": 2}, "inter": {...}}'
        fix = "Write nodes and each, and gbps of each level."
        raise ConfigError("topology", got=error, want=want, fix=fix) from error
