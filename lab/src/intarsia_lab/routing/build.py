"""The model of a contender: the small dense one of its seed, then mixtures instead of its MLPs."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from intarsia.core.errors import ConfigError
from intarsia.data.small_models import small_decoder, small_vit
from intarsia.folders.verbs import upcycle
from intarsia.gating import set_ids
from intarsia.mixtures import wrap_residuals

from .materials import Material
from .scale import Scale
from .variant import Variant


def dense(variant: Variant, material: Material, scale: Scale, seed: int) -> nn.Module:
    """Build a small dense model, a decoder for text or a ViT for pictures.

    `with_mixtures` then replaces its MLPs. variant: its `expert` sets the MLPs' activation, and
    their width as a multiple of the scale's; material: the data, text if it has `kinds`; scale:
    sizes; seed: of the weights. Models of one seed are equal in all but the MLPs.
    """
    expert = variant.expert
    # "dense-2x" has MLPs of twice the width
    shape = dataclasses.replace(
        scale.shape, hidden=scale.shape.hidden * expert.times, act=expert.act
    )
    # only texts have kinds of tokens
    if material.kinds is not None:
        return small_decoder(shape, tokens=len(material.kinds), length=scale.length, seed=seed)
    channels, size = material.train.tensors[0].shape[1:3]
    model: Any = small_vit(
        shape,
        classes=len(material.classes),
        size=size,
        patch=scale.patch,
        channels=channels,
        seed=seed,
    )
    return model


def with_mixtures(
    model: nn.Module, variant: Variant, seed: int, *, sees_later: bool = False
) -> nn.Module:
    """Replace a model's MLPs by mixtures of experts, in place, and return the model.

    variant: router, experts and their start; where it has an `update`, the residual sum around each
      MLP is replaced, too. seed: of the experts. sees_later: allow a router that sees later tokens.
    Raises: ConfigError for such a router in a decoder, unless it is allowed.
    """
    # before they are replaced
    paths = [path for path, _ in model.named_modules() if path.endswith(".mlp")]
    if variant.router is not None:
        upcycle(
            model,
            variant.router,
            how=variant.start.how,
            fraction=variant.start.fraction,
            experts=variant.experts,
            capacity=variant.capacity,
            seed=seed,
            sees_later=sees_later,
            residual="learned" if variant.residual else None,
        )
        # pictures have no token ids: a hash router gets positions
        if hasattr(model, "patch_embed"):
            model.register_forward_pre_hook(_tell_places)
    if variant.update is not None:
        wrap_residuals(model, variant.update, paths)
    return model


def _tell_places(model: Any, args: tuple[Any, ...]) -> None:
    """Set the position of each patch as its token id, for hash routers of picture models."""
    (x,) = args
    # and the class token
    tokens = model.patch_embed.num_patches + 1
    set_ids(model, torch.arange(tokens, device=x.device).expand(len(x), -1))


def check_causal(variant: Variant, data: str, text: bool, sees_later: bool) -> None:
    """Raise ConfigError if a text model's router sees later tokens, unless that is acknowledged.

    variant: has the router; data: name of the material, for the error; text: it is a text;
      sees_later: the user has acknowledged it.
    """
    if text and variant.sees_later and not sees_later:
        subject, got = (
            f"{variant.name!r} on {data!r}",
            "a router that sees later tokens, and a text",
        )
        fix = "Compare it on pictures, or acknowledge the leak with sees_later=True."
        raise ConfigError(subject, got=got, want="routing that looks back only", fix=fix)
