"""Which modules of a model are its classifier."""

from __future__ import annotations

from typing import Any

from torch import nn

# transformers and torchvision; the last two stand before a classifier, as new as it is
NAMES = ("classifier", "head", "fc", "score", "pre_classifier", "projector")


def heads_of(model: nn.Module) -> list[nn.Module]:
    """The classifiers of a timm, transformers or torchvision model, as they are; none without.

    A distilled DeiT has two.  model: the host itself, not a PeftModel around it.
    """
    get: Any = getattr(model, "get_classifier", None)
    got: Any = get() if callable(get) else tuple(getattr(model, name, None) for name in NAMES)
    found: list[Any] = [*got] if isinstance(got, tuple) else [got]
    return [m for m in found if isinstance(m, nn.Module)]
