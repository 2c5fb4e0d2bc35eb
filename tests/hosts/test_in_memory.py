"""Weights that are served do not change with their file, and what is no number is told."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import intarsia
from intarsia.core.errors import CheckpointError, ConfigError, DataError
from intarsia.decode.decoding import generate
from intarsia.hosts.in_memory import hold, is_finite, is_number
from intarsia.serve.models import ServedModel, open_models

from ..refusals import refused
from ..serve.conftest import Running, folders, mixture, opened, wanted

__all__ = ["folders", "opened"]


def copied(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place))


def test_weights_that_change_on_the_disk_change_no_answer(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    mix = copied(folders["mix"], tmp_path / "mix")
    med = copied(folders["med"], tmp_path / "med")
    served = open_models({"mix": str(mix)}, {"med": med})
    want = {name: wanted(served[name], "one") for name in ("mix", "med")}
    for folder in (mix, med):
        for file in folder.glob("*.safetensors"):
            with file.open("r+b") as out:  # in place: mapped pages change, too
                out.write(bytes(file.stat().st_size))
    assert {name: wanted(served[name], "one") for name in ("mix", "med")} == want
    if sys.platform == "linux":  # a file that becomes shorter would end the process
        maps = Path("/proc/self/maps").read_text("utf-8")
        weights = {w.data_ptr() for m in served.values() for w in m.model.parameters()}
        for first, last in re.findall(rf"(\w+)-(\w+) .*{re.escape(str(tmp_path))}", maps):
            assert not any(int(first, 16) <= address < int(last, 16) for address in weights)


def test_what_shares_memory_shares_it_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intarsia.hosts.in_memory.mapped_ranges", lambda: None)  # all are copied
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    first, second, third = (module for module in model.values())
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    assert isinstance(third, nn.Linear)
    second.weight = first.weight
    third.weight = nn.Parameter(first.weight.data)
    weight, address, value = first.weight, first.weight.data_ptr(), first.weight.detach().clone()
    hold(model, "three")
    assert first.weight is weight is second.weight and torch.equal(weight, value)
    assert third.weight.data_ptr() == weight.data_ptr() != address


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_that_is_no_number_is_not_served(value: float, dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 4, dtype=dtype)
    layer.register_buffer("mask", torch.full((2,), -torch.inf))
    hold(layer, "fine")
    with torch.no_grad():
        layer.weight[1, 2] = value
    with refused(CheckpointError, what="model 'x'", got="NaN or infinity in weight"):
        hold(layer, "x")
    assert not is_finite(layer.weight) and is_finite(layer.bias)


def test_logits_may_exclude_tokens_but_not_be_nan() -> None:
    assert is_number(torch.tensor([1.0, -torch.inf]))
    for wrong in (torch.nan, torch.inf):
        assert not is_number(torch.tensor([[1.0, wrong]]))
    assert not is_number(torch.full((3,), -torch.inf))


def test_generate_refuses_a_model_whose_logits_are_nan() -> None:
    model: Any = mixture()
    with torch.no_grad():
        model.lm_head.weight[5, 0] = torch.nan
    with refused(DataError, what="logits"):
        generate(model, torch.tensor([[1, 2]]), 3)


def test_generate_refuses_more_tokens_than_there_are_positions() -> None:
    for tokens in (255, 10**12):
        with refused(ConfigError, what="tokens"):
            generate(mixture(), torch.tensor([[1, 2]]), tokens)


def test_a_weight_that_is_nan_is_not_packed() -> None:
    model: Any = mixture()
    layer = model.model.layers[1].self_attn.q_proj
    with torch.no_grad():
        layer.weight[5, 0] = torch.nan
    with refused(DataError, what="weight of model.layers.1.self_attn.q_proj"):
        intarsia.compress(model, "bitmask", force=True)


@pytest.mark.parametrize("batching", ["continuous", "none"])
def test_answers_of_nan_are_500_and_others_go_on(
    folders: dict[str, Path], opened: dict[str, ServedModel], batching: str
) -> None:
    models = {**open_models({"mix": str(folders["mix"])}), "med": opened["med"]}
    with torch.no_grad():
        models["mix"].model.lm_head.weight[5] = torch.nan
    running = Running(models, batching=batching)
    try:
        for options in ({}, {"temperature": 1.0}, {"logprobs": 2}):
            status, answer = running.say("one", **options)
            assert status == 500 and "not finite" in answer["error"]["message"]
        assert "not finite" in running.say("one", stream=True)[1]
        assert running.say("one", "med")[0] == 200 and running.ask("/health")[0] == 200
    finally:
        running.end()
