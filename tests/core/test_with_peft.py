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
    "mapping.py": "PEFT_TYPE_TO_CONFIG_MAPPING = {}\nPEFT_TYPE_TO_TUNER_MAPPING = {}",
}
SAY = """
from peft import mapping
for found in (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, mapping.PEFT_TYPE_TO_TUNER_MAPPING):
    print(type(found["INTARSIA"]).__name__)
print("torch" in sys.modules, "intarsia.hosts" in sys.modules)
"""
USE = """
import torch
from peft import get_peft_model
from intarsia.hosts.attach.config import IntarsiaConfig

model = torch.nn.Sequential(torch.nn.Linear(4, 4))
config = IntarsiaConfig(method="lora", options={"rank": 2}, target_modules=["0"])
print(type(get_peft_model(model, config).base_model).__name__)
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
    assert run.stdout.split() == ["Later", "Later", "False", "False"], run.stderr


def test_a_program_without_peft_still_imports_us(tmp_path: Path) -> None:
    code = "import sys; sys.modules['peft'] = None; import intarsia; print(intarsia.__name__)"
    ours = {**os.environ, "PYTHONPATH": str(Path(intarsia.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", code], env=ours, capture_output=True, text=True)
    assert run.stdout == "intarsia\n", run.stderr


def test_peft_builds_our_model_from_the_config_alone() -> None:
    """Nothing but the module of the config was imported."""
    run = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True)
    assert run.stdout == "IntarsiaModel\n", run.stderr
