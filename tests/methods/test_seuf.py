"""SEUF: attribution, the anchor, its losses, and what stays as it was."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import intarsia
from intarsia.conformance.unlearnings import mixture, rows
from intarsia.core.errors import ConfigError, DataError, TargetError, TrainingError
from intarsia.data.token_batches import batches
from intarsia.hosts.attribution import Attribution, affinity
from intarsia.hosts.weight_parts import WeightParts
from intarsia.methods.seuf.run import UnlearningRun
from intarsia.methods.seuf.seuf import Seuf, unlearn
from intarsia.placement import Trace

from ..refusals import refused

FORGET, RETAIN = rows(3), rows(4)
ONE = [torch.tensor([1])]  # a row in which nothing is to be predicted


@pytest.fixture(scope="module")
def stock() -> Any:
    return mixture()


@pytest.fixture
def model(stock: Any) -> Any:
    return copy.deepcopy(stock)


def test_affinities_of_a_layer_are_the_mean_probabilities(stock: Any) -> None:
    ids = torch.stack(FORGET)
    table = intarsia.experts.attribute_experts(stock, [ids], [torch.stack(RETAIN)])
    torch.testing.assert_close(table.affinity.sum(1), torch.ones(2, dtype=torch.float64))
    with torch.no_grad():
        logits = stock(input_ids=ids, output_router_logits=True).router_logits
    for layer, layer_logits in enumerate(logits):
        p = layer_logits.softmax(-1).view(*ids.shape, -1).mean(1).mean(0)
        torch.testing.assert_close(table.affinity[layer].float(), p)
    assert table.best() == divmod(int(table.affinity.argmax()), 4)
    layer, expert = table.best("lift")
    assert table.lift[layer, expert] == (table.affinity / table.reference).max()
    assert "nearly equal" in table.doubts((0, 0))[-1] and "tokens" in table.doubts((0, 0))[0]


def test_affinity_and_anchor_by_hand() -> None:
    """s_e = mean over sequences of the mean over tokens of g_e, and |g - onehot(0)|^2.

    Tokens with g = (.5, .3, .2) and (.1, .7, .2) in one sequence, (.4, .4, .2) in another:
    s = ((.5 + .1) / 2 + .4) / 2 = .35, ((.3 + .7) / 2 + .4) / 2 = .45 and .2. The anchor of the
    first token at expert 0 is (.5 - 1)^2 + .3^2 + .2^2 = .38.
    """
    g = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.4, 0.4, 0.2]])
    expert = torch.arange(3).expand(3, 1, 3)
    trace = Trace(expert, 3, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), g[:, None])
    assert affinity(trace)[0].tolist() == pytest.approx([0.35, 0.45, 0.2])
    run: Any = object.__new__(UnlearningRun)  # of which the loss reads two fields
    run.at, run.p = (0, 0), g[:1, None]
    batch = {"attention_mask": torch.ones(1, 1)}, torch.zeros(1, 1)
    assert float(run.anchoring(batch)) == pytest.approx(0.38)


def test_sequences_count_alike_and_padding_does_not(stock: Any) -> None:
    ids = torch.stack(FORGET)
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    padded = intarsia.trace(stock, [{"input_ids": ids, "attention_mask": mask}], probabilities=True)
    alone = [intarsia.trace(stock, [row], probabilities=True) for row in (ids[0, :3], *ids[1:])]
    mean_of_rows = torch.stack([affinity(sequence) for sequence in alone]).mean(0)
    torch.testing.assert_close(affinity(padded), mean_of_rows, rtol=1e-4, atol=1e-5)
    plain = intarsia.trace(stock, [ids])  # of the k experts' weights
    assert affinity(plain).sum(1).tolist() == pytest.approx([1.0, 1.0])


def test_only_the_expert_and_its_gate_change(model: Any, stock: Any) -> None:
    unlearned = unlearn(model, Seuf(), FORGET, RETAIN, at=(1, 2), steps=3)
    before, after = stock.state_dict(), model.state_dict()
    experts = {n for n in before if ".1.mlp.experts." in n}
    for name, old in before.items():
        equal = after[name] == old
        if name in experts:
            assert bool(equal[[0, 1, 3]].all()) and not bool(equal[2].all())
        elif name.endswith("1.mlp.gate.weight"):
            assert not bool(equal.all())
        else:
            assert bool(equal.all()), name
    assert unlearned.trained == sum(before[n][2].numel() for n in experts) + 4 * 8
    assert [p["step"] for p in unlearned.path] == [0, 3]


@pytest.mark.parametrize("loss", ["ga", "gdiff", "npo", "rmu"])
def test_every_loss_forgets(model: Any, loss: str) -> None:
    method = Seuf(loss, lr=0.1, beta=1.0, steer=5.0)
    unlearned = unlearn(model, method, FORGET, RETAIN, at=(1, 2), steps=5)
    assert unlearned.path[-1]["forget"] > unlearned.path[0]["forget"] + 0.01


def test_a_large_anchor_sends_the_text_to_the_expert(model: Any) -> None:
    method = Seuf("ga", anchor=1e4, lr=0.3)
    unlearned = unlearn(model, method, FORGET, at=(0, 1), steps=25, every=25)
    assert unlearned.path[-1]["share"] > 0.9 > unlearned.path[0]["share"]


def test_all_weights_without_an_anchor_is_gradient_ascent(model: Any, stock: Any) -> None:
    unlearn(model, Seuf("ga", lr=1e-3), FORGET, at="all", steps=1)
    ascended = copy.deepcopy(stock)
    ids = torch.stack(FORGET)
    optimiser = torch.optim.AdamW(ascended.parameters(), lr=1e-3, weight_decay=0.0)
    loss = F.cross_entropy(
        ascended(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )
    (-loss).backward()
    torch.nn.utils.clip_grad_norm_(ascended.parameters(), 1.0)
    optimiser.step()
    for (name, a), b in zip(model.named_parameters(), ascended.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_npo_with_a_small_beta_is_gradient_ascent(stock: Any) -> None:
    states: list[dict[str, torch.Tensor]] = []
    for method in (Seuf("npo", beta=1e-4, retain=0), Seuf("ga")):
        model = copy.deepcopy(stock)
        unlearn(model, method, FORGET, at=(1, 2), steps=2)
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=1e-5)


def test_it_stops_at_its_target(model: Any) -> None:
    method = Seuf("ga", lr=0.05)
    unlearned = unlearn(model, method, FORGET, at=(1, 2), steps=50, until=0.05, every=1)
    assert unlearned.path[-1]["step"] < 50
    assert unlearned.path[-1]["forget"] - unlearned.path[0]["forget"] >= 0.05


def test_leaves_of_half_precision_are_wide(stock: Any) -> None:
    model = copy.deepcopy(stock).to(torch.bfloat16)
    weight = model.model.layers[0].mlp.experts.down_proj
    parts = WeightParts(model, [(weight, 1)])
    assert parts.leaves[0].dtype == torch.float32 and parts.count == 64
    with torch.no_grad():
        parts.leaves[0].add_(1.0)
    parts.put()
    with parts.before():
        assert torch.equal(weight[1], stock.model.layers[0].mlp.experts.down_proj[1].bfloat16())
    assert not torch.equal(weight[1], stock.model.layers[0].mlp.experts.down_proj[1].bfloat16())


def test_what_is_doubtful_is_said_once_it_is_chosen(model: Any) -> None:
    with (
        pytest.warns(UserWarning, match="nearly equal shares"),
        pytest.warns(UserWarning, match="32 tokens"),
    ):
        unlearned = unlearn(model, Seuf("ga", by="lift"), FORGET, RETAIN, steps=1)
    assert isinstance(
        unlearned.attribution, Attribution
    ) and unlearned.at == unlearned.attribution.best("lift")


def test_lift_needs_no_other_text_where_the_expert_is_given(model: Any) -> None:
    assert unlearn(model, Seuf("ga", by="lift"), FORGET, at=(1, 2), steps=1).at == (1, 2)


def test_a_batch_with_nothing_to_predict_is_passed_over(model: Any) -> None:
    unlearned = unlearn(model, Seuf("ga"), [*ONE, *FORGET], at=(1, 2), steps=5, batch_size=1)
    assert all(abs(p["forget"]) < 99 for p in unlearned.path)  # no NaN


def test_batches_are_where_the_model_is() -> None:
    """Rows of any device, padding among them."""
    ragged = [torch.tensor([1, 2, 3]), torch.tensor([1])]
    for inputs, labels in batches(ragged, 2, torch.device("meta")):
        assert {t.device.type for t in (*inputs.values(), labels)} == {"meta"}


def test_bad_input_is_refused_and_errors_are_undone(model: Any, stock: Any) -> None:
    dense = torch.nn.Linear(2, 2)
    for error, words, call in (
        (TargetError, "sparse model", lambda: unlearn(dense, Seuf("ga"), FORGET)),
        (DataError, "to retain", lambda: unlearn(model, Seuf(), FORGET)),
        (DataError, "to forget", lambda: unlearn(model, Seuf("ga"), [])),
        (DataError, "also to be kept", lambda: unlearn(model, Seuf(), FORGET, FORGET[:1])),
        (ConfigError, "layer", lambda: unlearn(model, Seuf("ga"), FORGET, at=(2, 0))),
        (ConfigError, "expert", lambda: unlearn(model, Seuf("ga"), FORGET, at=(0, 4))),
        (ConfigError, "'all'", lambda: unlearn(model, Seuf("ga"), FORGET, at="top")),
        (ConfigError, "a layer", lambda: unlearn(model, Seuf("rmu"), FORGET, RETAIN, at="all")),
        (ConfigError, "steps", lambda: unlearn(model, Seuf("ga"), FORGET, steps=0)),
        (ConfigError, "batch_size", lambda: unlearn(model, Seuf("ga"), FORGET, batch_size=0)),
        (ConfigError, "until", lambda: unlearn(model, Seuf("ga"), FORGET, until=float("nan"))),
        (DataError, "no token to predict", lambda: unlearn(model, Seuf("ga"), ONE, at=(0, 1))),
        (DataError, "or by='affinity'", lambda: unlearn(model, Seuf("ga", "lift"), FORGET)),
        (ConfigError, "loss", lambda: Seuf("gda")),
        (ConfigError, "lr", lambda: Seuf(lr=0)),
        (ConfigError, "anchor", lambda: Seuf(anchor=-1)),
        (ConfigError, "lift", lambda: Attribution.of(intarsia.trace(stock, FORGET)).lift),
    ):
        with pytest.raises(error, match=words):
            call()
    with refused(TrainingError, what="unlearning, step 2"):
        unlearn(model, Seuf("ga", lr=1e30), FORGET, at=(1, 2), steps=20)
    for name, value in stock.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_likelihood_adds_up_the_words_that_have_labels() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    run: Any = object.__new__(UnlearningRun)
    run.model = lambda **_: SimpleNamespace(logits=logits)
    labels = torch.tensor([[-100, 0, 3, -100], [-100, -100, -100, 2]])
    total, counts = UnlearningRun.likelihood(run, ({}, labels))
    log_p = logits.log_softmax(-1)
    want = torch.stack([log_p[0, 0, 0] + log_p[0, 1, 3], log_p[1, 2, 2]])
    torch.testing.assert_close(total, want)
    assert counts.tolist() == [2, 1]  # the word 0 is one, too


def test_no_hook_of_a_run_stays_behind() -> None:
    removed: list[int] = []
    run: Any = object.__new__(UnlearningRun)
    run.parts = SimpleNamespace(end=lambda: removed.append(-1))
    run.hooks = [SimpleNamespace(remove=partial(removed.append, i)) for i in range(2)]
    UnlearningRun.__exit__(run)
    assert removed == [-1, 0, 1]
