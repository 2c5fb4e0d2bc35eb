"""Packed layers in a model: the same outputs, one save and load, what goes on top, refusals."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import intarsia
from intarsia.conformance.changes import outputs, pictures, vit
from intarsia.core import nbytes
from intarsia.core.change import steps_of
from intarsia.core.errors import (
    CheckpointError,
    ConfigError,
    FoldError,
    IntarsiaError,
    TargetError,
    UnknownName,
)
from intarsia.folders.saved import replays
from intarsia.formats import Bitmask
from intarsia.formats.packed_linear import PackedLinear
from intarsia.kernels import native
from intarsia.sparse.swap import timing
from intarsia.sparse.swap.compress import Compress, _digest, compress, format_named

from ..refusals import refused


def pruned() -> nn.Module:
    model = vit()
    intarsia.sparsify(model, intarsia.sparse.Magnitude(density=0.5))
    return model


def one_picture(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(pictures()[:1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "fast"
    model = compress(pruned(), Bitmask("int8"), force=True)
    return intarsia.save(model, folder)


def test_exact_formats_leave_the_outputs_and_int8_nearly(saved: Path) -> None:
    model = pruned()
    before, picture = outputs(model), one_picture(model)
    packed = compress(copy.deepcopy(model), Bitmask(), force=True)
    layers = [m for m in packed.modules() if isinstance(m, PackedLinear)]
    assert len(layers) == 8 and not any(list(m.parameters()) for m in layers)
    assert_close(outputs(packed), before)
    assert_close(one_picture(packed), picture)
    rounded = outputs(intarsia.load(vit(), saved))
    assert 0 < float((rounded - before).abs().max()) < 0.05 * float(before.abs().max())


def test_sparsified_compressed_and_adapted_models_are_one_folder(tmp_path: Path) -> None:
    model = compress(pruned(), Bitmask("int8"), force=True)
    adapted = intarsia.adapt(model, intarsia.Lora(rank=2))
    adapted(pictures()).square().sum().backward()
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all(p.grad is not None for p in trained.values())
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.01)
    with refused(
        FoldError, what="fold", got="PackedLinear at 'blocks.0.attn.qkv', whose weight is quantised"
    ):
        intarsia.fold(adapted)
    intarsia.save(adapted, tmp_path / "all")
    again = intarsia.load(vit(), tmp_path / "all")
    assert [type(s.plan.change).__name__ for s in steps_of(again.get_base_model())] == [
        "Magnitude",
        "Compress",
    ]
    assert torch.equal(outputs(again), outputs(adapted))


def test_fold_gives_plain_layers_of_the_decoded_weights() -> None:
    model = compress(pruned(), "bitmask", force=True)
    plain = intarsia.fold(model)
    assert not any(isinstance(m, PackedLinear) for m in plain.modules())
    assert any(isinstance(m, PackedLinear) for m in model.modules())
    assert_close(outputs(plain), outputs(model))
    assert [type(s.plan.change).__name__ for s in steps_of(plain)] == ["Magnitude"]


def test_without_kernels_the_weight_is_decoded_once(saved: Path) -> None:
    with native.using("off"):
        model = intarsia.load(vit(), saved)
        before = outputs(model)
        layer = model.blocks[0].mlp.fc1  # pyright: ignore
        dense = layer._dense[0]
        assert dense is not None and torch.equal(dense, layer.weight)
        outputs(model)
        assert layer._dense[0] is dense
        model.load_state_dict({n: t.clone() for n, t in model.state_dict().items()})
        assert layer._dense[0] is None and torch.equal(outputs(model), before)
    assert copy.deepcopy(layer)._dense[0] is None


def test_a_layer_follows_buffers_that_are_replaced() -> None:
    weight, x = torch.randn(5, 70), torch.randn(2, 70)
    layer = PackedLinear(Bitmask(), Bitmask().encode(weight), (5, 70))
    assert_close(layer(x), x @ weight.T)
    layer.compressed = layer.compressed * 2  # another tensor
    assert_close(layer(x), 2 * x @ weight.T)
    layer.load_state_dict(layer.state_dict() | {"compressed": layer.compressed / 4}, assign=True)
    assert_close(layer(x), 0.5 * x @ weight.T)
    with native.using("off"):
        assert_close(layer(x), 0.5 * x @ weight.T)
    again = copy.deepcopy(layer)
    layer.compressed.zero_()
    assert_close(again(x), 0.5 * x @ weight.T)
    assert not layer(x).any()


def test_a_type_that_is_asked_for_is_not_that_of_the_store(saved: Path) -> None:
    model = intarsia.load(vit(), saved).bfloat16()
    layer = model.blocks[0].mlp.fc1  # pyright: ignore
    assert layer.scales.dtype == torch.float32 and layer.compressed.dtype == torch.int8
    assert layer(torch.ones(1, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_file_has_the_bytes_of_what_is_stored(saved: Path) -> None:
    model = intarsia.load(vit(), saved)
    layers = [m for m in model.modules() if isinstance(m, PackedLinear)]
    inside = {n for m in layers for n in m.names}
    packed = sum(nbytes(m.stored) for m in layers)
    rest = sum(t.nbytes for n, t in model.state_dict().items() if n.split(".")[-1] not in inside)
    file = saved / "host.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size == header + packed + rest


def test_what_would_slow_the_model_down_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pruned()
    monkeypatch.setattr(timing, "pass_seconds", lambda *_: (0.001, 0.002))
    with refused(
        ConfigError,
        what="compress with Bitmask(values='same'), 8 layers of 128x32, 32x128, 32x32, 96x32",
    ):
        compress(model, Bitmask(), force=False)
    assert not any(isinstance(m, PackedLinear) for m in model.modules()) and steps_of(model)
    with (
        native.using("off"),
        refused(
            ConfigError,
            what="compress with Bitmask(values='same'), 8 layers of 128x32, 32x128, 32x32, 96x32",
        ),
    ):
        compress(model, Bitmask(), force=False)
    monkeypatch.setattr(timing, "pass_seconds", lambda *_: (0.002, 0.001))
    compress(model, Bitmask(), layers=["blocks.0.mlp.*"], force=False)
    assert sum(isinstance(m, PackedLinear) for m in model.modules()) == 2


def test_what_is_slower_is_packed_with_a_warning_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = pruned()
    monkeypatch.setattr(timing, "pass_seconds", lambda *_: (0.001, 0.002))
    with pytest.warns(UserWarning, match=r"2.00 ms packed, 1.00 ms dense.* It is packed now"):
        compress(model)
    packed = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert len(packed) == 8 and {str(m.form) for m in packed} == {"BlockInt(bits=4)"}


def test_the_measurement_times_both() -> None:
    weight = torch.randn(64, 32)
    matrix: Any = type("M", (), {"read": lambda self: weight})()
    dense, packed = timing.pass_seconds(Bitmask(), {"a": (matrix, Bitmask().encode(weight))}, 1)
    assert dense > 0 and packed > 0


def _bad_layers() -> Any:
    return compress(vit(), Bitmask(), layers=["nothing.*"], force=True)


@pytest.mark.parametrize(
    ("call", "error", "field"),
    [
        (lambda: compress(vit(), "bitmap"), UnknownName, "unknown format"),
        (lambda: compress(vit(), 3), ConfigError, "format"),
        (_bad_layers, TargetError, "layers 'nothing.*'"),
        (lambda: compress(intarsia.adapt(vit(), "lora"), Bitmask()), TargetError, "model"),
        (lambda: Bitmask("int7"), ConfigError, "values"),
        (
            lambda: compress(compress(vit(), Bitmask(), force=True), Bitmask(), force=True),
            TargetError,
            "layers to compress",
        ),
    ],
)
def test_misuse_says_what_to_do(
    call: Callable[[], Any], error: type[Exception], field: str
) -> None:
    with refused(error, what=field):
        call()


def test_another_layout_and_sizes_without_bounds_are_refused() -> None:
    model = vit()
    plan = Compress().plan(model)
    decided = json.loads(json.dumps(plan.decided))

    def told(change: Callable[[dict[str, Any]], None]) -> Any:
        new = json.loads(json.dumps(decided))
        change(new)
        new["sha256"] = _digest(Compress(), new)
        return replace(plan, decided=new, stored=None)  # pyright: ignore

    def huge(d: dict[str, Any]) -> None:
        d["layers"]["blocks.0.mlp.fc1"]["stored"]["compressed"][1] = [2**40]

    def other(d: dict[str, Any]) -> None:
        d["layout"] = 2

    def wider(d: dict[str, Any]) -> None:
        d["layers"]["blocks.0.mlp.fc1"]["shape"] = [128, 2**40]

    from intarsia.core.change import Plan

    for change, says in ((huge, "shape"), (other, "layout 2"), (wider, "a linear layer")):
        bad = told(change)
        with pytest.raises(CheckpointError, match=says):
            Compress().apply(model, Plan(bad.change, 0, bad.decided))
    with refused(
        CheckpointError, what="packed layers", got="settings that changed after they were written"
    ):
        Compress(Bitmask("int8")).apply(model, Plan(plan.change, 0, plan.decided))
    assert not any(isinstance(m, PackedLinear) for m in model.modules())


def test_a_thousand_damaged_folders_give_no_wrong_number(saved: Path, tmp_path: Path) -> None:
    draw, refused = random.Random(0), 0
    files = {p.name: p.read_bytes() for p in saved.iterdir()}
    want = outputs(intarsia.load(vit(), saved))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for trial in range(1000):
        name = "intarsia.json" if trial % 25 == 0 else "host.safetensors"
        (tmp_path / name).write_bytes(_damaged(files[name], draw))
        try:
            replays(tmp_path)  # reads and checks, changes nothing
            model = intarsia.load(vit(), tmp_path)
            assert torch.equal(outputs(model), want), trial
        except IntarsiaError:
            refused += 1
        (tmp_path / name).write_bytes(files[name])
    assert refused > 900


def _damaged(content: bytes, draw: random.Random) -> bytes:
    cut = draw.randrange(len(content))
    kind = draw.randrange(4)
    if kind == 0:
        return content[:cut]
    if kind == 1:
        return content[:cut] + bytes(min(40, len(content) - cut)) + content[cut + 40 :]
    if kind == 2:
        return content[:cut] + draw.randbytes(1 + draw.randrange(9)) + content[cut:]
    return content[:cut] + bytes([content[cut] ^ 1 << draw.randrange(8)]) + content[cut + 1 :]


def test_formats_have_their_names() -> None:
    assert format_named("bitmask", values="bf16") == Bitmask("bf16")
    assert Compress(format={"name": "bitmask", "values": "int8"}).format == Bitmask("int8")
