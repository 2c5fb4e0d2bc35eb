"""The units (channels, heads) with the highest scores in a model (S2FT, arXiv:2412.06289)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import Partition
from ..core.checks import between
from ..core.errors import ConfigError, DataError


def top_units(scores: Mapping[str, Tensor], share: float) -> Partition:
    """Select the units (channels or heads) with the highest scores over all layers of a model.

    scores: layer -> (units,), higher is better; -inf is never selected. share: the share of all
      units that is selected, 0 ... 1, so that layers may get different numbers. Returns one label
      for each unit: 0 = selected, -1 = not. Of equal scores the earlier unit is selected.

    Raises: ConfigError for a share outside 0 ... 1, or one that selects nothing or more units than
      may be selected; DataError for a score that is NaN.
    Source: S2FT (arXiv:2412.06289), which has these budgets.
    """
    between("share of channels", share, 0, 1, "Try 0.03.")
    # float64 on the CPU, so that the selection does not depend on the device of the scores
    all_scores = torch.cat([s.detach().flatten().cpu().double() for s in scores.values()])
    if bool(all_scores.isnan().any()):
        fix = "Look at the calibration batches and at the model's weights."
        raise DataError("scores of channels", got="NaN", want="numbers", fix=fix)
    count, free = int(share * len(all_scores) + 0.5), int((all_scores > -torch.inf).sum())
    if not count:
        got = f"{share} of {len(all_scores)}, which selects nothing"
        want = f"at least {0.5 / max(1, len(all_scores)):.2g}, one of them"
        raise ConfigError("share of channels", got=got, want=want, fix="Raise the share.")
    if count > free:
        got = f"{share}, {count} of {len(all_scores)}"
        want = f"at most the {free} that no other adapter has"
        raise ConfigError("share of channels", got=got, want=want, fix="Lower the share.")
    label = torch.full((len(all_scores),), -1, dtype=torch.int8)
    label[all_scores.argsort(descending=True, stable=True)[:count]] = 0
    sizes = [s.numel() for s in scores.values()]
    return Partition(dict(zip(scores, label.split(sizes), strict=True)), 1)
