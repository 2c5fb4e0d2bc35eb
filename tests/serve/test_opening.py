"""`serve` opens what the library writes: packed, pruned, spanned, upcycled and offloaded models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia.core.errors import CheckpointError, ConfigError
from intarsia.folders import opened
from intarsia.folders.opened import open_language_model, save_language_model
from intarsia.formats import Bitmask
from intarsia.serve.app import Application
from intarsia.serve.models import ServedModel, open_models
from intarsia.sparse.prune.files import save_sparse
from intarsia.sparse.swap.compress import compress

from .conftest import Running, wanted

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def dense() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        bos_token_id=None, eos_token_id=None, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def pruned() -> Any:
    return intarsia.apply(dense(), intarsia.sparse.Magnitude(density=0.5))


def spanned() -> Any:
    spans = intarsia.spans.Spans.uniform(2, 4, 0.5, sink=4, block=4)
    return intarsia.spans.attach_spans(dense(), spans, length=48)


def upcycled() -> Any:
    return intarsia.upcycle(dense(), intarsia.TopK(experts=4, active=2), how="fresh")


def in_format(model: Any, folder: Path, tokenizer: Any) -> None:
    save_language_model(compress(model, Bitmask("int8"), force=True), folder,
                        tokenizer=tokenizer)  # fmt: skip


def changed(model: Any, folder: Path, tokenizer: Any) -> None:
    save_language_model(model, folder, tokenizer=tokenizer)


def sparse(layout: str) -> Callable[[Any, Path, Any], None]:
    def write(model: Any, folder: Path, tokenizer: Any) -> None:
        save_sparse(model, folder, layout=layout, tokenizer=tokenizer)

    return write


def test_a_configuration_is_not_used_before_its_digest(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["mix"])
    in_format(pruned(), tmp_path / "small", tokenizer)
    file = tmp_path / "small" / "config.json"
    file.write_text(file.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 9'))
    monkeypatch.setattr(opened, "language_model", lambda *_, **__: pytest.fail("it was built"))
    for damage in (lambda: None, lambda: (tmp_path / "small" / "intarsia.json").write_text("{")):
        damage()
        with pytest.raises(CheckpointError):
            open_language_model(str(tmp_path / "small"))


@pytest.mark.parametrize(
    ("model", "write"),
    [
        pytest.param(pruned, in_format, id="compressed"),
        pytest.param(pruned, changed, id="pruned by a change"),
        pytest.param(pruned, sparse("dense"), id="sparsified"),
        pytest.param(pruned, sparse("bitmask"), id="bitmask"),
        pytest.param(spanned, changed, id="spanned"),
        pytest.param(upcycled, changed, id="upcycled"),
    ],
)
def test_a_folder_that_holds_a_model_is_served(
    folders: dict[str, Path], tmp_path: Path, model: Any, write: Any
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["mix"])
    write(model(), tmp_path / "saved", tokenizer)
    opened = open_models({"saved": str(tmp_path / "saved")})
    served = opened["saved"]
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        exact = write is not in_format
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if exact else {"rtol": 0.1, "atol": 0.1}
        torch.testing.assert_close(served.model(ids).logits, model()(ids).logits, **tolerance)
    assert served.context == (48 if model is spanned else 128)
    server = Running(opened, tokens=64)
    try:
        status, answer = server.say("one", "saved")
        assert status == 200 and answer["choices"][0]["text"] == wanted(served, "one")
    finally:
        server.end()


def test_a_change_beside_a_trunk_has_weights_of_its_own(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    dense().save_pretrained(tmp_path / "dense")
    AutoTokenizer.from_pretrained(folders["mix"]).save_pretrained(tmp_path / "dense")
    adapters = {"few": intarsia.save(pruned(), tmp_path / "few")}
    adapters["near"] = intarsia.save(spanned(), tmp_path / "near")
    opened: dict[str, ServedModel] = open_models({"dense": str(tmp_path / "dense")}, adapters)
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        for name, model in (("dense", dense), ("few", pruned), ("near", spanned)):
            torch.testing.assert_close(opened[name].model(ids).logits, model()(ids).logits)
    assert opened["near"].context == 48 and opened["dense"].context == 128
    Application(opened).close()


def test_a_store_is_used_again_and_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    notes: list[str] = []
    source = tmp_path / "mix"
    source.symlink_to(folders["mix"])
    for _ in range(2):
        open_models({"mix": str(source)}, slots=4, progress=notes.append)
    store = str(tmp_path / "mix-experts")
    writes = [note for note in notes if store in note]
    assert "as many bytes again" in writes[0] and "is there" in writes[-1]
    served = open_models({"mix": store}, progress=notes.append)["mix"]
    assert "--slots" in notes[-2] or "--slots" in notes[-1]
    assert served.slots is not None and served.slots.cache.slots == 16


def test_a_dtype_is_that_of_resident_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    mix = str(folders["mix"])
    assert open_models({"m": mix}, dtype="bfloat16")["m"].model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(mix)
    in_format(pruned(), tmp_path / "packed", tokenizer)
    for source, options in ((mix, {"slots": 4}), (str(tmp_path / "packed"), {})):
        with pytest.raises(ConfigError) as error:
            open_models({"m": source}, dtype="bfloat16", **options)
        assert error.value.what == "--dtype"
