"""Read-ME: masks, residual and experts are parts of the dense model; the gate reads ids alone."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia.core.errors import ConfigError, DataError, ShapeError, TargetError
from intarsia.mixtures import Mixture
from intarsia.mixtures.read_me import random_masks, read_me_mixture, residual_of
from intarsia.routers.pregate import PreGate, PreGateRouter
from intarsia.sparse.swap import read_me
from intarsia.sparse.swap.read_me import (
    ReadMe,
    channel_masks,
    extract,
    gate_loss,
    masked,
    pre_gate,
    pregate_targets,
    train_gate,
    train_in_turns,
)
from intarsia.sparse.swap.read_me_channels import _select_largest, channel_use

from ...refusals import refused

WORDS = 24


@pytest.fixture(scope="module")
def dense() -> Any:
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        use_cache=False,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def rows(low: int, high: int, seed: int = 0) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(low, high, (4, 9), generator=draws)}


DOMAINS = {"low": [rows(0, 12)], "high": [rows(12, WORDS)]}


class Fixed(torch.nn.Module):
    """A gate that always says the same."""

    def __init__(self, expert: int, experts: int = 2) -> None:
        super().__init__()
        self.config, self.expert = PreGate(experts, vocabulary=WORDS, width=8, heads=2), expert

    def cached_logits(self, ids: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*ids.shape, self.config.experts)
        logits[..., self.expert] = 1.0
        return logits


def test_masks_have_as_many_units_as_they_are_told(dense: Any) -> None:
    masks = channel_masks(dense, DOMAINS, 0.45)
    assert list(masks) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    use = [channel_use(dense, batches) for batches in DOMAINS.values()]
    for path, mask in masks.items():
        assert mask.shape == (2, 20) and mask.sum(1).tolist() == [9, 9]
        for row, usage in zip(mask, use, strict=True):
            assert usage[path][row].min() >= usage[path][~row].max()
        units = mask & ~residual_of(mask)
        assert not bool((units & residual_of(mask)).any())
        assert torch.equal(units | residual_of(mask), mask)
        drawn = random_masks(mask, torch.Generator().manual_seed(0))
        assert drawn.sum(1).tolist() == [9, 9] and not torch.equal(drawn, mask)


def test_padding_does_not_count(dense: Any) -> None:
    ids = rows(0, WORDS)["input_ids"]
    mask = torch.ones_like(ids)
    mask[:, 5:] = 0
    padded = channel_use(dense, [{"input_ids": ids, "attention_mask": mask}])
    alone = channel_use(dense, [{"input_ids": ids[:, :5]}])
    for path, use in padded.items():
        torch.testing.assert_close(use, alone[path], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("expert", [0, 1])
def test_slices_are_the_masked_dense_model(dense: Any, expert: int) -> None:
    masks = channel_masks(dense, DOMAINS, 0.5)
    batch = rows(0, WORDS, 5)
    with torch.no_grad(), masked(dense, masks, expert):
        want = dense(**batch).logits
    gate: Any = Fixed(expert)
    model = extract(copy.deepcopy(dense), DOMAINS, masks=masks, gate=gate)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, want, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(want, dense(**batch).logits, atol=1e-3)


def test_a_density_of_one_is_the_dense_model(dense: Any) -> None:
    model = extract(copy.deepcopy(dense), DOMAINS, ReadMe(density=1.0, width=8, heads=2), steps=1)
    batch = rows(0, WORDS, 5)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, dense(**batch).logits)
    mixtures = [m for m in model.modules() if isinstance(m, Mixture)]
    assert len(mixtures) == 2 and len({id(m.router.gate) for m in mixtures}) == 1
    model(**batch).logits.sum().backward()


def test_a_model_in_bf16_has_a_gate_in_float32(dense: Any) -> None:
    model = copy.deepcopy(dense).bfloat16()
    masks = channel_masks(model, DOMAINS, 0.5)
    target = pregate_targets(model, masks, DOMAINS["low"][0])
    assert target.dtype == torch.float32
    torch.testing.assert_close(target.sum(-1), torch.ones(2, 4, 9))
    extract(model, DOMAINS, ReadMe(width=8, heads=2), masks=masks, steps=2)
    mixture = model.model.layers[0].mlp
    assert {p.dtype for p in mixture.router.parameters()} == {torch.float32}
    assert {p.dtype for p in mixture.experts.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert model(**DOMAINS["low"][0]).logits.dtype == torch.bfloat16


def test_masks_and_gate_are_on_the_model_s_device() -> None:
    assert _select_largest(torch.empty(2, 5, device="meta"), 2).is_meta
    gate = PreGate(2, vocabulary=9, width=8, heads=2).net(
        embedding=torch.empty(9, 8, device="meta"), generator=torch.Generator()
    )
    assert all(p.is_meta for p in gate.parameters())


def test_masks_of_another_model_leave_this_one_alone(dense: Any) -> None:
    masks = channel_masks(dense, DOMAINS, 0.5)
    first, second = masks
    gate: Any = Fixed(0)
    for wrong in ({first: masks[first]}, masks | {second: masks[second][:, 1:]}):
        with refused(ShapeError, what="masks of model.layers.1.mlp"):
            extract(dense, DOMAINS, masks=wrong, gate=gate)
    assert not any(isinstance(m, Mixture) for m in dense.modules())


def test_one_domain_is_pruning(dense: Any) -> None:
    domains = {"low": DOMAINS["low"]}
    masks = channel_masks(dense, domains, 0.5)
    gate: Any = Fixed(0, experts=1)
    model = extract(copy.deepcopy(dense), domains, masks=masks, gate=gate)
    batch = rows(0, WORDS, 5)
    with torch.no_grad(), masked(dense, masks, 0):
        want = dense(**batch).logits
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, want, rtol=1e-4, atol=1e-5)


def test_the_gate_is_causal_and_learns_the_targets(dense: Any) -> None:
    masks = channel_masks(dense, DOMAINS, 0.5)
    target = pregate_targets(dense, masks, rows(0, WORDS, 7))
    torch.testing.assert_close(target.sum(-1), torch.ones(2, 4, 9))
    gate = PreGate(2, vocabulary=WORDS, width=8, heads=2).net(
        embedding=dense.get_input_embeddings().weight, generator=torch.Generator().manual_seed(0)
    )
    ids = rows(0, WORDS, 7)["input_ids"]
    later = ids.clone()
    later[:, 6:] = 3
    torch.testing.assert_close(gate(ids)[:, :6], gate(later)[:, :6])
    rows_of_many = [b for seed in range(16) for b in (rows(0, 12, seed), rows(12, WORDS, seed))]
    losses = train_gate(gate, dense, masks, rows_of_many, steps=64)
    assert sum(losses[-8:]) < sum(losses[:8])
    with torch.no_grad():
        assert gate.cached_logits(ids) is gate.cached_logits(ids)
        first = gate.cached_logits(ids)
        gate.head.add_(1.0)
        assert gate.cached_logits(ids) is not first
        ids.copy_(later)  # a buffer that holds the next batch
        assert torch.equal(gate.cached_logits(ids), gate(later))
    sharp = torch.tensor([[[0.9, 0.1]]])
    assert gate_loss(torch.tensor([[2.0, 0.0]]), sharp) < gate_loss(torch.zeros(1, 2), sharp)


def test_a_target_is_the_share_of_a_token_s_largest_units_that_are_the_expert_s_own() -> None:
    """Units 3, 2, 1, 0 of one token, largest first; experts {0, 1, 4} and {2, 3, 4}.

    Unit 4 is residual. N = 2 own units: n = 1, 1, 1, 0 and 0 of the largest units count, which are
    unit 3 three times: 3 hits of the second expert, 0 of the first, over 3 N = 6. Softmax of
    (0, 10 / 2).
    """
    masks = {
        "mlp": torch.tensor([[True, True, False, False, True], [False, False, True, True, True]])
    }
    hidden = torch.tensor([[[1.0, 2, 3, 4, -9]]])  # the sign counts: -9 is the smallest
    model: Any = torch.nn.Module()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "forward", lambda **_: None)
        patch.setattr(read_me, "hidden_units", lambda _: contextlib.nullcontext({"mlp": hidden}))
        target = pregate_targets(model, masks, {})
    torch.testing.assert_close(target, torch.tensor([[[[0.0, 5.0]]]]).softmax(-1))


def test_gate_and_experts_are_trained_by_turns_and_cut_afterwards(dense: Any) -> None:
    model, masks = copy.deepcopy(dense), channel_masks(dense, DOMAINS, 0.5)
    gate = pre_gate(model, 2, ReadMe(width=8, heads=2))
    batches = [b for d in DOMAINS.values() for b in d]
    before = copy.deepcopy(model.state_dict())
    losses = train_in_turns(gate, model, masks, batches, rounds=3, steps=(10, 10), lr=(3e-3, 3e-3))
    assert len(losses) == 3 and all(math.isfinite(x) and x > 0 for pair in losses for x in pair)
    assert not torch.equal(model.state_dict()["lm_head.weight"], before["lm_head.weight"])
    batch = rows(0, WORDS, 5)
    with torch.no_grad():
        domain = gate(batch["input_ids"]).argmax(-1)
        assert len(domain.unique()) == 2
        with masked(model, masks, domain):
            want = model(**batch).logits
        cut = extract(copy.deepcopy(model), DOMAINS, masks=masks, gate=gate)
        torch.testing.assert_close(cut(**batch).logits, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError) as error:
        train_in_turns(gate, model, masks, batches, rounds=0)
    assert error.value.what == "rounds" and error.value.got == 0


def test_padding_teaches_nothing(dense: Any) -> None:
    masks, ids = channel_masks(dense, DOMAINS, 0.5), rows(0, WORDS)["input_ids"]
    mask = torch.ones_like(ids)
    mask[:, 5:] = 0
    padded, changed = ids.clone(), ids.clone()
    changed[:, 5:] = 1
    weights: list[torch.Tensor] = []
    for some in (padded, changed):
        model, gate = copy.deepcopy(dense), pre_gate(dense, 2, ReadMe(width=8, heads=2))
        batches = [{"input_ids": some, "attention_mask": mask}]
        train_in_turns(gate, model, masks, batches, rounds=1, steps=(2, 2))
        weights.append(torch.cat([gate.head.flatten(), model.lm_head.weight.flatten()]).detach())
    torch.testing.assert_close(weights[0], weights[1])


def test_what_cannot_be_is_refused(dense: Any) -> None:
    router = PreGateRouter(Fixed(0))  # pyright: ignore
    mlp = dense.model.layers[0].mlp
    for error, words, call in (
        (ConfigError, "density", lambda: channel_masks(dense, DOMAINS, 0.0)),
        (ConfigError, "domains", lambda: channel_masks(dense, {}, 0.5)),
        (DataError, "no tokens", lambda: channel_masks(dense, {"none": []}, 0.5)),
        (ConfigError, "ids", lambda: router(torch.ones(3, 16))),
        (ConfigError, "texts of several", lambda: intarsia.apply(dense, ReadMe())),
        (ConfigError, "width", lambda: PreGate(width=10, heads=4)),
        (ConfigError, "width", lambda: ReadMe(width=0)),
        (
            ShapeError,
            "embedding",
            lambda: PreGate(2, vocabulary=9, width=8, heads=2).net(
                embedding=torch.ones(3, 8), generator=torch.Generator()
            ),
        ),
        (
            ShapeError,
            "masks",
            lambda: read_me_mixture(
                mlp.up_proj,
                mlp.gate_proj,
                mlp.down_proj,
                mlp.act_fn,
                torch.ones(2, 3).bool(),
                router,
            ),
        ),
        (TargetError, "got", lambda: extract(torch.nn.Linear(2, 2), DOMAINS)),
    ):
        with pytest.raises(error, match=words):
            call()
    intarsia.gating.set_ids(router, torch.zeros(1, 2, dtype=torch.int64))
    with refused(ShapeError, what="ids", got="ids (1, 2) for 3 tokens"):
        router(torch.ones(1, 3, 16))
