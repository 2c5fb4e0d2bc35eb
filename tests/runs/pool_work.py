"""What the pool's tests have done in processes: it imports little, so that these start fast."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from intarsia.core.errors import DataError


def work(inputs: Mapping[str, Any]) -> dict[str, Any]:
    if inputs["do"] == "raise":
        raise DataError("labels", got=1, want=2, fix="Count.")
    if inputs["do"] == "fault":
        raise ZeroDivisionError("a fault")
    if inputs["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if inputs["do"] == "sleep":
        time.sleep(60)
    if inputs["do"] == "bar":
        from intarsia.train.progress import Bar

        with Bar(1, 1, show=True).shown() as bar:
            return {"square": 0, "drawn": bar.drawn}
    return {"square": inputs["n"] ** 2, "process": os.getpid()}
