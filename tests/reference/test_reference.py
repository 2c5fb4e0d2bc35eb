"""Ours equal the papers' official functions, on outputs that those gave outside this tree."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from intarsia.catalog import cards

from .gradients import followed, gradients
from .recipes import TABLE, records, table

HERE = Path(__file__).parent
TESTS = HERE.parent
FIELDS = {"paper", "methods", "function", "repository", "differs"}
OFFICIAL = FIELDS | {"commit", "path", "ported", "arguments", "ours", "tolerance", "equal"}
WORKED = FIELDS | {"worked"}
RECORDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted(HERE.glob("*.json"))
}
RUN = [name for name, record in RECORDS.items() if record["repository"]]


def ours(name: str) -> Callable[..., dict[str, Tensor]]:
    """Return the function of this reference from the only `ours_*.py` that defines it."""
    modules = (importlib.import_module(f".{path.stem}", __package__) for path in scripts())
    functions = [vars(m)[name] for m in modules if name in vars(m)]
    assert len(functions) == 1, f"{name}: {len(functions)} functions in tests/reference/ours_*.py"
    return functions[0]


def scripts() -> list[Path]:
    return sorted(HERE.glob("ours_*.py"))


def distance(got: Tensor, want: Tensor) -> float:
    """Largest difference as a share of the largest absolute value wanted."""
    assert got.shape == want.shape
    if not want.numel():
        return 0.0
    got, want = got.detach().double(), want.double()
    assert torch.equal(got.isfinite(), want.isfinite())
    got, want = got.nan_to_num(), want.nan_to_num()
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("name", RUN)
def test_ours_equals_the_official_function(name: str) -> None:
    record, tensors = RECORDS[name], load_file(HERE / f"{name}.safetensors")
    inputs = {k.removeprefix("in."): v for k, v in tensors.items() if k.startswith("in.")}
    expected = {k.removeprefix("out."): v for k, v in tensors.items() if k.startswith("out.")}
    assert expected and len(inputs) + len(expected) == len(tensors)
    summed = record.get("gradient_of", ())
    names = [k.removeprefix("grad_") for k in expected if summed and k.startswith("grad_")]
    with followed(inputs, names):
        outputs = ours(name.replace("-", "_"))(inputs, **record["arguments"])
        if summed:
            slopes = gradients(inputs, names, [outputs[key] for key in summed])
            outputs |= {f"grad_{key}": value for key, value in slopes.items()}
    assert outputs.keys() == expected.keys()
    distances = {key: distance(outputs[key], want) for key, want in expected.items()}
    if record["equal"]:
        assert max(distances.values()) <= record["tolerance"], distances
    else:
        assert max(distances.values()) > 1e-4, "equal by now: the record says that it differs"


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_complete(name: str) -> None:
    record = RECORDS[name]
    graded = {"gradient_of", "versions"} & record.keys()
    assert len(graded) != 1, "versions are kept with gradients"
    extra = graded | ({"without_gradients"} & record.keys())
    assert record.keys() - extra == (OFFICIAL if record["repository"] else WORKED)
    assert record["methods"] and {*record["methods"]} <= {card.key for card in cards()}
    if record["repository"]:
        assert record["equal"] or record["differs"]
        assert (HERE / f"{name}.safetensors").stat().st_size < 100_000
        module, _, attribute = record["ours"].rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)
    else:
        path, _, test = record["worked"].partition("::")
        assert f"def {test}(" in (TESTS.parent / path).read_text()


def test_every_file_belongs_to_a_record() -> None:
    assert {path.stem for path in HERE.glob("*.safetensors")} == {*RUN}


def test_a_difference_is_seen() -> None:
    want = torch.tensor([1.0, 2.0])
    assert distance(want, want) == 0 and distance(want * 1.01, want) > 1e-3
    assert distance(torch.tensor([0.0, 2.0]), want) == 0.5


def test_each_stored_output_has_its_recipe() -> None:
    assert [*records()] == RUN
    assert TABLE.read_text() == table(), "call: python -m tests.reference.recipes"
