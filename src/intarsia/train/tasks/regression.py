"""Numbers: regression, and the reconstruction of an input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from sklearn.metrics import mean_absolute_error, r2_score
from torch import Tensor

from ...core.checks import above
from ...core.errors import DataError
from ..order import Batch, Inputs, input_of, stack
from ..outcome import TargetLoss, wide
from ..scores import Named
from .task import Task, refuse_output


@dataclass(frozen=True)
class Regression(Task):
    """Mean squared error.

    Targets are (B,) or (B, k); outputs (B, 1) or (B, k). Scores: `loss`, and scikit-learn's
    `absolute_error` and, of two samples or more, `r2`. Targets are not standardised.
    """

    def batch(self, inputs: Inputs, target: Any) -> Batch:
        """Return the inputs, and finite targets as floats, (B, k).  Raises: DataError."""
        target = torch.as_tensor(target)
        if target.ndim not in (1, 2) or not bool(torch.isfinite(target).all()):
            subject, want = "targets", "finite numbers, one or a row of them for each sample"
            got = f"{target.dtype} of shape {tuple(target.shape)}"
            raise DataError(subject, got=got, want=want, fix="Leave out samples without a target.")
        target = target if target.is_floating_point() else target.to(torch.float32)
        return inputs, target.reshape(len(target), -1)

    def seen(self, output: Tensor, batch: Batch) -> Regression:
        """Return the task, if outputs and targets are equally many.  Raises: DataError if not."""
        if output.reshape(len(output), -1).shape != batch[1].shape:
            refuse_output(
                output,
                batch[1],
                "one output for each number; or as its class one whole number for each image",
            )
        return self

    def loss_of(self, batch: Batch) -> TargetLoss:
        return TargetLoss(_squared, batch[1], divergence=_distance)

    def rows(self, output: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        return output.reshape(batch[1].shape), batch[1]

    def scores(self, *rows: Tensor) -> Named:
        """Return mean squared and absolute error, and R^2 for two samples or more."""
        output, target = (part.double() for part in rows)
        values = {
            "loss": float(_squared(output, target)),
            "absolute_error": float(mean_absolute_error(target.numpy(), output.numpy())),
        }
        if len(target) > 1:
            values["r2"] = float(r2_score(target.numpy(), output.numpy()))
        return Named(values, kept={"predictions": rows[0], "targets": rows[1]})


@dataclass(frozen=True)
class Reconstruction(Task):
    """Mean squared error between a model's output and its input, as of an autoencoder.

    Samples are tensors; a pair's second part is not looked at. Scores: `loss`,
    `absolute_error`, and `psnr` in dB, the mean over samples of 10 log10(peak^2 / their error).
    peak: the range of the values.  Not for inputs by name.
    """

    labelled: ClassVar[bool] = False

    peak: float = 1.0

    def __post_init__(self) -> None:
        above("peak", self.peak, 0, fix="The largest value minus the smallest: 1.0 or 255.")

    def collate(self, items: Sequence[Any]) -> tuple[Inputs, Any]:
        rows = [(input_of(item), 0) for item in items]
        return stack(rows)

    def batch(self, inputs: Inputs, target: Any) -> Batch:
        """Return the floating-point inputs, and zeros (B,) as the target.  Raises: DataError."""
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            got = inputs.dtype if isinstance(inputs, Tensor) else f"inputs {sorted(inputs)}"
            subject = "samples to reconstruct"
            fix = "Turn them into numbers in the dataset's transform."
            raise DataError(subject, got=got, want="one floating-point tensor each", fix=fix)
        return inputs, torch.zeros(len(inputs), dtype=torch.int64)

    def seen(self, output: Tensor, batch: Batch) -> Reconstruction:
        """Return the task unchanged, if the output has the input's shape.  Raises: DataError."""
        assert isinstance(batch[0], Tensor)
        if output.shape != batch[0].shape:
            refuse_output(output, batch[0], "the shape of the input")
        return self

    def loss_of(self, batch: Batch) -> TargetLoss:
        assert isinstance(batch[0], Tensor)
        return TargetLoss(_squared, batch[0], divergence=_distance)

    def rows(self, output: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Return the mean squared and the mean absolute error of each sample, (B,) both."""
        assert isinstance(batch[0], Tensor)
        # an error for each sample: PSNR is a mean of logarithms, not the logarithm of a mean
        away = (output.double() - batch[0].double()).flatten(1)
        return away.square().mean(1), away.abs().mean(1)

    def scores(self, *rows: Tensor) -> Named:
        """Return mean squared and absolute error, and PSNR = 10 log10(peak^2 / squared) in dB."""
        squared, absolute = rows
        psnr = 10 * (self.peak**2 / squared.clamp_min(torch.finfo(torch.float64).tiny)).log10()
        return Named(
            {
                "loss": float(squared.mean()),
                "absolute_error": float(absolute.mean()),
                "psnr": float(psnr.mean()),
            }
        )


def _squared(output: Tensor, target: Tensor) -> Tensor:
    output = wide(output).reshape(target.shape)
    return F.mse_loss(output, target.to(output))


def _distance(target: Tensor, output: Tensor, *, detach: bool = True) -> Tensor:
    """Compute outputs' mean squared distance: twice the KL of unit Gaussians."""
    return F.mse_loss(output, target.detach() if detach else target)
