"""What other libraries read of ours, and we of theirs, in fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import intarsia
from intarsia.adapters import Bottleneck
from intarsia.hosts import adapt, save
from intarsia.methods import Mosa

Make = Callable[[str], nn.Module]


def fresh(code: str, *args: Path) -> str:
    """What a new process prints.  args: its sys.argv[1:]."""
    ours = {**os.environ, "PYTHONPATH": str(Path(intarsia.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=ours,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


READ = """
import sys, intarsia, torch
from safetensors.torch import load_file
from transformers import ViTForImageClassification
base, adapter, x = sys.argv[1:]
tensors = load_file(x)
own = ViTForImageClassification.from_pretrained(base)
own.load_adapter(adapter)
from peft import PeftModel
again = ViTForImageClassification.from_pretrained(base)
for model in own, PeftModel.from_pretrained(again, adapter):
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(tensors["x"]).logits, tensors["y"])
print("equal")
"""


def test_peft_and_transformers_load_ours_after_nothing_but_the_import(
    make: Make, images: Callable[[str], Tensor], train: Callable[..., None], tmp_path: Path
) -> None:
    host, x = make("hf_vit"), images("hf_vit")
    host.save_pretrained(tmp_path / "base")  # pyright: ignore[reportCallIssue]
    model = adapt(host, Mosa(Bottleneck(4)))
    train(model, x)
    save(model, tmp_path / "adapter")
    with torch.no_grad():
        save_file({"x": x, "y": model(x).logits}, tmp_path / "said.safetensors")
    said = tmp_path / "said.safetensors"
    assert fresh(READ, tmp_path / "base", tmp_path / "adapter", said) == "equal\n"
