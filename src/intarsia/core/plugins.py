"""What other distributions add to this one, by entry points: verbs, and suites of tasks.

[project.entry-points."intarsia.verbs"]      # NAME = a function that typer can make a verb of
bench = "intarsia_lab.cli.benching:bench"

[project.entry-points."intarsia.tasks"]      # SUITE = spec -> data.tasks.PublishedTask
mini = "intarsia_lab.materials.suites:published_task"
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points

VERBS, TASKS = "intarsia.verbs", "intarsia.tasks"
LABORATORY = (
    "bench",
    "compare-routers",
    "reproduce",
)  # verbs of the distribution that is developed next to this one


@cache
def plugins(group: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of a group by name, sorted; none of them is imported."""
    return {entry.name: entry for entry in sorted(entry_points(group=group))}
