"""Which modules of a model are its classifier."""

from __future__ import annotations

from torch import nn

NAMES = ("classifier", "head", "fc", "score")  # transformers and torchvision


def heads_of(model: nn.Module) -> list[nn.Module]:
    """The classifiers of a timm, transformers or torchvision model, as they are; none without.

    A distilled DeiT has two.  model: the host itself, not a PeftModel around it.
    """
    if callable(get := getattr(model, "get_classifier", None)):
        got = get()
        found = got if isinstance(got, tuple) else (got,)
    else:
        found = [getattr(model, name, None) for name in NAMES]
    return [m for m in found if isinstance(m, nn.Module)]
