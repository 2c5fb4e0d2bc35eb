"""FourierFT: PEFT's layer is the oracle, and a double sum over the entries."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import FourierFTConfig, get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.adapters.fourier import Fourier, FourierCell
from intarsia.core import Site
from intarsia.core.errors import ConfigError

from ..refusals import refused


def built(config: Fourier, inputs: int = 6, outputs: int = 4, seed: int = 0) -> FourierCell:
    generator = torch.Generator().manual_seed(seed)
    return config.build(Site("c", inputs, outputs), generator=generator).double()


def delta_naive(cell: FourierCell) -> Tensor:
    """alpha / (P Q) Re sum_n c_n exp(2 pi i (p j_n / P + q k_n / Q)), entry by entry."""
    rows, columns = cell.shape
    made = torch.zeros(rows, columns, dtype=torch.float64)
    for place, value in zip(cell.place.tolist(), cell.coefficients.tolist(), strict=True):
        j, k = divmod(place, columns)
        for p in range(rows):
            for q in range(columns):
                made[p, q] += value * math.cos(2 * math.pi * (p * j / rows + q * k / columns))
    return cell.config.alpha / (rows * columns) * made


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 9))
def test_the_change_is_the_inverse_transform_of_few_entries(
    inputs: int, outputs: int, seed: int
) -> None:
    cell = built(Fourier(max(1, inputs * outputs // 2), 3.0, seed=seed), inputs, outputs, seed)
    assert_close(cell.delta(), delta_naive(cell))


def test_the_change_and_the_places_are_those_of_peft() -> None:
    model = nn.Sequential(nn.Linear(6, 4, bias=False))
    config = FourierFTConfig(n_frequency=10, scaling=150.0, random_loc_seed=5, target_modules=["0"])
    adapted: Any = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    layer = adapted.base_model.model[0]
    cell = built(Fourier(10, 150.0, seed=5)).float()
    assert torch.equal(torch.stack([cell.place // 6, cell.place % 6]), layer.indices["default"])
    with torch.no_grad():
        cell.coefficients.copy_(layer.fourierft_spectrum["default"])
    assert_close(cell.delta(), layer.get_delta_weight("default"))


def test_places_are_those_of_all_layers_of_one_shape_and_are_not_stored() -> None:
    one, two = built(Fourier(5), seed=0), built(Fourier(5), seed=1)
    assert torch.equal(one.place, two.place) and not torch.equal(one.coefficients, two.coefficients)
    assert not torch.equal(one.place, built(Fourier(5, seed=1)).place)
    assert list(one.state_dict()) == ["coefficients"]


def test_a_start_of_zero_changes_nothing() -> None:
    assert not bool(built(Fourier(5, std=0.0)).delta().any())
    assert bool(built(Fourier(5)).delta().any())


def test_half_precision_is_transformed_in_single() -> None:
    cell = built(Fourier(5)).to(torch.bfloat16)
    whole = built(Fourier(5)).to(torch.bfloat16).float()
    assert_close(cell.delta(), whole.delta().bfloat16())


def test_more_entries_than_weights_are_refused() -> None:
    with refused(ConfigError, what="entries of 'c'", got=25):
        built(Fourier(25))
    with refused(ConfigError, what="entries", got=0):
        Fourier(0)
    with refused(ConfigError, what="std", got=-1.0):
        Fourier(std=-1.0)
