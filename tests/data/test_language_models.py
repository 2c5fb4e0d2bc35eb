"""Language models from folders: no code of theirs, no damaged weights, no bars in a log."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from intarsia.core.errors import AssetError
from intarsia.data import language_models
from intarsia.data.language_models import language_model

from ..refusals import refused

CODE = "open({!r}, 'w').close()\nclass Own: pass\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny Llama of save_pretrained; a question on the terminal fails the test."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    words = {"<end>": 0, "a": 1, "b": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    torch.manual_seed(0)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=3, num_attention_heads=2, tie_word_embeddings=True, **size)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def _with_code(folder: Path, file: str, mapping: dict[str, object], **changes: object) -> Path:
    """auto_map in one of the folder's files, and its code, which would leave a trace."""
    trace = folder / "ran"
    (folder / "own.py").write_text(CODE.format(str(trace)))
    settings = json.loads((folder / file).read_text()) | {"auto_map": mapping} | changes
    (folder / file).write_text(json.dumps(settings))
    return trace


def test_code_in_a_folder_is_neither_run_nor_asked_about(folder: Path) -> None:
    names = {name: "own.Own" for name in ("AutoConfig", "AutoModelForCausalLM")}
    trace = _with_code(folder, "config.json", names, model_type="own")
    for pretrained in (True, False):
        with refused(AssetError, got="a model with code of its own (auto_map)"):
            language_model(str(folder), pretrained=pretrained)
    assert not trace.exists()


def test_a_tokenizers_code_is_not_run_either(folder: Path) -> None:
    trace = _with_code(
        folder, "tokenizer_config.json", {"AutoTokenizer": ["own.Own", None]}, tokenizer_class="Own"
    )
    with pytest.raises(AssetError):
        language_model(str(folder))
    assert not trace.exists()


def test_a_known_architecture_is_read_without_its_code(folder: Path) -> None:
    trace = _with_code(folder, "config.json", {"AutoModelForCausalLM": "own.Own"})
    model, _ = language_model(str(folder))
    assert isinstance(model, LlamaForCausalLM) and not trace.exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff" * 50], ids=["empty", "list", "noise"])
def test_a_damaged_file_is_an_error_of_ours(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(AssetError, match="language model") as caught:
        language_model(str(folder))
    assert caught.value.fix


def test_weights_of_another_architecture_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "q_proj" in name)
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with refused(
        AssetError, got="KeyError: 'weights without model.layers.0.self_attn.q_proj.weight'"
    ):
        language_model(str(folder))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_in_the_folder_is_not_waited_for(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(AssetError, match=r"a named pipe.*config\.json"):
        language_model(str(folder))


def test_unpacking_draws_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import modeling_gguf_pytorch_utils as gguf

    before = gguf.tqdm
    with language_models.quietly():
        assert list(gguf.tqdm(range(3), desc="Converting")) == [0, 1, 2]
    assert gguf.tqdm is before and not capsys.readouterr().err


def test_a_damaged_gguf_file_says_what_to_delete(tmp_path: Path) -> None:
    folder = tmp_path / "package" / "inner"
    folder.mkdir(parents=True)
    file = folder / language_models._GGUF
    want, fix = "the file as it was packaged", f"Delete {folder.parent}; it is obtained again."
    # no tensor and no pair, a pair that is not there, and no file
    for counts in ((0, 0), (0, 1), None):
        file.unlink(missing_ok=True)
        if counts is not None:
            file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts))
        with refused(AssetError, what=str(file), want=want, fix=fix):
            language_models._convert_gguf(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_packaged_file_with_other_bytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder, info = tmp_path / "llm", tmp_path / "llm-1.dist-info"
    folder.mkdir()
    info.mkdir()
    file = folder / language_models._GGUF
    code = base64.urlsafe_b64encode(hashlib.sha256(b"GGUF").digest()).decode().rstrip("=")
    row = f"llm/{file.name},sha256={code},4"
    (info / "RECORD").write_text(f"{row}\nllm-1.dist-info/RECORD,,\n")
    fix = f"Delete {tmp_path}; it is obtained again."
    # the bytes that were packaged are read, and are no model; others are not read
    for raw, what in ((b"GGUF", str(file)), (b"GGUG", f"SHA-256 of {file.name}")):
        file.write_bytes(raw)
        with refused(AssetError, what=what, fix=fix):
            language_models._convert_gguf(folder, tmp_path / "out")
