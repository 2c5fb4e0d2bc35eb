"""`intarsia export --format gguf`: folders of models, of adapters, packed ones, and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import intarsia as library
from intarsia.data.language_models import language_model

from ..language_models import llama
from .conftest import Intarsia

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama."""
    sizes = {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    return llama(tmp_path_factory.mktemp("model"), ("t", "h"), ("th", "e"), **sizes)


@pytest.fixture(scope="module")
def run(intarsia: Intarsia, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that was trained on a text."""
    folder = tmp_path_factory.mktemp("run")
    text = folder / "text.txt"
    text.write_text("".join(f"Line {i} of the text, which says {i * i}.\n" for i in range(60)))
    out = folder / "run"
    result = intarsia(
        "fit", text, "--model", model, "--method", "lora", "--epochs", "1", "--batch-size", "8",
        "--lr", "1e-2", "--length", "64", "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.err
    return out


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).copy() for t in reader.tensors}
    return {name: f.contents() for name, f in reader.fields.items()}, tensors


def test_a_folder_and_a_packed_one(intarsia: Intarsia, model: Path, tmp_path: Path) -> None:
    result = intarsia(
        "export", model, "--format", "gguf", "--quant", "q8_0", "--out", tmp_path / "m.gguf",
        "--json",
    )  # fmt: skip
    assert result.code == 0 and result.json["format"] == "gguf", result.err
    assert "Q8_0" in result.json["checks"][0]
    assert read(tmp_path / "m.gguf")[0]["general.file_type"] == 7
    packed = tmp_path / "packed"
    assert not intarsia("compress", model, "--values", "fp32", "--force", "--out", packed).code
    result = intarsia("export", packed, "--format", "gguf", "--quant", "f32")
    assert result.code == 0, result.err
    _, tensors = read(packed / "export.gguf")
    want = language_model(str(model))[0].state_dict()["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(torch.from_numpy(tensors["blk.1.ffn_up.weight"]), want)


def test_a_run_folded_and_its_adapter_alone(intarsia: Intarsia, run: Path, tmp_path: Path) -> None:
    result = intarsia("export", run, "--format", "gguf", "--quant", "f32")
    assert result.code == 0 and "fold:" in result.out, result.err
    result = intarsia(
        "export", run, "--format", "gguf", "--keep-adapter", "--out", tmp_path / "a.gguf"
    )
    assert result.code == 0, result.err
    fields, tensors = read(tmp_path / "a.gguf")
    assert fields["general.type"] == "adapter" and "blk.0.attn_q.weight.lora_b" in tensors


def test_the_folder_of_an_adapter_names_its_model(
    intarsia: Intarsia, model: Path, tmp_path: Path
) -> None:
    adapted = library.adapt(language_model(str(model))[0], "lora")
    library.save(adapted, tmp_path / "lora")
    out = tmp_path / "a.gguf"
    result = intarsia(
        "export", tmp_path / "lora", "--format", "gguf", "--keep-adapter", "--out", out
    )
    assert result.code == 0 and str(model) in result.words.replace(" ", ""), result.err
    assert read(out)[0]["adapter.type"] == "lora"
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(model), ""))
    result = intarsia("export", tmp_path / "lora", "--format", "gguf", "--out", out)
    assert result.code == 2 and "base_model_name_or_path" in result.words
    config.write_text("[]")
    result = intarsia("export", tmp_path / "lora", "--format", "gguf", "--out", out)
    assert result.code == 2 and "CheckpointError" in result.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--format gguf --quant q9", "q8_0"),
        ("--format onnx --quant q8_0", "--format gguf with it"),
        ("--format gguf --out x.bin", "a file *.gguf"),
        ("--format gguf --keep-adapter", "without an adapter"),
    ],
)
def test_what_cannot_be_is_refused(intarsia: Intarsia, model: Path, words: str, says: str) -> None:
    result = intarsia("export", model, *words.split())
    assert result.code == 2 and says in result.words
