"""Results of a claim's runs, stored by their inputs and by the code that they depend on."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from intarsia.core.store import Store
from intarsia.data import packages

from .arms import threads
from .provenance import code_digest
from .rates import ArmRate, Rates

P = ParamSpec("P")
R = TypeVar("R")


class StoredResults:
    """The stored results of one module of the laboratory: `stored = StoredResults(__file__)`.

    A result is read back if it has the same inputs and if nothing changed in the code that the
    module depends on, see `provenance`; else it is computed. A result of older code is announced.
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
        report: gets a line if a stored result is of older code.
        """
        code = code_digest(self.module)
        store = Store(packages.cache_dir() / "claims", f"{name}.jsonl", code=code)
        # never silently: a figure of older code would be mixed with today's figures
        if store.stale(inputs):
            report(f"{name}: the stored result is of older code, so that it is computed again.")
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
