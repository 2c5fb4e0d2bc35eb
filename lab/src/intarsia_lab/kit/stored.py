"""Results of an experiment's runs, stored by their inputs, so that a stopped run goes on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import intarsia
from intarsia.core.store import Store
from intarsia.data import packages

from .arms import threads
from .rates import ArmRate, Rates

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def sources() -> str:
    """Return 16 hexadecimal digits of all sources of the library and of this laboratory."""
    digest = hashlib.sha256()
    for root in (Path(intarsia.__file__).parent, Path(__file__).parents[1]):
        for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".c", ".h")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class StoredResults:
    """The stored results of one module of the laboratory: `stored = StoredResults(__file__)`.

    A result is read back if it has the same inputs and is of the same sources, see `sources`; else
    it is computed. A result of other sources is announced.
    """

    def __init__(self, module: str) -> None:
        """Open the results of a module.  module: its path, `__file__`."""
        self.module = Path(module)

    def __call__(
        self,
        name: str,
        inputs: Mapping[str, Any],
        run: Callable[[], Any],
        report: Callable[[str], None] = lambda _: None,
    ) -> Any:
        """Return the JSON-ready result of `run`, from a file or by running it.

        name: of the file in the cache folder; inputs: what the result depends on, besides code;
        report: gets a line if a stored result is of other sources.
        """
        store = Store(packages.cache_dir() / "experiments", f"{name}.jsonl", code=sources())
        # never silently: a value of other sources would be mixed with today's
        if store.stale(inputs):
            report(f"{name}: the stored result is of other sources, so that it is computed again.")
        return store.record(inputs, run)

    def choose(
        self,
        name: str,
        rates: Rates,
        inputs: Mapping[str, Any],
        score: Callable[[str, float], float],
        report: Callable[[str], None],
    ) -> tuple[ArmRate, ...]:
        """Return the learning rate that each arm chooses; each score is computed once and stored.

        name: of the file of results; rates: the arms and their grids; inputs: what else a score
        depends on; score: (arm, rate) -> a validation score, the highest wins; report:
        gets each score.
        """

        def stored_score(arm: str, rate: float) -> float:
            """Return and report an arm's validation score at a rate, stored or computed now."""

            def run() -> float:
                """Compute the score with one thread."""
                with threads(1):
                    return score(arm, rate)

            value = self(name, {**inputs, "tried": arm, "rate": rate}, run, report)
            report(f"  {arm} at rate {rate:g}: {value:.4g} on validation data")
            return value

        return rates.choose(stored_score)

    def cell(self, function: Callable[P, R]) -> Callable[P, R]:
        """Wrap a function so that its result is stored under its arguments, which JSON must hold.

        A NamedTuple or a dataclass is returned as such, if the function's annotation says so. An
        argument called `report` receives a line on stale results, and is not stored.
        """
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            """Return the function's result for these arguments, stored or computed now."""
            # stored by argument names: positional and keyword calls find the same result
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            inputs = dict(bound.arguments)
            report = inputs.pop("report", None) or (lambda _: None)

            def compute() -> Any:
                """Call the function; return its result as JSON can hold it."""
                result: Any = function(*args, **kwargs)
                return (
                    dataclasses.asdict(result) if dataclasses.is_dataclass(type(result)) else result
                )

            name = f"{self.module.stem}-{function.__name__}"
            plain = self(name, inputs, compute, report)
            # JSON has made a list of a NamedTuple and a dict of a dataclass
            kind: Any = typing.get_type_hints(function)["return"]
            if hasattr(kind, "_make"):
                return kind(*plain)
            return cast(R, kind(**plain) if dataclasses.is_dataclass(kind) else plain)  # pyright: ignore

        return wrapper
