"""Mixtures as native steps: packed by QMoE, upcycled, or with their experts on disk."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import intarsia
from intarsia.core.errors import CheckpointError
from intarsia.decode.decoding import generate
from intarsia.decode.native_decoder import NativeText, why_not
from intarsia.kernels import native
from intarsia.methods.qmoe import Qmoe
from intarsia.mixtures.capacity import Capacity
from intarsia.offloading.resident import slots_of
from intarsia.placement.expertflow import TokenTable

from ..decode.test_native_decoder import IDS, decoder
from ..refusals import refused

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
KINDS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")


def check_logits(model: Any, want: Tensor) -> None:
    """Compare prompts in blocks, a batch of slots, and a long prompt with logits (2, 40, V)."""
    assert why_not(model) == ""
    text = NativeText(model, slots=2, length=40)
    for slot, first in ((1, 19), (0, 3)):
        got = text.prefill(slot, IDS[slot, :first].tolist())
        assert_close(got, want[slot, first - 1], atol=1e-5, rtol=1e-5)
    for index in range(3, 8):
        got = text.step([int(IDS[0, index]), int(IDS[1, index + 16])])
        assert_close(got[0], want[0, index], atol=1e-5, rtol=1e-5)
        assert_close(got[1], want[1, index + 16], atol=1e-5, rtol=1e-5)
    text.clear(0)
    long = text.prefill(0, IDS[0, :39].tolist())  # by the model's layers
    assert_close(long, want[0, 38], atol=1e-5, rtol=1e-5)
    assert_close(text.step([int(IDS[0, 39])], [0])[0], want[0, 39], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "upcycled"])
def test_a_packed_mixture_is_computed_from_its_codes(kind: str, tmp_path: Path) -> None:
    def make() -> Any:
        return decoder() if kind == "upcycled" else decoder(kind)

    def mixture() -> Any:
        upcycled = kind == "upcycled"
        return (intarsia.upcycle(make(), intarsia.TopK(5)) if upcycled else make()).eval()

    small: Any = intarsia.apply(mixture(), Qmoe(start="rtn", zeros=0.7))
    check_logits(small, Qmoe(zeros=0.7).fold(small)(IDS).logits)
    intarsia.save(small, tmp_path / "small")
    again: Any = intarsia.load(make(), tmp_path / "small")  # codes are mapped from the file
    settings: Any = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    words = type(small).generate(small, IDS[:, :9], **settings)
    assert torch.equal(again.generate(IDS[:, :9], **settings), words)
    assert generate(again, IDS[:, :9], 5).path == "native steps, one call a token"
    assert "generate" not in vars(Qmoe().fold(again))
    half = Qmoe(start="rtn", zeros=0.7, layers=("*.experts.*down*",))  # the other stacks stay
    small = intarsia.apply(mixture(), half)
    check_logits(small, half.fold(small)(IDS).logits)


@torch.no_grad()
@pytest.mark.parametrize(
    ("router", "settings"),
    [
        (intarsia.TopK(4, 3), {}),
        (intarsia.TopK(6, 1, scale="prob", bias=True), {"mlp_bias": True}),
        (intarsia.TopK(3, 2), {"hidden_act": "gelu_pytorch_tanh"}),
    ],
    ids=str,
)
def test_an_upcycled_mixture_is_computed(router: Any, settings: dict[str, Any]) -> None:
    model: Any = intarsia.upcycle(decoder(**settings), router).eval()
    draw = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if ".mlp." in name:  # experts start alike, and the router near 0
            weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.1)
    check_logits(model, model(IDS).logits)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slots", [2, 5])
def test_experts_on_disk_are_read_by_the_steps(kind: str, slots: int, tmp_path: Path) -> None:
    resident = decoder(kind)
    resident.save_pretrained(tmp_path / "model")
    model: Any = intarsia.offload(tmp_path / "model", slots=slots)
    check_logits(model, resident(IDS).logits)
    assert not slots_of(model).cache.pinned and intarsia.offloading.residency(model).loads >= slots
    answer = generate(model, IDS[:, :5], 6)
    assert answer.path == "native steps, one call a token"
    words = resident.generate(IDS[:, :5], max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(answer.tokens, words[:, 5:])
    table = TokenTable.of(intarsia.trace(resident, [IDS]))
    foreseeing: Any = intarsia.offload(tmp_path / "model", slots=slots, predictor=table)
    guesses: list[Any] = []
    policy: Any = slots_of(foreseeing).cache.policy
    policy.foresee = lambda chances, before=policy.foresee: (
        guesses.append(chances),
        before(chances),
    )
    assert torch.equal(generate(foreseeing, IDS[:, :5], 6).tokens, answer.tokens)
    assert len(guesses) == 2 + 5 and all(chances is not None for chances in guesses)


@torch.no_grad()
def test_a_read_that_fails_ends_the_call_and_not_the_model(tmp_path: Path) -> None:
    resident = decoder("mixtral")
    resident.save_pretrained(tmp_path / "model")
    model: Any = intarsia.offload(tmp_path / "model", slots=3)
    slots, want = slots_of(model), resident(IDS).logits
    text, read = NativeText(model, length=40), slots.store.read
    for layer in (0, 1):

        def broken(place: int, expert: int, into: Any, layer: int = layer) -> int:
            if place == layer:
                raise CheckpointError("expert", got="half of it", want="all", fix="Pack it again.")
            return read(place, expert, into)

        slots.store.read = broken  # type: ignore[method-assign]
        slots.cache.begin()
        with refused(CheckpointError, what="expert"):
            text.prefill(0, IDS[0, :16].tolist())
        assert slots.in_use is None and not slots.turn.locked()
    slots.store.read = read  # type: ignore[method-assign]
    assert_close(text.prefill(0, IDS[0, :16].tolist()), want[0, 15], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_steps_and_a_forward_share_the_slots(tmp_path: Path) -> None:
    resident = decoder("qwen3_moe")
    resident.save_pretrained(tmp_path / "model")
    model: Any = intarsia.offload(tmp_path / "model", slots=4)
    want, ended = resident(IDS).logits, threading.Event()
    errors: list[BaseException] = []

    def forwards() -> None:
        try:
            while not ended.is_set():
                with torch.no_grad():
                    assert torch.equal(model(IDS[:, :7]).logits, resident(IDS[:, :7]).logits)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=forwards)
    thread.start()
    try:
        text = NativeText(model, slots=2, length=40)
        for index in range(20):
            got = text.step(IDS[:, index].tolist())
            assert_close(got, want[:, index], atol=1e-5, rtol=1e-5)
    finally:
        ended.set()
        thread.join()
    assert not errors


def test_a_mixture_that_is_not_suited_says_why(tmp_path: Path) -> None:
    half = decoder("mixtral").half()
    half.save_pretrained(tmp_path / "half")
    function = decoder("qwen3_moe")
    function.config._experts_implementation = "sonicmoe"
    for model, part in (
        (intarsia.upcycle(decoder(), intarsia.TopK(4, scale="ste")), "scale='ste'"),
        (intarsia.upcycle(decoder(), intarsia.TopK(4), capacity=Capacity(1.5)), "a capacity"),
        (intarsia.upcycle(decoder(), intarsia.TopK(4), residual="sum"), "ResidualMixture"),
        (intarsia.upcycle(decoder(), intarsia.routers.Switch(4)), "Router"),
        (half, "float16"),
        (intarsia.offload(tmp_path / "half", slots=4), "float16"),
        (function, "'sonicmoe'"),
    ):
        assert part in why_not(model), why_not(model)
