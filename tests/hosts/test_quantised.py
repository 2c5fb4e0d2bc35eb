"""Adapters on quantised bases: trained beside them, moved to the float model, folded only there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from intarsia.adapters import Bottleneck, Lora
from intarsia.core.errors import CheckpointError, FoldError
from intarsia.folders.saved import load, save
from intarsia.folders.verbs import adapt
from intarsia.hosts.folding.fold import fold
from intarsia.methods import Mosa

from ..refusals import refused

# on import torchao, and in training bitsandbytes' int8, warn of torch's and their own matters
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*MatMul8bitLt:UserWarning"),
]
IDS = torch.arange(12).view(2, 6) * 5


class Int8(nn.Linear):
    """The smallest quantised layer: whole numbers and a scale for each row."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False)
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        codes = (layer.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight * self.scale)


def bits_8(layer: nn.Linear) -> nn.Module:
    bnb: Any = importlib.import_module("bitsandbytes")
    new = bnb.nn.Linear8bitLt(
        layer.in_features, layer.out_features, bias=False, has_fp16_weights=False
    )
    new.weight = bnb.nn.Int8Params(
        layer.weight.detach().clone(), has_fp16_weights=False, requires_grad=False
    )
    return new.to("cpu")


def bits_4(layer: nn.Linear) -> nn.Module:
    bnb: Any = importlib.import_module("bitsandbytes")
    new = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=False, quant_type="nf4",
        compute_dtype=torch.float32,
    )  # fmt: skip
    new.weight = bnb.nn.Params4bit(
        layer.weight.detach().clone(), requires_grad=False, quant_type="nf4"
    )
    return new.to("cpu")


def torchao_8(layer: nn.Linear) -> nn.Module:
    ao: Any = importlib.import_module("torchao.quantization")
    ao.quantize_(layer, ao.Int8WeightOnlyConfig())
    return layer


QUANTISERS: dict[str, tuple[Callable[[nn.Linear], nn.Module], str | None]] = {
    "own": (Int8, None),
    "bitsandbytes int8": (bits_8, "bitsandbytes"),
    "bitsandbytes nf4": (bits_4, "bitsandbytes"),
    "torchao int8": (torchao_8, "torchao"),
}
METHODS = {
    "lora": Lora(4, roles=("qv", "mlp_linear")),
    "mosa": Mosa(Bottleneck(4, norm="none")),
}


def llama(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes, **heads)).eval()


@pytest.fixture(params=QUANTISERS)
def quantised(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    """quantised(): the float model with quantised layers in its blocks."""
    change, library = QUANTISERS[request.param]
    if library is not None:
        pytest.importorskip(library, reason=f"{library} is not installed: intarsia[quantised]")

    def make() -> nn.Module:
        model: Any = llama()
        for module in list(model.model.modules()):
            for name, layer in list(module.named_children()):
                if type(layer) is nn.Linear:
                    setattr(module, name, change(layer))
        return model

    return make


def said(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def trained(model: nn.Module) -> nn.Module:
    """Two steps, with an evaluation before each: some quantisers then change form."""
    mine = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(mine.values(), 0.05)
    for _ in range(2):
        said(model)
        model.train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert [n for n, p in model.named_parameters() if p.grad is not None] == list(mine)
        optimizer.step()
        optimizer.zero_grad()
    assert all("intarsia" in n or "modules_to_save" in n for n in mine)
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_lives_on_a_quantised_base(
    quantised: Callable[[], nn.Module], method: str, tmp_path: Path
) -> None:
    base = quantised()
    said(base)
    before = said(base)
    model: Any = trained(adapt(base, METHODS[method]))
    after = said(model)
    assert (after - before).abs().max() > 0.1
    save(model, tmp_path)
    fresh = quantised()
    said(fresh)  # as above: what bitsandbytes packs for a CPU it rounds
    assert_close(said(load(fresh, tmp_path)), after)
    with refused(FoldError, what="fold", want="weights in floating point"):
        fold(model, inputs={"input_ids": IDS})
    if method == "lora":
        with refused(FoldError, what="merging adapter 'default'"):
            model.merge_adapter()
    assert_close(said(model), after)
    # the same adapter on the float model, which folds
    float_model: Any = load(llama(), tmp_path)
    assert 0 < (said(float_model) - after).abs().max() < 0.5 * (after - before).abs().max()
    with refused(CheckpointError, what="trunk", got="the right architecture with other weights"):
        load(llama(1), tmp_path)
    if method == "lora":
        stock = fold(float_model, inputs={"input_ids": IDS}, report=lambda _: None)
        assert_close(said(stock), said(float_model), atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_the_weights_in_full() -> None:
    """The adapter learns the same beside a quantised layer as beside its decoded weights."""
    torch.manual_seed(0)
    grads: list[list[Tensor]] = []
    for decoded in (False, True):
        model: Any = llama()
        for module in list(model.model.modules()):
            for name, layer in list(module.named_children()):
                if type(layer) is nn.Linear:
                    small = Int8(layer)
                    if decoded:
                        layer.weight.data = small.weight * small.scale
                    else:
                        setattr(module, name, small)
        adapted = adapt(model, METHODS["lora"])
        draw = torch.Generator().manual_seed(3)
        mine = [p for p in adapted.parameters() if p.requires_grad]
        with torch.no_grad():
            for p in mine:
                p.add_(0.1 * torch.randn(p.shape, generator=draw))
        adapted(input_ids=IDS, labels=IDS).loss.backward()
        grads.append([p.grad for p in mine if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    for a, b in zip(*grads, strict=True):
        assert_close(a, b)
