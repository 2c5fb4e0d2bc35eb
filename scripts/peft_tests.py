"""Print the folder that holds PEFT's own tests at the installed version; obtain it once.

PEFT's source distribution carries `tests/`, its wheel does not. Run by `make conformance`.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).parents[1] / "build" / "peft-tests"


def peft_tests() -> Path:
    """The folder to put on `sys.path`; PEFT's tests are its namespace package `tests`."""
    name = f"peft-{version('peft')}"
    folder = CACHE / name
    if (folder / "tests" / "testing_common.py").is_file():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "peft",
             "--dest", scratch, name.replace("-", "==")],
            check=True, stdout=sys.stderr,
        )  # fmt: skip
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
            members = [m for m in archive if m.name.startswith(f"{name}/tests/")]
            archive.extractall(scratch, members, filter="data")
        (Path(scratch) / name).rename(folder)
    return folder


if __name__ == "__main__":
    print(peft_tests())
