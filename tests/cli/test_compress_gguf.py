"""GGUF files as packed folders: the weights of a file, unchanged where they are Q4_0 or Q8_0."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import intarsia
from intarsia.core.change import steps_of
from intarsia.core.errors import AssetError, IntarsiaError
from intarsia.folders import gguf_file
from intarsia.folders.gguf_file import open_gguf, packed_gguf
from intarsia.folders.opened import open_language_model
from intarsia.folders.out.gguf_model import export_gguf, names_in_gguf
from intarsia.formats.packed_linear import PackedLinear

from ..fuzz.gguf_damage import gguf as damaged
from ..hosts.test_gguf import HOSTS, byte_pairs, logits, rows
from ..toys import quiet
from .conftest import Intarsia

gguf = pytest.importorskip("gguf")


def written(folder: Path, model: Any, quant: str = "q4_0") -> Path:
    tokenizer = byte_pairs("qwen2")
    return export_gguf(model, folder / "m.gguf", tokenizer=tokenizer, quant=quant, report=quiet)


def rewritten(
    source: Path,
    target: Path,
    kinds: Callable[[str], str | None],
    extra: Mapping[str, np.ndarray] | None = None,
    architecture: str = "llama",
) -> Path:
    """A file's fields, and its tensors in other types; None leaves one out."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), *field.types[:2])
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if (kind := kinds(tensor.name)) is not None:
            kind = "F32" if numbers.ndim == 1 else kind
            stored = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[kind])
            writer.add_tensor(tensor.name, stored, raw_dtype=gguf.GGMLQuantizationType[kind])
    for name, numbers in (extra or {}).items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def decoded(path: Path, model: Any) -> dict[str, torch.Tensor]:
    """A file's weights by the model's names, decoded by the `gguf` package."""
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    weights = {}
    for weight_name, name in names_in_gguf(model).names.items():
        numbers = np.array(gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type))
        turned = type(model).__name__ in ("LlamaForCausalLM", "MistralForCausalLM")
        if turned and ("attn_q" in name or "attn_k" in name):
            heads = 4 if "attn_q" in name else 2
            pairs = numbers.reshape(heads, -1, 2, *numbers.shape[1:])
            numbers = pairs.swapaxes(1, 2).reshape(numbers.shape)
        weights[weight_name] = torch.from_numpy(numbers)
    return weights


@pytest.mark.parametrize("quant", ["q4_0", "q8_0"])
@pytest.mark.parametrize("name", HOSTS)
def test_weights_are_the_file_s(name: str, quant: str, tmp_path: Path) -> None:
    model = HOSTS[name]()
    path = written(tmp_path, model, quant)
    want = decoded(path, model)
    packed: Any = packed_gguf(open_gguf(path), progress=lambda line: pytest.fail(line))
    layers = [m for m in packed.modules() if isinstance(m, PackedLinear)]
    assert len(layers) == (9 if name == "phi3" else 15) and type(packed.lm_head) is PackedLinear
    assert packed.config.dtype == torch.float32
    for weight_name, numbers in want.items():
        owner, _, attribute = weight_name.rpartition(".")
        assert torch.equal(getattr(packed.get_submodule(owner), attribute), numbers), weight_name
    if name == "tied":
        assert torch.equal(packed.lm_head.weight, want["model.embed_tokens.weight"])
    # the model itself, with the weights of the file, has the rotations and widths that count
    model.load_state_dict(want, strict=name != "tied")
    got = logits(intarsia.fold(packed), rows(40))
    assert torch.allclose(got, logits(model, rows(40)), atol=1e-5)


def test_other_types_are_rounded_and_told(tmp_path: Path) -> None:
    model, lines = HOSTS["llama"](), []
    source = written(tmp_path, model, "f32")
    types = {"attn_q": "F16", "attn_v": "Q5_1", "ffn_up": "Q4_1", "ffn_down": "Q8_0"}
    kinds = lambda name: types.get(name.split(".")[-2], "Q4_0")  # noqa: E731
    path = rewritten(source, tmp_path / "mixed.gguf", kinds)
    packed: Any = packed_gguf(open_gguf(path), progress=lines.append)
    assert lines == [
        "2 matrices of type F16 rounded to 4 bits; 2 matrices of type Q4_1 rounded to 4 bits; "
        "2 matrices of type Q5_1 rounded to 8 bits"
    ]
    layer, want = packed.model.layers[1], decoded(path, model)
    bits = {path: m.form.bits for path, m in layer.named_modules() if isinstance(m, PackedLinear)}
    assert bits["mlp.down_proj"] == bits["self_attn.v_proj"] == 8 and packed.lm_head.form.bits == 4
    assert bits["self_attn.q_proj"] == bits["mlp.up_proj"] == bits["mlp.gate_proj"] == 4
    for path_in_layer, tolerance in {
        "mlp.down_proj": 0,
        "self_attn.v_proj": 0.02,
        "self_attn.q_proj": 0.2,
    }.items():
        weight = want[f"model.layers.1.{path_in_layer}.weight"]
        assert (
            layer.get_submodule(path_in_layer).weight - weight
        ).norm() <= tolerance * weight.norm()
    eight: Any = packed_gguf(open_gguf(path), bits=8)
    assert eight.model.layers[0].self_attn.q_proj.form.bits == 8
    assert eight.model.layers[0].mlp.gate_proj.form.bits == 4  # as it comes


def test_a_head_as_asked_and_floats_in_bfloat16_where_that_is_exact(tmp_path: Path) -> None:
    model = HOSTS["tied"]().bfloat16().float()
    source = written(tmp_path, model, "f32")
    kinds = lambda name: "F16" if name.startswith("token") else "Q4_0"  # noqa: E731
    half = rewritten(source, tmp_path / "half.gguf", kinds)
    packed: Any = packed_gguf(open_gguf(half))
    embedding, before = packed.model.embed_tokens.weight, model.model.embed_tokens.weight
    assert packed.lm_head.form.bits == 8 and packed.config.dtype == torch.bfloat16
    assert embedding.dtype == torch.bfloat16 and torch.equal(embedding.float(), before)
    assert packed_gguf(open_gguf(half), head=4).lm_head.form.bits == 4
    tied: Any = packed_gguf(open_gguf(half), head="same")
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    untied = written(tmp_path, HOSTS["llama"]())  # its head is Q8_0
    assert packed_gguf(open_gguf(untied), head=4).lm_head.form.bits == 4
    plain: Any = packed_gguf(open_gguf(untied), head="same")
    want = decoded(untied, HOSTS["llama"]())["lm_head.weight"]
    assert type(plain.lm_head) is torch.nn.Linear and torch.equal(plain.lm_head.weight, want)


@pytest.mark.parametrize("quant", ["q4_0", "f32"])
def test_a_tensor_read_some_rows_at_a_time_is_the_same(
    quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, HOSTS["tied"](), quant)
    at_once: Any = packed_gguf(open_gguf(path))
    monkeypatch.setattr(gguf_file, "PIECE", 1)
    assert len(list(open_gguf(path).pieces("model.layers.0.mlp.up_proj.weight"))) > 2
    pieces: Any = packed_gguf(open_gguf(path))
    for name, tensor in at_once.state_dict().items():
        assert torch.equal(tensor, pieces.state_dict()[name]), name


def test_a_header_is_read_as_its_writer_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path, HOSTS["llama3"]())
    got, want = gguf_file._reader(gguf)(path), gguf.GGUFReader(path)
    assert got.fields.keys() == want.fields.keys() and "tokenizer.ggml.merges" in got.fields
    for name, field in want.fields.items():
        assert got.fields[name].types == field.types, name
        assert len(field.types) > 1 or got.fields[name].contents() == field.contents(), name
    places = [(t.name, t.data_offset, *t.shape) for t in want.tensors]
    assert [(t.name, t.data_offset, *t.shape) for t in got.tensors] == places


def test_what_a_folder_belongs_to_is_not_read_from_memory_that_nobody_wrote(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, HOSTS["llama"]())
    host = open_gguf(path).host
    assert all(weight.is_meta for weight in host.parameters())
    (step,) = steps_of(packed_gguf(open_gguf(path)))[:1]
    values = step.on["values"]  # the embedding's alone
    assert [value for value in values if value is not None] == values[1:2]


def test_the_command_writes_a_folder_that_opens(intarsia: Intarsia, tmp_path: Path) -> None:
    path, out = written(tmp_path, HOSTS["tied"]()), tmp_path / "small"
    result = intarsia("compress", str(path), "--out", str(out), "--json")
    assert result.code == 0, result.err
    assert result.json["layers"] == 14 and result.json["head"] == "BlockInt(bits=8)"
    assert result.json["format"] == "GGUF with 14 Q4_0, 5 F32, 1 Q8_0"
    opened, tokenizer = open_language_model(str(out))
    packed = packed_gguf(open_gguf(path))
    assert torch.equal(logits(opened, rows()), logits(packed, rows()))
    text = "It's 1234 o'clock"
    assert tokenizer(text).input_ids == byte_pairs("qwen2")(text).input_ids
    assert opened.config.eos_token_id == tokenizer.eos_token_id


def test_what_a_file_cannot_have_is_refused(intarsia: Intarsia, tmp_path: Path) -> None:
    path = written(tmp_path, HOSTS["llama"]())
    for words, got in {
        ("--format", "bitmask"): "bitmask", ("--layers", "mlp.*"): "--layers",
        ("--bits", "3"): "3", ("--density", "0.5"): "density",
    }.items():  # fmt: skip
        refusal = intarsia("compress", str(path), *words, "--out", str(tmp_path / "x"))
        assert refusal.code == 2 and got in refusal.err and "fix" in refusal.err.lower()
    missing = intarsia("compress", str(tmp_path / "none.gguf"), "--out", str(tmp_path / "x"))
    assert missing.code == 2 and "no such file" in missing.err
    all_of_them = lambda name: "Q8_0"  # noqa: E731
    for target, settings, got in (
        ("other", {"architecture": "mamba"}, "'mamba'"),
        ("less", {"kinds": lambda name: None if "ffn_up" in name else "Q8_0"}, "no blk.0.ffn_up"),
        ("more", {"extra": {"blk.0.ffn_gate_exps.weight": np.ones((2, 2), "f")}}, "gate_exps"),
        ("turned", {"extra": {"rope_freqs.weight": np.arange(1, 9, dtype="f")}}, "divisors"),
        ("infinite", {"extra": {"output_norm.weight": np.full(64, np.inf, "f")},
                      "kinds": lambda n: None if n == "output_norm.weight" else "Q8_0"}, "NaN"),
    ):  # fmt: skip
        settings = {"kinds": all_of_them} | settings
        file = rewritten(path, tmp_path / f"{target}.gguf", **settings)
        with pytest.raises(AssetError) as caught:
            packed_gguf(open_gguf(file))
        assert got in str(caught.value) and caught.value.fix


def test_damage_is_refused_in_words_or_without_effect_on_memory(tmp_path: Path) -> None:
    raw = written(tmp_path, HOSTS["tied"]()).read_bytes()
    draw, refused = random.Random(0), 0
    for number in range(24):
        file = tmp_path / f"{number}.gguf"
        file.write_bytes(damaged(raw, draw))
        try:
            packed_gguf(open_gguf(file))
        except IntarsiaError as error:
            refused += 1
            assert error.fix
    assert refused > 9
