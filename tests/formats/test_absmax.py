"""Groups with a scale each: the laws of formats, and odd sizes."""

from __future__ import annotations

import pytest
import torch

from intarsia.conformance import check
from intarsia.core import Card, Paper
from intarsia.core.errors import ConfigError
from intarsia.core.format import nbytes
from intarsia.formats.absmax import Absmax

CARD = Card(
    "absmax",
    kind="format",
    config=Absmax,
    paper=Paper("2210.17323", 2022, "GPTQ, whose files have such groups"),
    summary="Groups with a scale each.",
    family="formats",
    exceptions={"keeps_shape_and_dtype": "it decodes to float32, as its scales are"},
)


def test_it_keeps_the_laws_of_formats() -> None:
    for law in check(CARD):
        law()


@pytest.mark.parametrize("shape", [(3, 130), (5, 64), (2, 1), (7,)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_errors_are_half_a_step_and_bytes_the_formula(shape: tuple[int, ...], bits: int) -> None:
    form = Absmax(bits, 64)
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    stored = form.encode(w)
    step = stored["scales"].float().max()
    assert float((form.decode(stored, shape) - w).abs().max()) <= 0.502 * step
    assert nbytes(stored) == form.size(shape)
    again = form.decode(form.encode(torch.zeros(shape)), shape)
    assert not again.any()


def test_bad_settings_are_refused() -> None:
    for settings in ({"bits": 1}, {"bits": 9}, {"group": 0}):
        with pytest.raises(ConfigError):
            Absmax(**settings)
