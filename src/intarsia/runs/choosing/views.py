"""Views of the pictures: each backbone at each picture size, on which a probe is fitted first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from timm.models.efficientnet import EfficientNet
from torch import nn

from ...data import backbone, input_config, outline
from ...hosts.anatomy.prefix import SPLITTABLE
from ..experiment import Experiment
from ..own_rates import has_batch_norms
from .arms import BenchArm, among_batch_norms, arm

METHODS = {"lora": 3e-3, "glora": 3e-3, "dora": 3e-3, "adaptformer-64": 3e-3}
"""The leaders of docs/benchmarks/even.md, at the rates that were best there."""
AMONG_BATCH_NORMS = ("last-1", "loha", "pfeiffer")
"""The same for networks with batch norms, of docs/benchmarks/mini.md; each at its own rate.

Not full fine-tuning: on a CPU a step through depthwise convolutions takes a hundred forwards.
"""
PROBE = "linear"
SIZES = (56, 112, 224)  # px, rounded to what a model can take, at most its own
LAST_BLOCKS = 3  # so that the frozen blocks below are computed once


@dataclass(frozen=True)
class PictureView:
    """A backbone at a picture size.

    start: the settings of all candidates on it, with its model and size.  arms: methods to train,
    each at the rate at which it begins.  depth: blocks of the backbone, 0 for one without.
    """

    start: Experiment
    arms: tuple[BenchArm, ...]
    depth: int

    @property
    def model(self) -> str:
        return self.start.adapted.model

    @property
    def size(self) -> int:
        return self.start.adapted.size or 0

    @property
    def name(self) -> str:
        """The backbone and its picture size, in words."""
        return f"{self.model} at {self.size} px"

    @property
    def probe(self) -> Experiment:
        """The converged probe on this view."""
        return self.start.changed(method=PROBE, lr=None, last_blocks=None, frozen_once=False)


def views(start: Experiment, models: Sequence[str], methods: Sequence[str]) -> list[PictureView]:
    """Return each backbone at each of its sizes, small pictures first.

    start: the settings that all candidates share; a size among them is the only one. models: names
    of backbones. methods: arms that the user named; none = the leaders for each kind of backbone.
    """
    all_views: list[PictureView] = []
    for name in models:
        model = _outline(start.changed(model=name))
        depth = len(dict(model.named_children()).get("blocks", nn.Identity())._modules)
        arms = _starting_arms(model, methods)
        for size in _sizes_to_try(start, model):
            all_views.append(PictureView(_experiment_on(start, name, size, model), arms, depth))
    return sorted(all_views, key=lambda view: view.size)


def _experiment_on(start: Experiment, name: str, size: int, model: nn.Module) -> Experiment:
    """Return the settings of all candidates on a backbone at a size."""
    start = start.changed(model=name, size=size)
    splits = isinstance(model, SPLITTABLE) and start.pictures.augment == "none"
    return start.changed(last_blocks=LAST_BLOCKS, frozen_once=True) if splits else start


def _outline(start: Experiment) -> nn.Module:
    """Return the model of an experiment, to look at its modules: on the meta device if possible."""
    adapted = start.adapted
    model = outline(adapted.model, size=None, pretrained=adapted.pretrained)
    return backbone(adapted.model, classes=2) if model is None else model


def _starting_arms(model: nn.Module, names: Sequence[str]) -> tuple[BenchArm, ...]:
    """Return the methods to train on a backbone, each with the learning rate at which it begins."""
    norms = has_batch_norms(model)
    leaders = AMONG_BATCH_NORMS if norms else tuple(METHODS)
    method_names = [name for name in names if name != PROBE] if names else leaders
    if norms:
        return tuple(among_batch_norms(arm(name)) for name in method_names)
    return tuple(
        dataclasses.replace(a, settings=dataclasses.replace(a.settings, lr=METHODS[a.name]))
        if a.name in METHODS
        else a
        for a in map(arm, method_names)
    )


def _sizes_to_try(start: Experiment, model: nn.Module) -> list[int]:
    """Return the sizes at which pictures are tried: their sides in px, the smallest first."""
    if start.adapted.size is not None:
        return [start.adapted.size]
    native = input_config(model).size[0]
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    # Convolutional networks shrink a picture by 32 in all.
    step = patch[0] if isinstance(patch, tuple) else 32
    if isinstance(model, EfficientNet) or isinstance(patch, tuple):
        return sorted({min(max(step, round(s / step) * step), native) for s in SIZES})
    return [native]  # nobody knows what others can take
