"""PEFT's mappings have our type, whichever of the two is imported first, and at no cost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import intarsia

FAKE = {
    "__init__.py": "from .mapping import PEFT_TYPE_TO_CONFIG_MAPPING",
    "mapping.py": "PEFT_TYPE_TO_CONFIG_MAPPING = {}",
}
SAY = """
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as found
print(type(found["INTARSIA"]).__name__, "torch" in sys.modules, "intarsia.hosts" in sys.modules)
"""


@pytest.mark.parametrize("order", ["intarsia, peft", "peft, intarsia", "intarsia, intarsia, peft"])
def test_our_type_is_there_at_no_cost(order: str, tmp_path: Path) -> None:
    (tmp_path / "peft").mkdir()
    for name, text in FAKE.items():
        (tmp_path / "peft" / name).write_text(text)
    ours = str(Path(intarsia.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", f"import sys, {order}\n{SAY}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), ours])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.split() == ["LaterConfig", "False", "False"], run.stderr


def test_a_program_without_peft_still_imports_us(tmp_path: Path) -> None:
    code = "import sys; sys.modules['peft'] = None; import intarsia; print(intarsia.__name__)"
    ours = {**os.environ, "PYTHONPATH": str(Path(intarsia.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", code], env=ours, capture_output=True, text=True)
    assert run.stdout == "intarsia\n", run.stderr
