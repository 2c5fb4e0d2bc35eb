"""A model whose blocks pass through a few places says what it said, bit by bit."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from intarsia.core.errors import CheckpointError, ConfigError, TargetError
from intarsia.offloading.ring import read_block, ring_offload, ring_residency

from ..refusals import refused


@pytest.fixture(scope="module")
def dense() -> Any:
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        use_cache=False,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


IDS = torch.randint(24, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_any_number_of_places_gives_the_same_bits(dense: Any, slots: int, tmp_path: Path) -> None:
    with torch.no_grad():
        want = dense(IDS).logits
    model = ring_offload(copy.deepcopy(dense), tmp_path / "ring", slots=slots)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(model(IDS).logits, want)
        for length in (1, 3):  # other shapes, as decoding has
            assert torch.equal(model(IDS[:, :length]).logits, dense(IDS[:, :length]).logits)
    use = ring_residency(model)
    assert use.asks == 5 * 4
    size = sum(t.nbytes for t in dense.model.layers[0].state_dict().values())
    if slots == 4:
        assert use.bytes == 4 * size  # read once
    else:
        assert sum(p.numel() for p in model.model.layers.parameters()) == 0
    ring = model.__dict__["intarsia_ring"]
    resident = sum(t.nbytes for place in ring.places for t in place.values())
    assert resident * 4 == slots * sum(
        t.nbytes for layer in dense.model.layers for t in layer.state_dict().values()
    )


def test_a_flipped_bit_is_told_when_its_block_is_first_read(dense: Any, tmp_path: Path) -> None:
    model = ring_offload(copy.deepcopy(dense), tmp_path / "ring", slots=1)
    file = tmp_path / "ring" / "0002.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with (
        torch.no_grad(),
        refused(
            CheckpointError, got="bytes that changed after they were written, or no digest of them"
        ),
    ):
        model(IDS)


def test_blocks_are_read_while_others_are_computed(dense: Any, tmp_path: Path) -> None:
    names: list[str] = []
    gate = threading.Semaphore(0)

    def slow(path: Path, into: Any) -> None:
        read_block(path, into)
        names.append(path.stem)
        gate.release()

    model = ring_offload(copy.deepcopy(dense), tmp_path / "ring", slots=2, read=slow)
    gate.acquire()
    gate.acquire()  # both places are filled before anything is asked for
    assert names == ["0000", "0001"]
    with torch.no_grad():
        model(IDS)
    for _ in range(4):  # two blocks of this forward, and the first two of the next one
        assert gate.acquire(timeout=20)
    assert names == ["0000", "0001", "0002", "0003", "0000", "0001"]


def test_what_cannot_be_is_refused(dense: Any, tmp_path: Path) -> None:
    for slots in (0, 5):
        with refused(ConfigError, what="slots", want="1 ... 4"):
            ring_offload(copy.deepcopy(dense), tmp_path / "no", slots=slots)
    with refused(TargetError, what="model for a ring"):
        ring_offload(torch.nn.Linear(2, 2), tmp_path / "no")
    with refused(ConfigError, what="model", got="a LlamaForCausalLM in memory"):
        ring_residency(dense)
    model = ring_offload(copy.deepcopy(dense), tmp_path / "ring", slots=1)
    with refused(ConfigError, what="model with a ring", got="gradients"):
        model(IDS)
    with torch.no_grad():
        model(IDS)
    damaged = ring_offload(copy.deepcopy(dense), tmp_path / "two", slots=1)
    (tmp_path / "two" / "0002.safetensors").write_bytes(b"not weights")
    with (
        refused(
            CheckpointError, got="bytes that changed after they were written, or no digest of them"
        ),
        torch.no_grad(),
    ):
        damaged(IDS)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_a_forward_that_breaks_off_leaves_a_model_that_works(
    dense: Any, slots: int, tmp_path: Path
) -> None:
    model = ring_offload(copy.deepcopy(dense), tmp_path / "ring", slots=slots)
    with torch.no_grad():
        want = dense(IDS).logits
        for number in range(4):

            def full(*_: Any) -> None:
                raise MemoryError

            hook = model.model.layers[number].mlp.register_forward_hook(full)
            with pytest.raises(MemoryError):
                model(IDS)
            hook.remove()
            assert torch.equal(model(IDS).logits, want)


def test_nothing_is_written_over(dense: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("of value")
    for place in (mine, mine.parent):
        with refused(ConfigError, got="something there"):
            ring_offload(copy.deepcopy(dense), place)
    assert mine.read_text() == "of value"
    model = ring_offload(copy.deepcopy(dense), tmp_path / "ring")
    with refused(ConfigError, got="something there"):  # another model reads from there
        ring_offload(copy.deepcopy(dense), tmp_path / "ring")
    with refused(ConfigError, what="model for a ring"):  # its blocks are empty
        ring_offload(model, tmp_path / "new")
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, dense(IDS).logits)
