"""A model whose weights stay in its files: equal numbers; None where names or types differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from intarsia.data.mapped_model import INDEX, WEIGHTS, mapped_model

from ..language_models import llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return llama(tmp_path / "llama")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5)[None]).logits


@pytest.mark.parametrize("shards", [1, 3])
def test_it_is_the_model_of_from_pretrained(folder: Path, shards: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    if shards > 1:
        model.save_pretrained(folder, max_shard_size=model.num_parameters() * 4 // shards)
        (folder / WEIGHTS).unlink(missing_ok=True)
        assert (folder / INDEX).is_file()
    mapped = mapped_model(AutoModelForCausalLM, folder)
    assert torch.equal(logits(mapped), logits(model))
    assert not mapped.training and mapped.dtype == model.dtype


def test_it_is_none_where_the_files_are_not_the_model_s(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(iter(tensors))
    for bad in (
        {n: t for n, t in tensors.items() if n != name},
        {**tensors, "another": torch.zeros(1)},
        {**tensors, name: tensors[name].double()},
        {**tensors, name: tensors[name][:-1].clone()},
    ):
        save_file(bad, folder / WEIGHTS)
        assert mapped_model(AutoModelForCausalLM, folder) is None
    (folder / WEIGHTS).write_bytes(b"no weights")
    assert mapped_model(AutoModelForCausalLM, folder) is None
    (folder / WEIGHTS).unlink()
    assert mapped_model(AutoModelForCausalLM, folder) is None
    save_file(tensors, tmp_path / "elsewhere.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {name: "../elsewhere.safetensors"}}))
    assert mapped_model(AutoModelForCausalLM, folder) is None
