"""Routers in models: what a decoder refuses, whose ids a hash reads, what a checkpoint keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia import TopK
from intarsia.core.errors import ConfigError
from intarsia.gating import learned_routers
from intarsia.routers import (
    ActivationGate,
    Comet,
    DSelectK,
    ExpertChoice,
    Hash,
    NoisyTopK,
    PermutationSearch,
    Transport,
)
from intarsia.routers.permutation import PermutationRouter

from ..refusals import refused

IDS = torch.randint(64, (2, 7), generator=torch.Generator().manual_seed(0))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )  # fmt: skip
    ).eval()


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize(
    "router", [ExpertChoice(4), Transport(4), PermutationSearch(ExpertChoice(4))]
)
def test_a_decoder_refuses_what_looks_ahead_unless_told(router: Any) -> None:
    with refused(ConfigError, what="routing of a decoder"):
        intarsia.upcycle(llama(), router)
    model = intarsia.upcycle(llama(), router, sees_later=True)
    changed = IDS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 64
    assert bool(torch.isfinite(logits(model, changed)).all())


@pytest.mark.parametrize(
    "router",
    [
        ActivationGate(4), Comet(4), DSelectK(4), Hash(4), NoisyTopK(4),
        PermutationSearch(Comet(4)), PermutationSearch(TopK(4)),
    ],
    ids=repr,
)  # fmt: skip
def test_copies_with_weights_of_sum_1_are_the_dense_model_and_train(router: Any) -> None:
    want = logits(llama())
    model = intarsia.upcycle(llama(), router)
    assert_close(logits(model), want, atol=1e-4, rtol=1e-4)
    changed = IDS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 64
    assert_close(logits(model, changed)[:, :-1], logits(model)[:, :-1])
    model.train()
    loss = model(input_ids=IDS, labels=IDS).loss + intarsia.gating.aux_loss(model)
    loss.backward()
    for built in learned_routers(model).values():
        for name, parameter in built.named_parameters(recurse=False):
            assert parameter.grad is not None, name


def test_a_hash_reads_the_hosts_input_ids() -> None:
    model: Any = intarsia.upcycle(llama(), Hash(4)).train()
    model(input_ids=IDS)
    for router in learned_routers(model).values():
        assert router.last is not None
        expert = router.last.expert.view(IDS.shape)
        for i in IDS.unique():
            assert len(expert[i == IDS].unique()) == 1
    model(IDS[:1])  # as a position, too
    model.eval().generate(IDS[:, :3], max_new_tokens=2, pad_token_id=0)  # and a token at a time


def test_a_search_that_ended_is_in_the_folder(tmp_path: Path) -> None:
    model = intarsia.upcycle(llama(), PermutationSearch(Comet(4), steps=2))
    intarsia.routers.search_step(model, 2)
    intarsia.experts.save_mixture(model, tmp_path)
    again = intarsia.experts.load_mixture(llama(), tmp_path)
    routers = [r for r in again.modules() if isinstance(r, PermutationRouter)]
    assert routers and all(r.is_final for r in routers)
    assert_close(logits(again), logits(model))


def test_the_number_of_experts_may_differ_by_layer_inside_a_search() -> None:
    model = intarsia.upcycle(llama(), PermutationSearch(TopK(4)), experts=[2, 6])
    counts = [r.experts for r in model.modules() if isinstance(r, PermutationRouter)]
    assert counts == [2, 6]
