"""Pictures as tensors: a function of (seed, epoch, position) only."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import combinations
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from intarsia.core.errors import ConfigError
from intarsia.core.seeds import mix
from intarsia.data import (
    ImageSet,
    InputConfig,
    Prepared,
    eval_transform,
    loaders,
    tensors,
    train_transform,
)
from intarsia.train import order
from intarsia.train.order import usable_workers

from ..refusals import refused

Noise = Callable[..., ImageSet]
INPUTS = InputConfig(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


def _light(images: ImageSet, seed: int = 0) -> Prepared:
    return Prepared(images, train_transform(INPUTS, augment="light"), seed=seed)


def _bits(batches: Any) -> list[bytes]:
    return [x.numpy().tobytes() + y.numpy().tobytes() for x, y in batches]


def test_augmentation_differs_between_epochs_and_seeds(noise_set: Noise) -> None:
    images = noise_set(6, size=16)
    prepared = _light(images)
    draws = [
        prepared.drawn(0, 0)[0],
        prepared.drawn(1, 0)[0],
        _light(images, seed=1).drawn(0, 0)[0],
    ]
    assert not any(torch.equal(a, b) for a, b in combinations(draws, 2))
    assert torch.equal(prepared[0][0], draws[0]) and torch.equal(prepared[0][0], prepared[0][0])


def test_the_global_generator_does_not_change(noise_set: Noise) -> None:
    before = torch.get_rng_state()
    _ = [_light(noise_set(8)).drawn(1, i) for i in range(8)]
    assert torch.equal(before, torch.get_rng_state())


def test_no_space_for_workers_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(order.shutil, "disk_usage", lambda _: full)
    with pytest.warns(UserWarning, match="2 worker processes cannot start.*set workers=0"):
        assert usable_workers(2, bytes_ahead=1000) == 0


def test_tensors_equal_the_transform_one_by_one(noise_set: Noise) -> None:
    images, transform = noise_set(9), eval_transform(INPUTS)
    stacked = tensors(images, transform)
    assert isinstance(stacked, TensorDataset) and len(stacked) == 9
    for i in (0, 4, 8):
        x, y = stacked[i]
        assert torch.equal(x, transform(images.image(i))) and int(y) == images.labels[i]


def test_tensors_that_do_not_fit_are_refused(
    noise_set: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = type("Memory", (), {"available": 9 * 3 * 8 * 8 * 4 * 2 - 1})()
    monkeypatch.setattr(loaders.psutil, "virtual_memory", lambda: memory)
    with refused(ConfigError, what="'noise' as tensors of (3, 8, 8)"):
        tensors(noise_set(9), eval_transform(INPUTS))


def test_shared_memory_that_fails_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(self: Tensor) -> Tensor:
        raise RuntimeError("unable to open shared memory object")

    monkeypatch.setattr(Tensor, "share_memory_", fail)
    with pytest.warns(UserWarning, match="unable to open shared memory object"):
        assert usable_workers(2, bytes_ahead=10, shm=tmp_path) == 0


def test_enough_space_keeps_the_workers(tmp_path: Path) -> None:
    assert usable_workers(2, bytes_ahead=10, shm=tmp_path / "not there") == 2


def test_mixed_seeds_do_not_collide() -> None:
    seeds = [mix(s, e, i) for s in range(4) for e in range(4) for i in range(4)]
    assert len(set(seeds)) == 64 and all(0 <= s < 2**63 for s in seeds)
    assert mix(1, 23) != mix(12, 3)


def test_sets_can_be_pickled_for_worker_processes(tmp_path: Path, noise_set: Noise) -> None:
    files = [tmp_path / f"{i}.png" for i in range(4)]
    full = noise_set(4)
    for i, file in enumerate(files):
        full.image(i).save(file)
    lazy = _light(ImageSet("lazy", files, full.labels, full.classes).select([2, 0]))
    unpickled = ForkingPickler.loads(ForkingPickler.dumps(lazy))  # what "spawn" does with it
    assert torch.equal(unpickled.drawn(1, 0)[0], lazy.drawn(1, 0)[0]) and unpickled[0][1] == 2
