"""EfficientNet-Lite0 pruned without labels, as docs/how-to/prune-a-cnn-without-labels.md has it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import intarsia
from intarsia.core.files import writing
from intarsia.core.reading import read_tensors
from intarsia.hosts.prune.imitation import answered, imitation, reconstruct
from intarsia.hosts.prune.pruners import SparseGPT
from intarsia.schedules import FixedMask

from .lite0 import BATCH, POINTWISE, lite0

TRAINED_SIDE = 128  # px: a third of the work at 224, where the net is judged
CHOOSING = 256  # pictures by which SparseGPT chooses weights
RATE = 1e-4


def imitated(
    dense: nn.Module, pictures: Tensor, form: tuple[float, int], steps: int, file: Path
) -> nn.Module:
    """Prune Lite0's 1x1 convolutions, and fit what is left to the dense net.

    dense: Lite0; pictures: (n, 3, 224, 224) without labels, in random order; form: share of the
      weights that stay, and outputs of a block: 1 = chosen by SparseGPT, more = the largest blocks;
      steps: of training, 0 = none; file: where the net's tensors are kept, and read from if they
      are there.
    """
    density, rows = form
    net = lite0(density, rows) if rows > 1 else copy.deepcopy(dense)
    if file.is_file():
        net.load_state_dict(read_tensors(file))
        return net.eval()
    small = F.interpolate(pictures, (TRAINED_SIDE,) * 2, mode="bilinear", antialias=True)
    if rows == 1:
        intarsia.sparsify(net, SparseGPT(density=density), small[:CHOOSING])
    reconstruct(net, dense, small)
    if steps:
        _train(net, dense, small, steps)
    file.parent.mkdir(parents=True, exist_ok=True)
    with writing(file) as scratch:
        save_file(net.state_dict(), scratch)
    return net.eval()


def _train(net: nn.Module, dense: nn.Module, pictures: Tensor, steps: int) -> None:
    """Train a pruned net for the dense net's answers to pictures and their mirror images."""
    options: Any = {"batch_size": BATCH, "lr": RATE, "weight_decay": 0.0, "trackers": ()}
    options["epochs"] = max(1, round(steps * BATCH / (2 * len(pictures))))
    schedule = FixedMask(layers=POINTWISE)
    answers = answered(dense, torch.cat([pictures, pictures.flip(3)]))
    intarsia.fit(net, answers, objective=imitation(dense), schedule=schedule, **options)
