"""A trace is kept as it was, is counted as a loop would, and says what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from intarsia.core.errors import ConfigError, DataError
from intarsia.core.sealing import OPEN, seal_file
from intarsia.placement import Trace
from intarsia.placement.describe import demand, describe_layers
from intarsia.placement.trace import FORMAT

from ..refusals import refused
from .traces import random_trace


@pytest.mark.parametrize("experts", [8, 254, 255, 300])
def test_a_trace_comes_back_from_its_file(tmp_path: Path, experts: int) -> None:
    trace = random_trace(experts=experts)
    trace.expert[::5, 1, 1] = -1
    trace = replace(trace, weight=trace.weight.half().float(), names=("a", "b", "c"))  # pyright: ignore
    trace = replace(trace, about={"model": "Toy", "width": "8"})
    again = Trace.load_file(trace.save(tmp_path / "t.safetensors"))
    for name in ("expert", "sequence", "position", "weight", "token"):
        assert torch.equal(getattr(again, name), getattr(trace, name)), name
    assert (again.experts, again.names, again.about) == (experts, trace.names, trace.about)


def test_counts_are_those_of_a_loop() -> None:
    trace = random_trace()
    trace.expert[3, :, 1] = trace.expert[10, 2, 0] = -1
    load = torch.zeros(trace.layers, trace.experts, dtype=torch.int64)
    ways = torch.zeros(trace.experts, trace.experts, dtype=torch.float64)
    both = torch.zeros(trace.experts, trace.experts, dtype=torch.int64)
    for row in trace.expert.tolist():
        experts = [[e for e in layer if e >= 0] for layer in row]
        for layer, some in enumerate(experts):
            for expert in some:
                load[layer, expert] += 1
        for a in experts[1]:
            for b in experts[2]:
                ways[a, b] += 1 / len(experts[1]) / len(experts[2])
            for b in experts[1]:
                both[a, b] += 1
    assert torch.equal(trace.load(), load)
    assert_close(trace.transitions(1), ways, rtol=0, atol=1e-12)
    assert torch.equal(trace.coactivation(1), both)
    assert torch.equal(trace.routing(2).load(), load[2])
    assert_close(float(trace.routing(0).weight.sum()), float(trace.routing(0).weight.sum()))


def test_without_weights_experts_share_alike() -> None:
    trace = replace(random_trace(), weight=None)
    assert_close(trace.routing(0).dense().sum(1), torch.ones(len(trace)))


@pytest.mark.parametrize("streams", [1, 4, 50])
def test_every_token_is_decoded_once(streams: int) -> None:
    trace = random_trace(tokens=60, length=7)  # the last sequence is shorter
    steps = list(trace.steps(streams))
    assert torch.cat(steps).sort().values.tolist() == list(range(60))
    assert max(map(len, steps)) == min(streams, 9)
    for rows in steps:
        assert trace.sequence[rows].unique().numel() == len(rows)
    demanded = demand(trace, streams)
    assert all(len(set(step)) == len(step) for step in demanded)
    assert demanded[0] == sorted(demanded[0])


def test_a_split_is_of_whole_sequences() -> None:
    first, second = random_trace().split(0.4, seed=3)
    assert not set(first.sequence.tolist()) & set(second.sequence.tolist())
    assert len(first) + len(second) == 60
    with refused(ConfigError, what="split of a trace"):
        random_trace(tokens=5).split()


def test_a_description_knows_repetition() -> None:
    repeated = random_trace()
    repeated.expert[:] = repeated.expert[:1]
    rows = describe_layers(repeated)
    assert [row["repeats"] for row in rows] == [1.0] * 3
    assert rows[0]["largest_share"] == 0.5


@pytest.mark.parametrize(
    ("change", "want"),
    [
        (lambda t: {"expert": t.expert.clone().fill_(8)}, "experts below 8"),
        (
            lambda t: {"sequence": t.sequence.flip(0)},
            "sequences in order, and positions in order inside each",
        ),
        (
            lambda t: {"position": t.position * 0},
            "sequences in order, and positions in order inside each",
        ),
        (lambda t: {"expert": t.expert.long() + 2**16}, "experts below 8"),
        (lambda t: {"token": t.token[1:]}, "60, one for each token"),
        (lambda t: {"token": t.token[:, None]}, "60, one for each token"),
        (lambda t: {"sequence": torch.tensor(0)}, "60, one for each token"),
        (lambda t: {"weight": t.weight[:, :, :1]}, "60 x 3 x 2, one for each token"),
        (lambda t: {"expert": t.expert[:0]}, "(tokens, layers, k), none of them 0"),
        (lambda t: {"expert": t.expert[:, 0]}, "(tokens, layers, k), none of them 0"),
    ],
)
def test_what_is_no_trace_is_refused(change, want: str) -> None:  # pyright: ignore
    trace = random_trace()
    with refused(DataError, want=want):
        replace(trace, **change(trace))


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    for write in (
        lambda: file.write_bytes(b"no"),
        lambda: save_file({"w": torch.zeros(2)}, file),
        lambda: save_file({"expert": torch.zeros(2, 1, 1, dtype=torch.uint8)}, file),
        lambda: save_file({"expert": torch.zeros(2, 1, 1)}, file, metadata={"experts": "4"}),
    ):
        write()
        with pytest.raises(DataError, match=re.escape("intarsia trace")):
            Trace.load_file(file)
    for extra in ({}, {"experts": "4"}):  # as if `save` had written it
        expert = {"expert": torch.zeros(2, 1, 1, dtype=torch.uint8 if extra else torch.float32)}
        save_file(expert, file, metadata={"format": FORMAT, **extra, **OPEN})
        seal_file(file)
        with pytest.raises(DataError, match=re.escape("intarsia trace")):
            Trace.load_file(file)
    with pytest.raises(DataError, match="intarsia trace"):
        Trace.load_file(tmp_path)
