"""EfficientNet-Lite0 pruned without labels, as docs/how-to/prune-a-cnn-without-labels.md has it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

import intarsia
from intarsia.core.files import writing
from intarsia.core.reading import read_tensors
from intarsia.schedules import FixedMask
from intarsia.schedules.masked_layers import masked_weights
from intarsia.sparse.prune.imitation import answered, imitation, reconstruct
from intarsia.sparse.prune.pruners import SparseGPT

from .lite0 import POINTWISE, SIDE
from .lite0_pictures import MARGIN, normalised

STEPS = {0.5: 414, 0.3: 345}  # of training by density: six and five epochs of 1,102 pictures
RATES = {0.5: 1e-4, 0.3: 2e-4}  # a net that lost more is trained with a larger rate


class KeptBlocks(NamedTuple):
    """Share of the weights of a 1x1 convolution that stays, in blocks of rows x inputs."""

    density: float
    rows: int = 1
    inputs: int = 1

    def __str__(self) -> str:
        """Return the blocks' sides, as "1" or "4x4"."""
        return f"{self.rows}x{self.inputs}" if self.inputs > 1 else str(self.rows)


@dataclass(frozen=True)
class ImitationSizes:
    """The settings of the route, chosen by the pictures that choose; see `lite0_pictures`.

    fitted: side of the pictures by which layers are reconstructed, px; side: of the views that
    train; batch: views of a step.
    """

    fitted: int = SIDE
    side: int = 192
    batch: int = 16


class Views(Dataset[tuple[Tensor, Tensor]]):
    """Random views of pictures, each with the dense net's class of the whole picture.

    A view is cut at the scale of judging: views of other scales moved the net away from its earlier
    fit.
    """

    def __init__(self, pictures: Tensor, classes: Tensor, side: int) -> None:
        """Prepare the views.

        pictures: uint8 (n, 3, H, W); classes: (n,); side: of a view, px.
        """
        self.pictures, self.classes = pictures, classes
        self.view = v2.Compose([v2.RandomCrop(side), v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return normalised(self.view(self.pictures[index])), self.classes[index]


def imitated(
    dense: nn.Module,
    pictures: Tensor,
    form: KeptBlocks,
    steps: int,
    folder: Path,
    sizes: ImitationSizes | None = None,
) -> nn.Module:
    """Prune Lite0's 1x1 convolutions, and fit the rest to the dense net.

    dense: Lite0; pictures: uint8 (n, 3, 256, 256) without labels, in random order; form: which
      weights stay; steps: of training, about so many in whole epochs, 0 = none; folder: where the
      net's tensors are kept, and read from if they are there; sizes: None = the page's.
    """
    sizes = sizes or ImitationSizes()
    density, rows, inputs = form
    file = folder / f"lite0-{density:g}-{form}-{steps}-{len(pictures)}.safetensors"
    if file.is_file():
        net = copy.deepcopy(dense)
        net.load_state_dict(read_tensors(file))
        return net.eval()
    teacher = _in_format(copy.deepcopy(dense), torch.channels_last)
    if steps:
        net = imitated(dense, pictures, form, 0, folder, sizes)
        rate = RATES[density]
        net = _in_format(net, torch.channels_last)
        train(net, teacher, pictures, (steps, rate), sizes)
    else:
        net = copy.deepcopy(teacher)
        paths = [name.removesuffix(".weight") for name in masked_weights(net, POINTWISE)]
        # each layer has the same density: more for small layers (Erdos and Renyi) chose no better
        pruner = SparseGPT(density=density, rows=rows, inputs=inputs)
        prune = dict.fromkeys(paths, pruner)
        reconstruct(net, teacher, cut(pictures, sizes.fitted), prune=prune)
    folder.mkdir(parents=True, exist_ok=True)
    with writing(file) as scratch:
        save_file({name: t.contiguous() for name, t in net.state_dict().items()}, scratch)
    return _in_format(net, torch.contiguous_format).eval()


def _in_format(net: Any, memory_format: torch.memory_format) -> nn.Module:
    """Store a net's weights in a memory format: with channels last it takes two thirds as long."""
    return net.to(memory_format=memory_format)


def whole(pictures: Tensor) -> Tensor:
    """Return the middle of each picture as Lite0 is judged.  pictures: uint8 (n, 3, 256, 256)."""
    return normalised(pictures[:, :, MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE])


def cut(pictures: Tensor, side: int) -> Tensor:
    """Return one view of each picture, channels last.

    pictures: uint8 (n, 3, H, W); side: of a view, px.
    """
    views = Views(pictures, torch.zeros(len(pictures)), side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        squares = torch.stack([views[index][0] for index in range(len(views))])
    return squares.contiguous(memory_format=torch.channels_last)


def train(
    net: nn.Module,
    dense: nn.Module,
    pictures: Tensor,
    pace: tuple[int, float],
    sizes: ImitationSizes,
) -> None:
    """Train a pruned net for the dense net's answers to random views of pictures, in place.

    pictures: uint8 (n, 3, 256, 256); pace: number of steps, and AdamW's rate.
    """
    steps, rate = pace
    answers: Any = answered(dense, whole(pictures))
    views = Views(pictures, answers.tensors[1], sizes.side)
    options: Any = {
        "epochs": max(1, round(steps * sizes.batch / len(pictures))),
        "batch_size": sizes.batch,
        "lr": rate,
        "weight_decay": 0.0,
        "clip": 1.0,
        "trackers": (),
    }
    schedule = FixedMask(layers=POINTWISE)
    intarsia.fit(net, views, objective=imitation(dense), schedule=schedule, **options)
