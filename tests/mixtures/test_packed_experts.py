"""Stacks of experts in a format that stores rows apart: packed, saved, mapped, run and folded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
)

import intarsia
from intarsia.core.errors import CheckpointError, DataError
from intarsia.decode.native_decoder import NativeText
from intarsia.folders.mixture_folder import packed_mixture
from intarsia.formats import Bitmask, BlockInt, Ternary
from intarsia.kernels.experts import stacked_matrices
from intarsia.mixtures.experts import Experts
from intarsia.mixtures.packed_experts import PackedStack, packed_experts, packed_stacks
from intarsia.sparse.swap.compress import Compress

from ..refusals import refused

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": 2,
}


def drawn(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def plain() -> nn.Module:
    return drawn(lambda: LlamaForCausalLM(LlamaConfig(**SIZES)))


def ours() -> nn.Module:
    return intarsia.upcycle(plain(), intarsia.TopK(4)).eval()


def mixtral(**settings: Any) -> nn.Module:
    sizes: dict[str, Any] = SIZES | settings
    return drawn(lambda: MixtralForCausalLM(MixtralConfig(num_local_experts=4, **sizes)))


def olmoe() -> nn.Module:
    sizes: dict[str, Any] = SIZES | {"num_experts": 8, "num_experts_per_tok": 2}
    return drawn(lambda: OlmoeForCausalLM(OlmoeConfig(**sizes)))


def gpt_oss() -> nn.Module:
    # stacks of (E, in, out), with biases
    sizes: dict[str, Any] = SIZES | {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 16,
    }
    return drawn(lambda: GptOssForCausalLM(GptOssConfig(**sizes)))


HOSTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "ours": (ours, plain),
    "mixtral": (mixtral, mixtral),
    "olmoe": (olmoe, olmoe),
    "gpt-oss": (gpt_oss, gpt_oss),
}
IDS = torch.randint(3, 64, (3, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def stacks_in(model: nn.Module) -> dict[str, tuple[Tensor, bool]]:
    """Return each stack and whether it is stored turned, by path."""
    return {
        f"{path}.{name}": (getattr(module, name).detach(), turned)
        for path, module in model.named_modules()
        for name, turned in stacked_matrices(module).items()
    }


@torch.no_grad()
def computed(experts: Any) -> Tensor:
    """Compute experts on the same rows, with the same choices."""
    draw = torch.Generator().manual_seed(3)
    rows = torch.randn(24, 64, generator=draw)
    if isinstance(experts, Experts):
        return experts(rows, torch.arange(24) // 6)
    choices = torch.stack([torch.arange(24) % 4, (torch.arange(24) + 1) % 4], 1)
    return experts(rows, choices, torch.rand(24, 2, generator=draw))


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("bits", [4, 8])
def test_stacks_are_packed_saved_mapped_and_folded(host: str, bits: int, tmp_path: Path) -> None:
    make, start = HOSTS[host]
    form = BlockInt(bits)
    # the naive twin: the same model, each expert's matrix rounded on its own
    twin, rounded = make(), Compress(form).fold(intarsia.compress(make(), form, force=True))
    for path, (stack, turned) in stacks_in(twin).items():
        matrices = [w.T if turned else w for w in stack]
        want = torch.stack([form.decode(form.encode(w), w.shape) for w in matrices])
        got, got_turned = stacks_in(rounded)[path]
        assert turned == got_turned
        assert torch.equal(got.transpose(1, 2) if turned else got, want)
    small = intarsia.compress(make(), form, force=True)
    assert len(packed_stacks(small)) == len(stacks_in(twin)) and not stacks_in(small)
    # inputs are rounded to int8 by the kernel, so that products differ by that alone
    for path, experts in packed_experts(small).items():
        got, want = (computed(e) for e in (experts, rounded.get_submodule(path)))
        assert (got - want).norm() < 0.02 * want.norm()
    packed_logits = logits(small)
    intarsia.save(small, tmp_path / "small")
    again = intarsia.load(start(), tmp_path / "small")
    assert torch.equal(logits(again), packed_logits)


@pytest.mark.parametrize("host", ["mixtral", "olmoe", "gpt-oss"])
def test_a_folder_is_packed_an_expert_at_a_time(host: str, tmp_path: Path) -> None:
    make, folder = HOSTS[host][0], tmp_path / "stock"
    make().save_pretrained(folder)  # pyright: ignore
    small = packed_mixture(folder, Compress(BlockInt(4)), force=True)
    assert small is not None
    want = intarsia.compress(make(), BlockInt(4), force=True).state_dict()
    got = small.state_dict()
    assert got.keys() == want.keys() and all(torch.equal(got[n], want[n]) for n in got)
    # what it leaves out, and what is no such mixture, is opened whole
    for change in (Compress(Bitmask()), Compress(BlockInt(4), ("*.down_proj*",))):
        assert packed_mixture(folder, change, force=True) is None
    (folder / "model.safetensors").unlink()
    assert packed_mixture(folder, Compress(BlockInt(4)), force=True) is None


def test_other_models_are_opened_whole(tmp_path: Path) -> None:
    plain().save_pretrained(tmp_path / "dense")  # pyright: ignore
    assert packed_mixture(tmp_path / "dense", Compress(BlockInt(4)), force=True) is None
    assert packed_mixture("smollm2", Compress(BlockInt(4)), force=True) is None


@pytest.mark.parametrize("host", ["ours", "mixtral", "olmoe"])
def test_native_steps_compute_packed_experts(host: str) -> None:
    small = intarsia.compress(HOSTS[host][0](), BlockInt(4), force=True)
    text = NativeText(small, length=40)
    first = text.prefill(0, IDS[0, :12].tolist())
    want = logits(small)[0]
    torch.testing.assert_close(first.flatten(), want[11], atol=2e-2, rtol=0)
    step = text.step([int(IDS[0, 12])], [0])
    torch.testing.assert_close(step.flatten(), want[12], atol=2e-2, rtol=0)


def test_a_part_is_what_its_rows_are_alone() -> None:
    weight = torch.randn(96, 70, generator=torch.Generator().manual_seed(2))
    for form, first, count in ((BlockInt(4), 16, 48), (BlockInt(8), 80, 16), (Ternary(), 5, 7)):
        assert form.row_group is not None and first % form.row_group == 0
        stored = form.encode(weight)
        part = form.part(stored, first, count)
        alone = form.decode(part, (count, 70))
        assert torch.equal(alone, form.decode(stored, weight.shape)[first : first + count])
        for name, tensor in form.encode(weight[first : first + count]).items():
            assert torch.equal(part[name], tensor)
        parts = [form.encode(some) for some in weight.split((16, 48, 32))]
        for name, tensor in form.joined(parts).items():
            assert torch.equal(tensor, stored[name])
    assert Bitmask().row_group is None
    with pytest.raises(NotImplementedError):
        Bitmask().part({}, 0, 16)


def test_what_a_format_cannot_store_stays_as_it_is() -> None:
    # 40 rows of an expert are no whole number of bundles for gate and up
    narrow = intarsia.compress(mixtral(intermediate_size=40), BlockInt(4), force=True)
    names = {type(m).__name__: list(m.stacks) for m in packed_experts(narrow).values()}
    assert names == {"PackedStock": ["down_proj"]}
    assert not packed_stacks(intarsia.compress(mixtral(), Bitmask(), force=True))
    some = intarsia.compress(mixtral(), BlockInt(4), layers=["*.down_proj*"], force=True)
    assert [list(m.stacks) for m in packed_experts(some).values()] == [["down_proj"]] * 2
    # what is packed already stays as it is
    twice = intarsia.compress(some, BlockInt(8), layers=["*_proj*"], force=True)
    assert {m.form for m in packed_stacks(twice)} == {BlockInt(4)}


def test_stacks_without_numbers_and_other_models_are_refused(tmp_path: Path) -> None:
    broken: Any = mixtral()
    broken.model.layers[1].mlp.experts.down_proj.data[2, 3, 4] = torch.nan
    with refused(DataError, what="weight of model.layers.1.mlp.experts.down_proj"):
        intarsia.compress(broken, BlockInt(4), force=True)
    assert not any(isinstance(m, PackedStack) for m in broken.modules())
    intarsia.save(intarsia.compress(mixtral(), BlockInt(4), force=True), tmp_path / "small")
    with refused(CheckpointError):
        intarsia.load(mixtral(intermediate_size=128), tmp_path / "small")
    file = tmp_path / "small" / "intarsia.json"
    content = json.loads(file.read_text())
    text = json.dumps(content).replace("[4, 64, 96]", "[4, 64, 64]")
    assert text != json.dumps(content)
    file.write_text(text)
    with refused(CheckpointError):
        intarsia.load(mixtral(), tmp_path / "small")
