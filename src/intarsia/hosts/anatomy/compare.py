"""Do two models say the same? Seeded images, outputs as tensors, and their largest difference."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, IntarsiaError
from ...core.foreign import config_of

Inputs = Tensor | Mapping[str, Tensor]
TOKENS = 8  # of a text that is made up

# shares of the largest output: effect of re-ordered sums and one rounding of the weights
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 5e-2,
}


@dataclass(frozen=True)
class Difference:
    """Largest difference of two models' outputs, and the largest output, by which it is divided."""

    largest: float
    scale: float

    @property
    def relative(self) -> float:
        """Difference as a share of the largest output."""
        return self.largest / self.scale if self.scale else self.largest

    def __str__(self) -> str:
        return f"{self.largest:.1e} ({self.relative:.1e} of the largest output)"

    def check(self, subject: str, tolerance: float, error: type[IntarsiaError], fix: str) -> None:
        """Raise an error unless the relative difference is within the tolerance; NaN never is."""
        if not self.relative <= tolerance:
            raise error(
                subject,
                got=f"outputs that differ by {self}",
                want=f"at most {tolerance:.0e}",
                fix=fix,
            )


def tolerance_of(model: nn.Module) -> float:
    """Return the relative difference that rounding may cause in the model's coarsest dtype."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max((TOLERANCE.get(dtype, 5e-2) for dtype in dtypes), default=TOLERANCE[torch.float32])


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    """Return (channels, height, width) of a timm or transformers vision model's input.

    Raises: ConfigError if the model does not say.
    """
    config = config_of(model)
    if isinstance(cfg := getattr(model, "pretrained_cfg", None), Mapping) and cfg.get("input_size"):
        channels, *size = cfg["input_size"]
        # a model may be built for another size than it was pretrained at
        height, width = _built_for(model) or size
        return int(getattr(model, "in_chans", None) or channels), int(height), int(width)
    size = getattr(config, "image_size", None)
    if size is None:
        got = "a model that says neither its image size nor its vocabulary"
        want = "a timm or transformers model of pictures or texts"
        raise _unknown(model, got, want)
    height, width = (size, size) if isinstance(size, int) else size
    return int(getattr(config, "num_channels", 3)), int(height), int(width)


def _built_for(model: nn.Module) -> Sequence[int] | None:
    """Return (height, width) of the pictures that a timm model was built for; None if unknown."""
    if (patches := getattr(model, "tokens_spatial_shape", None)) is not None:  # Hiera
        stride: Any = getattr(model, "patch_stride", None)
        return [n * s for n, s in zip(patches, stride, strict=True)]
    return getattr(getattr(model, "patch_embed", None), "img_size", None)


def inputs_for(model: nn.Module, inputs: Inputs | None) -> Inputs:
    """Return the given inputs, or seeded noise of the model's input, after a trial.

    inputs: None = pictures of its size, or tokens of its vocabulary.
    Raises: ConfigError for a model that does not take them.
    """
    if inputs is not None:
        return inputs
    config = config_of(model)
    is_text = getattr(config, "image_size", None) is None and hasattr(config, "vocab_size")
    batch = _text(model, config) if is_text else sample(model)
    try:
        outputs(shared_copy(model).eval(), batch)
    except (RuntimeError, ValueError) as error:
        size = "a text" if isinstance(batch, Mapping) else str(tuple(batch.shape[1:]))
        raise _unknown(model, f"{size}: {error}", "noise that the model takes") from error
    return batch


def _unknown(model: nn.Module, got: str, want: str) -> ConfigError:
    fix = "Pass inputs=, a batch of its inputs."
    return ConfigError(f"input of {type(model).__name__}", got=got, want=want, fix=fix)


def _text(model: nn.Module, config: Any) -> Mapping[str, Tensor]:
    """Draw one seeded text of a language model: two would need a token that fills the shorter."""
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (1, TOKENS), generator=draws)
    # classifiers of encoders and decoders read it at the end of the text
    if isinstance(end := getattr(config, "eos_token_id", None), int) and end < config.vocab_size:
        ids[ids == end] = (end + 1) % config.vocab_size
        ids[0, -1] = end
    ids = ids.to(next(model.parameters()).device)
    # one that answers with a text is given its text so far
    names = inspect.signature(model.forward).parameters
    return {name: ids for name in ("input_ids", "decoder_input_ids") if name in names}


def sample(model: nn.Module, batch: int = 2, size: tuple[int, int] | None = None) -> Tensor:
    """Draw seeded normal noise as a model's input: (batch, channels, height, width)."""
    like = next(p for p in model.parameters() if p.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    channels, *model_size = image_shape(model)
    # drawn on the CPU, so that the noise is the same on every device
    images = torch.randn(batch, channels, *(size or model_size), generator=generator)
    return images.to(like.device, like.dtype)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model with a tensor or with keyword inputs."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def tensors(output: Any) -> list[Tensor]:
    """Return every tensor in an output: a tensor, or any nesting of mappings and sequences."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [t for item in output for t in tensors(item)]
    return []


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Compute a model's outputs without gradients, in its present mode."""
    with torch.no_grad():
        return [t.detach() for t in tensors(call(model, inputs))]


def difference(got: list[Tensor], want: list[Tensor]) -> Difference:
    """Return the largest absolute difference over all outputs; infinite if their shapes differ.

    got, want: outputs of two models, tensor by tensor; relative to the largest of `want`.
    """
    if [t.shape for t in got] != [t.shape for t in want] or not want:
        return Difference(float("inf"), 1.0)
    # in double, so that the comparison itself rounds nothing
    pairs = [(a.cpu().double(), b.cpu().double()) for a, b in zip(got, want, strict=True)]
    pairs = [(a, b) for a, b in pairs if b.numel()]
    # comparisons with NaN are False, so that it would pass as no difference
    if any(not torch.isfinite(t).all() for pair in pairs for t in pair):
        return Difference(float("nan"), 1.0)
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    return Difference(worst, max(float(b.abs().max()) for _, b in pairs))


def shared_copy(model: nn.Module) -> nn.Module:
    """Copy a model's modules around the same weights, so that modes and hooks can be changed."""
    # deepcopy takes what its memo has: new modules around tensors on the same memory
    memo: dict[int, Any] = {id(b): b.detach() for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo)
