"""Co-permutation: the model says the same, slices become runs, adapters go back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia.core.errors import TargetError
from intarsia.methods import S2ft, S2ftCell, choose_channels, co_permute
from intarsia.methods.s2ft.channels import read

from ..refusals import refused

pytestmark = pytest.mark.filterwarnings(  # PEFT asks a transformers 5 model by the old name
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

ALL = S2ft(down=0.2, output=0.5, up=0.2, value=0.5)


def llama(heads: int = 4, groups: int = 2, biases: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=heads, num_key_value_heads=groups, attention_bias=biases,
        mlp_bias=biases,
    )  # fmt: skip
    return _lively(LlamaForCausalLM(config))


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    return _lively(BertForSequenceClassification(config))


def _lively(model: Any) -> Any:
    """Biases start at 0, where a forgotten one would not show."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 64, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (4, 1), (4, 4), (8, 2)])
@pytest.mark.parametrize("biases", [True, False])
def test_the_model_stays_the_same(heads: int, groups: int, biases: bool, tokens: Tensor) -> None:
    model = llama(heads, groups, biases)
    want, before = model(tokens).logits, copy.deepcopy(model.state_dict())
    moved, order = co_permute(model, choose_channels(model, ALL, seed=1))
    assert_close(model(tokens).logits, want, rtol=0, atol=1e-5)
    assert any(not torch.equal(t, before[n]) for n, t in model.state_dict().items())
    for _, text in moved.channels:
        assert "," not in text  # one run
    order.inverse().apply(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("name", ["vit", "hf_vit", "dinov2", "convnext_conv_mlp"])
def test_on_vision_models(
    name: str, make: Callable[[str], nn.Module], images: Any, logits: Any
) -> None:
    model = _lively(make(name))
    x = images(name)
    want = logits(model, x)
    method = S2ft(0.2, up=0.2) if name.startswith("convnext") else ALL
    moved, _ = co_permute(model, choose_channels(model, method))
    assert_close(logits(model, x), want, rtol=0, atol=1e-4)
    assert all("," not in text for _, text in moved.channels)


def test_on_bert(tokens: Tensor) -> None:
    model = bert()
    want = model(tokens).logits
    moved, _ = co_permute(model, choose_channels(model, ALL))
    assert_close(model(tokens).logits, want, rtol=0, atol=1e-4)
    assert all("," not in text for _, text in moved.channels) and len(moved.channels) > 4


def test_units_come_in_the_papers_order() -> None:
    model = llama()
    method = choose_channels(model, S2ft(down=0.4, up=0.4))
    indices = {p: set(read(t)) for p, t in method.channels}
    moved, _ = co_permute(model, method)
    for path, text in moved.channels:
        if path.endswith("up_proj"):
            down = path.replace("up_proj", "down_proj")
            both = len(indices[path] & indices[down])
            up, low = read(text), read(dict(moved.channels)[down])
            assert up == list(range(len(indices[path])))
            assert low[0] == len(indices[path]) - both and len(low) == len(indices[down])


def trained(model: Any, method: S2ft, tokens: Tensor) -> Any:
    adapted = intarsia.adapt(model, method, head=None)
    learned = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    return adapted.eval()


def test_training_on_runs_is_training_on_the_channels_themselves(tokens: Tensor) -> None:
    model = llama()
    method = choose_channels(model, ALL)
    indexed = trained(copy.deepcopy(model), method, tokens)
    moved, order = co_permute(model, method)
    sliced = trained(model, moved, tokens)
    cells = [m for m in sliced.modules() if isinstance(m, S2ftCell)]
    assert cells and all(cell.run is not None for cell in cells)
    assert_close(sliced(tokens).logits, indexed(tokens).logits, rtol=0, atol=1e-4)
    order.inverse().apply(sliced)
    for a, b in zip(cells, (m for m in indexed.modules() if isinstance(m, S2ftCell)), strict=True):
        assert torch.equal(a.channels, b.channels)
        assert_close(a.weight, b.weight, rtol=0, atol=1e-4)


def test_an_adapter_goes_back_to_the_model_as_it_was(tokens: Tensor, tmp_path: Path) -> None:
    model, stock = llama(), llama()
    method = choose_channels(model, ALL)
    moved, order = co_permute(model, method)
    adapted = trained(model, moved, tokens)
    want = adapted(tokens).logits
    order.inverse().apply(adapted)
    assert_close(adapted(tokens).logits, want, rtol=0, atol=1e-5)
    assert adapted.peft_config["default"].settings() == method
    adapted.save_pretrained(tmp_path)
    again = intarsia.load(stock, tmp_path)
    assert_close(again(tokens).logits, want, rtol=0, atol=1e-5)


def test_a_fold_of_the_permuted_model_is_plain(tokens: Tensor) -> None:
    model = llama()
    moved, _ = co_permute(model, choose_channels(model, ALL))
    adapted = trained(model, moved, tokens)
    stock = intarsia.fold(adapted, inputs={"input_ids": tokens}, report=lambda _: None)
    assert_close(stock(tokens).logits, adapted(tokens).logits, rtol=1e-4, atol=1e-4)


def test_no_weight_is_replaced_and_none_gets_a_gradient() -> None:
    model = llama()
    before = {n: p.data_ptr() for n, p in model.named_parameters()}
    co_permute(model, choose_channels(model, ALL))
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == before
    assert all(p.grad_fn is None and p.is_leaf for p in model.parameters())


def test_what_cannot_follow_is_refused_and_nothing_changes(
    make: Callable[[str], nn.Module], tokens: Tensor
) -> None:
    swin = make("swin")
    before = copy.deepcopy(swin.state_dict())
    with refused(TargetError, what="permutation at 'layers.1.blocks.0.attn.proj'"):
        co_permute(swin, choose_channels(swin, S2ft(0, value=0.5)))
    assert all(torch.equal(t, before[n]) for n, t in swin.state_dict().items())
    model = llama()
    path = "model.layers.0.self_attn.v_proj"
    with refused(TargetError, what="permutation at 'model.layers.0.self_attn.v_proj'"):
        co_permute(model, S2ft(0, value=0.1, channels=((path, "0-4"),)))
    path = "model.layers.0.self_attn.o_proj"
    with refused(
        TargetError, what="permutation at 'model.layers.0.self_attn.o_proj'"
    ):  # one of two queries
        co_permute(model, S2ft(0, output=0.1, channels=((path, "0-7"),)))
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with refused(TargetError, what="permutation at '0'"):
        co_permute(net, choose_channels(net, S2ft(0.5), targets=["0"]))
    method = choose_channels(model, ALL)
    adapted = intarsia.adapt(model, intarsia.Lora(2), head=None)
    want = adapted(tokens).logits
    with refused(TargetError, what="permutation at 'model.layers.0.self_attn.q_proj'"):
        co_permute(adapted, method)
    assert torch.equal(adapted(tokens).logits, want)
