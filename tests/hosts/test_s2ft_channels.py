"""S2FT's selections on real hosts: budgets over layers, heads as KV groups, scores, saving."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia.core.errors import ConfigError, TargetError
from intarsia.hosts.attach.config import IntarsiaConfig
from intarsia.methods import S2ft, S2ftCell, choose_channels
from intarsia.methods.s2ft.channels import _rank_units, read

from ..refusals import refused

pytestmark = pytest.mark.filterwarnings(  # PEFT asks a transformers 5 model by the old name
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(SIZES | changes))).eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 64, (2, 7), generator=torch.Generator().manual_seed(1))


def ids(method: S2ft) -> dict[str, list[int]]:
    return {path: read(text) for path, text in method.channels}


def cells(model: nn.Module) -> dict[str, S2ftCell]:
    return {n: m for n, m in model.named_modules() if isinstance(m, S2ftCell)}


def test_a_share_is_of_all_layers_and_counts_are_uneven() -> None:
    choices = [ids(choose_channels(llama(), S2ft(down=0.25), seed=seed)) for seed in range(8)]
    assert all(sum(map(len, f.values())) == 24 for f in choices)
    assert len({tuple(map(len, f.values())) for f in choices}) > 1
    assert {path.rpartition(".")[2] for f in choices for path in f} == {"down_proj"}
    assert choose_channels(llama(), S2ft(), seed=3) == choose_channels(llama(), S2ft(), seed=3)


def test_heads_are_chosen_as_groups_that_share_keys() -> None:
    # 4 query heads of width 8 on 2 keys: groups of 16 columns, values of 8 rows
    channels = ids(choose_channels(llama(), S2ft(down=0, output=0.25, value=0.25)))
    outs = [v for p, v in channels.items() if p.endswith("o_proj")]
    values = [v for p, v in channels.items() if p.endswith("v_proj")]
    assert [len(v) for v in outs] == [16] and [len(v) for v in values] == [8]
    assert all(v[0] % len(v) == 0 and v == list(range(v[0], v[0] + len(v))) for v in outs + values)


def test_values_inside_a_fused_layer(make: Callable[[str], nn.Module]) -> None:
    channels = ids(choose_channels(make("vit"), S2ft(down=0, output=0.5, value=0.5)))
    for path, indices in channels.items():
        first = 64 if path.endswith("qkv") else 0  # 2 heads of 16 in a width of 32
        assert len(indices) % 16 == 0 and min(indices) >= first


@pytest.mark.parametrize("name", ["vit", "swin", "hf_vit", "deit", "eva"])
def test_it_trains_and_folds(
    name: str, make: Callable[[str], nn.Module], images: Any, train: Any, logits: Any
) -> None:
    shares = {"down": 0.2, "output": 0.5, "up": 0.2} | ({} if name == "eva" else {"value": 0.5})
    shares |= {"up": 0.0} if name == "eva" else {}  # its gate and values are one layer
    model = intarsia.adapt(make(name), S2ft(**shares), head=None)
    x = images(name)
    assert_close(logits(model.eval(), x), logits(make(name), x))
    train(model, x)
    want = logits(model, x)
    assert not torch.allclose(want, logits(make(name), x))
    stock = intarsia.fold(model, report=lambda _: None)
    assert_close(logits(stock, x), want, rtol=1e-4, atol=1e-4)


def test_only_slices_learn_and_have_state(tokens: Tensor) -> None:
    model = intarsia.adapt(llama(), S2ft(down=0.1, output=0.5), head=None)
    learned = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in learned} == {id(c.weight) for c in cells(model).values()}
    optimizer = torch.optim.AdamW(learned)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    state = sum(t.numel() for s in optimizer.state.values() for t in s.values() if t.dim())
    channels = sum(len(c.channels) for c in cells(model).values())
    assert state == 2 * channels * 32
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("folder", ["adapter", "peft"])
def test_it_comes_back_from_its_folder(folder: str, tokens: Tensor, tmp_path: Path) -> None:
    model = llama()
    method = choose_channels(model, S2ft(down=0.1, value=0.5, selection="weight"))
    adapted = intarsia.adapt(model, method, head=None, seed=5)
    for cell in cells(adapted).values():
        nn.init.normal_(cell.weight, std=0.3)
    want = adapted.eval()(tokens).logits
    adapted.save_pretrained(tmp_path)
    if folder == "adapter":
        again = intarsia.load(llama(), tmp_path)
    else:
        again = PeftModel.from_pretrained(llama(), str(tmp_path)).eval()
    assert torch.equal(again(tokens).logits, want)
    assert again.peft_config["default"].settings() == method
    assert [c.run for c in cells(again).values()] == [c.run for c in cells(adapted).values()]


def test_peft_merges_and_unmerges(tokens: Tensor) -> None:
    model = llama()
    before = {n: p.clone() for n, p in model.named_parameters()}
    adapted = intarsia.adapt(model, S2ft(down=0.1, value=0.5), head=None).eval()
    for cell in cells(adapted).values():
        nn.init.normal_(cell.weight, std=0.3)
    want = adapted(tokens).logits
    adapted.merge_adapter()
    assert_close(adapted(tokens).logits, want, rtol=1e-5, atol=1e-5)
    adapted.unmerge_adapter()
    stock = adapted.unload()
    for name, p in stock.named_parameters():
        assert_close(p, before[name], rtol=0, atol=1e-6)
        assert p.grad_fn is None


def test_adapters_apart_add_without_interference(tokens: Tensor) -> None:
    model = llama()
    first = choose_channels(model, S2ft(down=0.2), seed=0)
    second = choose_channels(model, S2ft(down=0.2), apart=[first], seed=0)
    a, b = ids(first), ids(second)
    assert all(not set(a[p]) & set(b[p]) for p in a.keys() & b.keys())
    with refused(ConfigError, what="share of channels", got="0.7, 67 of 96"):
        choose_channels(model, S2ft(down=0.7), apart=[first, second])
    adapted = intarsia.adapt(model, first, name="one", head=None)
    adapted = intarsia.adapt(adapted, second, name="two", head=None)
    for cell in cells(adapted).values():
        nn.init.normal_(cell.weight, std=0.3)
    adapted.eval().base_model.set_adapter(["one", "two"])
    both = adapted(tokens).logits
    stock = intarsia.fold(adapted, inputs={"input_ids": tokens}, report=lambda _: None)
    assert_close(stock(tokens).logits, both, rtol=1e-4, atol=1e-5)
    weights = dict(stock.named_parameters())
    for path, indices in a.items():
        cell = cells(adapted)[f"base_model.model.{path}.intarsia_cells.one"]
        change = weights[f"{path}.weight"] - dict(llama().named_parameters())[f"{path}.weight"]
        assert_close(change[:, indices], cell.weight, rtol=1e-4, atol=1e-5)


def test_scores_choose_what_they_say(tokens: Tensor) -> None:
    model, path = llama(num_hidden_layers=1), "model.layers.0.mlp.down_proj"
    down = model.get_submodule(path)
    batch, inputs = {"input_ids": tokens, "labels": tokens}, []
    with torch.no_grad():
        handle = down.register_forward_hook(lambda m, args, y: inputs.append(args[0]))
        model(tokens)
        handle.remove()
    active = inputs[0].flatten(0, 1).square().mean(0).sqrt()
    norm = down.weight.norm(dim=0)
    (gradient,) = torch.autograd.grad(model(**batch).loss, [down.weight])
    scores = {
        "weight": norm, "activation": active, "weight_activation": norm * active,
        "gradient": gradient.norm(dim=0),
    }  # fmt: skip
    for selection, score in scores.items():
        for order, largest in (("largest", True), ("smallest", False)):
            channels = choose_channels(model, S2ft(0.25, selection=selection, order=order), [batch])
            want = score.topk(12, largest=largest).indices.sort().values.tolist()
            assert ids(channels) == {path: want}, (selection, order)
    assert len({choose_channels(model, S2ft(0.25, selection=s), [batch]) for s in scores}) == 4
    assert not model.training and all(p.requires_grad for p in model.parameters())
    assert not down._forward_hooks and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("order", "best"), [("largest", 1), ("smallest", 0)])
def test_a_head_is_as_good_as_the_mean_square_of_its_channels(order: str, best: int) -> None:
    scores = torch.tensor([3.0, 0.0, 2.5, 2.5])  # the first has the largest channel
    method = S2ft(selection="weight", order=order)
    ranked = _rank_units(method, scores, 2, torch.zeros(4, dtype=torch.bool))
    assert int(ranked.argmax()) == best


def test_padding_does_not_count(tokens: Tensor) -> None:
    model, method = llama(), S2ft(down=0.25, selection="activation")
    padded = torch.cat([tokens, torch.full((2, 5), 9)], 1)
    mask = torch.cat([torch.ones(2, 7), torch.zeros(2, 5)], 1).long()
    want = choose_channels(model, method, [tokens])
    assert choose_channels(model, method, [{"input_ids": padded, "attention_mask": mask}]) == want


def test_pairs_and_a_loss_of_ones_own(make: Callable[[str], nn.Module], images: Any) -> None:
    model, batch = make("vit"), (images("vit"), torch.arange(4))
    choose_channels(model, S2ft(selection="activation"), [batch])
    method = S2ft(output=0.5, value=0.5, selection="gradient")
    with refused(ConfigError, what="selection 'gradient'", got="outputs without a loss"):
        choose_channels(model, method, [batch])
    loss = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])  # noqa: E731
    assert choose_channels(model, method, [batch], loss=loss).channels


def test_data_is_asked_for_before_anything_changes() -> None:
    for selection in ("activation", "weight_activation", "gradient"):
        with refused(ConfigError, got="no calibration data", want="a few batches"):
            intarsia.adapt(llama(), S2ft(selection=selection), head=None)
    intarsia.adapt(llama(), S2ft(selection="weight"), head=None)


def test_what_cannot_be_chosen_is_refused(make: Callable[[str], nn.Module]) -> None:
    with refused(ConfigError, what="share of channels", got="0.001 of 96, which selects nothing"):
        intarsia.adapt(llama(), S2ft(down=0.001), head=None)
    with refused(TargetError, what="target 'model.layers.0.mlp.gate_proj'"):
        intarsia.adapt(llama(), S2ft(), targets=["gate_proj"], head=None)
    with refused(TargetError, what="share 'output'"):
        choose_channels(llama(), S2ft(output=0.5), targets=["down_proj"])
    with refused(TargetError, what="share 'up' at 'blocks.0.mlp.fc1'"):
        choose_channels(make("eva"), S2ft(up=0.1))
    vit = make("vit")
    vit.blocks[0].attn.qkv = nn.Linear(32, 40)
    with refused(TargetError, what="values in the fused layer 'blocks.0.attn.qkv'"):
        choose_channels(vit, S2ft(value=0.5))
    vit.blocks[0].attn.qkv = nn.Linear(32, 48)  # three equal parts, but not of the heads
    with refused(TargetError, what="heads at 'blocks.0.attn.qkv'"):
        choose_channels(vit, S2ft(value=0.5))


def test_other_layers_take_the_first_share() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    adapted = intarsia.adapt(net, S2ft(down=0.5), targets=["0", "2"], head=None)
    assert sum(len(c.channels) for c in cells(adapted).values()) == 7


def test_peft_alone_fills_in_the_channels() -> None:
    model = get_peft_model(llama(), IntarsiaConfig(method="s2ft", options={"down": 0.25}))
    config = model.peft_config["default"]
    assert sum(len(c.channels) for c in cells(model).values()) == 24
    assert dict(config.settings().channels).keys() == set(config.target_modules)
