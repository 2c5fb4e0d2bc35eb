"""Models that were changed, in folders that transformers reads after `import intarsia`.

upcycle(model).save_pretrained("sparse")
model = AutoModelForCausalLM.from_pretrained("sparse")    # the mixtures, with the same outputs

config.json has the steps that were done to the model, as the settings of a quantizer, which is
transformers' name for what replaces modules before weights are read. Without `import intarsia`
transformers warns that it does not know the kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..core.change import RECORD
from ..core.errors import CheckpointError
from ..hosts.changing import repeat, step_of


@dataclass
class ChangedConfig(QuantizationConfigMixin):
    """Configuration that records the changes of a model, each in the form of `intarsia.json`."""

    quant_method: Any = RECORD
    steps: Sequence[dict[str, Any]] = ()


class ChangedQuantizer(HfQuantizer):
    """Quantizer of transformers that repeats recorded changes on a model without weights.

    transformers calls quantizers before it reads the weights. steps in its config: the changes.
    Raises: CheckpointError for changes that are damaged, or do not suit the model.
    """

    quantization_config: ChangedConfig

    def preprocess_model(self, model: nn.Module, dtype: Any = None, **kwargs: Any) -> None:
        """Repeat the recorded changes on a model without weights, in place, before they are read.

        dtype, kwargs: unused, transformers passes them. Raises: CheckpointError.
        """
        try:
            with torch.device(
                "cpu"
            ):  # for tensors that a change computes; weights are on "meta" still
                for entry in self.quantization_config.steps:
                    repeat(model, step_of(entry))
        except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
            subject, got = "steps in config.json", f"{type(error).__name__}: {error}"
            fix = "Use intarsia.save and intarsia.load, or restore the file from a copy."
            want = "steps that this model takes"
            raise CheckpointError(subject, got=got, want=want, fix=fix) from error

    def postprocess_model(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """Remove the quantizer from the model, so that it is like the one that was saved."""
        owner: Any = model
        # the changes stay in the configuration, so that the model can be saved again
        owner.hf_quantizer = None
        owner.config.quantization_config = self.quantization_config.to_dict()
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True
