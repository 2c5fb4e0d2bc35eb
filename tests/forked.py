"""Carried out in a forked process: a script with its own words, environment and output.

The fixture of this name in conftest.py sets `job`.
"""

from __future__ import annotations

import atexit
import gc
import os
import runpy
import sys


def main(script: str, words: list[str], environment: dict[str, str], output: str) -> None:
    gc.freeze()  # what the server imported stays
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.environ.update(environment)
    sys.path.insert(0, os.path.dirname(script))
    sys.argv = [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a fork ends without them


if __name__ == "__main__":
    main(**globals()["job"])
