"""A decoder that sees or hears as a model of transformers, whole in one folder.

auto_model(model).save_pretrained("seeing")
model = AutoModelForCausalLM.from_pretrained("seeing")    # after `import intarsia`; no code in it
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.configuration_utils import SubConfigSpec

from ..core import Cell
from ..core.change import is_record
from ..core.errors import CheckpointError, IntarsiaError
from ..core.registry import card, settings_from_dict
from ..core.with_transformers import SEEING
from ..folders.saved import entries_of
from ..hosts.anatomy.blocks import base_of
from ..hosts.attach.adapt import Adapt
from ..hosts.changing import apply_change, repeat, step_of
from .modalities import INPUTS, HoldsDecoder, connectors_of, embed_with_senses


class SeeingConfig(PreTrainedConfig):
    """Configuration of a `SeeingForCausalLM`.

    text_config: of the decoder; steps: its changes, in order, as `intarsia.json` has them.
    """

    model_type = SEEING
    sub_configs_defaults = {  # noqa: RUF012  as transformers has it
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")
    }

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    steps: list[dict[str, Any]] | None = None


class SeeingForCausalLM(PreTrainedModel, GenerationMixin, HoldsDecoder):
    """Decoder with connectors, and maybe adapters, as one model of transformers.

    The forward takes what `intarsia.senses.processor(model, tokenizer)` makes, and labels.
    `generate` takes such a row or batch, padded on the left.
    Raises: CheckpointError for steps that no method takes, and for weights that are not there.
    """

    config_class = SeeingConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: SeeingConfig, decoder: nn.Module | None = None) -> None:
        """Build the decoder with its connectors from a config, or wrap an existing one."""
        super().__init__(config)
        # transformers may build on the meta device, but connectors draw their weights
        with torch.device("cpu"):
            self.decoder: Any = _build(config) if decoder is None else decoder
        self.post_init()
        saved = self.state_dict().keys()
        # buffers that no file has, and flags that transformers does not keep
        self._computed = {n: b.clone() for n, b in self.named_buffers() if n not in saved}
        self._trainable = {n: p.requires_grad for n, p in self.named_parameters()}

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """Load a folder; a weight that is in no file is an error.  Raises: CheckpointError."""
        with_info = options.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **options)
        model, info = loaded
        if missing := sorted(info["missing_keys"]):
            want, fix = "all weights", "Copy the folder again from its source."
            subject = f"model {str(args[0])!r}"
            raise CheckpointError(subject, got=f"no {missing[0]!r}", want=want, fix=fix)
        with torch.no_grad():
            # buffers that no file has, which transformers leaves without numbers
            for name, value in model._computed.items():
                model.get_buffer(name).copy_(value)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(model._trainable[name])
        return loaded if with_info else model

    def init_weights(self) -> None:
        """Tie the weights that the decoder shares, under the paths they have here; draw none."""
        # PEFT wraps the decoder, so that its tied weights lie under longer paths
        inside = base_of(self.decoder)
        place = next(name for name, m in self.named_modules() if m is inside)
        tied: dict[str, str] = getattr(inside, "all_tied_weights_keys", {})
        self.all_tied_weights_keys = {f"{place}.{a}": f"{place}.{b}" for a, b in tied.items()}
        self.tie_weights(recompute_mapping=False)

    def initialize_weights(self) -> None:
        """Do nothing: the parts have drawn their weights, or are read from files."""

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Compute the decoder's outputs, and its loss if there are labels.

        input_ids, attention_mask, labels: (B, T), rows of the processor; inputs: features of
        pictures and sounds, and other arguments of the decoder.
        """
        arguments = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        return self.decoder(**{n: t for n, t in arguments.items() if t is not None}, **inputs)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **options: Any) -> Any:
        """Generate the tokens that follow a question, by the decoder's `generate`.

        inputs: token ids (B, T), or `input_ids` among the options; options: features of pictures
        and sounds, and arguments of `generate`.
        """
        inputs_of_senses = {name: options.pop(name, None) for name in INPUTS}
        ids, host = options.pop("input_ids", inputs), base_of(self.decoder)
        if ids is not None and options.get("inputs_embeds") is None:
            embedded = embed_with_senses(host, ids, options.get("attention_mask"), inputs_of_senses)
            if embedded is None:
                options["input_ids"] = ids
            else:
                options["inputs_embeds"], options["attention_mask"], _ = embedded
        return self.decoder.generate(**options)


def auto_model(model: nn.Module) -> SeeingForCausalLM:
    """Wrap a model that sees or hears as a model of transformers, around the same weights.

    Its `save_pretrained` writes decoder, connectors and adapters to one folder, which
    `AutoModelForCausalLM.from_pretrained` opens after `import intarsia`, with no code of the
    folder's own; `Trainer` saves such folders as its checkpoints. `intarsia.save` writes only the
    additions, which is smaller.

    Raises: ConfigError for a model without connectors.
    """
    connectors_of(model)
    host: Any = base_of(model)
    text = copy.deepcopy(host.config)
    if is_record(vars(text).get("quantization_config")):
        del text.quantization_config  # `steps` has these changes already
    config = SeeingConfig(text_config=text, steps=entries_of(model))
    config.tie_word_embeddings = False  # the decoder ties its own
    return SeeingForCausalLM(config, model)


def _build(config: SeeingConfig) -> nn.Module:
    """Build the decoder of a config and repeat all changes made to it, with new weights."""
    try:
        model: Any = AutoModelForCausalLM.from_config(cast(Any, config).text_config)
        for entry in config.steps or ():
            model = _repeat(model, entry)
        connectors = connectors_of(model)
    except (IntarsiaError, KeyError, TypeError, AttributeError) as error:
        subject, fix = "config.json of a seeing model", "Restore it from a copy."
        raise CheckpointError(
            subject, got=error, want="steps as they were saved", fix=fix
        ) from error
    # the flags of the training: connectors and adapters learn, the decoder does not
    for module in (*connectors.values(), *(m for m in model.modules() if isinstance(m, Cell))):
        module.requires_grad_(True)
    return model


def _repeat(model: nn.Module, entry: Mapping[str, Any]) -> nn.Module:
    """Repeat one recorded change of a model, as `intarsia.load` does; entry: from the config."""
    method, seed, name = card(str(entry["key"])), int(entry["seed"]), str(entry["name"])
    if method.kind == "adapter":
        change = Adapt(settings_from_dict(method, entry["settings"]), head=None)
        return apply_change(model, change, (), seed=seed, name=name)
    return repeat(model, step_of(entry))


AutoConfig.register(SEEING, SeeingConfig, exist_ok=True)
AutoModelForCausalLM.register(SeeingConfig, SeeingForCausalLM, exist_ok=True)
AutoModelForImageTextToText.register(SeeingConfig, SeeingForCausalLM, exist_ok=True)
