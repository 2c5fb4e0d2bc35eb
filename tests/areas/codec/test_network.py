"""The network, its prior, and the fit: each special case is the plain thing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributions import Normal, kl_divergence

from intarsia.areas.codec import coding
from intarsia.areas.codec.codec import Recombiner
from intarsia.areas.codec.coin import coin, coin_bytes, coin_width
from intarsia.areas.codec.levels import groups_by_mean, levels_of, number_groups
from intarsia.areas.codec.prior import (
    FIXED,
    LARGEST,
    Prior,
    divergence,
    join_levels,
    sigma,
    to_fixed_point,
)
from intarsia.areas.codec.recombiner import RecombinerSettings
from intarsia.areas.codec.siren import OMEGA, SignalDecoder, cut, fourier, siren, stitch
from intarsia.areas.codec.training import Posteriors, PriorTraining
from intarsia.core.errors import CheckpointError, ConfigError, DataError, ShapeError
from intarsia.core.sealing import seal_folder

from ...refusals import refused
from ...toys import seeded
from .conftest import TINY, waves
from .test_file import by_hand


def naive(x: torch.Tensor, weights: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """A plain SIREN of one signal, layer by layer."""
    offset = 0
    for layer, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
        bias, matrix = (
            weights[offset : offset + b],
            weights[offset + b : offset + b + a * b].view(a, b),
        )
        offset += b + a * b
        x = x @ matrix + bias
        x = torch.sin(OMEGA * x) if layer < len(sizes) - 2 else x
    return x


def test_first_weights_reach_as_far_as_their_fan_allows() -> None:
    decoder = SignalDecoder(replace(TINY, width=16), generator=seeded())
    for weights in decoder.maps:
        # uniform around the identity, up to 1 / p
        p = len(weights)
        drawn = (weights - torch.eye(p, dtype=weights.dtype)).detach() * p
        assert float(drawn.abs().max()) <= 1 + 1e-5 and float(drawn.abs().max()) > 0.9
        assert abs(float(drawn.square().mean()) - 1 / 3) < 0.1
    for layer in decoder.convolutions:
        fan = layer.weight[0].numel()
        assert 0.9 < float(layer.weight.detach().abs().max()) * math.sqrt(fan) <= 1 + 1e-5
        assert float(layer.bias.detach().abs().max()) <= 1 / math.sqrt(len(layer.bias)) + 1e-6


def test_a_siren_of_rows_is_each_row_by_itself() -> None:
    sizes = [3, 5, 4, 2]
    weights = torch.randn(3, 20 + 24 + 10, generator=seeded(), dtype=torch.float64) * 0.1
    weights.requires_grad_()
    x = torch.randn(3, 7, 3, generator=seeded(1), dtype=torch.float64)
    together = siren(x, weights, sizes)
    apart = torch.stack([naive(a, w, sizes) for a, w in zip(x, weights, strict=True)])
    torch.testing.assert_close(together, apart)
    grads = [torch.autograd.grad(y.square().sum(), weights)[0] for y in (together, apart)]
    torch.testing.assert_close(*grads)


def test_the_identity_in_place_of_the_maps_is_the_plain_siren() -> None:
    full = SignalDecoder(replace(TINY, positions=0), generator=seeded())
    h = torch.randn(2, full.columns, generator=seeded(1)) * 0.1
    for a in full.maps:
        torch.nn.init.eye_(a)
    expected = siren(full.points.expand(2, -1, -1), h, full.sizes) + 0.5
    torch.testing.assert_close(full(h, (1, 2)), expected)
    plain = SignalDecoder(replace(TINY, positions=0, reparametrise=False), generator=seeded())
    assert not list(plain.parameters())  # COMBINER: signals share nothing but the prior
    torch.testing.assert_close(plain(h, (1, 2)), expected)


def test_silent_positions_change_nothing() -> None:
    full = SignalDecoder(replace(TINY, reparametrise=False), generator=seeded())
    bare = SignalDecoder(replace(TINY, reparametrise=False, positions=0), generator=seeded())
    h = torch.randn(1, full.columns, generator=seeded(1)) * 0.1
    first, out = full.sizes[1], full.sizes[0] - bare.sizes[0]
    for parameter in full.convolutions.parameters():
        torch.nn.init.zeros_(parameter)
    weights_alone = h[:, : full.weights]
    start, end = first + bare.sizes[0] * first, first + full.sizes[0] * first
    assert end - start == out * first
    shorter = torch.cat([weights_alone[:, :start], weights_alone[:, end:]], 1)
    torch.testing.assert_close(full(h, (1, 1)), bare(shorter, (1, 1)))


def test_wider_levels_without_variance_are_one_level() -> None:
    levels = levels_of(replace(TINY, levels=3), (5, 2))
    h = torch.randn(2, 10, 6, generator=seeded())
    parts = [h, torch.zeros(2, levels[1].rows, 4), torch.zeros(2, 1, 4)]
    assert levels[1].rows == 2 and levels[1].row_of_patch.tolist() == [0] * 8 + [1] * 2
    torch.testing.assert_close(join_levels(parts, levels), h.flatten(0, 1))
    parts[2] += 1
    torch.testing.assert_close(join_levels(parts, levels)[:, :4], h.flatten(0, 1)[:, :4] + 1)
    torch.testing.assert_close(join_levels(parts, levels)[:, 4:], h.flatten(0, 1)[:, 4:])


@pytest.mark.parametrize("tiles", [(3,), (2, 3), (2, 1, 3)])
def test_stitched_patches_come_apart_again(tiles: tuple[int, ...]) -> None:
    side = (2, 3, 4)[: len(tiles)]
    x = torch.randn(2 * math.prod(tiles), 5, *side, generator=seeded())
    stitched = stitch(x, tiles)
    assert stitched.shape == (2, 5, *(a * b for a, b in zip(tiles, side, strict=True)))
    assert torch.equal(cut(stitched, tiles), x)
    last = tuple(slice(-n, None) for n in side)
    assert torch.equal(stitched[1, :, *last], x[-1])


def test_the_divergence_is_that_of_torch_and_of_monte_carlo() -> None:
    q, p = (torch.tensor([0.3, -0.1]), torch.tensor([0.2, 0.05])), (torch.zeros(2), torch.ones(2))
    computed = divergence(*q, *p)
    torch.testing.assert_close(computed, kl_divergence(Normal(*q), Normal(*p)))
    torch.manual_seed(0)
    x = Normal(*q).sample((20000,))
    monte = (Normal(*q).log_prob(x) - Normal(*p).log_prob(x)).mean(0)
    torch.testing.assert_close(computed, monte, atol=0.03, rtol=0)


def test_groups_share_the_divergence() -> None:
    random = np.random.default_rng(0)
    bits = random.exponential(0.4, 300)
    groups = groups_by_mean(bits, 12, random)
    per_group = np.bincount(groups, weights=bits)
    assert len(per_group) == 12 and np.abs(per_group - bits.sum() / 12).max() < 2 * bits.max()
    assert groups_by_mean(np.zeros(5), 2, random).max() == 1  # a dead latent has a group, too
    assert groups_by_mean(np.array([9.0, 0, 0]), 3, random).min() == 0


def test_rows_share_their_groups_column_by_column() -> None:
    groups = np.array([0, 1, 1, 0])
    numbers = number_groups(groups, 3, key=77, level=0)
    assert sorted(numbers.ravel()) == sorted([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    assert (numbers % 2 == groups).all() and all(len(set(column)) == 3 for column in numbers.T)
    assert (number_groups(groups, 1, key=77, level=0) == groups).all()


def test_groups_of_all_levels_are_numbered_one_after_the_other() -> None:
    settings = replace(TINY, levels=3)
    decoder = SignalDecoder(settings, generator=seeded())
    widths = (decoder.columns, decoder.weights, decoder.weights)
    numbers = tuple(torch.arange(n, dtype=torch.int32) for n in widths)
    groups = tuple(n % 3 for n in numbers)
    prior = Prior(settings, decoder, numbers, numbers, groups, numbers, 1e-6)
    levels = levels_of(settings, (5, 2))
    of_levels = [set(level.ravel().tolist()) for level in prior.numbers(levels)]
    assert sum(map(len, of_levels)) == len(set().union(*of_levels)) == sum(prior.counts(levels))
    # each level has rotations of its own
    for i, (level, numbers_) in enumerate(zip(levels, prior.numbers(levels), strict=True)):
        alone = number_groups(groups[i].numpy(), level.rows, prior.key, i)
        assert (numbers_ - numbers_.min() == alone).all()


def test_numbers_of_fixed_point_are_the_nearest() -> None:
    values = torch.tensor([0.6, -0.6, 0.4, 1e12]) / FIXED
    assert to_fixed_point(values).tolist() == [1, -1, 0, LARGEST]


def test_features_of_a_patch_are_at_the_centres_of_its_cells() -> None:
    features = fourier((16, 32))
    assert features.shape == (512, 16)
    torch.testing.assert_close(
        features[:, 0].view(16, 32)[0, 0], torch.tensor(-15 / 16 * math.pi).cos().double()
    )


def test_a_training_that_was_stopped_gives_the_same_prior(tmp_path: Path) -> None:
    pictures = [waves(i, 16, 16) for i in range(5)]
    settings = {"crops": 5, "steps": 8, "batch": 3}
    uninterrupted = Recombiner.train(pictures, 0.4, TINY, **settings, seed=3)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    from intarsia.areas.codec import training

    original_step = training.PriorTraining._step
    try:
        training.PriorTraining._step = lambda self: (
            stop() if self.step == 5 else original_step(self)
        )  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            Recombiner.train(pictures, 0.4, TINY, **settings, seed=3, out=tmp_path / "a", every=4)
    finally:
        training.PriorTraining._step = original_step  # type: ignore[method-assign]
    again = Recombiner.train(pictures, 0.4, TINY, **settings, seed=3, out=tmp_path / "a", every=4)
    assert again.prior.digest == uninterrupted.prior.digest
    with pytest.raises(ConfigError, match="same settings"):
        Recombiner.train(pictures, 0.4, TINY, **settings, seed=4, out=tmp_path / "a", every=4)


def begun(start: str = "shared") -> PriorTraining:
    values = torch.rand(3, 1, 256, 3, generator=seeded())
    settings: Any = {"payload": 64.0, "steps": 10, "batch": 3, "seed": 0, "start": start}
    return PriorTraining(values, (1, 1), TINY, **settings)


def test_the_maps_are_trained_at_a_tenth_of_the_other_rate() -> None:
    """A first step of Adam moves what has a gradient by the rate."""
    training = begun()
    shared = training.decoder
    before = {name: p.detach().clone() for name, p in shared.named_parameters()}
    training._step()
    moved = {n: float((p.detach() - before[n]).abs().max()) for n, p in shared.named_parameters()}
    for name, distance in moved.items():
        rate = 2e-4 if name.startswith("maps") else 2e-3
        assert distance == pytest.approx(rate, rel=0.05), name


def test_signals_and_maps_start_apart_as_released() -> None:
    separate, shared = begun("own"), begun()
    for training, distinct in ((separate, 3), (shared, 1)):
        latents = cast(Any, training.posteriors[0]).mu.weight
        assert len(latents.detach().unique(dim=0)) == distinct
    assert all((mean == 0).all() for mean in separate.mean)
    for apart, near in zip(separate.decoder.maps, shared.decoder.maps, strict=True):
        assert float(apart.detach().abs().max()) <= 1 / len(apart) + 1e-6
        torch.testing.assert_close(near.detach() - torch.eye(len(near)), apart.detach())


def test_what_cannot_be_trained_on_is_refused() -> None:
    with pytest.raises(ConfigError) as refusal:
        Recombiner.train([waves(0, 16, 16)], 0.4, TINY, steps=1, start="other")
    assert refusal.value.what == "start"
    with refused(ConfigError, what="rate", got="0.01 bits x 256 points = 3 bits a patch"):
        Recombiner.train([waves(0, 16, 16)], 0.01, TINY)
    with refused(DataError, what="signal 0"):
        Recombiner.train([waves(0, 16, 15)], 0.4, TINY)
    with refused(DataError, what="signals", got="none"):
        Recombiner.train([], 0.4, TINY)
    with refused(ShapeError, what="patch", got=(32, 20)):
        RecombinerSettings(patch=(32, 20))
    with refused(ConfigError, what="kind", got="'smell'"):
        RecombinerSettings(kind="smell")


def test_a_prior_is_the_same_from_its_folder(codec: Recombiner, tmp_path: Path) -> None:
    codec.save(tmp_path / "prior")
    again = Recombiner.load(tmp_path / "prior")
    assert again.prior.digest == codec.prior.digest and again.settings == codec.settings
    tensors = tmp_path / "prior" / "prior.safetensors"
    raw = bytearray(tensors.read_bytes())
    raw[-3] ^= 1
    tensors.write_bytes(bytes(raw))
    with refused(CheckpointError, got="bytes that changed after they were written"):
        Recombiner.load(tmp_path / "prior")
    with refused(CheckpointError, got="no such folder"):
        Recombiner.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("settings", {"width": 10**9}, "the folder of a prior as it was written"),
        (
            "settings",
            {"patch": [2**20, 2**20]},
            "the folder of a prior as it was written",
        ),
        (
            "settings",
            {"smell": 1},
            "the folder of a prior as it was written",
        ),
        ("groups.0", lambda x: x + 1, "the folder of a prior as it was written"),
        ("scale.0", lambda x: x * 0, "the folder of a prior as it was written"),
        ("mean.0", lambda x: x[:-1], "the folder of a prior as it was written"),
        ("mean.0", lambda x: x.float(), "the folder of a prior as it was written"),
    ],
)
def test_a_folder_that_somebody_made_up_is_refused(
    codec: Recombiner, tmp_path: Path, name: str, value: Any, want: str
) -> None:
    folder = codec.save(tmp_path / "prior")
    record = json.loads((folder / "prior.json").read_text())
    if name == "settings":
        record["settings"] |= value
    else:
        tensors = load_file(folder / "prior.safetensors")
        save_file(tensors | {name: value(tensors[name])}, folder / "prior.safetensors")
    seal_folder(folder, "prior.json", record)
    with refused(CheckpointError, want=want):
        Recombiner.load(folder)


def test_coin_fits_and_fits_into_its_bytes() -> None:
    sizes = [2, coin_width(120, 2, 2, 3), coin_width(120, 2, 2, 3), 3]
    assert coin_bytes(sizes) <= 120 < coin_bytes([2, sizes[1] + 1, sizes[1] + 1, 3])
    picture = torch.from_numpy(waves(0, 16, 16)).float().view(1, 256, 3) / 255
    axis = (torch.arange(16) + 0.5) / 8 - 1
    coordinates = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2)
    errors = [
        float((coin(picture, coordinates, sizes, steps=n, seed=0) - picture).square().mean())
        for n in (1, 60)
    ]
    assert errors[1] < errors[0] / 2


def test_it_is_opened_after_a_model_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.linspace  # which transformers makes one that knows no `with torch.device(...)`
    monkeypatch.setattr(torch, "linspace", lambda *a, **k: real(*a, **{"device": "cpu", **k}))
    with torch.device("meta"):
        assert fourier((4, 4)).is_meta


def test_a_signal_is_fitted_alike_whatever_is_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are summed over signals and patches, as costs are; without noise that is exact."""
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.zeros(shape))
    prior = replace(by_hand(), beta=1e-3)
    values, fitted = torch.rand(1, 1, 256, 3, generator=torch.Generator().manual_seed(0)), []
    for count in (1, 3):
        signals_ = values.repeat(count, 1, 1, 1)
        group = coding.GroupPosteriors(prior, signals_, (1, 1), torch.ones(1, 256), seed=0)
        group.run(5)
        fitted.append(group.mu[0][0].detach())
    torch.testing.assert_close(*fitted)


def test_wide_levels_are_coded_before_the_patches_below_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, levels = coding.GroupPosteriors.code, list[int]()

    def noted(self: Any, level: int, numbers: Any) -> Any:
        levels.append(level)
        return real(self, level, numbers)

    monkeypatch.setattr(coding.GroupPosteriors, "code", noted)
    prior, values = by_hand(levels=3), torch.rand(1, 1, 256, 3, generator=seeded())
    options: Any = {"steps": 1, "seed": 0, "tell": lambda *_: None}
    coding.encode(prior, values, (1, 1), weight=torch.ones(1, 256), **options)
    assert levels == sorted(levels, reverse=True) and {*levels} == {0, 1, 2}


def test_posteriors_start_narrow_at_the_first_means() -> None:
    (level,) = levels_of(TINY, (1, 2))[:1]
    start = torch.tensor([0.5, -1.0])
    posteriors = Posteriors(3, level, start)
    mu, rho = posteriors.mu.weight, posteriors.rho.weight
    assert mu.shape == rho.shape == (3 * level.rows, 2) and bool((mu == start).all())
    torch.testing.assert_close(sigma(rho), torch.full_like(rho, math.log1p(math.exp(-4)) / 6))
