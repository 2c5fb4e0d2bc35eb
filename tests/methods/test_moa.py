"""MoA: full spans lose nothing, choices keep the density, and no uniform window loses less."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia.core.errors import ConfigError, DataError, TargetError
from intarsia.data.small_models import SmallModel, small_decoder
from intarsia.hosts.spans.profile import loss_of_end, profile
from intarsia.methods.moa import MoA, choose_spans, configurations, losses_of, pareto

from ..refusals import refused

METHOD = MoA(0.5, (24, 40), check=48, sink=2, block=2, step=8, answer=6)
MODEL: Any = small_decoder(SmallModel(24, 2, 3, 48), tokens=32, length=64)
ROWS = torch.randint(0, 32, (5, 48), generator=torch.Generator().manual_seed(0))
SHAPE = 2, 3


def losses() -> list[Tensor]:
    options = configurations(METHOD)
    return [
        losses_of(profile(MODEL, ROWS[:, :n], 6, sink=2, block=2), options.spans[n], 2, 2)
        for n in METHOD.lengths
    ]


def test_a_profile_leaves_the_model_as_it_was_and_does_not_depend_on_batches() -> None:
    before = {n: p.requires_grad for n, p in MODEL.named_parameters()}
    bins = profile(MODEL, ROWS, 6, sink=2, block=2)
    assert bins.shape == (2, 3, 24)
    assert bool((bins >= 0).all())
    assert float(bins.sum()) > 0
    torch.testing.assert_close(bins, profile(MODEL, ROWS, 6, sink=2, block=2, rows=5))
    assert {n: p.requires_grad for n, p in MODEL.named_parameters()} == before
    assert MODEL.config._attn_implementation == "sdpa"
    assert not any(p.grad is not None for p in MODEL.parameters())


def test_heads_of_a_group_are_compared_over_all_rows() -> None:
    """The largest of the means, whatever the batches: a mean of their largest is above it."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=24,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    row_by_row, all_rows = (profile(model, ROWS, 6, sink=2, block=2, rows=n) for n in (1, 5))
    assert row_by_row.shape == (2, 2, 24)
    torch.testing.assert_close(row_by_row, all_rows)


def test_a_full_span_loses_nothing_and_a_shorter_one_no_less() -> None:
    options = configurations(METHOD)
    for length, lost in zip(METHOD.lengths, losses(), strict=True):
        spans = options.spans[length]
        assert float(lost[:, spans == length].max()) == 0
        order = spans.argsort()
        assert bool((lost[:, order].diff() <= 1e-12).all())


def test_a_full_span_that_is_no_whole_number_of_blocks_loses_nothing() -> None:
    """Check 12 tokens with a sink of 2: distances 0 to 9 are three blocks of 3, and a rest."""
    bins = torch.ones(1, 1, 4, dtype=torch.float64)
    assert losses_of(bins, torch.tensor([12, 8]), 2, 3).tolist() == [[0, 1]]


def test_lines_are_all_that_fit_at_each_profiled_length() -> None:
    options = configurations(METHOD)
    for length in METHOD.lengths:
        assert int(options.spans[length].min()) >= 4
        assert int(options.spans[length].max()) == length
    all_spans = torch.stack([options.spans[n] for n in (24, 40, 48)], 1)
    assert len(all_spans.unique(dim=0)) == len(all_spans)


def test_a_span_may_grow_faster_than_the_text() -> None:
    """alpha begins at -N_min: N - 8 leaves 16 of 24 tokens and 32 of 40."""
    options = configurations(METHOD)
    pairs = zip(options.spans[24].tolist(), options.spans[40].tolist(), strict=True)
    assert (16, 32) in pairs


def test_the_programme_keeps_density_and_two_spans_a_layer_and_beats_the_uniform_window() -> None:
    options, lost = configurations(METHOD), losses()
    choices = pareto(lost, options, SHAPE, METHOD.density)
    totals = []
    for x in choices:
        for spans in options.spans.values():
            share = float(spans[x].double().mean()) / int(spans.max())  # everything is an option
            assert 0.45 <= share <= 0.5 + 1e-9
        assert max(len(layer.unique()) for layer in x.view(SHAPE)) <= 2
        totals.append([float(loss.gather(1, x[:, None]).sum()) for loss in lost])
    # every line that has the density by itself, for all heads
    even = [c for c in range(len(options.alpha))
            if all(0.45 <= float(s[c]) / n <= 0.5 for n, s in options.spans.items())]  # fmt: skip
    assert even
    for i, loss in enumerate(lost):
        assert min(t[i] for t in totals) <= min(float(loss[:, c].sum()) for c in even) * 1.01
    for point in totals:
        for rival in totals:
            assert point == rival or any(a < b for a, b in zip(point, rival, strict=True))


def test_chosen_spans_are_attached_and_the_model_stays_as_it_is() -> None:
    model = copy.deepcopy(MODEL)
    before = loss_of_end(model, ROWS)
    lines: list[str] = []
    spans = choose_spans(model, METHOD, ROWS, progress=lines.append)
    assert lines
    assert loss_of_end(model, ROWS) == before
    assert 0.45 <= spans.density(48) <= 0.5
    assert spans.longest == 48
    assert spans.about["loss"][spans.about["chosen"]] == min(spans.about["loss"])
    intarsia.spans.attach_spans(model, spans)
    assert loss_of_end(model, ROWS) != before
    with refused(TargetError, what="model", got="one with spans"):
        choose_spans(model, METHOD, ROWS)


def test_spans_are_chosen_on_the_first_quarter_of_the_shuffled_rows() -> None:
    """Five rows: one validates, and the other four were profiled."""
    model = copy.deepcopy(MODEL)
    spans = choose_spans(model, METHOD, ROWS, seed=1)
    first = torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(1))[:1]
    assert spans.about["dense"] == loss_of_end(model, ROWS[first])
    intarsia.spans.attach_spans(model, spans, length=METHOD.check)
    assert min(spans.about["loss"]) == loss_of_end(model, ROWS[first])


@pytest.mark.parametrize(
    ("wrong", "want"),
    [
        ({"density": 0}, "0 < density <= 1"),
        ({"density": 0.1}, "at least 4 tokens"),
        ({"lengths": ()}, "one or more, all other"),
        ({"lengths": 24}, "a whole number, or several with commas"),
        ({"sink": 3}, "a multiple of the block, 2"),
        ({"answer": 24}, "at least 25"),
        ({"extend": 40}, "at least 48"),
        ({"check": 8}, "at least 24"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], want: str) -> None:
    valid = {"lengths": (24, 40), "check": 48, "sink": 2, "block": 2, "answer": 6}
    with refused(ConfigError, want=want):
        MoA(**(valid | wrong))


def test_short_or_few_rows_are_refused() -> None:
    for rows in (ROWS[:, :40], ROWS[:1], [torch.rand(48)]):
        with refused(DataError, what="texts"):
            choose_spans(MODEL, METHOD, rows)


def test_spans_of_few_tokens_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="here they have 12: one window"):
        choose_spans(MODEL, METHOD, ROWS)
    assert MoA().density * MoA().lengths[0] >= 256  # not of the default
