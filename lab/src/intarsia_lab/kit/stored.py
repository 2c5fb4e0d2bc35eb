"""Results of a claim's runs, stored by their inputs and by the code that they depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from intarsia.core.store import Store
from intarsia.data.packages import cache_dir

from .provenance import code_digest


class Stored:
    """The stored results of one module of the laboratory: `stored = Stored(__file__)`.

    A result is read back if it has the same inputs and if nothing changed in the code that the
    module depends on, see `provenance`; else it is computed. A result of older code is announced.
    """

    def __init__(self, module: str) -> None:
        self.module = Path(module)

    def __call__(
        self,
        name: str,
        inputs: Mapping[str, Any],
        run: Callable[[], Any],
        report: Callable[[str], None] = lambda _: None,
    ) -> Any:
        """Return the JSON-ready result of `run`, from the file of that name or by running it."""
        code = code_digest(self.module)
        store = Store(cache_dir() / "claims", f"{name}.jsonl", code=code)
        if store.stale(inputs):
            report(f"{name}: the stored result is of older code, so that it is computed again.")
        return store.record(inputs, run)
