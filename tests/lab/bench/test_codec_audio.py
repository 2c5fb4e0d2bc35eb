"""Opus beside the codec: what its packets weigh, and that its samples are the clip's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest


def test_packets_and_samples_of_opus(monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile = pytest.importorskip("soundfile")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    benchmark = pytest.importorskip("codec_audio")
    clip = 0.3 * np.sin(np.arange(800) * 0.2)
    sizes, quality = [], []
    for level in (1.0, 0.9):
        size, audio = benchmark.opus(clip, level)
        assert audio.shape == clip.shape
        sizes.append(size)
        quality.append(benchmark.psnr(clip, audio))
    assert sizes[0] < sizes[1] and quality[0] < quality[1]
    buffer = io.BytesIO()
    soundfile.write(buffer, clip, 8000, format="OGG", subtype="OPUS")
    audio = benchmark.packets(buffer.getvalue())
    assert audio[0] == 19 and 4 <= len(audio) - 2 <= 8  # the identification header; frames of 20 ms
    assert sum(audio) < len(buffer.getvalue())
