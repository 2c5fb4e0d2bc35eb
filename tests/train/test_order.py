"""The order of the data is a function of seed and epoch, and nothing else."""

from __future__ import annotations

import multiprocessing
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import host, pictures
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from intarsia.core.errors import ConfigError, DataError, TrainingError
from intarsia.data.images import ImageSet
from intarsia.data.loaders import Prepared
from intarsia.data.transforms import InputConfig, train_transform
from intarsia.fitting import fit
from intarsia.train import order
from intarsia.train.order import Order, Reader, labels_of, read
from intarsia.train.randomness import global_state, seed_all, set_global_state
from intarsia.train.record import data_of, shared_samples

from ..refusals import refused

counts = st.integers(1, 50)


@given(counts, st.integers(1, 6), st.integers(1, 4), st.integers(0, 3))
def test_an_epoch_is_a_permutation_in_equal_shares(
    count: int, size: int, shares: int, epoch: int
) -> None:
    count = max(count, shares)
    plan = Order(count, size * shares, seed=1, shares=shares)
    batches = list(plan.epoch(epoch))
    assert len(batches) == plan.steps
    indices = [i for batch in batches for i in batch]
    assert len(indices) == len(set(indices)) and set(indices) <= set(range(count))
    assert count - len(indices) < shares
    for batch in batches:
        parts = [plan.part(batch, share) for share in range(shares)]
        assert len({len(part) for part in parts}) == 1
        assert tuple(i for part in parts for i in part) == batch


@given(counts, st.integers(1, 9), st.integers(0, 5), st.integers(0, 8))
def test_an_epoch_can_begin_at_any_batch(count: int, size: int, epoch: int, first: int) -> None:
    plan = Order(count, size, seed=2)
    assert list(plan.epoch(epoch, first)) == list(plan.epoch(epoch))[first:]


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(Order(30, 30, seed).epoch(e)) for seed in (0, 1) for e in (0, 1)}
    assert len(orders) == 4


def test_a_batch_that_cannot_be_shared_out_is_an_error() -> None:
    with refused(ConfigError, what="batch_size", got=8):
        Order(20, 8, seed=0, shares=3)
    with refused(DataError, what="training images", got=2):
        Order(2, 3, seed=0, shares=3)


class Noise(Dataset[tuple[Tensor, int]]):
    """Every generator there is."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draws = [torch.rand(()).item(), random.random(), float(np.random.rand())]
        return torch.tensor([float(index), *draws]), index % 2


def test_what_a_picture_looks_like_depends_on_seed_epoch_and_place_only() -> None:
    reader = Reader(Noise(), seed=0)
    before = global_state()
    x, y = reader[(2, (7, 3, 4))]
    after = global_state()
    assert torch.equal(before["torch"], after["torch"]) and before["python"] == after["python"]
    torch.rand(3)
    assert torch.equal(reader[(2, (3,))][0][0], x[1])
    assert y.tolist() == [1, 1, 0]
    assert len({x[0, 1].item(), reader[(1, (7,))][0][0, 1].item(), x[1, 1].item()}) == 3
    assert not torch.equal(Reader(Noise(), seed=1)[(2, (7,))][0][0], x[0])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_read_the_same() -> None:
    reader = Reader(Noise(), seed=0)
    keys = [(0, (1, 2)), (0, (5,)), (1, (1, 2))]
    state = torch.get_rng_state()
    alone, by_workers = list(read(reader, keys, 0)), list(read(reader, keys, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(alone) == 3
    for (x, y), (a, b) in zip(alone, by_workers, strict=True):
        assert torch.equal(x, a) and torch.equal(y, b)


class Broken(Noise):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if torch.utils.data.get_worker_info() is not None:
            raise OSError(28, "No space left on device")
        return super().__getitem__(index)


def test_workers_without_room_are_an_error_that_names_the_way_out() -> None:
    with refused(TrainingError, what="1 workers that read data"):
        list(read(Reader(Broken(), seed=0), [(0, (1,))], 1))


class Wrong(Noise):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 3:
            raise KeyError("no such picture")
        return super().__getitem__(index)


def test_a_fault_of_the_dataset_is_not_hidden() -> None:
    for workers in (0, 1):
        with pytest.raises(KeyError, match="no such picture"):
            list(read(Reader(Wrong(), seed=0), [(0, (1,)), (0, (3,))], workers))


def test_no_worker_is_left_while_an_error_is_looked_at() -> None:
    """A notebook keeps the last error, and with it all that its frames hold."""
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyError) as raised:
        list(read(Reader(Wrong(), seed=0), [(0, (1,)), (0, (3,))], 1))
    assert raised.traceback and set(multiprocessing.active_children()) <= before


def image_set(name: str, count: int, seed: int) -> ImageSet:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    labels = np.arange(count) % 3
    digests = tuple(f"{name}{i}" for i in range(count))
    return ImageSet(name, images, labels, ("a", "b", "c"), digests=digests)


def prepared(name: str = "x", count: int = 12) -> Prepared:
    config = InputConfig(size=(4, 4), mean=(0.5,) * 3, std=(0.25,) * 3)
    return Prepared(image_set(name, count, 0), train_transform(config, augment="light"))


def test_prepared_pictures_are_augmented_anew_each_epoch() -> None:
    reader = Reader(prepared(), seed=0)
    first, again, later = (reader[(e, (5, 1))][0] for e in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, later)
    subset = Reader(Subset(prepared(), [1, 5]), seed=0)
    assert torch.equal(subset[(0, (1, 0))][0], first)
    fit(host(), prepared(), epochs=1, batch_size=4)


def test_pictures_without_a_transform_are_an_error() -> None:
    class Raw(Dataset[Any]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("RGB", (4 + index, 4)), 0

    with refused(DataError, what="a batch of images"):
        Reader(Raw(), seed=0)[(0, (0, 1))]
    ragged = [(torch.zeros(3, 4, 4), 0), (torch.zeros(3, 5, 4), 1)]
    with refused(DataError, what="a batch of images"):
        Reader(ragged, seed=0)[(0, (0, 1))]  # pyright: ignore


def test_labels_are_found_without_reading_pictures() -> None:
    data = pictures(9)
    y = data.tensors[1].numpy()
    assert np.array_equal(labels_of(data), y)  # pyright: ignore
    assert np.array_equal(labels_of(Subset(data, [4, 2])), y[[4, 2]])  # pyright: ignore
    assert np.array_equal(labels_of(prepared()), np.arange(12) % 3)  # pyright: ignore
    assert labels_of(Noise()) is None
    assert labels_of(Subset(Noise(), [1])) is None


def test_fingerprints_tell_sets_apart() -> None:
    data, changed = pictures(9), pictures(9)
    changed.tensors[0][3, 0, 0, 0] += 1
    relabelled = TensorDataset(data.tensors[0], data.tensors[1].flip(0))
    sets = [
        data, changed, relabelled, Subset(data, [1, 2]), Subset(data, [2, 1]), prepared("x"),
        prepared("y"), Noise(),
    ]  # fmt: skip
    assert len({data_of(s)["sha256"] for s in sets}) == len(sets)
    assert data_of(pictures(9)) == data_of(data)
    assert data_of(Subset(prepared(), [0]))["classes"] == ["a", "b", "c"]
    assert data_of(ConcatDataset([data]))["n"] == 9


def test_shared_samples_are_counted_where_they_can_be() -> None:
    data = pictures(9)
    x, y = data.tensors
    assert shared_samples(data, data) == 9
    assert shared_samples(data, TensorDataset(x[7:], y[7:])) == 2
    assert shared_samples(Subset(data, [0, 1]), Subset(data, [1, 2])) == 1
    assert shared_samples(Subset(data, [0, 1]), Subset(data, [2])) == 0
    assert shared_samples(data, Subset(data, [3])) == 1
    noise = Noise()
    assert shared_samples(Subset(noise, [0, 1]), Subset(noise, [1])) == 1
    assert shared_samples(Subset(noise, [0, 1]), Subset(Noise(), [1])) is None
    assert shared_samples(prepared("x"), prepared("x", 6)) == 6
    assert shared_samples(prepared("x"), prepared("y")) == 0
    assert shared_samples(noise, data) is None


def test_global_generators_go_back() -> None:
    seed_all(3)
    state = global_state()
    first = (random.random(), np.random.randn(), torch.rand(1).item())
    set_global_state(state)
    assert first == (random.random(), np.random.randn(), torch.rand(1).item())
    assert order.size_of(pictures(3)) == 3
