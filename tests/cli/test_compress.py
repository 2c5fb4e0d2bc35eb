"""`compress`, `doctor` and `bench sparse` from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia as library
from intarsia import open_run
from intarsia.cli import compress_steps
from intarsia.core.errors import ConfigError, DataError
from intarsia.core.registry import settings_to_dict
from intarsia.decode.native_decoder import why_not
from intarsia.folders.opened import open_language_model
from intarsia.folders.saved import HOST
from intarsia.formats import Bitmask, rivals
from intarsia.formats.packed_linear import PackedLinear
from intarsia.kernels import native
from intarsia.kernels.native import building
from intarsia.methods.gqsa.stages import Tuning
from intarsia.sparse import Gqsa
from intarsia.sparse.swap import timing
from intarsia.sparse.swap.chw_cluster import ChwCluster
from intarsia.sparse.swap.compress import compress
from intarsia.sparse.swap.packed_head import head_and_embedding, pack_head, token_bytes
from intarsia_lab.bench import sparse

from .. import language_models
from ..language_models import mixtral
from .conftest import QUICK, Intarsia


@pytest.fixture(scope="module")
def model(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in bfloat16, half of its weights 0."""
    folder = shutil.copytree(llama, tmp_path_factory.mktemp("model") / "half")
    host = LlamaForCausalLM.from_pretrained(folder).bfloat16()
    with torch.no_grad():
        for layer in host.model.layers.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(torch.rand_like(layer.weight) < 0.5)
    host.save_pretrained(folder)
    return folder


def test_a_model_is_compressed_saved_and_opened(
    intarsia: Intarsia, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "fast"
    arguments = ("compress", str(model), "--values", "int8", "--out", str(out), "--json")
    result = intarsia(*arguments, "--force")
    assert result.code == 0, result.err
    assert result.json["layers"] == 14 and result.json["format"] == "Bitmask(values='int8')"
    assert result.json["bytes"]["after"] < result.json["bytes"]["before"]
    assert json.loads((out / "compress.json").read_text())["layers"] == 14
    opened, tokenizer = open_language_model(str(out))
    plain, _ = open_language_model(str(model))
    packed = pack_head(compress(plain.to(torch.bfloat16), Bitmask("int8"), force=True))
    ids = tokenizer("a text", return_tensors="pt").input_ids
    with torch.no_grad():
        logits, want = opened(ids).logits, packed.eval()(ids).logits
    assert logits.dtype == torch.bfloat16 and torch.equal(logits, want)
    assert sum(isinstance(m, PackedLinear) for m in opened.modules()) == 14 + 1  # the head
    generated = intarsia("generate", str(out), "a text", "--tokens", "4", "--json")
    assert generated.code == 0 and generated.json["tokens"] <= 4, generated.err
    again = intarsia(*arguments, "--force")
    assert again.code == 2 and "other files in it" in again.err


def test_a_slower_model_and_settings_that_cannot_be_are_refused(
    intarsia: Intarsia, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "pass_seconds", lambda *_: (0.001, 0.002))
    monkeypatch.setattr(rivals, "advice", lambda *arguments: f"rather than {arguments}")
    out = ("--out", str(tmp_path / "out"))
    for options, says in (
        ((*out,), "--force"),
        ((*out, "--format", "bitmap"), "Did you mean bitmask"),
        ((*out, "--format", "columns", "--bits", "4"), "columns with {'bits': 4}"),
        ((*out, "--values", "int7"), "int7"),
        ((*out, "--density", "2"), "--density"),
        ((), "--out"),
    ):
        result = intarsia("compress", str(model), *options)
        assert result.code == 2 and says in " ".join(result.err.split()), result.err
        # the better runtime is named before the work
        assert ("rather than ('text', 'bitmask', None, None)" in result.err) == (says == "--force")
    assert not (tmp_path / "out").exists()


def test_the_warning_knows_bits_and_density(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rivals, "advice", lambda *arguments: f"rather than {arguments}")
    compress_steps.warn_of_rivals("text", "gqsa", settings_to_dict(Gqsa(density=0.3)))
    assert "rather than ('text', 'gqsa', 4, 0.3)" in " ".join(capsys.readouterr().err.split())


def rows_of() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.arange(40) + i} for i in range(8)]


def test_groups_and_experts_are_packed_by_what_they_see(
    intarsia: Intarsia, model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It is a truth universally acknowledged. " * 60)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    mixture = mixtral(tmp_path / "mixture", num_hidden_layers=1, num_local_experts=3, **sizes)
    calibration = ("--calib", str(text), "--rows", "8", "--length", "40", "--force", "--json")
    untrained, shared = ("--steps", "0,0"), ("--shared", "4")
    for source, name, field, options in (
        (model, "gqsa", "layers", (*untrained, *shared)),
        (mixture, "ternary", "stacks of experts", ()),
    ):
        out = tmp_path / name
        result = intarsia(
            "compress", str(source), "--format", name, *calibration, *options, "--out", str(out)
        )
        assert result.code == 0, result.err
        assert not out.with_name(f"{name}.walk").exists()
        assert result.json[field] == (14 if name == "gqsa" else 2)
        assert result.json["calibration"] == {str(text): 8}
        assert ("rows=4" in result.json["format"]) == (name == "gqsa")
        bits = 8 * result.json["bytes of packed layers"] / result.json["weights of packed layers"]
        assert bits < 5
        opened, tokenizer = open_language_model(str(out))
        ids = tokenizer("a text", return_tensors="pt").input_ids
        assert torch.isfinite(opened(ids).logits).all()
    out = ("--out", str(tmp_path / "other"))
    method = Gqsa(tuning=Tuning(blocks=0, model=0))
    compress(
        open_language_model(str(model))[0], method, rows_of(), force=True, out=f"{out[1]}.walk"
    )
    for options, says in (((), "a run in it"), (("--resume",), "model")):  # it was of float32
        result = intarsia(
            "compress", str(model), "--format", "gqsa", *untrained, *calibration, *out, *options
        )
        assert result.code == 2 and says in result.words
    result = intarsia("compress", str(model), "--format", "gqsa", "--steps", "5", *out)
    assert result.code == 2 and "want two numbers" in result.words
    result = intarsia("compress", str(model), "--resume", *out)
    assert result.code == 2 and "block by block" in result.words
    result = intarsia("compress", str(model), "--format", "ternary", *calibration, *out)
    assert result.code == 2 and "a mixture" in " ".join(result.err.split())


def test_the_doctor_says_what_runs_with_and_without_a_compiler(
    intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intarsia.kernels.native.floor.MEBIBYTES", 8)
    result = intarsia("doctor", "--json")
    assert result.code == 0, result.err
    assert result.json["read GB/s"] > 0.1 and result.json["matmul GFLOP/s"]["fp32"] > 0.1
    assert ("bitmask" in result.json["kernels"]) == (native.load() is not None)
    lines = [line for kind in rivals.KINDS if (line := rivals.advice(kind))]
    assert result.json["better elsewhere"] == lines
    building.compiler.cache_clear()
    monkeypatch.setattr(building, "compilers", lambda: iter(()))
    try:
        with native.using("off"):
            printed = intarsia("doctor")
    finally:
        building.compiler.cache_clear()
    assert printed.code == 0 and "no C compiler" in printed.out and "run dense" in printed.out
    assert "why not" not in printed.out
    # the last line is a sentence
    last = printed.out.splitlines()[-1]
    assert last.startswith("Sparse weights") and last.endswith(".") and ".." not in last


@pytest.mark.thorough
def test_products_are_timed_at_given_shapes_and_at_those_of_a_model(
    intarsia: Intarsia, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "MOST_COPIES", 2)
    result = intarsia("bench", "sparse", "--shapes", "64x96,5x33", "--density", ".5,.1", "--json")
    assert result.code == 0, result.err
    rows = result.json["rows"]
    assert {tuple(r["shape"]) for r in rows} == {(64, 96), (5, 33)}
    assert {r["name"] for r in rows} >= {"torch fp32", "dense bf16", "bitmask int8"}
    assert all(r["ms"] > 0 for r in rows)
    assert all(
        r["error"] < 0.05
        for r in rows
        if r["name"].startswith(("bitmask", "dense bf16", "dense int8"))
    )
    dense = next(r for r in rows if r["name"] == "torch fp32")
    assert dense["bytes"] == 4 * 64 * 96 and set(result.json["verdicts"]) == {"64x96", "5x33"}
    printed = intarsia("bench", "sparse", "--model", str(model))
    assert printed.code == 0 and "48x32, one row of inputs, 4 layers" in printed.out
    assert "Floor:" in printed.out and "as fast as" in printed.out
    for wrong, says in (
        (("sparse", "--shapes", "0x3"), "OUTxIN"),
        (("sparse", "--density", "a"), "numbers with commas"),
        (("sparse", "--density", "3"), "--density"),
        (("mini", "--shapes", "4x4"), "bench sparse"),
    ):
        result = intarsia("bench", *wrong)
        assert result.code == 2 and says in " ".join(result.err.split()), result.err


def test_a_run_of_a_convolutional_net_is_packed_into_a_run(
    intarsia: Intarsia, folder: Path, model: Path, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "fast"
    net = ("--model", "mobilenetv3_small_050", "--untrained", "--size", "32")
    rest = ("--method", "full", "--schedule", "gradual:layers=1x1", "--density", "0.3")
    result = intarsia(
        "fit", str(folder), *net, *rest, *QUICK, "--split-seed", "0", "--out", str(run)
    )
    assert result.code == 0, result.err
    compressed = intarsia("compress", str(run), "--format", "chw", "--force", "--out", str(out))
    assert compressed.code == 0 and "layers in CHW" in compressed.out, compressed.err
    trained, fast = open_run(run, as_trained=False), open_run(out)
    assert any(isinstance(m, ChwCluster) for m in fast.model.modules())
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(fast.model(x), trained.model(x), atol=1e-4, rtol=1e-4)
    before, after = (intarsia("evaluate", str(f), "--json").json["loss"] for f in (run, out))
    assert before == pytest.approx(after, rel=1e-3)
    small = tmp_path / "small"
    words = ("--format", "chw", "--values", "int8", "--force", "--out", str(small))
    compressed = intarsia("compress", str(run), *words)
    assert compressed.code == 0 and "pictures of" in compressed.out, compressed.err
    summary = json.loads((small / "run.json").read_text())["record"]["chw"]["accuracy"]
    # of an untrained net on three pictures: how many are right is a matter of rounding
    assert all(0 <= summary[moment] <= 1 for moment in ("before", "after")) and summary["pictures"]
    codes = open_run(small).model
    assert any(step.coded for m in codes.modules() if isinstance(m, ChwCluster) for step in m.steps)
    named = intarsia("predict", str(out), str(folder / "dark"), "--json")
    assert named.code == 0, named.err
    for words, says in (
        ((str(run), "--density", "0.5"), "no such options"),
        ((str(model),), "intarsia.sparse.Chw()"),
        (("tf_efficientnet_lite0",), "intarsia.sparse.Chw()"),
    ):
        result = intarsia("compress", *words, "--format", "chw", "--out", str(tmp_path / "no"))
        assert result.code == 2 and says in result.words, result.err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("written", "meant"), [("gqs", "gqsa"), ("chv", "chw"), ("bitmsk", "bitmask")]
)
def test_a_format_that_is_nearly_right_is_suggested(
    intarsia: Intarsia, tmp_path: Path, written: str, meant: str
) -> None:
    result = intarsia("compress", "smollm2", "--format", written, "--out", tmp_path / "new")
    assert result.code == 2 and f"Did you mean {meant}?" in result.words


SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}  # of SmolLM2
SHAPE |= {"num_hidden_layers": 30, "num_key_value_heads": 3, "vocab_size": 49152}


def stored_bytes(folder: Path) -> tuple[int, int]:
    """Return the bytes that a packed folder has for the layers of the blocks, and the head."""
    layers = head = 0
    with safe_open(folder / HOST, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if name.startswith("lm_head."):
                head += tensor.nbytes
            elif "norm" not in name and "embed" not in name:
                layers += tensor.nbytes
    return layers, head


@pytest.mark.parametrize("tied", [True, False])
def test_the_printed_commands_write_what_is_printed_beside_them(
    intarsia: Intarsia, tmp_path: Path, tied: bool
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    source = language_models.llama(tmp_path / "source", **sizes, tie_word_embeddings=tied)
    weights = weights_of(LlamaForCausalLM.from_pretrained(source))
    with torch.device("meta"):
        smollm2 = weights_of(LlamaForCausalLM(LlamaConfig(**SHAPE)))
    published = [c for c in rivals.rivals("text").runs[0].choices if c.format == "blockint"]
    assert [choice.bits for choice in published] == [4, 8, 4]
    for number, choice in enumerate(published):
        out = tmp_path / str(number)
        words = choice.command.replace("MODEL", str(source)).replace("--out small", f"--out {out}")
        result = intarsia(*words.split()[1:], "--force", "--json")
        assert result.code == 0, result.err
        head_bits = choice.name.partition("head int")[2]  # "" where layers and head are alike
        assert result.json["head"] == f"BlockInt(bits={head_bits or choice.bits})"
        layers, head = stored_bytes(out)
        assert result.json["bytes of a token"] == layers + head
        # the same bytes for a weight, of the net that was measured
        megabytes = (layers / weights[0] * smollm2[0] + head / weights[1] * smollm2[1]) / 1e6
        assert round(megabytes) == choice.megabytes, choice.name
        opened, _ = open_language_model(str(out))
        assert token_bytes(opened) == layers + head and not why_not(opened)
        said = intarsia("generate", str(out), "a text", "--tokens", "4")
        assert said.code == 0 and "native steps" in said.out, said.err


def weights_of(model: LlamaForCausalLM) -> tuple[int, int]:
    """Return how many weights the linear layers of the blocks have, and the head."""
    layers = (m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear))
    # a format stores 16 rows together
    return sum(m.weight.numel() for m in layers), -(
        -model.vocab_size // 16
    ) * 16 * model.config.hidden_size


def test_a_head_stays_where_it_is_asked_to_and_where_nothing_is_rounded(
    intarsia: Intarsia, model: Path, tmp_path: Path
) -> None:
    for number, (words, head) in enumerate(
        (
            (("--format", "bitmask"), "bfloat16"),
            (("--format", "bitmask", "--head", "int4"), "BlockInt(bits=4)"),
            (("--format", "bitmask", "--values", "int8"), "BlockInt(bits=8)"),
            (("--format", "blockint", "--head", "same"), "bfloat16"),
            (("--format", "blockint", "--layers", "lm_head", "--bits", "4"), "BlockInt(bits=4)"),
        )
    ):
        out = tmp_path / str(number)
        result = intarsia("compress", str(model), *words, "--force", "--out", str(out))
        assert result.code == 0, result.err
        assert f"head {head}; embedding bfloat16; a token reads" in " ".join(result.out.split())
        opened, _ = open_language_model(str(out))
        assert head_and_embedding(opened) == {"head": head, "embedding": "bfloat16"}
    result = intarsia("compress", str(model), "--head", "int3", "--out", str(tmp_path / "no"))
    assert result.code == 2 and "int4" in result.words and not (tmp_path / "no").exists()


def test_a_folded_head_is_no_longer_tied(model: Path, tmp_path: Path) -> None:
    host, _ = open_language_model(str(model))
    packed = pack_head(compress(host, "blockint", force=True), 4)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        library.fold(packed).save_pretrained(tmp_path / "plain")
        again = LlamaForCausalLM.from_pretrained(tmp_path / "plain")
        assert not torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)
        assert torch.equal(again.lm_head.weight, packed.lm_head.weight)
        torch.testing.assert_close(again(ids).logits, library.fold(packed)(ids).logits)


def test_an_error_of_the_head_leaves_the_model_as_it_was(model: Path) -> None:
    host, _ = open_language_model(str(model))
    with torch.no_grad():
        host.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(DataError):
        pack_head(host)
    assert not any(isinstance(m, PackedLinear) for m in host.modules())
    with pytest.raises(ConfigError):
        pack_head(host, 3)
