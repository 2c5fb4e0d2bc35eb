"""Which modules of a model are its classifier."""

from __future__ import annotations

from typing import Any

from torch import nn

# transformers and torchvision; the last two stand before a classifier, as new as it is
NAMES = ("classifier", "head", "fc", "score", "pre_classifier", "projector")


def own_classifier(model: nn.Module) -> Any:
    """Return the classifier that a timm model names: a module, a tuple of several, or () without.

    None for a model of another library.
    """
    get: Any = getattr(model, "get_classifier", None)
    if not callable(get):
        return None
    classifier = get()
    return () if classifier is None else classifier


def heads_of(model: nn.Module) -> list[nn.Module]:
    """Return the classifier modules of a timm, transformers or torchvision model; [] without.

    model: the host itself, not a PeftModel around it. A distilled DeiT has two.
    """
    # timm names its classifier; of other libraries the attribute's name tells it
    got = own_classifier(model)
    got = tuple(getattr(model, name, None) for name in NAMES) if got is None else got
    classifiers: list[Any] = [*got] if isinstance(got, tuple) else [got]
    return [m for m in classifiers if isinstance(m, nn.Module)]
