"""GQSA: each stage helps on its rows, codes are what is stored, bad input is refused."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia.core.change import steps_of
from intarsia.core.errors import ConfigError, DataError, TargetError
from intarsia.core.modes import without_caches
from intarsia.formats import GroupSparse
from intarsia.formats.packed_linear import PackedLinear
from intarsia.kernels.gqsa import affine, codes_of
from intarsia.methods.gqsa.coded import CodedGroups, by_compensation, by_rounding, kept_groups
from intarsia.methods.gqsa.gqsa import Gqsa
from intarsia.methods.gqsa.stages import (
    ScaleOnlyLinear,
    Tuning,
    _layers_replaced,
    _loss,
    language_rows,
    tuned_block,
)
from intarsia.scores import Statistics, wanda
from intarsia.sparse.prune.progress import Kept
from intarsia.sparse.prune.pruner import stops_of
from intarsia.sparse.prune.walk import Chain, Stop, flow_of, walk_blocks
from intarsia.sparse.swap.compress import compress

from ..refusals import refused

Row = dict[str, Tensor]
UNTRAINED = Tuning(blocks=0, model=0)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Two blocks; 40 inputs are two groups and a half."""
    sizes: Any = {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).eval()


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    draw = torch.Generator().manual_seed(1)
    ids = (torch.arange(40) * torch.randint(1, 5, (16, 1), generator=draw)) % 64
    return [{"input_ids": row} for row in ids]


@torch.no_grad()
def logits(model: nn.Module, rows: list[Row]) -> Tensor:
    return model(input_ids=torch.stack([row["input_ids"] for row in rows])).logits


def layer() -> tuple[Tensor, Statistics]:
    draw = torch.Generator().manual_seed(2)
    mixing = torch.randn(48, 48, generator=draw)
    x = torch.randn(200, 48, generator=draw) @ mixing
    return torch.randn(12, 48, generator=draw), Statistics.of(x, hessian=True)


def off(weight: Tensor, new: Tensor, statistics: Statistics) -> float:
    difference = (new - weight).double()
    return float(((difference @ statistics.second_moment) * difference).sum())


def test_groups_go_over_the_whole_layer_and_ties_to_the_first() -> None:
    score = torch.ones(2, 64)
    score[1, 16:48] = 3
    mask = kept_groups(score, GroupSparse(), 0.5)
    assert mask.tolist() == [[True, True, False, False], [False, True, True, False]]


@pytest.mark.parametrize("choose", [by_rounding, by_compensation])
@pytest.mark.parametrize("rows", [4, 8])
def test_rows_of_a_block_keep_the_groups_of_the_largest_sums(choose: Any, rows: int) -> None:
    weight, statistics = layer()  # of 12 rows: the last block of 8 has 4
    form = GroupSparse(rows=rows)
    coded = choose(weight, statistics, form, 0.5, True)
    blocks = coded.mask.split(rows)
    assert all((block == block[:1]).all() for block in blocks)
    sums = form.blocks(form.groups(wanda(weight, statistics).square())).sum((-2, -1))
    mask = torch.stack([block[0] for block in blocks])
    assert int(mask.sum()) == round(0.5 * mask.numel())
    if choose is by_rounding:
        assert float(sums[mask].min()) >= float(sums[~mask].max())
    assert torch.equal(form.decode(coded.stored(), weight.shape), coded.weight())


@pytest.mark.parametrize("choose", [by_rounding, by_compensation])
def test_large_inputs_keep_a_group_of_smaller_weights(choose: Any) -> None:
    """Inputs of 3 before weights of 1 count more than inputs of 1 before weights of 2."""
    weight = torch.tensor([1.0, 2.0]).repeat_interleave(16)[None]
    x = torch.diag(torch.tensor([3.0, 1.0]).repeat_interleave(16))  # (rows, inputs)
    coded = choose(weight, Statistics.of(x, hessian=True), GroupSparse(), 0.5, True)
    assert coded.mask.tolist() == [[True, False]]


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_compensation_errs_less_than_rounding(density: float) -> None:
    weight, statistics = layer()
    form = GroupSparse()
    candidates = [
        f(weight, statistics, form, density, False) for f in (by_rounding, by_compensation)
    ]
    plain, made_up = (off(weight, c.weight(), statistics) for c in candidates)
    assert made_up < 0.8 * plain
    for coded in candidates:  # what is stored is what was compensated for
        assert torch.equal(form.decode(coded.stored(), weight.shape), coded.weight())
        assert int(coded.mask.sum()) == round(density * 36)
    if density == 1:  # nothing pruned: plain int4
        assert torch.equal(candidates[0].weight(), form.decode(form.encode(weight), weight.shape))


def test_symmetric_codes_are_those_of_a_file_that_others_read() -> None:
    from intarsia.sparse.prune.packed import rounded

    weight, statistics = layer()
    coded = by_rounding(weight, statistics, GroupSparse(), 1.0, True)
    assert set(coded.zero.unique().tolist()) == {8.0}
    # as compressed-tensors rounds, but for the scale, which is bfloat16 here: a tie may fall apart
    apart = (coded.weight() - rounded(weight)).abs() / coded.scale.repeat_interleave(16, 1)
    assert (apart > 8 * 2**-8).float().mean() < 0.06


def test_a_model_is_packed_saved_and_loaded(
    model: nn.Module, rows: list[Row], tmp_path: Path
) -> None:
    dense = logits(model, rows)
    results = {}
    for start in ("rtn", "obs"):
        method = Gqsa(density=0.9, start=start, tuning=UNTRAINED)
        small = compress(copy.deepcopy(model), method, rows, force=True)
        results[start] = float((logits(small, rows) - dense).norm() / dense.norm())
    assert results["obs"] < results["rtn"] < 1
    layers = [m for m in small.modules() if isinstance(m, PackedLinear)]
    form = GroupSparse(activations="int8")
    assert len(layers) == 14 and all(m.form == form for m in layers)
    plan = steps_of(small)[0].plan
    assert plan.decided["method"]["key"] == "gqsa"
    assert "padded to whole groups of 16" in plan.decided["layers told"][0]["told"]
    intarsia.save(small, tmp_path / "small")
    again = intarsia.load(copy.deepcopy(model), tmp_path / "small")
    assert torch.equal(logits(again, rows), logits(small, rows))
    assert torch.equal(logits(model, rows), dense)  # the host of a plan stays as it is


def test_tuning_a_block_fits_its_outputs_better(model: nn.Module, rows: list[Row]) -> None:
    work = copy.deepcopy(model).requires_grad_(False)
    stop = stops_of(work, ())[0]
    with torch.no_grad(), without_caches(work):  # as the walk does
        flow = flow_of(work, [stop], [{"input_ids": row["input_ids"][None]} for row in rows])
        assert isinstance(flow, Chain)
        want = [flow.run(0, i) for i in range(len(rows))]
        dense = {n: m.read().clone() for n, m in stop.layers.items()}
        recorded = {}
        for name, weight in dense.items():
            x = torch.randn(200, weight.shape[1], generator=torch.Generator().manual_seed(3))
            recorded[name] = by_rounding(weight, Statistics.of(x), GroupSparse(), 0.5, False)

        def error(coded: Any) -> float:
            for name, c in coded.items():
                stop.layers[name].write(c.weight())
            return sum(float((flow.run(0, i) - w).square().mean()) for i, w in enumerate(want))

        before = error(recorded)
        draw = torch.Generator().manual_seed(0)
        tuned = tuned_block(stop, flow, 0, dense, recorded, Tuning(blocks=100), draw)
        assert error(tuned) < 0.9 * before
        # one step by a thousand codes, after which every code is the first or the last
        wild = tuned_block(stop, flow, 0, dense, recorded, Tuning(blocks=1, weights=1e3), draw)
        assert all(wild[name] is recorded[name] for name in recorded)
    for name, coded in tuned.items():
        assert torch.equal(coded.mask, recorded[name].mask)
        assert torch.equal(coded.scale, coded.scale.bfloat16().float())
        stored = GroupSparse().decode(coded.stored(), dense[name].shape)
        assert torch.equal(stored, coded.weight())


def test_a_block_in_bfloat16_is_tuned(model: nn.Module, rows: list[Row]) -> None:
    halves, method = (
        copy.deepcopy(model).bfloat16(),
        Gqsa(start="rtn", tuning=Tuning(blocks=4, weights=0.5, model=0)),
    )
    assert bool(logits(compress(halves, method, rows, force=True), rows).isfinite().all())


def test_scales_end_to_end_lower_the_loss_and_leave_the_codes(
    model: nn.Module, rows: list[Row]
) -> None:
    results = {}
    for steps in (0, 64):
        work = copy.deepcopy(model).requires_grad_(False)
        method = Gqsa(tuning=Tuning(blocks=0, model=steps, end=0.02))
        batch = {"input_ids": torch.stack([r["input_ids"] for r in rows])}
        coded, _ = method.coded(work, [batch])
        loss = torch.nn.functional.cross_entropy(
            logits(work, rows)[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()
        )
        results[steps] = float(loss), coded
    assert results[64][0] < results[0][0]
    for name, coded in results[64][1].items():
        untuned = results[0][1][name]
        assert torch.equal(coded.codes[coded.mask], untuned.codes[untuned.mask])
        assert torch.equal(coded.zero, untuned.zero) and not torch.equal(coded.scale, untuned.scale)


def test_the_last_stage_is_of_causal_language_models(model: nn.Module, rows: list[Row]) -> None:
    ids, mask = rows[0]["input_ids"][None], torch.tensor([[1] * 30 + [0] * 10])
    (row,) = language_rows(model, [{"input_ids": ids, "attention_mask": mask}])
    assert torch.equal(row["labels"], ids.masked_fill(mask == 0, -100))
    assert language_rows(nn.Linear(4, 4), [ids]) == []
    assert language_rows(model, [torch.zeros(1, 3, 8, 8)]) == []
    body: Any = model
    assert language_rows(body.model, [ids]) == []


def test_the_loss_of_the_last_stage_is_the_model_s_own(model: nn.Module, rows: list[Row]) -> None:
    ids, mask = rows[0]["input_ids"][None], torch.tensor([[1] * 30 + [0] * 10])
    (row,) = language_rows(model, [{"input_ids": ids, "attention_mask": mask}])
    torch.testing.assert_close(_loss(model, row), model(**row).loss)


def test_a_block_never_sees_the_keys_of_its_own_runs(model: nn.Module, rows: list[Row]) -> None:
    """A cache among a block's arguments would grow with each run, and show it old keys."""
    work = copy.deepcopy(model)
    assert work.config.use_cache
    stops = stops_of(work, ())
    runs: list[Tensor] = []

    def twice(stop: Stop, flow: Any, number: int) -> None:
        runs.extend(flow.run(number, 0) for _ in range(2))

    batches = [{"input_ids": torch.stack([row["input_ids"] for row in rows])}]
    walk_blocks(
        work, stops, batches, lambda *_: [], needs={"square"}, kept=Kept(None, {}), tune=twice
    )
    assert len(runs) == 4 and torch.equal(runs[0], runs[1]) and torch.equal(runs[2], runs[3])


def test_what_cannot_be_is_refused(model: nn.Module, rows: list[Row]) -> None:
    settings: list[dict[str, Any]] = [{"density": 0}, {"start": "best"}]
    settings += [{"tuning": {"blocks": -1}}, {"tuning": {"weights": 0}}, {"tuning": 300}]
    for wrong in settings:
        with pytest.raises(ConfigError):
            Gqsa(**wrong)
    with refused(ConfigError, what="group", got=24):
        Gqsa(group=24)
    with refused(DataError, what="calibration", got="0 rows of 0 tokens and more"):
        Gqsa().plan(model, rows[:0])
    with refused(TargetError, what="blocks of Linear"):
        Gqsa().plan(nn.Linear(4, 4), rows)


def test_codes_by_hand() -> None:
    """s = (max - min) / (2^b - 1), z = round(-min / s), q = clamp(round(w/s) + z), w^ = s (q - z).

    w = (-1, 0.6, 2) at 2 bits: s = 3 / 3 = 1, z = 1, w / s rounds to (-1, 1, 2), so q = (0, 2, 3)
    and w^ = (-1, 1, 2).
    """
    weight = torch.tensor([[-1.0, 0.6, 2.0]])
    scale, zero = affine(weight, 2)
    codes = codes_of(weight, scale[:, None], zero[:, None], 2)
    assert (scale.tolist(), zero.tolist(), codes.tolist()) == ([1], [1], [[0, 2, 3]])
    form = GroupSparse(bits=2, group=3)
    assert form.decode(form.encode(weight), weight.shape).tolist() == [[-1, 1, 2]]


def test_a_layer_of_scales_is_the_coded_weight_and_only_its_scales_learn() -> None:
    draw = torch.Generator().manual_seed(0)
    raw = torch.randn(4, 2, 16, generator=draw)
    mask = torch.tensor([[True, False], [True, True]]).repeat_interleave(2, 0)
    parts = (part.view(4, 2) for part in affine(raw.view(8, 16), 4))
    coded = CodedGroups(GroupSparse(bits=4, group=16), 20, raw, *parts, mask)
    bias, x = torch.randn(4, generator=draw), torch.randn(3, 20, generator=draw)
    layer = ScaleOnlyLinear(coded, bias)
    exact = coded.scale.bfloat16().float()
    stored = (coded.steps * exact[..., None]).flatten(1)[:, :20]
    torch.testing.assert_close(layer(x), x @ stored.T + bias)
    assert [name for name, _ in layer.named_parameters()] == ["share"]
    layer.share.data.fill_(2.0)
    torch.testing.assert_close(layer(x), 2 * x @ stored.T + bias)
    layer(x).sum().backward()
    wide = torch.nn.functional.pad(x.sum(0), (0, 12)).view(2, 16)
    grad = layer.share.grad
    torch.testing.assert_close(grad, (coded.steps * wide).sum(-1) * coded.scale)


def test_layers_are_replaced_while_the_context_is_open() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    stock, stand_in = [*net], nn.Identity()
    with pytest.raises(KeyError), _layers_replaced(net, {"1": stand_in}):
        assert net[0] is stock[0] and net[1] is stand_in
        raise KeyError
    assert [*net] == stock


def test_too_few_steps_to_move_a_code_are_said(model: nn.Module, rows: list[Row]) -> None:
    """A rate of .01 that falls to 0 moves a weight by half a code in 100 steps."""
    short = Gqsa(tuning={"blocks": 100, "weights": 0.01})  # pyright: ignore[reportArgumentType]
    with pytest.warns(UserWarning, match="at most 0.5 codes in 100 steps a block; take 200"):
        short.plan(copy.deepcopy(model), [{"input_ids": r["input_ids"][None]} for r in rows])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tuning().warn_of_few()
        UNTRAINED.warn_of_few()


@pytest.mark.thorough
def test_by_default_both_stages_lower_the_error_of_unseen_rows(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(5)
    ids = (torch.arange(40) * torch.randint(1, 5, (48, 1), generator=draw)) % 64
    rows = [{"input_ids": row} for row in ids]
    unseen = rows[32:]
    dense = logits(model, unseen)
    off = []
    for tuning in (UNTRAINED, Tuning()):
        small = compress(copy.deepcopy(model), Gqsa(tuning=tuning), rows[:32], force=True)
        off.append(float((logits(small, unseen) - dense).norm()))
    assert off[1] < 0.9 * off[0]
