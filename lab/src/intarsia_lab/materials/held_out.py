"""Validation pictures for what is trained on the pictures of `thin_resnets`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from intarsia.data import sets
from intarsia.data.decode import to_rgb

from .thin_resnets import DATA, TRAIN

COUNT = 5_000


@lru_cache
def halved() -> TensorDataset:
    """Return the 5,000 pictures behind those of `thin_resnets.rows`, as its `halved` has them.

    They are of Fashion-MNIST's training part, averaged down to 14 x 14, with their labels.
    """
    dataset = sets.load(DATA, part="train")
    images: Any = dataset.images
    places = range(TRAIN, TRAIN + COUNT)
    grey = [np.asarray(to_rgb(images[i]))[:, :, 0] for i in places]
    pixels = torch.from_numpy(np.stack(grey)).float()[:, None] / 255
    labels = torch.as_tensor(dataset.labels[TRAIN : TRAIN + COUNT]).long()
    return TensorDataset(F.avg_pool2d((pixels - 0.3) / 0.35, 2), labels)
