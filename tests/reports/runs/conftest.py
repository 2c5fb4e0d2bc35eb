"""Run folders as training writes them, without training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from intarsia.core.sealing import OPEN, seal_file
from intarsia.reports.runs import save_mistakes

HOSTILE = '<script>alert("x")</script>'
CLASSES = ("whole", "crack & chip", HOSTILE, "finger interruption of the fourth kind")
METHODS = {
    # label: (skill, trained without head, seconds)
    "linear probe": (0.45, 0, 21.0),
    "plain adapter": (0.75, 152_832, 38.0),
    "mosa": (1.0, 153_216, 39.5),
}


def picture(index: int) -> Image.Image:
    """A cell-like grey picture, another one for every index."""
    generator = np.random.default_rng(index)
    x, y = np.meshgrid(np.linspace(0, 6, 60), np.linspace(0, 6, 50))
    grey = 120 + 60 * np.cos(x * (1 + index % 3)) * np.cos(y) + generator.normal(0, 9, x.shape)
    return Image.fromarray(grey.clip(0, 255).astype("uint8"))


def predictions(skill: float, seed: int, n: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, 4) that are right more often the larger `skill` is, and labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([0.45, 0.25, 0.2, 0.1])
    labels = torch.multinomial(weights, n, replacement=True, generator=generator)
    logits = torch.randn(n, 4, generator=generator)
    logits[torch.arange(n), labels] += 2.4 * skill
    return logits, labels


def lines(skill: float, seed: int, epochs: int = 8, steps: int = 5) -> list[dict[str, Any]]:
    """metrics.jsonl of a run that learns."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for step in range(1, epochs * steps + 1):
        epoch = -(-step // steps)
        learned = skill * (1 - math.exp(-step / (2 * steps)))
        noise = float(generator.normal(0, 0.02))
        common = {"step": step, "epoch": epoch, "seconds": step * 0.8}
        train = {"lr": 1e-3 * (1 - step / (epochs * steps)), "loss": 1.4 - learned + noise}
        rows.append(common | {"split": "train", "accuracy": 0.4 + learned * 0.5 + noise} | train)
        if step % steps == 0:
            val = {"loss": 1.5 - learned * 0.9 + noise, "accuracy": 0.38 + learned * 0.42 + noise}
            rows.append(common | {"split": "val", "balanced_accuracy": val["accuracy"]} | val)
    return rows


def record(label: str, seed: int, accuracy: float) -> dict[str, Any]:
    """run.json as intarsia.fit writes it."""
    skill, trained, seconds = METHODS.get(label, (0.5, 1_000, 30.0))
    adapter = {"method": label, "options": {"bottleneck": 16}, "target_modules": ["mlp"]}
    return {
        "command": ["/somewhere/bin/intarsia", "compare", "elpv", "--seeds", "3"],
        "started": f"2026-01-02T03:{list(METHODS).index(label) if label in METHODS else 9:02d}:"
        f"{seed:02d}+00:00",
        "method": {
            "host": "VisionTransformer",
            "adapters": {"default": adapter} if trained else {},
        },
        "parameters": {
            "all": 22_058_116 + trained,
            "trained": trained + 1_540,
            "trained_without_head": trained,
        },
        "objective": "plain",
        "training": {"epochs": 8, "batch_size": 32, "lr": 1e-3, "warmup": 0.1, "seed": seed},
        "recipe": {"optimizer": "adamw", "select": "last", "mixup": 0.0},
        "running": {"out": "/somewhere/runs"},
        "data": {
            part: {"n": n, "sha256": f"{part}{seed}".encode().hex().ljust(64, "0"),
                   "classes": list(CLASSES)}
            for part, n in {"train": 1000, "val": 150, "test": 160}.items()
        },
        "machine": {"system": "Linux", "processor": "Some CPU", "cores": 2, "accelerators": []},
        "versions": {"python": "3.11.9", "intarsia": "0.1.0", "torch": "2.13.0"},
        "record": {"label": label, "model": "vit_small_patch14_dinov2", "data": "elpv"},
        "results": {
            "val": {"loss": 0.7, "accuracy": 0.7, "balanced_accuracy": 0.68},
            "test": {"loss": 0.71, "accuracy": accuracy, "balanced_accuracy": accuracy - 0.02},
            "selection": {"rule": "last", "epoch": 8, "disjoint_from_train": None},
            "steps": 40,
            "seconds": seconds + seed * 0.7,
            "cpu_seconds": 2 * seconds,
            "peak_bytes": {"resident": 900_000_000 + 5 * trained},
        },
    }  # fmt: skip


def write_run(
    folder: Path, label: str = "mosa", seed: int = 0, change: Mapping[str, Any] | None = None
) -> Path:
    """A whole run folder; `change` replaces values of run.json by dotted path (None deletes)."""
    folder.mkdir(parents=True)
    skill = METHODS.get(label, (0.5, 0, 0))[0]
    logits, labels = predictions(skill, seed)
    run_record = record(label, seed, float((logits.argmax(1) == labels).float().mean()))
    for path_of_key, value in (change or {}).items():
        *path, last = path_of_key.split(".")
        place = run_record
        for name in path:
            place = place[name]
        if value is None:
            del place[last]
        else:
            place[last] = value
    (folder / "run.json").write_text(json.dumps(run_record))
    text = "".join(f"{json.dumps(line)}\n" for line in lines(skill, seed))
    (folder / "metrics.jsonl").write_text(text)
    items = torch.arange(len(labels)) + 80 * seed  # half of a part is in the next seed's, too
    tensors = {"logits": logits, "labels": labels, "items": items}
    save_file(tensors, folder / "predictions.safetensors", metadata={"split": "test", **OPEN})
    seal_file(folder / "predictions.safetensors")
    save_mistakes(folder, picture, logits, labels, CLASSES, k=6)
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods, three seeds each."""
    root = tmp_path_factory.mktemp("runs")
    for label in METHODS:
        for seed in range(3):
            write_run(root / f"{label}-{seed}", label, seed)
    return root


@pytest.fixture(scope="session")
def classes() -> tuple[str, ...]:
    """Class names, one of them hostile."""
    return CLASSES


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """write_run below this test's folder."""

    def make(name: str = "run", **options: Any) -> Path:
        return write_run(tmp_path / name, **options)

    return make
