"""The form that has to lose stands in the table, and does not count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from intarsia_lab.experiments import study
from intarsia_lab.materials import convnet_times


@pytest.mark.parametrize(
    ("key", "times"),
    [
        ("fast-convnets", {"0.2": 5, "0.1": 4, "0.9": 20}),
        ("sparse-bytenn", {"4 rows, 0.7": 5, "1 row, 0.7": 20}),
    ],
)
def test_the_losing_form_stands_in_the_table_alone(
    key: str, times: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
        ours = {name: ms for name in runs for end, ms in times.items() if name.endswith(end)}
        return {name: 0.001 * ours.get(name, 10) for name in runs}

    rivals = ("onnxruntime fp32", "OpenVINO fp32", "OpenVINO bf16")
    monkeypatch.setattr(convnet_times, "interleaved", spent)
    monkeypatch.setattr(
        convnet_times, "dense_runtimes", lambda *_: dict.fromkeys(rivals, lambda _: None)
    )
    monkeypatch.setattr(convnet_times, "lite0", lambda *_: nn.Identity())
    monkeypatch.setattr(convnet_times, "compress", lambda net, *_, **__: net)
    assert study(key).measure((0,), lambda _: None).value == pytest.approx(2)
