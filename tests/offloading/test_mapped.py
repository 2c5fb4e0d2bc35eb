"""Packed experts in their mapped file: the same bits with a quarter of them in memory."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

import intarsia
from intarsia.core.errors import ConfigError, TargetError
from intarsia.decode.native_decoder import NativeText, why_not
from intarsia.folders.opened import open_language_model, save_language_model
from intarsia.formats import BlockInt
from intarsia.mixtures.packed_experts import packed_experts
from intarsia.offloading import mapped
from intarsia.offloading.mapped import MappedStore
from intarsia.offloading.resident import slots_of
from intarsia.placement.expertflow import Predictive, TokenTable
from intarsia.placement.policies import Lru
from intarsia.serve.models import open_models

from ..hosts.test_gguf import byte_pairs
from ..refusals import refused

SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
IDS = torch.randint(512, (3, 9), generator=torch.Generator().manual_seed(1))
KINDS = {
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**SIZES, intermediate_size=512, num_local_experts=8)
    ),
    "olmoe": lambda: OlmoeForCausalLM(
        OlmoeConfig(**SIZES, intermediate_size=256, num_experts=8, num_experts_per_tok=3)
    ),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **SIZES, intermediate_size=256, moe_intermediate_size=256, num_experts=8,
            shared_expert_intermediate_size=256, num_experts_per_tok=2,
        )
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A packed folder of each architecture; Mixtral's in 8 bits, too."""
    folders: dict[str, Path] = {}
    for name, bits in (*((kind, 4) for kind in KINDS), ("mixtral", 8)):
        torch.manual_seed(0)
        model: Any = KINDS[name]()
        model.generation_config.eos_token_id = None
        packed = intarsia.compress(model.eval(), BlockInt(bits), force=True)
        folder = tmp_path_factory.mktemp("packed") / f"{name}-{bits}"
        folders[folder.name] = save_language_model(packed, folder, tokenizer=byte_pairs("qwen2"))
    return folders


def opened(folder: Path) -> Any:
    return open_language_model(str(folder))[0]


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixtral-4", "mixtral-8", "olmoe-4", "qwen2_moe-4"])
def test_outputs_are_those_of_the_packed_model_in_memory(
    name: str, folders: dict[str, Path]
) -> None:
    in_memory = opened(folders[name])
    want, words = (
        in_memory(IDS).logits,
        in_memory.generate(IDS[:1, :4], max_new_tokens=8, do_sample=False),
    )
    for slots, policy in ((2, None), (0.25, Lru()), (1.0, None)):
        model: Any = opened(folders[name])
        assert intarsia.offload(model, slots=slots, policy=policy) is model
        assert torch.equal(model(IDS).logits, want)
        got = model.generate(IDS[:1, :4], max_new_tokens=8, do_sample=False)
        assert torch.equal(got, words)
        use = intarsia.offloading.residency(model)
        size = next(iter(packed_experts(model).values())).stacks.values()
        assert use.loads and use.bytes == use.loads * sum(s.nbytes for s in size) // 8  # type: ignore[union-attr]
    assert use.loads <= 16  # pyright: ignore


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixtral-4", "olmoe-4", "qwen2_moe-4"])
def test_native_steps_ask_for_experts_and_give_the_same_logits(
    name: str, folders: dict[str, Path]
) -> None:
    in_memory, model = opened(folders[name]), opened(folders[name])
    intarsia.offload(model, slots=4)
    assert why_not(model) == ""
    texts = [NativeText(m, length=24) for m in (in_memory, model)]
    logits = [text.prefill(0, IDS[0].tolist()) for text in texts]
    assert torch.equal(*logits)
    asks = intarsia.offloading.residency(model).asks
    for token in range(6):
        assert torch.equal(*(text.step([token]) for text in texts))
    assert intarsia.offloading.residency(model).asks > asks > 0


@torch.no_grad()
def test_pages_of_as_many_experts_as_slots_are_kept(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # whole pages: an expert has one address for each of its tensors, rounded to a page
    resident, peak, page = set[int](), 0, mmap.PAGESIZE
    advised = mapped.advise

    def advise(first: int, size: int, advice: int) -> bool:
        nonlocal peak
        pages = set(range(-(-first // page), (first + size) // page))
        if advice == mapped.DROP:
            resident.difference_update(pages)
        elif advice == mapped.POPULATE:
            resident.update(pages)
        peak = max(peak, len(resident))
        return advised(first, size, advice)

    monkeypatch.setattr(mapped, "advise", advise)
    model = opened(folders["mixtral-4"])
    intarsia.offload(model, slots=4)
    slots = slots_of(model)
    for _ in range(3):
        model(IDS)
    # 4 of 16 experts; the pages at the ends of runs are shared with their neighbours
    assert 0 < peak <= 4 * (slots.store.bytes // page + 1) + 16 * 4 * 2
    keys = {key for place in slots.places for key in place}
    assert slots.store.total == 16 and keys == slots.cache.at.keys() and len(keys) == 4


@torch.no_grad()
def test_a_predictor_reads_ahead_and_changes_no_bit(folders: dict[str, Path]) -> None:
    in_memory, model = opened(folders["mixtral-4"]), opened(folders["mixtral-4"])
    table = TokenTable(torch.rand(512, 2, 8, generator=torch.Generator().manual_seed(0)))
    intarsia.offload(model, slots=6, policy=Predictive(), predictor=table)
    for ids in (IDS, IDS[:, :3], IDS[:1], IDS[:, 2:]):
        assert torch.equal(model(ids).logits, in_memory(ids).logits)


def test_a_server_keeps_a_share_of_packed_experts(folders: dict[str, Path]) -> None:
    served = open_models({"m": str(folders["mixtral-4"])}, slots=0.25)["m"]
    assert served.slots is not None and served.slots.cache.slots == 4


def test_what_is_in_no_file_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = KINDS["mixtral"]()
    with refused(
        TargetError, what="model to offload", got="a MixtralForCausalLM without packed experts"
    ):
        intarsia.offload(model, slots=4)
    packed = intarsia.compress(model, BlockInt(4), force=True)
    with refused(TargetError, what="model to offload", got="packed experts in memory"):
        MappedStore(packed)  # pages that are given back would be lost
    with refused(ConfigError, got="a folder of packed layers"):
        intarsia.offload(folders["mixtral-4"], slots=4)
    with refused(ConfigError, got="a folder of packed layers"):
        intarsia.offloading.pack_experts(folders["mixtral-4"], tmp_path / "store")
    again = opened(folders["mixtral-4"])
    intarsia.offload(again, slots=4)
    with refused(TargetError, got="experts that are offloaded"):
        intarsia.offload(again, slots=4)
