"""Ctrl-C while a program starts."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from intarsia.core.interrupts import EXIT, never_lost


def ran(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program with `swallows`, a module that catches everything, as some packages do."""
    (folder / "swallows.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n"
        "    pass\nprint('went on', flush=True)\n"
    )
    (folder / "later.py").write_text("print('imported')\n")
    # a shell's job in the background starts without Python's handler
    before = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    before += f"import sys\nsys.path.append({str(folder)!r})\n"
    before += "from intarsia.core.interrupts import check, never_lost\n"
    command = [sys.executable, "-c", before + textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "then",
    [
        "import later",  # at the next import
        "check()",  # where the program looks
        "pass",  # at its end
        "raise ImportError('what it became')",
    ],
)
def test_what_an_import_swallows_is_raised_again(then: str, tmp_path: Path) -> None:
    process = ran(f"with never_lost():\n    import swallows\n    {then}\nprint('alive')", tmp_path)
    assert (process.returncode, process.stdout) == (EXIT, "went on\n")
    assert process.stderr == "Stopped.\n"


def test_what_cleans_up_may_import(tmp_path: Path) -> None:
    program = """
    import signal
    with never_lost():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            import later
    """
    process = ran(program, tmp_path)
    assert (process.returncode, process.stdout) == (EXIT, "imported\n")


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("handler")
def test_without_ctrl_c_nothing_changes() -> None:
    before, finders = signal.getsignal(signal.SIGINT), list(sys.meta_path)
    with pytest.raises(ValueError, match="mine"), never_lost():
        assert signal.getsignal(signal.SIGINT) != before
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) == before and sys.meta_path == finders


def test_another_handler_is_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with never_lost():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
