"""Rows that are spread over processes give the parameters of all rows in one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from numpy.testing import assert_allclose

from intarsia.areas.coding import BSC, DSC, GSC, MCA, MMCA, TSC
from intarsia.core.errors import ConfigError
from intarsia.train import DataShards

from ...refusals import refused

KINDS = {"bsc": BSC, "tsc": TSC, "dsc": DSC, "mca": MCA, "mmca": MMCA, "gsc": GSC}
KINDS |= {"gsc_full": partial(GSC, slab="full")}


class Exchange:
    """Stand-in for `intarsia.train.DataShards` between threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._barrier = threading.Barrier(count)
        self._given: dict[int, Any] = {}
        self._own = threading.local()

    def enter(self, rank: int) -> None:
        self._own.rank = rank

    def _all(self, array: Any) -> list[Any]:
        self._given[self._own.rank] = array
        self._barrier.wait()
        arrays = [self._given[rank] for rank in range(self.count)]
        self._barrier.wait()
        return arrays

    def sum(self, array: Any) -> Any:
        return np.sum(self._all(array), axis=0)

    def gather(self, rows: Any) -> Any:
        return np.concatenate(self._all(rows))


def rows(missing: bool) -> Any:
    random = np.random.default_rng(0)
    x = np.abs((random.random((61, 5)) < 0.3) @ random.normal(size=(5, 6)) * 3)
    x += 0.3 * random.random(x.shape)
    if missing:
        x[3, 2] = x[40, 0] = np.nan
    return x


def model(name: str) -> Any:
    return KINDS[name](5, n_candidates=4, max_active=2, n_iter=9, random_state=0)


PARTS = {2: (slice(0, 20), slice(20, 61)), 4: tuple(slice(k, None, 4) for k in range(4))}
PARAMETERS = ("components_", "noise_variance_", "prior_", "usage_", "evidences_")


@pytest.mark.parametrize("count", PARTS)
@pytest.mark.parametrize("name", KINDS)
def test_shards_give_the_parameters_of_all_rows(name: str, count: int) -> None:
    """Shards have odd sizes, and a value is missing on some of them only."""
    x = rows(missing=True)
    alone = model(name).fit(x)
    exchange = Exchange(count)

    def one(rank: int) -> Any:
        exchange.enter(rank)
        return model(name).fit(x[PARTS[count][rank]], shards=exchange)

    with ThreadPoolExecutor(count) as pool:
        for fitted in pool.map(one, range(count)):
            for parameter in PARAMETERS:
                got, want = getattr(fitted, parameter), getattr(alone, parameter)
                assert_allclose(got, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["bsc", "mca"])
def test_a_shard_whose_rows_are_all_left_out_takes_part(name: str) -> None:
    """The data cut leaves out those of one process, which lie far from all others."""
    random = np.random.default_rng(0)
    x = np.abs((random.random((60, 5)) < 0.5) @ random.normal(size=(5, 6)) * 3)
    x[:3] = 200 + 100 * random.random((3, 6))
    settings = {
        "n_candidates": 4,
        "max_active": 1,
        "n_iter": 30,
        "reseed": False,
        "random_state": 0,
    }
    alone, exchange = KINDS[name](5, **settings).fit(x), Exchange(2)

    def one(rank: int) -> Any:
        exchange.enter(rank)
        return KINDS[name](5, **settings).fit((x[:3], x[3:])[rank], shards=exchange)

    with ThreadPoolExecutor(2) as pool:
        for fitted in pool.map(one, range(2)):
            assert_allclose(fitted.components_, alone.components_, rtol=1e-8, atol=1e-8)


def test_shards_need_one_seed() -> None:
    with refused(ConfigError, what="random_state", got=None):
        BSC(2).fit(rows(False), shards=Exchange(2))


def _worker(rank: int, port: int, folder: str) -> None:
    import os

    torch.set_num_threads(1)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    os.environ |= environment | {"RANK": str(rank), "WORLD_SIZE": "2"}
    fitted = model("gsc").fit(rows(False)[rank::2], shards=DataShards())
    np.save(f"{folder}/{rank}.npy", fitted.components_)


@pytest.mark.slow
def test_processes_give_the_parameters_of_all_rows(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, args=(port, str(tmp_path)), nprocs=2)  # pyright: ignore
    alone = model("gsc").fit(rows(False)).components_
    for rank in range(2):
        assert_allclose(np.load(tmp_path / f"{rank}.npy"), alone, rtol=1e-8, atol=1e-8)
