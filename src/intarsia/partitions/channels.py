"""The units (channels, heads) with the highest scores of a whole model (S2FT, arXiv:2412.06289)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import Partition
from ..core.checks import between
from ..core.errors import ConfigError, DataError


def top_units(scores: Mapping[str, Tensor], share: float) -> Partition:
    """The best `share` of all units, over all layers at once, so that layers get uneven counts.

    round(share * all units) of them, ties to the earlier one; random scores choose at random. One
    label for each unit: 0 = selected, -1 = not.

    scores: layer -> (units,), higher is better; -inf is never selected.
    Raises: ConfigError for a share outside 0 ... 1, so small that it selects nothing, or larger
    than what may be selected; DataError for a score that is NaN.  Source: S2FT, its budgets.
    """
    between("share of channels", share, 0, 1, fix="Try 0.03.")
    # float64 on the CPU, so that one model gets one selection wherever its scores were made
    every = torch.cat([s.detach().flatten().cpu().double() for s in scores.values()])
    if bool(every.isnan().any()):
        fix = "Look at the calibration batches and at the model's weights."
        raise DataError("scores of channels", got="NaN", want="numbers", fix=fix)
    count, open_ = int(share * len(every) + 0.5), int((every > -torch.inf).sum())
    if not count:
        raise ConfigError(
            "share of channels",
            got=f"{share} of {len(every)}, which selects nothing",
            want=f"at least {0.5 / max(1, len(every)):.2g}, one of them",
            fix="Raise the share.",
        )
    if count > open_:
        raise ConfigError(
            "share of channels",
            got=f"{share}, {count} of {len(every)}",
            want=f"at most the {open_} that no other adapter has",
            fix="Lower the share.",
        )
    label = torch.full((len(every),), -1, dtype=torch.int8)
    label[every.argsort(descending=True, stable=True)[:count]] = 0
    sizes = [s.numel() for s in scores.values()]
    return Partition(dict(zip(scores, label.split(sizes), strict=True)), 1)
