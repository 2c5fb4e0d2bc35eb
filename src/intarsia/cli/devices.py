"""Language models and their rows on the device that --device names."""

from __future__ import annotations

from typing import Any


def language_model_on(name: str, device: str | None, *, dtype: str = "float32") -> tuple[Any, Any]:
    """Return a language model on a device, and its tokenizer.

    name: of the model; device: None = the best there is; dtype: of its weights.
    Raises: as `device_named`, before the model is opened, and `language_model`.
    """
    from ..data.language_models import language_model
    from ..train.processes import device_named

    place = device_named(device)
    host, tokenizer = language_model(name, dtype=dtype)
    return host.to(place), tokenizer


def rows_on(texts: Any, device: Any) -> list[Any]:
    """Return rows of tokens as a list, each on a device."""
    from ..train.order import to_device

    # a few rows of token ids: they fit on any device
    return [to_device(texts[i], device) for i in range(len(texts))]
