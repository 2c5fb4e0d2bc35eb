"""LT-SFT: the oracles of the paper's algorithm, and the released code's faults that it has not."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import Dataset, TensorDataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import intarsia
from intarsia.core.errors import ConfigError
from intarsia.fitting import fit, fit_in_phases
from intarsia.hosts.anatomy.own_weights import own_parameters, weights_of
from intarsia.methods import LtSft

from ..refusals import refused

CLASSES, WIDTH = 3, 12
OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 1e-2, "weight_decay": 0.3}


class Net(nn.Module):
    """Two residual blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                OrderedDict(norm=nn.LayerNorm(WIDTH), fc=nn.Linear(WIDTH, WIDTH), act=nn.GELU())
            )
            for _ in "ab"
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def rows(count: int = 40) -> Dataset[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, WIDTH, generator=generator)
    return TensorDataset(x, x[:, :CLASSES].argmax(1))


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in own_parameters(model).items()}


TOTAL = 2 * (WIDTH * WIDTH + WIDTH)


def test_it_finds_exactly_k_and_the_delta_is_the_trained_model() -> None:
    model, start = net(), bits(net())
    result = fit_in_phases(model, LtSft(count=17), rows(), **OPTIONS)
    assert [name for name, _ in result.runs] == ["all", "chosen"]
    phi = result.found
    assert 0 < len(phi) <= 17
    pretrained = net()
    phi.apply(pretrained)
    for n, p in own_parameters(model).items():
        assert_close(pretrained.get_parameter(n), p, rtol=0, atol=1e-7)
        if not n.startswith("head"):
            assert int((p != start[n]).sum()) == (len(phi.entries[n][0]) if n in phi.entries else 0)
    assert phi.heads.keys() == {"head.weight", "head.bias"}
    assert torch.equal(pretrained.head.weight, model.head.weight)
    assert all(p.requires_grad for p in model.parameters())


def test_the_places_are_those_that_drifted_most() -> None:
    method, model = LtSft(count=17), net()
    steps = method.phases(model)
    next(steps)
    start = bits(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator))
    parameters = own_parameters(model)
    drift = {n: (parameters[n] - start[n]).abs().detach() for n in parameters if ".fc." in n}
    assert sum(d.numel() for d in drift.values()) == TOTAL
    threshold = torch.cat([d.flatten() for d in drift.values()]).topk(17).values[-1]
    next(steps)
    # everything is back where it was, head included, and only what was chosen can learn
    assert all(torch.equal(p, start[n]) for n, p in own_parameters(model).items())
    for n, d in drift.items():
        assert model.get_parameter(n).requires_grad == bool((d >= threshold).any())
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(1.0)
    steps.close()


@pytest.mark.parametrize("clip", [None, 0.02])
def test_all_weights_are_full_fine_tuning(clip: float | None) -> None:
    ours, full = net(), net()
    fit_in_phases(ours, LtSft(density=1.0), rows(), clip=clip, **OPTIONS)
    for block in full.blocks:
        block.norm.requires_grad_(False)  # norms are never chosen  # pyright: ignore
    fit(full, rows(), clip=clip, **OPTIONS)
    for a, b in zip(ours.parameters(), full.parameters(), strict=True):
        assert_close(a, b, rtol=0, atol=1e-6)


def test_no_weights_leave_the_head() -> None:
    ours, head, start = net(), net(), bits(net())
    delta = fit_in_phases(ours, LtSft(count=0), rows(), **OPTIONS).found
    assert len(delta) == 0
    head.requires_grad_(False)
    head.head.requires_grad_(True)
    fit(head, rows(), **OPTIONS)
    for n, p in own_parameters(ours).items():
        assert torch.equal(p, head.get_parameter(n))
        assert n.startswith("head") or torch.equal(p, start[n])


def test_decay_and_clipping_do_not_move_the_others() -> None:
    for clip in (None, 0.1):
        model, start = net(), bits(net())
        phi = fit_in_phases(model, LtSft(0.05), rows(), clip=clip, **OPTIONS).found
        for n, p in own_parameters(model).items():
            if not n.startswith("head"):
                moved = (p != start[n]).flatten().nonzero().flatten()
                assert set(moved.tolist()) == set(
                    phi.entries[n][0].tolist() if n in phi.entries else ()
                )


def test_norms_and_named_parameters_only() -> None:
    model = net()
    weights, heads = weights_of(model, ("*",))
    assert set(weights) == {f"blocks.{i}.fc.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")}
    assert set(heads) == {"head.weight", "head.bias"}
    start = bits(model)
    phi = fit_in_phases(model, LtSft(0.5, maskable=("blocks.1.*",)), rows(), **OPTIONS).found
    assert set(phi.shapes) == {"blocks.1.fc.weight", "blocks.1.fc.bias"}
    for n, p in own_parameters(model).items():
        assert n.startswith(("head", "blocks.1.fc")) or torch.equal(p, start[n])


def test_a_frozen_head_stays_and_is_in_no_delta() -> None:
    model, start = net(), bits(net())
    phi = fit_in_phases(model, LtSft(0.1, head="frozen"), rows(), **OPTIONS).found
    assert not phi.heads and not [n for n in phi.shapes if n.startswith("head")]
    assert torch.equal(model.head.weight, start["head.weight"])


def test_iterations_add_up_to_k_and_keep_what_they_had() -> None:
    method = LtSft(count=10, iterations=3)
    assert method.shares(TOTAL) == [3, 3, 4]
    model = net()
    phases = fit_in_phases(model, method, rows(), **OPTIONS)
    assert [n for n, _ in phases.runs] == ["all", "chosen"] * 3
    assert 4 < len(phases.found) <= 10
    first = fit_in_phases(net(), LtSft(count=3), rows(), **OPTIONS).found
    for n, (index, _) in first.entries.items():
        assert set(index.tolist()) <= set(phases.found.entries[n][0].tolist())


def test_later_iterations_start_from_the_result_of_the_one_before() -> None:
    model = net()
    steps = LtSft(count=20, iterations=2).phases(model)
    for _ in range(2):
        next(steps)
        with torch.no_grad():
            model.head.bias.add_(1.0)
            for block in model.blocks:
                block.fc.weight.view(-1)[:5] += 0.5
    # phase B's own hooks are not run here: its weights are as set above
    after = bits(model)
    next(steps)
    assert all(torch.equal(p, after[n]) for n, p in own_parameters(model).items())
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))
    next(steps)
    assert torch.equal(model.head.bias, after["head.bias"])
    for block, i in zip(model.blocks, (0, 1), strict=True):
        assert torch.equal(
            block.fc.weight.view(-1)[:5], after[f"blocks.{i}.fc.weight"].view(-1)[:5]
        )
    steps.close()


@pytest.mark.parametrize("support", ["random", "magnitude"])
def test_baselines_need_no_first_phase(support: str) -> None:
    runs = [
        fit_in_phases(net(), LtSft(count=9, support=support), rows(), **OPTIONS | {"seed": s})
        for s in (0, 0, 1)
    ]
    assert [n for n, _ in runs[0].runs] == ["chosen"]
    places = [{n: i.tolist() for n, (i, _) in r.found.entries.items()} for r in runs]
    assert places[0] == places[1]
    assert (places[0] == places[2]) == (support == "magnitude")
    if support == "magnitude":
        start = {n: p for n, p in bits(net()).items() if n in runs[0].found.shapes}
        least = torch.cat([p.abs().flatten() for p in start.values()]).topk(9).values[-1]
        for n, (index, _) in runs[0].found.entries.items():
            assert (start[n].flatten()[index].abs() >= least).all()


def test_the_pull_keeps_weights_near() -> None:
    free, near = (
        fit_in_phases(net(), LtSft(0.5, pull=p), rows(), **OPTIONS).found for p in (0.0, 1e5)
    )

    def size(phi: Any) -> float:
        return sum(float(v.abs().sum()) for _, v in phi.entries.values())

    assert size(near) < 0.7 * size(free)


def _plain_steps(model: nn.Module, lr: float, _: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)


@pytest.mark.parametrize("adapted", [False, True])
def test_both_phases_pull_by_lambda_over_all_that_may_be_chosen(adapted: bool) -> None:
    """Weights that were moved a little go lambda / N back in a step of rate 1 without a gradient.

    A little, so that most weights keep their sign: a pull towards 0 would be another.
    """
    model: Any = intarsia.adapt(net(), LtSft(), targets=["fc"], head="head") if adapted else net()
    count = 2 * WIDTH * WIDTH if adapted else TOTAL
    steps = LtSft(count=3, pull=count / 8).phases(model)
    for name in ("all", "chosen"):
        phase = next(steps)
        optimizer = phase.optimizer(_plain_steps)(model, 1.0, 0.0)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        own = {id(p) for p in model.parameters()}
        with torch.no_grad():
            for p in (*model.parameters(), *(p for p in trained if id(p) not in own)):
                p.add_(2.0**-10)
                p.grad = torch.zeros_like(p) if p.requires_grad else None
        before = [p.detach().clone() for p in trained]
        optimizer.step()
        back = torch.cat([(b - p.detach()).flatten() for b, p in zip(before, trained, strict=True)])
        pulled = back[back != 0]
        assert phase.name == name and len(pulled) == (count if name == "all" else 3)
        assert_close(pulled, torch.full_like(pulled, 1 / 8), rtol=1e-4, atol=1e-6)


def test_the_first_phase_may_be_shorter() -> None:
    runs = fit_in_phases(net(), LtSft(0.1, first=0.34), rows(), **OPTIONS).runs
    assert [run.record["training"]["epochs"] for _, run in runs] == [1, 3]


def test_half_precision_leaves_frozen_weights_in_their_own() -> None:
    model, start = net(), bits(net())
    phi = fit_in_phases(model, LtSft(count=5), rows(), precision="bf16", **OPTIONS).found
    for n, p in own_parameters(model).items():
        assert p.dtype == torch.float32
        if n not in phi.entries and not n.startswith("head"):
            assert torch.equal(p, start[n])


def test_after_an_error_flags_are_as_before() -> None:
    model = net()
    model.blocks[0].requires_grad_(False)
    with pytest.raises(intarsia.IntarsiaError):
        fit_in_phases(model, LtSft(0.1), rows(), **OPTIONS | {"lr": 1e30, "epochs": 20})
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        n for n, _ in model.named_parameters() if n.startswith("blocks.0")
    ]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def test_a_language_model_learns_and_its_tied_weights_stay_one() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(64, (16, 6), generator=generator)
    texts: Any = [{"input_ids": row, "labels": row} for row in ids]
    model = llama()
    phi = fit_in_phases(model, LtSft(count=50), texts, epochs=2, batch_size=4, lr=1e-2).found
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert 0 < len(phi) <= 50 and "lm_head.weight" not in phi.shapes
    moved = {n: int((p != q).sum()) for (n, p), q in
             zip(model.named_parameters(), llama().parameters(), strict=True)}  # fmt: skip
    assert sum(moved.values()) == len(phi)
    pretrained = llama()
    phi.apply(pretrained)
    assert_close(pretrained(ids).logits, model.eval()(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_delta_of_a_language_goes_into_a_classifier() -> None:
    """The head of the language model is behind the trunk, and is not chosen from."""
    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 16,
    }  # fmt: skip
    model = BertForMaskedLM(BertConfig(**sizes))
    weights, _ = weights_of(model, ("*",), trunk=True)
    assert weights and all(name.startswith("bert.") for name in weights)
    assert any(name.startswith("cls.") for name in weights_of(model, ("*",))[0])
    classifier = BertForSequenceClassification(BertConfig(**sizes, num_labels=3))
    classifier.bert.load_state_dict(model.bert.state_dict(), strict=False)
    phases = LtSft(density=0.1, head="frozen", support="random").phases(model)
    next(phases)
    with torch.no_grad():
        for parameter in weights.values():
            parameter.add_(0.01)
    with pytest.raises(StopIteration) as stopped:
        next(phases)
    before = classifier.bert.embeddings.word_embeddings.weight.detach().clone()
    stopped.value.value.apply(classifier)
    assert not torch.equal(classifier.bert.embeddings.word_embeddings.weight, before)


def test_tied_weights_are_chosen_once() -> None:
    model = llama()
    weights, heads = weights_of(model, ("*",))
    assert not heads and "model.embed_tokens.weight" in weights and "lm_head.weight" not in weights
    assert not [n for n in weights if "norm" in n]
    assert len({id(p) for p in weights.values()}) == len(weights)
    tied, _ = weights_of(model, ("lm_head*", "*embed*"))
    assert len(tied) == 1


def test_in_an_adapted_model_cells_become_sparse() -> None:
    model = intarsia.adapt(net(), LtSft(), targets=["fc"], head="head")
    start = bits(net())
    x = torch.randn(5, WIDTH)
    assert_close(model(x), net()(x))
    delta = fit_in_phases(model, LtSft(count=20), rows(), **OPTIONS).found
    assert model.peft_config["default"].method == "sparse"  # pyright: ignore
    assert 10 < len(delta) <= 20
    assert all(torch.equal(p, start[n]) for n, p in own_parameters(model).items())
    plain = net()
    delta.apply(plain)
    assert_close(plain(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_an_adapted_model_and_a_plain_one_choose_alike() -> None:
    # without decay (which pulls one to theta_0, the other to 0) the first phase is the same
    options = OPTIONS | {"weight_decay": 0.0}
    weights = ("blocks.*.fc.weight",)
    plain = fit_in_phases(net(), LtSft(count=30, maskable=weights), rows(), **options).found
    model = intarsia.adapt(net(), LtSft(), targets=["fc"], head="head")
    adapted_delta = fit_in_phases(model, LtSft(count=30), rows(), **options).found
    for n, (index, values) in plain.entries.items():
        assert torch.equal(index, adapted_delta.entries[n][0])
        assert_close(values, adapted_delta.entries[n][1], rtol=0, atol=2e-4)


def test_more_iterations_in_an_adapted_model() -> None:
    for support in ("drift", "random", "magnitude"):
        method = LtSft(count=11, iterations=2, support=support, pull=0.1)
        model = intarsia.adapt(net(), method, targets=["fc"], head="head")
        delta = fit_in_phases(model, method, rows(), **OPTIONS).found
        assert 6 < len(delta) <= 11
    model = intarsia.adapt(net(), LtSft(), targets=["fc"], head="head")
    assert len(fit_in_phases(model, LtSft(count=0), rows(), **OPTIONS).found) == 0


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"density": 1.1}, "density"),
        ({"count": -1}, "count"),
        ({"iterations": 0}, "iterations"),
        ({"first": 0}, "first"),
        ({"pull": -1.0}, "pull"),
        ({"support": "drifts"}, "support"),
        ({"head": "half"}, "head"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        LtSft(**settings)


def test_an_adapter_that_needs_phases_is_not_trained_without() -> None:
    model = intarsia.adapt(net(), LtSft(count=9), targets=["fc"], head=None)
    with refused(ConfigError, what="adapter 'default'", got="lt_sft, which is trained in phases"):
        fit(model, rows(), **OPTIONS)
    fit_in_phases(model, LtSft(count=9), rows(), **OPTIONS)
    fit(model, rows(), **OPTIONS)  # chosen entries go on as any adapter's


def test_more_weights_than_there_are_are_refused_before_anything_is_trained() -> None:
    model, start = net(), bits(net())
    with refused(ConfigError, what="count", got=313):
        fit_in_phases(model, LtSft(count=TOTAL + 1), rows(), **OPTIONS)
    with refused(ConfigError, what="maskable 'layers.*'"):
        fit_in_phases(model, LtSft(maskable=("layers.*",)), rows(), **OPTIONS)
    adapted = intarsia.adapt(net(), intarsia.Lora(2), targets=["fc"], head=None)
    with refused(ConfigError, what="LT-SFT of an adapted model"):
        fit_in_phases(adapted, LtSft(), rows(), **OPTIONS)
    assert all(torch.equal(p, start[n]) for n, p in own_parameters(model).items())
