"""Attention with spans against one masked product: prefill, decoding, padding, prefixes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import intarsia
from intarsia.core.errors import CheckpointError, ConfigError, FoldError, TargetError
from intarsia.hosts.spans.head_spans import cache_bytes, spans_of
from intarsia.hosts.spans.spans import Spans, load_spans
from intarsia.hosts.spans.windows import TokenPositions, Windows, attended, attended_naive

from ..refusals import refused

LAYERS, HEADS, LENGTH = 3, 3, 48
# two heads of one span, three spans, and a layer that sees everything
MIXED = torch.tensor([[6, 6, 12], [20, 6, LENGTH], [LENGTH] * 3])


def made() -> Any:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=2 * HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.15,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


STOCK = made()
IDS = torch.randint(1, 64, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Any:
    return copy.deepcopy(STOCK)


@pytest.fixture(scope="module")
def spanned() -> Any:
    return intarsia.spans.attach_spans(copy.deepcopy(STOCK), Spans.of(MIXED, sink=2), length=LENGTH)


@torch.no_grad()
def logits(model: Any, ids: Tensor, **options: Any) -> Tensor:
    return model(ids, use_cache=False, **options).logits


def generated(model: Any, ids: Tensor, **options: Any) -> Tensor:
    options = {"max_new_tokens": 8, "do_sample": False, **options}
    mask = options.pop("attention_mask", torch.ones_like(ids))
    return model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]


def test_heads_that_see_everything_are_the_stock_model_to_the_bit(model: Any) -> None:
    want = logits(model, IDS), generated(model, IDS)
    padded = torch.ones_like(IDS)
    padded[1, :7] = 0
    alike = logits(model, IDS, attention_mask=padded)
    intarsia.spans.attach_spans(model, Spans.uniform(LAYERS, HEADS, 1.0, sink=2), length=LENGTH)
    assert torch.equal(logits(model, IDS), want[0])
    assert torch.equal(generated(model, IDS), want[1])
    assert torch.equal(logits(model, IDS, attention_mask=padded), alike)


@settings(max_examples=20)
@given(
    st.integers(0, 3),
    st.lists(st.integers(1, 12), min_size=2, max_size=2),
    st.integers(1, 9),
    st.integers(0, 8),
    st.booleans(),
)
def test_blocks_of_queries_are_one_masked_product(
    sink: int, windows: list[int], queries: int, offset: int, padded: bool
) -> None:
    draw = torch.Generator().manual_seed(queries + 10 * offset)
    keys = offset + queries
    q = torch.randn(2, 4, queries, 3, generator=draw, requires_grad=True)
    k, v = (torch.randn(2, 2, keys, 3, generator=draw, requires_grad=True) for _ in range(2))
    mask = torch.ones(2, keys, dtype=torch.bool)
    mask[1, : min(offset, 2)] = False
    positions = TokenPositions(queries, keys, offset, mask if padded else None, "cpu", {})
    windows_of_heads = Windows.of(torch.tensor(windows) + sink, sink, 64)
    got, want = (
        f(q, k, v, windows=windows_of_heads, positions=positions)
        for f in (attended, attended_naive)
    )
    assert_close(got, want)
    for ours, theirs in zip(
        torch.autograd.grad(got.square().sum(), (q, k, v)),
        torch.autograd.grad(want.square().sum(), (q, k, v)),
        strict=True,
    ):
        assert_close(ours, theirs)
    with torch.no_grad():
        assert_close(attended(q, k, v, windows=windows_of_heads, positions=positions), want)


def test_the_share_of_the_mask_is_the_density() -> None:
    spans = Spans(((0.0, 4.0), (8.0, -4.0)), ((0.5, 0.25), (0.0, 1.0)), sink=4, block=4)
    windows = [Windows.of(row, 4, LENGTH) for row in spans.at(LENGTH)]
    places = torch.arange(LENGTH)
    rows = [
        window.sees(g, places[:, None], places)
        for window in windows
        for g in window.groups
        for _ in g.heads
    ]
    share = sum(float(row[-1].sum()) for row in rows) / (len(rows) * LENGTH)
    assert share == pytest.approx(spans.density(LENGTH))
    counted = torch.stack(rows).sum((1, 2))
    counts = torch.stack([torch.minimum(places + 1, s).sum() for s in spans.at(LENGTH).flatten()])
    assert sorted(counted.tolist()) == sorted(counts.tolist())


@pytest.mark.parametrize("parts", [[1] * 40, [10] + [1] * 30, [7, 9, 1, 1, 5, 1, 16]])
def test_rings_are_the_masked_model_over_every_wrap(spanned: Any, parts: list[int]) -> None:
    want, cache, start, pieces = logits(spanned, IDS), None, 0, []
    for size in parts:
        with torch.no_grad():
            out = spanned(IDS[:, start : start + size], cache=cache, use_cache=True)
        cache, start = out.cache, start + size
        pieces.append(out.logits)
    assert_close(torch.cat(pieces, 1), want, atol=1e-5, rtol=1e-4)
    spans = spans_of(spanned)
    assert spans is not None
    # the third layer sees everything, and grows: 40 tokens so far
    share = (int(MIXED[:2].sum()) + 3 * 40) * 2 * IDS.shape[0] * 8 * 4
    assert cache_bytes(cache) == share


def test_rows_of_a_batch_are_as_alone_whatever_their_padding(spanned: Any) -> None:
    short = IDS[1:, :23]
    padded = torch.cat([torch.zeros(1, 17, dtype=torch.long), short], 1)
    both, mask = torch.cat([IDS[:1], padded]), torch.ones_like(IDS)
    mask[1, :17] = 0
    alone = [generated(spanned, IDS[:1]), generated(spanned, short)]
    assert torch.equal(generated(spanned, both, attention_mask=mask), torch.cat(alone))
    right_padded = logits(spanned, torch.cat([short, short.new_zeros(1, 17)], 1),
                   attention_mask=torch.tensor([[1] * 23 + [0] * 17]))  # fmt: skip
    assert_close(right_padded[:, :23], logits(spanned, short), atol=1e-5, rtol=1e-4)


def test_beams_and_a_prompt_on_a_cache_go_on_as_one_text(spanned: Any) -> None:
    with torch.no_grad():
        cache = spanned(IDS[:, :30], use_cache=True).cache
        on = spanned(IDS[:, 30:], cache=cache, use_cache=True).logits
    assert_close(on, logits(spanned, IDS)[:, 30:], atol=1e-5, rtol=1e-4)
    beams = generated(spanned, IDS[:1], num_beams=3)
    plain = generated(spanned, IDS[:1], num_beams=3, use_cache=False)
    assert torch.equal(beams, plain)
    with refused(ConfigError, what="cache"):
        cache.crop(-2)


def test_a_folder_and_a_file_bring_spans_back(model: Any, tmp_path: Path) -> None:
    spans = Spans.of(MIXED, sink=2)
    intarsia.spans.attach_spans(model, spans, length=LENGTH)
    want = logits(model, IDS)
    intarsia.save(model, tmp_path / "saved")
    again = intarsia.load(copy.deepcopy(STOCK), tmp_path / "saved")
    assert torch.equal(logits(again, IDS), want)
    assert load_spans(spans.save(tmp_path / "spans.json")) == spans
    intarsia.spans.detach_spans(again)
    assert torch.equal(logits(again, IDS), logits(STOCK, IDS))
    assert spans_of(again) is None
    # replaced, not stacked
    intarsia.spans.attach_spans(model, Spans.uniform(LAYERS, HEADS, 1.0, sink=2), length=LENGTH)
    assert torch.equal(logits(model, IDS), logits(STOCK, IDS))


def test_lists_of_the_papers_code_are_read_for_query_heads(tmp_path: Path) -> None:
    alphas = [[10, 20, 30, 40, 50, 60]] * LAYERS
    path = tmp_path / "moa_alpha_beta.json"
    path.write_text(json.dumps({"alphas": alphas, "betas": [[0, 0.5] * 3] * LAYERS}))
    spans = load_spans(path)
    assert (spans.sink, spans.heads) == (64, 6)
    halved = spans.for_heads(3, 200)
    # the larger of two consecutive query heads, which share keys
    assert halved.at(200).tolist() == [[120, 140, 160]] * LAYERS
    with refused(ConfigError, what="spans"):
        spans.for_heads(4, 200)


@pytest.mark.parametrize(
    "text",
    ["[]", "{", "{}", '{"alphas": [[1]], "betas": [[1, 1]]}', '{"alphas": 3, "betas": 3}',
     '{"alphas": [["x"]], "betas": [[1]]}', '{"alphas": [[1]], "betas": [[2]]}',
     '{"format": "intarsia-spans-1", "alpha": [[1]]}'],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spans.json"
    path.write_text(text)
    with pytest.raises(CheckpointError) as error:
        load_spans(path)
    assert "spans" in error.value.what and error.value.fix


def test_windows_of_their_own_are_refused_by_layer() -> None:
    config = MistralConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=16, sliding_window=8, max_position_embeddings=32,
    )  # fmt: skip
    with refused(TargetError, what="layer 'layers.0.self_attn'"):
        intarsia.spans.attach_spans(MistralForCausalLM(config), Spans.uniform(2, 2, 0.5, sink=2))


def test_longer_texts_other_models_and_masks_are_refused(model: Any) -> None:
    with refused(ConfigError, what="length of the text", got=40):
        intarsia.spans.attach_spans(model, Spans.of(MIXED, sink=2, longest=32), length=40)
    with refused(TargetError, what="spans"):
        intarsia.spans.attach_spans(model, Spans.uniform(2, HEADS, 0.5, sink=2))
    assert torch.equal(logits(model, IDS), logits(STOCK, IDS))
    intarsia.spans.attach_spans(model, Spans.of(MIXED, sink=2), length=32)
    with refused(ConfigError, what="tokens of a text", got=40):
        logits(model, IDS)
    with refused(ConfigError, what="attention_mask"):
        logits(model, IDS[:, :8], attention_mask=torch.ones(2, 1, 8, 8, dtype=torch.bool))
    with refused(TargetError, what="model", got="one with spans"):
        intarsia.apply(model, intarsia.spans.HeadSpans(length=32, sink=2, block=2))
    with pytest.raises(FoldError):
        intarsia.spans.HeadSpans().fold(model)


def test_spans_that_cannot_be_are_refused() -> None:
    for wrong in (
        {"alpha": ((1.0,),), "beta": ((1.5,),)},
        {"alpha": ((1.0, 2.0), (1.0,)), "beta": ((0.0, 0.0), (0.0,))},
        {"alpha": (), "beta": ()},
        {"alpha": ((1.0,),), "beta": ((0.0,),), "sink": -1},
        {"alpha": ((float("nan"),),), "beta": ((0.0,),)},
    ):
        with pytest.raises(ConfigError):
            Spans(**wrong)  # pyright: ignore[reportArgumentType]
    with refused(ConfigError, what="length of the text", got=10):
        Spans.uniform(1, 1, 0.5).at(10)
