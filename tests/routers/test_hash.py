"""Hash routing: an id's experts are the same in every batch, and spread evenly."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia.core.errors import ConfigError, ShapeError
from intarsia.gating import set_ids
from intarsia.routers import Hash
from intarsia.routers.hash import HashRouter, mixed

from ..refusals import refused

MASK = 2**64 - 1


def build(config: Hash, seed: int = 0) -> HashRouter:
    return config.build(3, generator=torch.Generator().manual_seed(seed))


def of_ids(router: HashRouter, ids: Tensor) -> Tensor:
    set_ids(router, ids)
    return router(torch.zeros(*ids.shape, 3)).expert


def mixed_naive(number: int) -> int:
    """splitmix64's finaliser in whole numbers without sign."""
    number &= MASK
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & MASK
    number ^= number >> 31
    return number - 2**64 if number >= 2**63 else number


@given(st.integers(-(2**63), 2**63 - 1))
def test_mixing_is_splitmix64(number: int) -> None:
    assert mixed(torch.tensor([number])).item() == mixed_naive(number)


def test_an_id_has_one_expert_wherever_it_stands() -> None:
    router, ids = build(Hash(5)), torch.tensor([[7, 3, 7, 900_000], [3, 3, 1, 7]])
    experts = of_ids(router, ids).view(2, 4)
    for i in ids.unique():
        assert len(experts[ids == i].unique()) == 1
    assert torch.equal(of_ids(router, ids.flip(0, 1)).view(2, 4), experts.flip(0, 1))
    assert torch.equal(of_ids(router, ids[:1]), experts[0])  # whatever else is in the batch


def test_experts_get_equal_shares_of_neighbouring_ids_also_where_e_is_no_power_of_two() -> None:
    ids = torch.arange(60_000)[None]
    share = of_ids(build(Hash(6)), ids).bincount(minlength=6) / 60_000
    assert bool((share - 1 / 6).abs().max() < 0.01)
    second = of_ids(build(Hash(6), seed=1), ids)
    agree = (second == of_ids(build(Hash(6)), ids)).double().mean()
    assert abs(agree - 1 / 6) < 0.01  # another seed is another map


def test_several_experts_are_different_ones_of_equal_weight() -> None:
    router = build(Hash(5, active=3))
    set_ids(router, torch.arange(40)[None])
    routing = router(torch.zeros(1, 40, 3))
    assert bool((routing.dense() > 0).sum(1).eq(3).all())
    assert bool((routing.weight == 1 / 3).all())


def test_ids_of_samples_hold_for_all_of_their_tokens() -> None:
    router, ids = build(Hash(4)), torch.tensor([5, 6, 7])
    set_ids(router, ids)
    spread = router(torch.zeros(3, 2, 3)).expert.view(3, 2)
    assert torch.equal(spread[:, 0], spread[:, 1])
    assert torch.equal(spread[:, 0], of_ids(router, ids))


def test_equal_rows_have_equal_experts_in_any_float() -> None:
    router = build(Hash(7, by="row"))
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    expert = router(x).expert
    assert torch.equal(router(x.float().flip(0)).expert.flip(0), expert)
    assert torch.equal(router(torch.tensor([[0.0, 1, 2]])).expert,
                       router(torch.tensor([[-0.0, 1, 2]])).expert)  # fmt: skip
    assert len(expert.unique()) == 7
    assert not torch.equal(router(x[:, [1, 0, 2]]).expert, expert)  # places count


def test_the_map_is_in_the_checkpoint_and_nothing_is_trained() -> None:
    router, restored = build(Hash(6)), build(Hash(6), seed=1)
    ids = torch.arange(30)[None]
    want = of_ids(router, ids)
    assert not list(router.parameters())
    restored.load_state_dict(router.state_dict())
    assert torch.equal(of_ids(restored, ids), want)


def test_padding_has_no_expert() -> None:
    router, valid = build(Hash(4)), torch.tensor([[True, False, True]])
    set_ids(router, torch.tensor([[1, 2, 3]]))
    router.context.valid = valid
    assert router(torch.zeros(1, 3, 3)).token.tolist() == [0, 2]


def test_ids_that_are_missing_or_do_not_fit_are_named() -> None:
    router = build(Hash(4))
    with refused(ConfigError, what="ids", got="none"):
        router(torch.zeros(1, 3, 3))
    set_ids(router, torch.tensor([[1, 2]]))
    with refused(ShapeError, what="ids", got="(1, 2) for 4 rows"):
        router(torch.zeros(1, 4, 3))
    with refused(ConfigError, what="ids", got="torch.float32"):
        set_ids(router, torch.zeros(1, 2))
    assert copy.deepcopy(router).context.ids is None
    set_ids(nn.Sequential(router), None)
    assert router.context.ids is None


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"experts": 0}, "experts"),
        ({"experts": 2, "active": 3}, "active"),
        ({"by": "position"}, "by"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        Hash(**settings)


SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def test_a_decoder_reads_its_own_ids_and_a_mask_in_any_place() -> None:
    torch.manual_seed(0)
    model = intarsia.upcycle(LlamaForCausalLM(LlamaConfig(**SIZES)).eval(), Hash(4))
    ids, second = torch.randint(64, (2, 5)), torch.randint(64, (2, 5))
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    want = model(input_ids=ids, attention_mask=mask).logits
    (router, *_) = intarsia.gating.learned_routers(model).values()
    assert router.context.valid is not None
    model(second)
    assert router.context.valid is None
    torch.testing.assert_close(model(ids, mask).logits, want)
    assert router.context.valid is not None
    # what a user says goes before, and stays
    set_ids(model, second)
    logits = model(ids).logits
    assert not torch.allclose(logits, model(second).logits)
    torch.testing.assert_close(model(ids).logits, logits)
    set_ids(model, None)
    # embeddings have no ids, and those of the forward before are not theirs
    with refused(ConfigError, what="ids", got="none"):
        model(inputs_embeds=model.get_input_embeddings()(ids))
