"""Batches are a function of (seed, epoch): of no worker, no resume, no global generator."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import combinations, islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from intarsia.core.errors import ConfigError
from intarsia.data import (
    ImageSet,
    InputConfig,
    Prepared,
    eval_transform,
    loader,
    loaders,
    seek,
    tensors,
    train_transform,
)
from intarsia.data.loaders import EpochSampler, default_workers, mix, usable_workers

Noise = Callable[..., ImageSet]
INPUTS = InputConfig(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


def _light(images: ImageSet, seed: int = 0) -> Prepared:
    return Prepared(images, train_transform(INPUTS, augment="light"), seed=seed)


def _bits(batches: Any) -> list[bytes]:
    return [x.numpy().tobytes() + y.numpy().tobytes() for x, y in batches]


@given(st.integers(1, 40), st.integers(0, 3), st.integers(0, 3))
def test_every_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    sampler = EpochSampler(n, seed=seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(n)) and len(sampler) == n
    assert order == list(sampler)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 3))
def test_starting_late_gives_the_tail(n: int, start: int, epoch: int) -> None:
    sampler = EpochSampler(n, seed=1)
    sampler.set_epoch(epoch)
    whole = list(sampler)
    sampler.seek(epoch, min(start, n))
    assert list(sampler) == whole[start:] and len(sampler) == max(0, n - start)
    sampler.set_epoch(epoch)  # as accelerate does: the place stays
    assert list(sampler) == whole[start:]
    sampler.set_epoch(epoch + 1)
    assert len(list(sampler)) == n


def test_seeds_and_epochs_give_other_orders() -> None:
    orders = set()
    for seed in (0, 1):
        sampler = EpochSampler(30, seed=seed)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 4


@pytest.mark.parametrize("augment", [False, True])
def test_a_resumed_pass_has_the_same_bits(noise_set: Noise, augment: bool) -> None:
    images = noise_set(22)
    data = _light(images) if augment else tensors(images, eval_transform(INPUTS))
    whole = loader(data, batch=4, seed=3, shuffle=True)
    seek(whole, epoch=2)
    want = _bits(whole)
    for batch in (0, 3, 5, 6):
        torch.manual_seed(batch)  # another global state must not matter
        fresh = loader(data, batch=4, seed=3, shuffle=True)
        seek(fresh, epoch=2, batch=batch)
        assert _bits(fresh) == want[batch:]


def test_workers_change_nothing(noise_set: Noise) -> None:
    data = _light(noise_set(12))
    alone = loader(data, batch=4, seed=0, shuffle=True, workers=0)
    helped = loader(data, batch=4, seed=0, shuffle=True, workers=2)
    for epoch in (0, 1):
        seek(alone, epoch=epoch)
        seek(helped, epoch=epoch)
        assert _bits(alone) == _bits(helped)


def test_augmentation_differs_between_epochs_and_seeds(noise_set: Noise) -> None:
    images = noise_set(6, size=16)
    one = _light(images)
    draws = [one[0, 0][0], one[1, 0][0], _light(images, seed=1)[0, 0][0]]
    assert not any(torch.equal(a, b) for a, b in combinations(draws, 2))
    assert torch.equal(one[0, 0][0], one[0, 0][0]) and torch.equal(one[0][0], one[0, 0][0])


def test_the_global_generator_is_left_alone(noise_set: Noise) -> None:
    before = torch.get_rng_state()
    list(loader(_light(noise_set(8)), batch=4, shuffle=True))
    assert torch.equal(before, torch.get_rng_state())


def test_without_shuffling_the_order_is_the_sets(noise_set: Noise) -> None:
    images = noise_set(7)
    labels = [y for _, ys in loader(_light(images), batch=3) for y in ys.tolist()]
    assert labels == images.labels.tolist()
    assert len(loader(_light(images), batch=3, drop_last=True)) == 2


def test_accelerate_drives_the_epochs(noise_set: Noise) -> None:
    accelerate = pytest.importorskip("accelerate")
    data = tensors(noise_set(12), eval_transform(INPUTS))
    plain = loader(data, batch=4, seed=5, shuffle=True)
    want = []
    for epoch in (0, 1):
        seek(plain, epoch=epoch)
        want.append(_bits(plain))
    assert want[0] != want[1]
    ready = accelerate.Accelerator(cpu=True).prepare_data_loader(
        loader(data, batch=4, seed=5, shuffle=True)
    )
    assert [_bits(ready), _bits(ready)] == want
    ready.set_epoch(1)
    assert _bits(accelerate.skip_first_batches(ready, 2)) == want[1][2:]


def test_tensors_equal_the_transform_one_by_one(noise_set: Noise) -> None:
    images, transform = noise_set(9), eval_transform(INPUTS)
    held = tensors(images, transform)
    assert isinstance(held, TensorDataset) and len(held) == 9
    for i in (0, 4, 8):
        x, y = held[i]
        assert torch.equal(x, transform(images.image(i))) and int(y) == images.labels[i]


def test_tensors_that_do_not_fit_are_refused(
    noise_set: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = type("Memory", (), {"available": 9 * 3 * 8 * 8 * 4 * 2 - 1})()
    monkeypatch.setattr(loaders.psutil, "virtual_memory", lambda: memory)
    with pytest.raises(ConfigError, match="Prepared"):
        tensors(noise_set(9), eval_transform(INPUTS))


@pytest.mark.parametrize("options", [{"batch": 0}, {"batch": 2, "workers": -1}], ids=str)
def test_impossible_loaders(noise_set: Noise, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        loader(_light(noise_set(4)), **options)


def test_an_empty_set_gives_no_loader() -> None:
    with pytest.raises(ConfigError, match="0 images"):
        loader(TensorDataset(torch.zeros(0, 3)), batch=2)


def test_seeking_in_a_foreign_loader(noise_set: Noise) -> None:
    data = tensors(noise_set(4), eval_transform(INPUTS))
    with pytest.raises(ConfigError, match="SequentialSampler"):
        seek(DataLoader(data, batch_size=2), epoch=0)


@pytest.mark.parametrize(("epoch", "batch"), [(-1, 0), (0, -1)])
def test_seeking_before_the_start(noise_set: Noise, epoch: int, batch: int) -> None:
    with pytest.raises(ConfigError, match="epoch >= 0"):
        seek(loader(_light(noise_set(4)), batch=2), epoch=epoch, batch=batch)


def test_no_space_for_workers_is_a_warning_and_goes_on(
    noise_set: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(loaders.shutil, "disk_usage", lambda _: full)
    with pytest.warns(UserWarning, match="2 worker processes cannot start.*set workers=0"):
        batches = loader(_light(noise_set(4)), batch=2, workers=2)
    assert batches.num_workers == 0 and len(list(batches)) == 2


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


@pytest.mark.parametrize(("cores", "count"), [(1, 0), (4, 0), (8, 4), (64, 8)])
def test_workers_by_default(
    noise_set: Noise, monkeypatch: pytest.MonkeyPatch, cores: int, count: int
) -> None:
    monkeypatch.setattr(loaders.os, "sched_getaffinity", lambda _: range(cores), raising=False)
    assert default_workers(_light(noise_set(3))) == count
    assert default_workers(TensorDataset(torch.zeros(2))) == 0


def test_mixed_seeds_do_not_collide() -> None:
    seeds = [mix(s, e, i) for s in range(4) for e in range(4) for i in range(4)]
    assert len(set(seeds)) == 64 and all(0 <= s < 2**63 for s in seeds)
    assert mix(1, 23) != mix(12, 3)


def test_everything_can_go_to_another_process(tmp_path: Path, noise_set: Noise) -> None:
    files = [tmp_path / f"{i}.png" for i in range(4)]
    full = noise_set(4)
    for i, file in enumerate(files):
        full.image(i).save(file)
    lazy = _light(ImageSet("lazy", files, full.labels, full.classes).select([2, 0]))
    there = ForkingPickler.loads(ForkingPickler.dumps(lazy))  # what "spawn" does with it
    assert torch.equal(there[1, 0][0], lazy[1, 0][0]) and there[0][1] == 2


def test_a_long_pass_can_be_left_early(noise_set: Noise) -> None:
    batches = loader(_light(noise_set(8)), batch=2, shuffle=True)
    first = _bits(islice(batches, 1))
    assert _bits(batches)[:1] == first
