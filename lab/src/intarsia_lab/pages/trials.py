"""Trials of methods for the pages that report them: kept while no source changes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from intarsia.core import Card
from intarsia.core.store import Store
from intarsia.data import packages

from ..kit.stored import sources

PACKAGES = ("torch", "timm", "transformers", "peft")


class Trials:
    """The stored results of one page's trials: `trials = Trials(__file__)`.

    A result is read back if the packages have the same versions and no source has changed.
    report: gets a line for each trial that runs.
    """

    def __init__(self, page: str, report: Callable[[str], None] = lambda _: None) -> None:
        """Open the store of a page's trials.

        page: path of the page's module; report: gets a line for each trial that runs.
        """
        self.page, self.report = Path(page), report
        self.store = Store(packages.cache_dir() / "pages", f"{self.page.stem}.jsonl")

    def __call__(self, name: str, *methods: Card, run: Callable[[], Any]) -> Any:
        """Return the JSON-ready result of a trial, kept from an earlier run or computed by `run`.

        name: of the trial; methods: registered descriptions of those that it tries.
        """
        inputs: dict[str, Any] = {
            "trial": name,
            "methods": [method.key for method in methods],
            "code": sources(),
            "versions": _versions(),
        }

        def announced() -> Any:
            """Report that the trial runs, and run it."""
            self.report(f"{self.page.stem}: {' '.join([name, *inputs['methods']])}")
            return run()

        return self.store.record(inputs, announced)


@functools.cache
def _versions() -> Mapping[str, str]:
    """Return the versions of the packages of others with code that a trial runs."""
    return {name: version(name) for name in PACKAGES}
