"""Twelve steps of a newcomer: pictures with alpha, in a shell, in Python, and out again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
from typer.testing import CliRunner

import intarsia
from intarsia.cli import app

ROOT = Path(__file__).parents[1]
TINY = ("--model", "test_vit", "--untrained", "--size", "32", "--epochs", "2", "--lr", "1e-2")
PICTURES = 96


def stickers(folder: Path) -> list[Path]:
    """Round pictures of three colours on a transparent ground whose hidden colour misleads."""
    across = np.linspace(-1, 1, 32)
    inside = across[:, None] ** 2 + across**2 < 0.7
    for i in range(PICTURES):
        name = ("red", "green", "blue")[i % 3]
        draw = np.random.default_rng(i)
        pixels = draw.integers(0, 255, (32, 32, 4)).astype(np.uint8)
        pixels[inside, :3] = draw.integers(0, 60, (int(inside.sum()), 3))
        pixels[inside, i % 3] = 220
        pixels[..., 3] = np.where(inside, 255, draw.integers(0, 2) * 100)
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels, "RGBA").save(folder / name / f"{i}.png")
    return sorted(folder.glob("*/*.png"))


def typed(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def fresh(*words: object) -> str:
    """A Python process of its own that does not find this library."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PEFT_ALONE = """
import os, sys
os.chdir(sys.argv[1])
import intarsia, timm, torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

trunk = timm.create_model("test_vit", img_size=32, num_classes=3)
trunk.load_state_dict(load_file("trunk.safetensors"))
model = PeftModel.from_pretrained(trunk, "adapter").eval()
with torch.no_grad():
    save_file({"y": model(load_file("x.safetensors")["x"])}, "y.safetensors")
"""


@pytest.mark.thorough
def test_eleven_steps_without_one_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: Callable[..., Any]
) -> None:
    """Step 12, to install it, is the test below."""
    monkeypatch.chdir(tmp_path)
    files = stickers(tmp_path / "photos")  # 1: a folder of pictures with alpha
    assert len(files) == PICTURES
    typed("fit", "photos", *TINY, "--method", "mosa", "--out", "runs/mosa")  # 2
    assert "balanced" in typed("evaluate", "runs/mosa")  # 3
    classes = [
        next(iter(row["classes"]))  # 4
        for row in json.loads(typed("predict", "runs/mosa", *files[::20], "--json"))
    ]
    opened: Any = intarsia.open_run("runs/mosa")  # 5: the same from Python
    assert classes == [
        prediction.classes[0][0] for prediction in opened.predict([*map(str, files[::20])])
    ]
    typed("report", "runs/mosa")  # 6
    assert (tmp_path / "report.html").is_file()
    typed("export", "runs/mosa", "--format", "timm")  # 7: a stock model, without this library
    output = fresh("-I", "runs/mosa/export/predict.py", *files[::20])
    assert [line.split()[-2] for line in output.splitlines()] == classes
    in_python(tmp_path, forked)


def in_python(folder: Path, forked: Callable[..., Any]) -> None:
    """8: fit; 9: PEFT, in a process of its own; 10: torch.compile; 11: transformers' Trainer."""
    data = intarsia.load_data("photos", seed=0)
    torch.manual_seed(0)
    trunk = timm.create_model("test_vit", img_size=32, num_classes=3)
    weights = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    model = intarsia.adapt(trunk, intarsia.Mosa())
    assert intarsia.fit(model, data, epochs=1, lr=1e-2).test is not None
    model.save_pretrained(folder / "adapter")
    x = torch.randn(2, 3, 32, 32)
    save_file(weights, folder / "trunk.safetensors")
    save_file({"x": x}, folder / "x.safetensors")
    (folder / "peft_alone.py").write_text(PEFT_ALONE)
    code, _, output = forked(folder / "peft_alone.py", folder).wait()
    assert code == 0, output
    with torch.no_grad():
        want = model.eval()(x)
        assert_close(load_file(folder / "y.safetensors")["y"], want)
        assert_close(torch.compile(model, backend="aot_eager")(x), want)
    torch.compiler.reset()

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=3,
    )
    hosted = intarsia.adapt(ViTForImageClassification(config), intarsia.Mosa())
    rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 3} for i in range(8)]
    before = {name: p.clone() for name, p in hosted.named_parameters()}
    arguments = TrainingArguments(
        str(folder / "trainer"),
        per_device_train_batch_size=4,
        max_steps=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        label_names=["labels"],
    )
    Trainer(hosted, arguments, train_dataset=rows).train()  # pyright: ignore
    moved = {name for name, p in hosted.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(dict(hosted.named_parameters())[name].requires_grad for name in moved)
