"""Four processes, started once for all tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from intarsia.conformance import parallels
from intarsia.parallel import Processes
from intarsia.parallel.processes import PRELOAD

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def group() -> Iterator[Processes]:
    """They also find the modules of this folder."""
    sys.path.insert(0, str(HERE))
    PRELOAD.extend(["intarsia.train.run", "intarsia.runs.execute", "stock_jobs"])
    parallels.processes().close()  # such as were started without that
    yield parallels.processes()
    parallels.processes().close()
    sys.path.remove(str(HERE))
