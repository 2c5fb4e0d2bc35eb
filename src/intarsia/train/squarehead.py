"""SquareHead: a sparse student follows the hidden states of its dense teacher (2310.06927)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.errors import ConfigError
from ..core.foreign import is_encoder_decoder
from ..core.schema import check, setting
from .distillation import check_logits, taught
from .objectives import blocks_of, logits_of
from .order import Inputs
from .outcome import LossOf, Outcome, counted, divergence_of


@dataclass(frozen=True)
class SquareHead:
    """L = ce CE + kl T^2 KL(t / T || s / T) + feature sum_l mean (h_s - h_t)^2 / (mean h_t^2 + eps)

    h_s, h_t: the outputs of block l of student and teacher, over tokens with attention_mask 1;
    of pictures over all.  t, s: their logits, over rows that have a label.  Each block counts the
    same, whatever its size.

    fit(student, train, objective=SquareHead(teacher), schedule=FixedMask())
    The last block's output is taken before the model's final norm. The published code has
    eps=2**-7, which weakens blocks of small outputs: to a half where their mean square is .0078, to
    a ninth where it is .001. Costs one forward of the teacher more than `plain`.
    Not for students with other blocks than the teacher's, nor for an encoder with a decoder.
    Raises: ConfigError for settings that cannot be; at the first step without a teacher, for one
    with other blocks or logits, and where no trained weight stands in or before a block.
    Source: arXiv:2310.06927, the loss of section 3.
    """

    teacher: nn.Module | None = setting(
        None,
        "The dense model, best fine-tuned on the task; it is in evaluation mode, without a "
        "gradient, and otherwise as before.",
    )
    ce: float = setting(
        1.0,
        "The weight of the cross-entropy with the labels.",
        least=0,
        fix="SquareHead has ce=1, kl=0.",
    )
    kl: float = setting(
        0.0,
        "The weight of the divergence of the logits from the teacher's.",
        least=0,
        fix="SquareHead has ce=1, kl=0.",
    )
    feature: float = setting(
        1.0,
        "The weight of the distance of the blocks' outputs.",
        above=0,
        fix="Use `distill` for a loss of logits alone.",
    )
    temperature: float = setting(
        1.0, "The temperature T that divides the logits.", above=0, fix="Try 1.0."
    )
    eps: float = setting(
        1e-6,
        "The number that is added to the teacher's mean square, so that nothing is divided by 0.",
        above=0,
        fix="Try 1e-6.",
    )

    def __post_init__(self) -> None:
        check(self)

    def __call__(self, model: nn.Module, x: Inputs, loss_of: LossOf) -> Outcome:
        """Compute the loss of the student's forward, compared with its teacher by block."""
        if self.teacher is None:
            want, fix = "the dense model", "Pass SquareHead(teacher), or fit --teacher NAME."
            raise ConfigError("teacher of SquareHead", got="none", want=want, fix=fix)
        if is_encoder_decoder(self.teacher):
            want, fix = "blocks with one padding mask", "Use `distill` for it."
            raise ConfigError("teacher", got="an encoder with a decoder", want=want, fix=fix)
        # the teacher first, without a gradient; then the student on the same batch
        with block_outputs(self.teacher) as targets:
            target = taught(self.teacher, x)
        with block_outputs(model) as outputs:
            logits = logits_of(model, x)
        _check_outputs(outputs, targets, logits.requires_grad)
        keep = mask_of(x)
        # one relative error for each pair of blocks, added up
        feature = torch.stack(
            [relative_error(s, t, keep, self.eps) for s, t in zip(outputs, targets, strict=True)]
        ).sum()
        task = loss_of(logits)
        parts = {"task": task, "feature": feature}
        loss = self.ce * task + self.feature * feature
        # the distillation of logits, which SquareHead itself leaves out
        if self.kl:
            check_logits(target, logits)
            soft, student = (counted(part, loss_of) / self.temperature for part in (target, logits))
            parts["divergence"] = self.temperature**2 * divergence_of(loss_of)(soft, student)
            loss = loss + self.kl * parts["divergence"]
        return Outcome(loss, logits, parts)


def relative_error(output: Tensor, target: Tensor, keep: Tensor | None, eps: float) -> Tensor:
    """Compute mean (output - target)^2 / (mean target^2 + eps), in float32 or better.

    output, target: (B, T, d) or (B, ...), hidden states of student and teacher. keep: (B, T) bool,
      the tokens that count; ignored if the output has another shape, None = all. eps: keeps small
      targets from a large error.
    """
    # padding would be fitted, too
    if keep is not None and keep.shape == output.shape[:-1]:
        output, target = output[keep], target[keep]  # (N, d)
    output, target = (h.to(torch.promote_types(h.dtype, torch.float32)) for h in (output, target))
    return (output - target).square().mean() / (target.square().mean() + eps)


def mask_of(x: Inputs) -> Tensor | None:
    """Return which tokens of a batch are not padding, (B, T) bool; None without padding."""
    mask = x.get("attention_mask") if isinstance(x, Mapping) else None
    return None if mask is None or mask.ndim != 2 else mask.bool()


@contextmanager
def block_outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record the output of each block of a model inside the context, in the order of the forward.

    The hooks are removed before the backward, in which gradient checkpointing runs blocks again.
    """
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(keep) for block in blocks_of(model)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _check_outputs(outputs: list[Tensor], targets: list[Tensor], learns: bool) -> None:
    """Raise ConfigError unless the student's hidden states can be compared with the teacher's."""
    shapes = [[tuple(h.shape) for h in tensors] for tensors in (targets, outputs)]
    # as many blocks, each as wide: pruning leaves shapes as they are
    if shapes[0] != shapes[1]:
        texts = [f"{len(s)} blocks with outputs {s[-1] if s else '()'}" for s in shapes]
        fix = "Take the dense model that the student was pruned from."
        raise ConfigError("teacher", got=texts[0], want=f"{texts[1]}, as the student", fix=fix)
    if learns and not any(h.requires_grad for h in outputs):
        got, want = "block outputs without a gradient", "a trained weight in or before a block"
        fix = "Train more than the head."
        raise ConfigError("SquareHead", got=got, want=want, fix=fix)


CARD = Card(
    "squarehead",
    kind="objective",
    config=SquareHead,
    paper=Paper("2310.06927", 2023, "Sparse Fine-tuning for Inference Acceleration of LLMs"),
    summary="A sparse model follows the hidden states of the dense one, block by block.",
    family="distillation",
    names=("SquareHead",),
)
