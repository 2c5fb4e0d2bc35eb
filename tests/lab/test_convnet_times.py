"""The form that has to lose stands in the table, and does not count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from intarsia_lab.claims import designs, fast_convnets, sparse_bytenn
from intarsia_lab.materials import convnet_times


@pytest.mark.parametrize(
    ("key", "study", "milliseconds"),
    [
        ("fast-convnets", fast_convnets.CLAIMS[0], {"0.2": 5, "0.1": 4, "0.9": 20}),
        ("sparse-bytenn", sparse_bytenn.CLAIMS[1], {"4 rows, 0.7": 5, "1 row, 0.7": 20}),
    ],
)
def test_the_losing_form_stands_in_the_table_alone(
    key: str, study: Any, milliseconds: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
        ours = {name: ms for name in runs for end, ms in times.items() if name.endswith(end)}
        return {name: 0.001 * ours.get(name, 10) for name in runs}

    times = milliseconds
    rivals = ("onnxruntime fp32", "OpenVINO fp32", "OpenVINO bf16")
    monkeypatch.setattr(convnet_times, "interleaved", spent)
    monkeypatch.setattr(
        convnet_times, "dense_runtimes", lambda *_: dict.fromkeys(rivals, lambda _: None)
    )
    monkeypatch.setattr(convnet_times, "lite0", lambda *_: nn.Identity())
    monkeypatch.setattr(convnet_times, "compress", lambda net, *_, **__: net)
    result, design = study.measure((0,), lambda _: None), designs.DESIGNS[key]
    assert result.got == pytest.approx(2)
    assert not design.lacks(result.table, study.rates) and not design.failure(result.table)
    # a form that should lose and does not makes the times void
    times = dict.fromkeys(milliseconds, 5)
    assert "The control failed" in design.failure(study.measure((0,), lambda _: None).table)
