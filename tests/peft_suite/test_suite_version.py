"""The tests that run are those of the PEFT that is installed."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import pytest


def test_the_suite_has_the_version_of_the_library() -> None:
    if "PEFT_TESTS" not in os.environ:
        pytest.skip("run by `make conformance`, which obtains PEFT's tests")
    folder = Path(os.environ["PEFT_TESTS"])
    assert folder.name == f"peft-{version('peft')}"
    assert (folder / "tests" / "test_custom_models.py").is_file()
