"""Read adapters of PEFT's own types, by PEFT, and check them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftModel
from torch import nn

from ...core.errors import CheckpointError, ConfigError
from .peft import BaseTuner, is_adapted

ELSEWHERE = ("XLORA",)  # loads further adapters, from paths in its config


def read_foreign(
    model: nn.Module, folder: Path, name: str, stored: Mapping[str, Any], *, trainable: bool
) -> PeftModel:
    """Load a saved adapter of one of PEFT's own types, as DoRA, IA3 or OFT, into a model.

    folder: of the adapter; name: under which it is added; stored: its adapter_config.json;
    trainable: False freezes it.
    Raises: CheckpointError for a type that PEFT has not, prompts (they load tokenizers), and what
    PEFT refuses; ConfigError for a model that has adapters of ours.
    """
    kind = stored.get("peft_type")
    subject = str(folder / "adapter_config.json")
    # types that only change layers: others read tokenizers, prompts or further adapters
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(kind)  # pyright: ignore[reportArgumentType]
    if kind in ELSEWHERE or not (isinstance(tuner, type) and issubclass(tuner, BaseTuner)):
        want = "'INTARSIA', or a type of PEFT that changes layers and reads no other files"
        fix = "Load it with peft.PeftModel.from_pretrained, if you trust where it comes from."
        raise CheckpointError(subject, got=f"type {kind!r}", want=want, fix=fix)
    if is_adapted(model):
        got, want = f"PEFT's {kind} beside adapters of ours", "one family of adapters in a model"
        raise ConfigError(
            subject, got=got, want=want, fix="Load it into a fresh copy of the model."
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
            return PeftModel.from_pretrained(
                model, str(folder), adapter_name=name, is_trainable=trainable
            )
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        got, want = f"one that PEFT cannot load ({error})", "an adapter of this model"
        fix = "Create the model with the name and settings of the training run."
        raise CheckpointError(subject, got=got, want=want, fix=fix) from error
