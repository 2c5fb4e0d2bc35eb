"""Print the folder with PEFT's own tests of the installed version; download it the first time.

PEFT's source distribution contains `tests/`, its wheel does not. Used by `make conformance`.
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
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "peft"]
        pip += [name.replace("-", "==")]
        if subprocess.run([*pip, "--quiet", "--dest", scratch], stdout=sys.stderr).returncode:
            sys.exit(
                f"PEFT's tests: got no answer from a package index, want the source of {name}. "
                f"On a machine with an index run: {' '.join(['pip', *pip[3:]])}; then unpack the "
                f"archive as {folder}."
            )
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
            members = [m for m in archive if m.name.startswith(f"{name}/tests/")]
            archive.extractall(scratch, members, filter="data")
        (Path(scratch) / name).rename(folder)
    return folder


if __name__ == "__main__":
    print(peft_tests())
