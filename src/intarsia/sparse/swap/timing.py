"""Whether packed layers are faster than dense ones, measured as a model reads them."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...core import Format
from ...core.errors import ConfigError
from ...kernels import native
from ..prune.matrices import Matrix

REPEATS = 5
Pairs = Mapping[str, tuple[Matrix, Mapping[str, Tensor]]]


def check_faster(form: Format, pairs: Pairs, *, refuse: bool = True) -> None:
    """Check that the layers' products take less time packed than dense on this machine.

    pairs: path -> (the dense layer, its stored tensors); refuse: False = warn.
    Raises: ConfigError if they take at least as long.
    """
    dense, packed = pass_seconds(form, pairs)
    if packed < dense:
        return
    rows = {path: tuple(m.read().shape) for path, (m, _) in pairs.items()}
    kinds = sorted({f"{out}x{width}" for out, width in rows.values()})
    got = f"{packed * 1e3:.2f} ms packed, {dense * 1e3:.2f} ms dense, at one row of inputs"
    fix = "Prune more, or store fewer bits; for the smaller file alone pass force=True (--force)."
    if native.load() is None:
        fix = (
            f"There are no kernels here ({native.why()}); force=True (--force) packs all the same."
        )
    subject = f"compress with {form}, {len(rows)} layers of {', '.join(kinds)}"
    error = ConfigError(subject, got=got, want="a format that is faster on this machine", fix=fix)
    if refuse:
        raise error
    warnings.warn(f"{error} It is packed now.", stacklevel=4)


@torch.inference_mode()
def pass_seconds(form: Format, pairs: Pairs, repeats: int = REPEATS) -> tuple[float, float]:
    """Measure the seconds of all layers' products, dense and packed, with one row of inputs each.

    All layers run one after the other, dense and packed in turns, so that caches hold the same data
    as in the model. pairs: path -> (dense layer, its stored tensors); repeats: turns; their median
    counts.
    Returns (dense, packed): CPU time with one thread, elapsed time with several.
    """
    layers: list[tuple[Any, Tensor, Mapping[str, Tensor], tuple[int, ...]]] = []
    draws = torch.Generator().manual_seed(0)
    for matrix, stored in pairs.values():
        weight = matrix.read()
        x = torch.randn(1, weight.shape[1], generator=draws).to(weight)
        layers.append((weight, x, stored, tuple(weight.shape)))

    def dense() -> None:
        for weight, x, _, _ in layers:
            torch.nn.functional.linear(x, weight)

    def packed() -> None:
        for _, x, stored, shape in layers:
            form.matmul(x, stored, shape)

    # CPU time of one thread ignores other programs; with several threads only elapsed time is known
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[Callable[[], None], list[float]] = {dense: [], packed: []}
    for repeat in range(repeats + 1):
        for run, seconds in times.items():
            started = clock()
            run()
            # the first turn brings code and weights into the caches, and does not count
            if repeat:
                seconds.append(clock() - started)
    return statistics.median(times[dense]), statistics.median(times[packed])
