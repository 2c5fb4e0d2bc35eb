"""A packed adapter has the size of its bits, and gives the outputs of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from intarsia.adapters import Bottleneck, BottleneckCell, CodedCell, CodedLinear, Lora
from intarsia.core import Method
from intarsia.core.errors import CheckpointError, ConfigError, TargetError, UnknownName
from intarsia.folders.out.pack import code_head, pack, packed_size, unpack
from intarsia.folders.saved import load
from intarsia.folders.verbs import adapt
from intarsia.hosts.folding.fold import fold
from intarsia.methods import BiAdapter, Mosa

from ..refusals import refused

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

Make = Callable[[str], nn.Module]
Images = Callable[[str], Tensor]
Train = Callable[..., None]
METHODS: dict[str, Method] = {
    "1 bit": BiAdapter(Bottleneck(5, norm="none")),
    "2 bits, norm": BiAdapter(Bottleneck(3), bits=2, codebook="lloyd"),
    "3 bits, biases": BiAdapter(Bottleneck(5, norm="layer", scale="channel"), bits=3, biases=True),
    "lora": BiAdapter(Lora(3), bits=4),
    "mosa": BiAdapter(Mosa(Bottleneck(5, norm="none"), experts=2)),
    "float": BiAdapter(Lora(3), bits=32),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_what_is_unpacked_is_what_was_trained(
    make: Make, images: Images, train: Train, tmp_path: Path, method: Method
) -> None:
    x, model = images("vit"), adapt(make("vit"), method)
    train(model, x)
    file = pack(model, tmp_path)
    assert 0 <= file.stat().st_size - packed_size(model) <= 140  # the header
    again = unpack(make("vit"), tmp_path, name="other")
    with torch.no_grad():
        assert (again(x) - model(x)).abs().max() <= 1e-6
    assert again.peft_config["other"].method != "bi"
    assert not any(isinstance(m, CodedCell) for m in again.modules())
    assert not any(p.requires_grad for p in again.parameters())
    # a float adapter now, which saves and loads as one
    again.save_pretrained(tmp_path / "floats")
    third = load(make("vit"), tmp_path / "floats" / "other")
    with torch.no_grad():
        assert torch.equal(third(x), again(x))


def test_the_file_is_as_large_as_the_formula_says(make: Make, tmp_path: Path) -> None:
    model = adapt(make("vit"), BiAdapter(Bottleneck(5, norm="none"), bits=1), head=None)
    bytes_of_cell = math.ceil(32 * 5 / 8) + 8  # a tail of the last byte counts as one
    assert packed_size(model) == 2 * 2 * bytes_of_cell
    with_head = adapt(make("vit"), BiAdapter(Bottleneck(5, norm="none"), bits=1))
    assert packed_size(with_head) == 2 * 2 * bytes_of_cell + 4 * (32 * 5 + 5)
    wide = adapt(make("vit"), BiAdapter(Bottleneck(512, norm="none"), bits=2))
    size = pack(wide, tmp_path).stat().st_size
    assert size == pytest.approx(packed_size(wide), rel=0.02)


def test_a_head_of_one_bit(make: Make, images: Images, train: Train, tmp_path: Path) -> None:
    x, host = images("vit"), make("vit")
    code_head(host)
    assert isinstance(host.head, CodedLinear)
    model = adapt(host, BiAdapter(Bottleneck(5, norm="none", activation="gelu")))
    train(model, x)
    pack(model, tmp_path)
    assert packed_size(model) == 4 * 28 + 32 * 5 // 8 + 8 + 4 * 5
    again = unpack(make("vit"), tmp_path)
    with torch.no_grad():
        assert (again(x) - model(x)).abs().max() <= 1e-6
    assert not any(isinstance(m, CodedLinear) for m in again.modules())
    stock = fold(model, report=lambda _: None)
    assert type(stock.head) is nn.Linear
    twice = make("vit")
    code_head(twice)
    with refused(ConfigError, what="head", got="one that codes its weights"):
        unpack(twice, tmp_path)


def test_it_folds(make: Make, images: Images, train: Train) -> None:
    x = images("vit")
    for method in (
        BiAdapter(Bottleneck(5, norm="none", activation="gelu")),
        BiAdapter(Bottleneck(5, activation="gelu")),
        BiAdapter(Lora(3), bits=2),
    ):  # fmt: skip
        model = adapt(make("vit"), method)
        train(model, x)
        stock = fold(model, report=lambda _: None)
        with torch.no_grad():
            torch.testing.assert_close(stock(x), model(x), rtol=1e-4, atol=1e-4)


def test_lora_of_few_bits_merges(make: Make, images: Images, train: Train) -> None:
    x, model = images("vit"), adapt(make("vit"), BiAdapter(Lora(3)))
    train(model, x)
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(model.merge_and_unload()(x), y, rtol=1e-4, atol=1e-4)


def test_a_file_that_is_not_whole_or_not_of_here_is_refused(
    make: Make, images: Images, train: Train, tmp_path: Path
) -> None:
    model = adapt(make("vit"), BiAdapter(Bottleneck(5, norm="none")))
    train(model, images("vit"))
    file = pack(model, tmp_path)
    content, host = file.read_bytes(), make("vit")
    before = {n for n, _ in host.named_modules()}
    changed = load_file(file)["bytes"].clone()
    changed[7] ^= 1
    for damage in (content[: len(content) // 2], b"", None):
        file.unlink(missing_ok=True)
        if damage is not None:
            file.write_bytes(damage)
        with pytest.raises(CheckpointError, match="adapter_packed"):
            unpack(host, tmp_path)
    save_file({"bytes": changed}, file, {"crc": "0"})
    with refused(CheckpointError, got="bytes or settings that changed after they were written"):
        unpack(host, tmp_path)
    file.write_bytes(content)
    with refused(CheckpointError, what="trunk", got="VisionTransformerDistilled with other layers"):
        unpack(make("deit"), tmp_path)
    assert {n for n, _ in host.named_modules()} == before
    assert not hasattr(host, "peft_config")
    unpack(host, tmp_path)


def test_what_cannot_be_packed_is_refused(make: Make, tmp_path: Path) -> None:
    model = adapt(make("vit"), Lora(2))
    with refused(
        ConfigError, what="adapter 'default'", got="method 'lora', whose weights are floats"
    ):
        pack(model, tmp_path)
    with refused(UnknownName, what="unknown adapter", got="'cells'"):
        pack(model, tmp_path, name="cells")
    with refused(ConfigError, what="adapter to pack"):
        pack(make("vit"), tmp_path)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(tmp_path)
    with refused(CheckpointError, got="an adapter of type 'LORA'"):
        unpack(make("vit"), tmp_path)
    headless = nn.Sequential(nn.Linear(4, 4))
    with refused(TargetError, what="head"):
        code_head(headless)


def test_biases_that_the_method_leaves_out_stay_out(
    make: Make, images: Images, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reset = BottleneckCell._reset

    def with_biases(cell: BottleneckCell, *args: Any) -> None:
        reset(cell, *args)
        nn.init.ones_(cell.down.bias)

    monkeypatch.setattr(BottleneckCell, "_reset", with_biases)
    x, model = images("vit"), adapt(make("vit"), BiAdapter(Bottleneck(5, norm="none")))
    train(model, x)
    pack(model, tmp_path)
    with torch.no_grad():
        assert (unpack(make("vit"), tmp_path)(x) - model(x)).abs().max() <= 1e-6
