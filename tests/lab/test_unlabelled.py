"""The route of Lite0 without labels: views, and a net that is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from intarsia_lab.materials.unlabelled import ImitationSizes, KeptBlocks, Views, imitated


def net() -> nn.Module:
    return timm.create_model("test_efficientnet", num_classes=5).eval()


def test_views_differ_and_have_the_class_of_their_picture() -> None:
    pictures = torch.randint(256, (3, 3, 256, 256), dtype=torch.uint8)
    views = Views(pictures, torch.tensor([4, 5, 6]), 64)
    (first, number), (second, _) = views[1], views[1]
    assert int(number) == 5 and first.shape == (3, 64, 64) and len(views) == 3
    assert not torch.equal(first, second) and float(first.abs().max()) <= 1


@pytest.mark.thorough
def test_a_net_is_pruned_trained_and_kept(tmp_path: Path) -> None:
    dense = net()
    pictures = torch.randint(256, (8, 3, 256, 256), dtype=torch.uint8)
    recipe = ImitationSizes(fitted=32, side=32, batch=4)
    pruned = imitated(dense, pictures, KeptBlocks(0.5, 4), 2, tmp_path, recipe)
    head = pruned.get_parameter("conv_head.weight").flatten(1) != 0
    assert bool((head.view(-1, 4, head.shape[1]) == head[::4, None]).all())
    again = imitated(dense, pictures, KeptBlocks(0.5, 4), 2, tmp_path, recipe)
    state = again.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in pruned.state_dict().items())
