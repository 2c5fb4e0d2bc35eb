"""Sparse folders open with transformers, come back bit by bit, and are refused when damaged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from prune_models import llama, rows, vit
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import intarsia
from intarsia.core.errors import CheckpointError, ConfigError, FoldError, MissingExtra, TargetError
from intarsia.folders.opened import save_language_model
from intarsia.formats import Bitmask
from intarsia.methods.gqsa.stages import Tuning
from intarsia.sparse.prune.files import read_folder
from intarsia.sparse.prune.packed import packable, rounded, scales, scales_of
from intarsia.sparse.swap.compress import compress

from ...refusals import refused

UNTRAINED = Tuning(blocks=0, model=0)


def sparse() -> Any:
    model = llama(2)
    intarsia.sparsify(model, intarsia.Wanda(0.5), rows())
    return model


def opened(folder: Path) -> dict[str, Tensor]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_a_dense_folder_opens_with_its_zeros(tmp_path: Path) -> None:
    model = sparse()
    intarsia.sparse.save_sparse(model, tmp_path / "out")
    assert same(opened(tmp_path / "out"), model.state_dict())


def test_a_bitmask_is_smaller_and_converts_back_bit_by_bit(tmp_path: Path) -> None:
    model = sparse()
    intarsia.sparse.save_sparse(model, tmp_path / "small", layout="bitmask", record={"a.json": [1]})
    intarsia.sparse.save_sparse(model, tmp_path / "dense")
    with pytest.raises(OSError, match="model.safetensors"):
        opened(tmp_path / "small")  # never with random weights
    sizes = [sum(p.stat().st_size for p in (tmp_path / n).glob("*.safetensors"))
             for n in ("small", "dense")]  # fmt: skip
    assert sizes[0] < 0.8 * sizes[1]
    intarsia.sparse.convert_sparse(tmp_path / "small", tmp_path / "again")
    assert same(opened(tmp_path / "again"), model.state_dict())
    assert json.loads((tmp_path / "again" / "a.json").read_text()) == [1]
    assert "compression_config" not in (tmp_path / "again" / "config.json").read_text()
    intarsia.sparse.convert_sparse(tmp_path / "dense", tmp_path / "packed", layout="bitmask")
    first, second = (read_folder(tmp_path / n) for n in ("small", "packed"))
    assert same(first, second)


def test_an_old_folder_of_compressed_tensors_opens(tmp_path: Path) -> None:
    """Its layout, written by hand: bits lowest first, rows from a byte of their own; and 2:4."""
    w = torch.tensor([[0.0, 1, 0, 0, 2, 0, 0, 0, 0, 3], [0] * 10])
    half = torch.tensor([[1.0, 0, 2, 0], [0, 0, 3, 4]])
    stored = {
        "a.weight.compressed": torch.tensor([1.0, 2, 3]),
        "a.weight.bitmask": torch.tensor([[0b00010010, 0b10], [0, 0]], dtype=torch.uint8),
        "a.weight.shape": torch.tensor([2, 10]),
        "a.weight.row_offsets": torch.tensor([0, 3]),
        "b.weight.compressed": torch.tensor([[1.0, 2], [3, 4]]),
        "b.weight.bitmask": torch.tensor([[0b0101], [0b1100]], dtype=torch.uint8),
        "b.weight.shape": torch.tensor([2, 4]),
        "c.bias": torch.ones(2),
    }
    old = tmp_path / "old"
    old.mkdir()
    save_file(stored, old / "model.safetensors")
    config = {"model_type": "llama", "quantization_config": {"format": "sparse-bitmask"}}
    (old / "config.json").write_text(json.dumps(config))
    (old / "code.py").write_text("raise SystemExit")
    intarsia.sparse.convert_sparse(old, tmp_path / "new")
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    assert same(tensors, {"a.weight": w, "b.weight": half, "c.bias": torch.ones(2)})
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == {"model_type": "llama"}
    assert not (tmp_path / "new" / "code.py").exists()
    # damage
    for name, broken in (
        ("a.weight.compressed", torch.ones(2)),
        ("a.weight.shape", torch.tensor([2, 99])),
        ("b.weight.shape", torch.tensor([-1, 4])),
    ):
        save_file(stored | {name: broken}, old / "model.safetensors")
        with pytest.raises(CheckpointError, match="does not fit together"):
            read_folder(old)
    save_file({n: t for n, t in stored.items() if n != "a.weight.shape"}, old / "model.safetensors")
    with refused(
        CheckpointError,
        got="'a.weight' that does not fit together ('a.weight.shape')",
        want="a file as intarsia.save wrote it",
    ):
        read_folder(old)
    save_file({"x.weight_packed": torch.ones(2)}, old / "model.safetensors")
    with refused(
        CheckpointError, got="quantised weights, such as 'x.weight_packed'", want="real numbers"
    ):
        read_folder(old)
    (old / "model.safetensors").write_bytes(b"half")
    with refused(
        CheckpointError,
    ):
        read_folder(old)


def test_a_folder_without_a_shard_is_refused(tmp_path: Path) -> None:
    llama(2).save_pretrained(tmp_path / "old", max_shard_size="20KB")
    shards = sorted((tmp_path / "old").glob("*.safetensors"))
    weights = read_folder(tmp_path / "old")
    assert len(shards) > 1 and weights.keys() <= llama(2).state_dict().keys()
    shards[0].unlink()
    for reads in (
        lambda: intarsia.sparse.convert_sparse(tmp_path / "old", tmp_path / "new"),
        lambda: intarsia.soup([tmp_path / "old", tmp_path / "old"]),
    ):
        with refused(CheckpointError, got="no 'model-00001-of-00004.safetensors' (1 missing)"):
            reads()
    for text in ("{", "[1]", '{"weight_map": 1}'):
        (tmp_path / "old" / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"index.json.*as save_pretrained wrote it"):
            read_folder(tmp_path / "old")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_configuration_is_refused(text: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json: got (no readable JSON|a list)"):
        intarsia.sparse.convert_sparse(tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_folders_with_bitmasks_are_averaged_as_their_models(tmp_path: Path) -> None:
    first, second = sparse(), sparse()
    with torch.no_grad():
        for p in second.parameters():
            p.mul_(1.5)
    third = llama(2)
    with torch.no_grad():
        third.model.layers[0].mlp.up_proj.weight[:, ::2] = 0
    for name, model in (("one", first), ("two", second), ("other", third)):
        intarsia.sparse.save_sparse(model, tmp_path / name, layout="bitmask")
    mean = intarsia.soup([tmp_path / "one", tmp_path / "two"])
    state = first.state_dict()
    assert mean.keys() <= state.keys()
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, 1.25 * state[name])
    with refused(ConfigError, got="they differ in 768 places of model.layers.0.mlp.down_proj"):
        intarsia.soup([tmp_path / "one", tmp_path / "other"])
    (tmp_path / "int4").mkdir()
    save_file({"a.weight_packed": torch.ones(2)}, tmp_path / "int4" / "model.safetensors")
    with refused(CheckpointError, got="quantised weights, such as 'a.weight_packed'"):
        intarsia.soup([tmp_path / "int4", tmp_path / "int4"])


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with refused(TargetError, what="model", got="VisionTransformer"):
        intarsia.sparse.save_sparse(vit(), tmp_path / "a")
    with refused(TargetError, what="model", got="one with adapters"):
        intarsia.sparse.save_sparse(intarsia.adapt(llama(1), intarsia.Lora(2)), tmp_path / "a")
    with refused(ConfigError, what="layout", got="'zip'"):
        intarsia.sparse.save_sparse(llama(1), tmp_path / "a", layout="zip")
    with refused(CheckpointError, got="no weights"):
        intarsia.sparse.convert_sparse(tmp_path, tmp_path / "a")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    with refused(ConfigError, got="other files in it, such as 'x'"):
        intarsia.sparse.convert_sparse(tmp_path, tmp_path / "mine")


def test_what_was_converted_is_converted_again_and_nothing_else_is_replaced(
    tmp_path: Path,
) -> None:
    for number in (1, 2):
        intarsia.sparse.save_sparse(llama(number), tmp_path / f"{number}", layout="dense")
    place = tmp_path / "bitmask"
    for _ in range(2):  # a command that was killed after its last rename is repeated
        intarsia.sparse.convert_sparse(tmp_path / "1", place, layout="bitmask")
    before = (place / "digests.json").read_bytes()
    with refused(ConfigError, got="another result"):
        intarsia.sparse.convert_sparse(tmp_path / "2", place, layout="bitmask")
    assert (place / "digests.json").read_bytes() == before


def test_an_adapter_folds_into_a_sparse_weight_with_its_zeros_or_not_at_all() -> None:
    model = vit()
    intarsia.sparsify(model, intarsia.sparse.Magnitude(0.4))
    adapted = intarsia.adapt(model, intarsia.Lora(4))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if p.requires_grad and "head" not in name:
                p.normal_(std=0.1)
    with refused(FoldError, what="fold 'blocks.0.attn.qkv'"):
        intarsia.fold(adapted)
    lines: list[str] = []
    folded = intarsia.fold(adapted, keep_zeros=True, report=lines.append)
    filled = intarsia.fold(adapted, keep_zeros=False, report=lines.append)
    assert "largest output difference" in lines[0]
    for name, p in folded.named_parameters():
        if "attn.qkv.weight" in name:
            before = model.get_parameter(name.replace("qkv.", "qkv.base_layer."))
            assert not p[before == 0].any() and not torch.equal(p, before)
            assert bool((filled.get_parameter(name)[before == 0] != 0).all())


# pack-quantized


def test_rounding_keeps_zeros_and_is_within_half_a_step() -> None:
    weight = torch.randn(6, 48, generator=torch.Generator().manual_seed(0))
    weight[:, :16] = 0  # a pruned group
    weight[1, 20] = 0
    new = rounded(weight)
    assert bool((new[weight == 0] == 0).all())
    step = scales(weight).repeat_interleave(16, 1)
    assert float(((new - weight).abs() / step).max()) <= 0.5 + 1e-5


def test_pack_quantized_opens_in_transformers_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="needs intarsia[hf-int4]")
    from transformers import AutoModelForCausalLM

    model = sparse()
    ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    intarsia.sparse.save_sparse(model, tmp_path / "int4", layout="pack-quantized")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "int4").eval()
    for layer in packable(model).values():
        layer.weight.data = rounded(layer.weight)
        assert float((layer.weight == 0).float().mean()) >= 0.5
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    intarsia.sparse.save_sparse(model, tmp_path / "dense")
    size = {n: (tmp_path / n / "model.safetensors").stat().st_size for n in ("int4", "dense")}
    assert size["int4"] < 0.7 * size["dense"]
    with pytest.raises(CheckpointError, match="quantised weights"):
        intarsia.sparse.convert_sparse(tmp_path / "int4", tmp_path / "again")


@pytest.mark.parametrize("together", [1, 8])
def test_codes_of_gqsa_are_written_as_they_are(tmp_path: Path, together: int) -> None:
    from intarsia.formats import Bitmask

    model = intarsia.compress(
        llama(2),
        intarsia.sparse.Gqsa(density=0.75, symmetric=True, tuning=UNTRAINED, rows=together),
        rows(),
        force=True,
    )
    layers = packable(model)
    assert len(layers) == 14 and all(hasattr(layer, "form") for layer in layers.values())
    for layer in layers.values():  # codes and scales are those of the weight, to the bit
        scale = scales_of(layer).repeat_interleave(16, 1)
        codes = layer.weight / scale
        assert torch.equal(codes, codes.round()) and -8 <= int(codes.min()) <= int(codes.max()) <= 7
    for wrong in (intarsia.sparse.Gqsa(density=0.75, start="rtn", tuning=UNTRAINED), Bitmask()):
        unfit = intarsia.compress(llama(2), wrong, rows(), force=True)
        with refused(TargetError, what="packed layer 'model.layers.0.self_attn.q_proj'"):
            packable(unfit)
    pytest.importorskip("compressed_tensors", reason="needs intarsia[hf-int4]")
    from transformers import AutoModelForCausalLM

    intarsia.sparse.save_sparse(model, tmp_path / "int4", layout="pack-quantized")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "int4").eval()
    ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    for path, layer in layers.items():  # unpacked by the first forward
        assert torch.equal(loaded.get_submodule(path).weight, layer.weight), path


def test_codes_go_from_minus_8_to_7_of_a_range_of_7_and_a_half() -> None:
    weight = torch.tensor([[-7.5, 7.5, 0.0, 3.2] * 4])
    assert scales(weight).tolist() == [[1]]
    assert rounded(weight).tolist() == [[-8, 7, 0, 3] * 4]


def test_a_folder_is_converted_to_pack_quantized(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="needs intarsia[hf-int4]")
    model = sparse()
    intarsia.sparse.save_sparse(
        model, tmp_path / "bits", layout="bitmask", record={"own.json": {"a": 1}}
    )
    intarsia.sparse.convert_sparse(tmp_path / "bits", tmp_path / "int4", layout="pack-quantized")
    intarsia.sparse.save_sparse(model, tmp_path / "want", layout="pack-quantized")
    converted, want = (load_file(tmp_path / n / "model.safetensors") for n in ("int4", "want"))
    assert converted.keys() == want.keys() and all(
        torch.equal(t, want[n]) for n, t in converted.items()
    )
    assert json.loads((tmp_path / "int4" / "own.json").read_text()) == {"a": 1}


def test_only_a_model_of_transformers_is_converted_to_pack_quantized(tmp_path: Path) -> None:
    intarsia.sparse.save_sparse(sparse(), tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    config["architectures"] = ["MyOwnForCausalLM"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    with refused(
        CheckpointError, got="bytes that changed after they were written", want="what was written"
    ):
        intarsia.sparse.convert_sparse(tmp_path / "old", tmp_path / "new", layout="pack-quantized")
    (tmp_path / "old" / "digests.json").unlink()
    with refused(CheckpointError, got="MyOwnForCausalLM", want="a model of transformers"):
        intarsia.sparse.convert_sparse(tmp_path / "old", tmp_path / "new", layout="pack-quantized")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_packed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = intarsia.upcycle(llama(1), intarsia.TopK(experts=4, active=2))
    with refused(TargetError, what="layers to pack"):
        packable(mixture)
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with refused(MissingExtra, what="optional dependency 'compressed-tensors'"):
        intarsia.sparse.save_sparse(llama(1), tmp_path / "out", layout="pack-quantized")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_of_the_folder_it_was_loaded_from_goes_along(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, "a")))
    words.save_pretrained(tmp_path / "base")
    sparse().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    intarsia.sparse.save_sparse(model, tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.get_vocab() == words.get_vocab()
    packed = compress(model, Bitmask(), force=True)
    save_language_model(packed, tmp_path / "packed")
    assert AutoTokenizer.from_pretrained(tmp_path / "packed").get_vocab() == words.get_vocab()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").unlink()
    (tmp_path / "base" / "tokenizer_config.json").unlink()
    intarsia.sparse.save_sparse(
        model, tmp_path / "without"
    )  # nothing there: no tokenizer, no error
    assert not (tmp_path / "without" / "tokenizer.json").exists()
