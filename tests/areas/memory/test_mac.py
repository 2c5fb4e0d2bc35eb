"""Sparsey's mac against its closed forms, and a naive twin without packed bits."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from intarsia.areas.memory import Mac, SparseyNet, adherence, mac, overlap_maps, similarity
from intarsia.areas.memory.mac import draw
from intarsia.areas.memory.overlap import basis_set_size, code_overlaps, input_overlaps
from intarsia.core.errors import CheckpointError, ConfigError, DataError, ShapeError

from ...refusals import refused

D, A = 77, 12


def items(n: int, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    x = np.zeros((n, D))
    for row in x:
        row[random.choice(D, A, replace=False)] = 1
    return x


def unpacked(mac: Mac) -> Any:
    return np.unpackbits(mac.weights_, axis=-1, count=mac.n_features_in_)


def test_weights_and_winners_are_those_of_plain_arrays() -> None:
    """Compare each step with one on plain arrays, from the same weights before it."""
    x = items(9)
    mac, w = Mac(n_modules=5, n_units=3, saturation=1.0, random_state=0), np.zeros((5, 3, D))
    for row in x:
        mac.partial_fit(row)
        winners = mac.codes_[0]
        w[np.arange(5), winners] = np.maximum(w[np.arange(5), winners], row)
        assert_array_equal(unpacked(mac), w)
    v = w @ x[0] / A
    assert_allclose(mac.familiarity(x[0]), v.max(axis=1).mean())
    assert_array_equal(mac.code(x[0])[0], v.argmax(axis=1))
    assert unpacked(mac).sum() <= 9 * 5 * A


def test_an_item_that_was_learned_is_familiar_and_keeps_its_code() -> None:
    x = items(6)
    mac = Mac(random_state=0).partial_fit(x)
    assert_allclose(mac.familiarity(x), 1)
    assert (mac.code(x) == mac.codes_).mean() > 0.98
    assert (mac.familiarity(items(6, seed=1)) < 1).all()
    memory = Mac(random_state=0).partial_fit(x[0])
    first = memory.codes_
    again = memory.partial_fit(x[0]).codes_  # G = 1: eta is so large that the winners are the same
    assert (again == first).mean() > 0.95


@pytest.mark.parametrize("shared", [0, 4, 6, 8, 12])
def test_codes_overlap_as_the_closed_form_says(shared: int) -> None:
    """psi(j / A) / (psi(j / A) + (K - 1) psi(0)) in a store of one item that shares j of A bits."""
    items, second = np.zeros((2, 144))
    items[:A], second[A - shared : 2 * A - shared] = 1, 1
    shares = []
    for seed in range(40):
        mac = Mac(random_state=seed).partial_fit(items)
        first = mac.codes_[0]
        shares.append((mac.partial_fit(second).codes_[0] == first).mean())
    eta = 1e4 * (shared / A) ** 7
    psi = [eta / (1 + np.exp(-(26 * v - 13))) + 1 for v in (shared / A, 0)]
    expected = psi[0] / (psi[0] + 7 * psi[1])
    assert abs(np.mean(shares) - expected) < 4 * np.sqrt(0.25 / (40 * 24))


def test_winners_are_drawn_by_psi_over_its_sum() -> None:
    """V = (1, 1/2, 0) of one module, a = 2, b = 1, floor 1, by hand.

    G = max V = 1 and eta = 2 G = 2.  The sigmoid 1 / (1 + exp(-(26 V - 13))) is 1, 1/2 and 0 to
    five digits, so psi = 2 (1, 1/2, 0) + 1 = (3, 2, 1), and rho = psi / 6 = (1/2, 1/3, 1/6).
    """
    reach = np.array([[1.0, 0.5, 0.0]])
    winners = [draw(reach, (2.0, 1.0), 1.0, [seed])[0] for seed in range(6000)]
    assert_allclose(np.bincount(winners) / 6000, [1 / 2, 1 / 3, 1 / 6], atol=0.02)


def test_familiarity_is_the_mean_over_modules_of_the_largest() -> None:
    """V = (1, 0) and (1/2, 1/2), a = 1, b = 2, floor 1: G = (1 + 1/2) / 2, eta = G^2 = 9/16.

    psi of the first module is (9/16 + 1, 1), so that its first unit wins by 25 / 41 = .610.
    """
    evidence = np.array([[1.0, 0.0], [0.5, 0.5]])
    winners = [draw(evidence, (1.0, 2.0), 1.0, [seed])[0] for seed in range(10_000)]
    assert_allclose(np.mean(np.array(winners) == 0), 25 / 41, atol=0.02)


def test_without_expansion_codes_are_drawn_evenly() -> None:
    mac = Mac(n_modules=400, n_units=4, expansion=(0.0, 1.0), random_state=0)
    codes = mac.partial_fit(np.repeat(items(1), 8, axis=0)).codes_
    assert abs(code_overlaps(codes)[np.triu_indices(8, 1)].mean() - 0.25) < 0.03


def test_saturation_is_the_expected_share_of_bits() -> None:
    """1 - (1 - A / (D K))^n of independent items, where no unit is full."""
    mac = Mac(n_modules=30, n_units=4, expansion=(0.0, 1.0), saturation=1.0, random_state=0)
    mac.fit(items(40))
    assert_allclose(unpacked(mac).mean(), 1 - (1 - A / (D * 4)) ** 40, rtol=0.05)


@pytest.mark.filterwarnings("ignore:.*different items got:UserWarning")
def test_a_full_unit_learns_no_more() -> None:
    mac = Mac(n_modules=3, n_units=2, saturation=0.3, random_state=0).fit(items(60))
    assert unpacked(mac).sum(axis=2).max() < 0.3 * D + A
    before = mac.weights_.copy()
    mac.partial_fit(items(10, seed=5))
    assert_array_equal(mac.weights_, before)


def test_noisy_items_lead_back_to_the_stored_ones() -> None:
    x = items(5)
    mac = Mac(random_state=0).fit(x)
    noisy = x.copy()
    for row in noisy:
        row[np.flatnonzero(row)[:3]] = 0
        row[np.flatnonzero(row == 0)[-3:]] = 1
    assert (mac.recall(x) * x).sum() / x.sum() > 0.98
    assert (mac.recall(noisy) * x).sum() > (noisy * x).sum() + 5
    assert (mac.recall(noisy, active=3).sum(axis=1) == 3).all()
    with refused(ConfigError, what="active", got=0):
        mac.recall(noisy, active=0)


def test_a_cue_that_lost_bits_gets_them_back() -> None:
    """Nine of twelve bits lead to all twelve, since that is how many the items learned have."""
    x = items(8)
    mac = Mac(random_state=0)
    for row in x:
        mac.partial_fit(row)
    cues = x.copy()
    for row in cues:
        row[np.flatnonzero(row)[:3]] = 0
    assert_array_equal(mac.recall(cues), x)
    parts = np.zeros((3, D))
    parts[0, :2], parts[1, 10:14], parts[2, 20:26] = 1, 1, 1  # 2, 4 and 6 bits: 4 on average
    assert mac.fit(parts).n_active_ == 12
    assert (mac.recall(parts).sum(axis=1) == 4).all()


def test_a_sequence_is_replayed_from_its_first_item() -> None:
    x = items(7)
    mac = Mac(random_state=0).learn_sequence(x)
    cue = x[0].copy()
    cue[np.flatnonzero(cue)[0]] = 0  # a bit less at the start is no bit less in what follows
    assert_array_equal(mac.replay(x[0], 7), x)
    assert_array_equal(mac.replay(cue, 7), x)
    assert mac.replay(x[3], 2).shape == (2, D)


def test_evidence_of_an_item_and_of_the_code_before_it_multiplies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An item that is known in full, behind a code that nothing has followed so far."""
    evidences: list[Any] = []

    def noted(evidence: Any, *rest: Any) -> Any:
        evidences.append(evidence)
        return draw(evidence, *rest)

    monkeypatch.setattr(mac, "draw", noted)
    x = items(1)
    memory = Mac(random_state=0).fit(x)
    assert memory.familiarity(x[0]) == 1
    memory.learn_sequence(np.concatenate([x, x]))
    assert evidences[-2].max() == 1 and not evidences[-1].any()


def test_without_a_sequence_there_is_nothing_to_replay() -> None:
    x = items(4)
    mac = Mac(random_state=0).fit(x)
    assert_array_equal(mac.replay(x[0], 1), x[:1])
    with refused(DataError, what="sequence learned", got="none"):
        mac.replay(x[0], 2)


def test_the_order_of_fit_is_drawn_and_codes_are_those_of_their_items() -> None:
    x = items(8)
    first, second = (Mac(random_state=s).fit(x) for s in (0, 0))
    assert_array_equal(first.codes_, second.codes_)
    assert (first.code(x) == first.codes_).mean() > 0.95
    assert (Mac(random_state=1).fit(x).codes_ != first.codes_).any()


def dense(n: int = 40) -> Any:
    random = np.random.default_rng(0)
    common = random.random(D) < 0.5
    bits = random.random((n, D)) < np.repeat(np.linspace(0, 0.2, n // 2), 2)[:, None]
    return (common ^ bits).astype(float)


def test_a_collapse_is_told_and_the_cure_that_it_names_cures_it() -> None:
    x = dense()
    with pytest.warns(UserWarning, match="set baseline=") as caught:
        mac = Mac(saturation=1.0, random_state=0).fit(x)
    assert basis_set_size(mac.codes_) < 20 and (mac.code(x) == mac.codes_).mean() > 0.9
    text = str(caught[0].message)
    baseline = float(text.split("baseline=")[1].rstrip("."))
    cured = Mac(saturation=1.0, baseline=baseline, random_state=0).fit(x)  # and warns no more
    assert basis_set_size(cured.codes_) > 30
    assert adherence(x, cured.codes_) > adherence(x, mac.codes_)


def test_the_memory_that_a_warning_needs_does_not_grow_with_the_items() -> None:
    x = np.repeat(dense(), 100, axis=0)  # 4,000 items: their pairs take 128 MB
    x[:, :12] = np.arange(4000)[:, None] >> np.arange(12) & 1
    tracemalloc.start()
    with pytest.warns(UserWarning, match="set baseline="):
        Mac(n_modules=2, n_units=2, random_state=0).fit(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize("kind", ["mac", "net"])
def test_a_saved_memory_is_the_same_to_the_bit_and_learns_on(kind: str, tmp_path: Path) -> None:
    x = items(6)[:, :64]
    x[:, 0] = 1
    model: Any = Mac(random_state=0) if kind == "mac" else SparseyNet((8, 8), (3, 2), 3.0, 1)
    model.set_params(random_state=0).fit(x)
    again = type(model).load(model.save(tmp_path / "m"))
    assert_array_equal(again.transform(x), model.transform(x))
    for name, value in vars(model).items():
        assert_array_equal(getattr(again, name), value)
    if kind == "mac":
        new = items(1, seed=9)[:, :64]
        assert_array_equal(again.partial_fit(new).codes_, model.partial_fit(new).codes_)
        with refused(CheckpointError, got="a Mac"):
            SparseyNet.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("settings", "x", "error", "match"),
    [
        ({}, np.full((3, 4), 0.3), DataError, r"Pass binarize=0\.5"),
        ({}, np.eye(3, 4) * [1, 0, 1, 1], DataError, "no active bit in 1 items"),
        ({"n_units": 1}, np.eye(3), ConfigError, "n_units"),
        ({"baseline": 1.0}, np.eye(3), ConfigError, "baseline"),
        ({"floor": 0.0}, np.eye(3), ConfigError, "floor"),
        ({"expansion": (1e4, -1.0)}, np.eye(3), ConfigError, "expansion"),
        ({"expansion": 7.0}, np.eye(3), ConfigError, "expansion"),
        ({"random_state": np.random.RandomState(0)}, np.eye(3), ConfigError, "random_state=0"),
        ({}, np.full((3, 4), np.nan), ValueError, "NaN"),
    ],
)
def test_bad_input_is_refused(settings: Any, x: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        Mac(**settings).fit(x)


def test_other_features_are_refused_when_learning_on() -> None:
    with pytest.raises(ValueError, match="features"):
        Mac(random_state=0).fit(items(3)).partial_fit(np.ones((1, D + 1)))


def test_a_net_codes_where_there_is_something_to_see() -> None:
    pictures = np.zeros((4, 12, 12))
    for i, picture in enumerate(pictures):
        picture[i : i + 3, :4] = 1  # the left side only
    x = pictures.reshape(4, -1)
    net = SparseyNet((12, 12), (3,), 2.5, random_state=0).fit(x)
    codes = net.code(x).reshape(4, 9, -1)
    assert (codes[:, 2::3] == -1).all() and (codes[:, 0] >= 0).all()
    assert (codes.reshape(4, -1) == net.codes_).mean() > 0.95  # ties of units aside
    assert_allclose(net.transform(x).sum(axis=1), (codes >= 0).sum(axis=(1, 2)))
    deep = SparseyNet((12, 12), (3, 1), 2.5, random_state=0).fit(x)
    assert deep.transform(x).shape == (4, 10 * 24 * 8) and (deep.code(x) >= 0).all()


def test_bad_nets_are_refused() -> None:
    with refused(ShapeError, what="picture"):
        SparseyNet((4, 4)).fit(np.eye(3))
    with refused(DataError, what="X", got="values up to 0.5"):
        SparseyNet((2, 2), (1,)).fit(np.full((3, 4), 0.5))
    with refused(ConfigError, what="random_state", fix="Pass random_state=0."):
        SparseyNet((2, 2), (1,), random_state=np.random.RandomState(0)).fit(np.ones((3, 4)))  # pyright: ignore
    with refused(ConfigError, what="radius"):
        SparseyNet((4, 4), (2,), radius=0.1).fit(np.ones((3, 16)))


def test_measures_of_codes() -> None:
    x = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]])
    assert_allclose(input_overlaps(x), [[1, 2 / 3, 0], [2 / 3, 1, 0], [0, 0, 1]])
    codes = np.array([[0, 1], [0, 2], [3, 3]])
    assert_allclose(code_overlaps(codes), [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    assert_allclose([similarity(x, codes), adherence(x, codes)], 1)
    assert adherence(x, np.zeros((3, 2))) == 0


def test_random_codes_keep_nothing_of_similarity() -> None:
    x = items(60)
    similarities = [
        similarity(x, np.random.default_rng(s).integers(0, 8, (60, 24))) for s in range(30)
    ]
    assert abs(np.mean(similarities)) < 4 * np.std(similarities, ddof=1) / 30**0.5
    assert np.std(similarities) < 0.1


def test_overlaps_become_a_picture(tmp_path: Path) -> None:
    x = np.eye(4)
    picture = overlap_maps(x, np.zeros((4, 2)), [1, 0, 1, 0], tmp_path / "o.png")
    pixels = np.asarray(Image.open(tmp_path / "o.png"))
    assert_array_equal(pixels, np.asarray(picture))
    assert pixels[0, 0] == 255 and pixels[0, 200] == 0 and pixels[0, -1] == 255
    with refused(DataError, what="codes", got="3 codes of 4 items"):
        overlap_maps(x, np.zeros((3, 2)))
