"""Experts on four gloo processes: the plans of both engines, to the byte."""

from __future__ import annotations

import pytest

from intarsia.parallel import Processes


@pytest.mark.parametrize("engine", ["home", "stay"])
def test_four_processes_are_one_and_send_what_the_plan_says(group: Processes, engine: str) -> None:
    from four_processes import of_engine  # pyright: ignore[reportMissingImports]

    group.run(of_engine, engine)


def test_what_cannot_be_is_refused_by_every_process(group: Processes) -> None:
    from four_processes import refused  # pyright: ignore[reportMissingImports]

    group.run(refused)
