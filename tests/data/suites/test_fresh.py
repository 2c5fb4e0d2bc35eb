"""The `fresh` suite: parts as declared; squares and sentences on one side of the split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intarsia.data.fingerprints import shared
from intarsia.data.images import verify
from intarsia_lab.materials.suites import suite
from intarsia_lab.materials.suites.task import SuiteTask

SUITE = suite("fresh")


def test_no_task_is_one_of_mini() -> None:
    assert not {task.name for task in SUITE.tasks} & {task.name for task in suite("mini").tasks}
    assert len(SUITE.tasks) == 6 and {task.group for task in SUITE.tasks} == set(SUITE.groups)


@pytest.mark.network
@pytest.mark.parametrize("task", SUITE.tasks, ids=lambda t: t.name)
def test_tasks_match_their_declaration(task: SuiteTask, tmp_path: Path) -> None:
    parts = task.read(tmp_path)
    assert {part: len(images) for part, images in parts.items()} == dict(task.counts)
    verified = {part: verify(images) for part, images in parts.items()}
    assert not any(shared(verified["test"], verified[part]) for part in ("train", "val"))
    assert all(len(np.unique(images.labels)) == task.classes for images in verified.values())
