"""The stages that train: BQPO, block by block, and E2E-OQP, scales alone (GQSA, 3.2, 3.3)."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ...core.checks import above, at_least
from ...core.errors import TargetError
from ...core.foreign import config_of, tensor_of
from ...kernels.gqsa.naive import LEAST
from ...sparse.prune.matrices import Matrix
from ...sparse.prune.walk import Chain, Flow, Stop, inputs_of
from .coded import CodedGroups, passing


@dataclass(frozen=True)
class Tuning:
    """Steps and rates of the two stages that train; a step of AdamW takes one calibration row.

    blocks: steps of each block (BQPO); model: of all scales together, at the end (E2E-OQP); 0
    leaves a stage out.  weights: the rate of the first stage for weights, scales: for scales and
    zeros, end: of the last stage; all fall to 0 in a line. A rate is the most that a step moves a
    number, in shares of its group's scale, of a zero in codes: 0.01 moves a weight by one code in
    100 steps.
    The paper trains for 5 and 1 to 2 epochs at 1e-5 (weights, last stage) and 1e-4 in the model's
    own units, which moves no code within a few hundred steps; shares hold for any model.
    """

    blocks: int = 300
    model: int = 100
    weights: float = 0.02
    scales: float = 0.005
    end: float = 0.002

    def __post_init__(self) -> None:
        for name in ("blocks", "model"):
            at_least(name, getattr(self, name), 0, fix="Try 300 for blocks, 100 for model.")
        for name in ("weights", "scales", "end"):
            above(name, getattr(self, name), 0, fix="Try 0.02, 0.005 and 0.002.")

    def warn_of_few(self) -> None:
        """Warn where the first stage has too few steps to move a weight to the next code."""
        reach = self.weights * self.blocks / 2  # codes: the rate falls to 0 in a line
        if self.blocks and reach < 1:
            least = math.ceil(2 / self.weights)
            warnings.warn(
                f"GQSA moves a weight by at most {reach:.2g} codes in {self.blocks} steps a block; "
                f"take {least} or more (tuning.blocks), or a larger rate (tuning.weights).",
                stacklevel=3,
            )


def tuned_block(
    stop: Stop,
    flow: Flow,
    block_number: int,
    dense: Mapping[str, Tensor],
    groups_before: Mapping[str, CodedGroups],
    tuning: Tuning,
    generator: torch.Generator,
) -> dict[str, CodedGroups]:
    """Minimise ||B(X) - B^(X)||^2 over a block's weights, scales and zeros (BQPO, eq. 7).

    B, B^: the block with dense and with decoded weights; X: its inputs, from the compressed blocks
    before; flow: X and the other arguments of each call; block_number: of the block in the chain;
    dense: (out, in) of each layer, and groups_before: its codes, by path.
    Returns codes after all steps, or the former if no worse. Raises: TargetError without a chain.
    """
    if not isinstance(flow, Chain):
        got, fix = "blocks that do not follow one another", "Set tuning=Tuning(blocks=0)."
        raise TargetError("model", got=got, want="a chain of blocks", fix=fix)

    def run(weights: Mapping[str, Tensor], row: int) -> Tensor:
        """Run the block on a calibration row with these weights, by path, instead of its own."""
        args, kwargs = flow.calls[row][block_number]
        # The block runs with weights that are functions of the trained numbers.
        parameters = {
            _parameter_name(stop, p): w.to(stop.layers[p].stored) for p, w in weights.items()
        }
        output = functional_call(stop.block, parameters, (flow.hidden[row], *args), kwargs)
        return output[0] if isinstance(output, tuple) else output

    def loss(weights: Mapping[str, Tensor], row: int) -> Tensor:
        return _masked_mse(run(weights, row), targets[row], flow.masks[row])

    def error(groups_by_path: Mapping[str, CodedGroups]) -> float:
        """Sum the block's error over all rows.  groups_by_path: coded groups of its layers."""
        weights_now = {
            path: _as_held(stop.layers[path], c.weight()) for path, c in groups_by_path.items()
        }
        return sum(float(loss(weights_now, row)) for row in range(count))

    count = len(flow.hidden)
    dense_as_stored = {path: _as_held(stop.layers[path], w) for path, w in dense.items()}
    # The block's outputs with dense weights, for inputs from the compressed blocks before.
    targets = [run(dense_as_stored, row) for row in range(count)]
    # One rate suits all groups if numbers are trained in units of their group's scale.
    leaves = {path: TrainedNumbers.of(coded) for path, coded in groups_before.items()}
    groups = [
        {"params": [leaf.codes for leaf in leaves.values()], "lr": tuning.weights},
        {"params": [leaf.scale for leaf in leaves.values()], "lr": tuning.scales},
        {"params": [leaf.zero for leaf in leaves.values()], "lr": tuning.scales},
    ]
    with torch.enable_grad():
        for row in _descend(groups, tuning.blocks, count, generator):
            weights_now = {
                path: _as_held(stop.layers[path], groups_before[path].rounded(*leaf.numbers()))
                for path, leaf in leaves.items()
            }
            loss(weights_now, row).backward()
    # Compared as they will be stored, because rounding can undo the gain.
    trained = {
        path: _as_stored(groups_before[path], *leaf.numbers()) for path, leaf in leaves.items()
    }
    return trained if error(trained) < error(groups_before) else dict(groups_before)


class TrainedNumbers(NamedTuple):
    """The numbers of a layer as they are trained, so that one rate suits all groups.

    codes: (out, C, G), weights in units of their group's first scale; scale: (out, C), in units of
    that; zero: (out, C); first: (out, C), the scale at the start.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    first: Tensor

    @classmethod
    def of(cls, coded: CodedGroups) -> TrainedNumbers:
        """Convert coded groups to codes, scales and zero points that can be trained."""
        first = coded.scale.clamp(min=LEAST)
        started = coded.raw / first[..., None], coded.scale / first, coded.zero.clone()
        codes, scale, zero = (t.requires_grad_() for t in started)
        return cls(codes, scale, zero, first)

    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return raw, scale and zero, as `CodedGroups` has them."""
        return self.codes * self.first[..., None], self.scale * self.first, self.zero


def _descend(
    groups: list[dict[str, Any]], steps: int, rows: int, generator: torch.Generator
) -> Iterator[int]:
    """Train by AdamW: yield each step's calibration row; the caller computes its gradient."""
    optimiser = AdamW(groups, weight_decay=0)
    schedule = LambdaLR(optimiser, lambda step: 1 - step / max(1, steps))
    order: list[int] = []
    for _ in range(steps):
        # An epoch ends when all rows were used; the next one has another order.
        order = order or torch.randperm(rows, generator=generator).tolist()
        optimiser.zero_grad()
        yield order.pop()
        optimiser.step()
        schedule.step()


def _masked_mse(output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the mean squared error over tokens that are no padding, half precision in float32."""
    # output, target: (..., T, d); mask: (..., T) bool, False = padding
    if mask is not None and mask.shape == output.shape[:-1]:
        output, target = output[mask], target[mask]
    if output.dtype in (torch.bfloat16, torch.float16):
        output, target = output.float(), target.float()
    return F.mse_loss(output, target)


def _as_stored(coded: CodedGroups, raw: Tensor, scale: Tensor, zero: Tensor) -> CodedGroups:
    """Round scales to bfloat16 and zero points to whole codes, as they are stored."""
    # raw: (out, C, G), weights before rounding; scale, zero: (out, C)
    largest_code = 2**coded.form.bits - 1
    stored_scale = scale.detach().bfloat16().float().clamp(min=0)
    zero_code = zero.detach().round().clamp(0, largest_code)
    return replace(coded, raw=raw.detach(), scale=stored_scale, zero=zero_code)


def _parameter_name(stop: Stop, path: str) -> str:
    """Return a layer's weight by its name inside the block."""
    return f"{path.removeprefix(stop.path).removeprefix('.')}.weight".lstrip(".")


def _as_held(matrix: Matrix, weight: Tensor) -> Tensor:
    """Transpose a weight (out, in) if the layer holds it as (in, out)."""
    return weight.T if matrix.turned else weight


class ScaleOnlyLinear(nn.Module):
    """A layer y = x W^T + b with W = s (q - z), where s alone is trained.

    share: (out, C), the trained parameter, s in units of its first value.
    """

    def __init__(self, coded: CodedGroups, bias: Tensor | None) -> None:
        """Make the scales of a coded weight the only parameters of a linear layer."""
        super().__init__()
        self.width, self.bias = coded.width, bias
        # the scale is share * first, and the weight steps * scale
        self.share = nn.Parameter(torch.ones_like(coded.scale))
        self.register_buffer("first", coded.scale)
        self.register_buffer("steps", coded.steps)

    def scale(self) -> Tensor:
        """Compute the scale as it will be stored in bfloat16, (out, C), with gradients."""
        scale = self.share * self.get_buffer("first")
        return passing(scale, scale.bfloat16().float())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.  x: (..., in) -> (..., out)."""
        weight = (self.get_buffer("steps") * self.scale()[..., None]).flatten(1)[:, : self.width]
        return F.linear(x, weight.to(x.dtype), self.bias)


def tuned_scales(
    model: nn.Module,
    layers: Mapping[str, Matrix],
    coded: Mapping[str, CodedGroups],
    rows: Sequence[Mapping[str, Tensor]],
    tuning: Tuning,
    generator: torch.Generator,
) -> dict[str, CodedGroups]:
    """Minimise the language model's loss over all scales; codes and zeros stay (section 3.3).

    rows: token rows with labels, see `language_rows`.
    Returns the scales after all steps, or those before if their loss on the same rows is no higher.
    """
    scaled = {
        path: ScaleOnlyLinear(c, tensor_of(layers[path].owner, "bias")) for path, c in coded.items()
    }
    groups = [{"params": [layer.share for layer in scaled.values()], "lr": tuning.end}]
    with _layers_replaced(model, scaled):
        before = _mean_loss(model, rows)
        with torch.enable_grad():
            for row in _descend(groups, tuning.model, len(rows), generator):
                _loss(model, rows[row]).backward()
        after = _mean_loss(model, rows)
    if after >= before:
        return dict(coded)
    return {
        # codes are kept: from here on the numbers before rounding equal the codes
        path: _with_scale(coded[path], scaled[path].scale().detach().clamp(min=0))
        for path in coded
    }


def _with_scale(coded: CodedGroups, scale: Tensor) -> CodedGroups:
    """Return the groups with another scale and the same codes.  scale: (out, C)."""
    # The latent numbers are reset to the codes, which no longer change.
    steps = coded.codes - coded.zero[..., None]
    return replace(coded, scale=scale, raw=steps * scale[..., None])


@contextmanager
def _layers_replaced(model: nn.Module, layers: Mapping[str, nn.Module]) -> Any:
    """Put other layers into the model while the context is open."""
    originals = {path: model.get_submodule(path) for path in layers}
    try:
        for path, layer in layers.items():
            model.set_submodule(path, layer)
        yield
    finally:
        for path, layer in originals.items():
            model.set_submodule(path, layer)


def language_rows(model: nn.Module, batches: Sequence[Any]) -> list[dict[str, Tensor]]:
    """Return rows of tokens with labels; none unless the model is a causal language model.

    batches: token ids (B, T), or mappings with "input_ids" and perhaps "attention_mask". Labels are
      the ids, -100 for padding.
    """
    can_generate: Any = getattr(model, "can_generate", None)
    config = config_of(model)
    if (
        not callable(can_generate)
        or not can_generate()
        or getattr(config, "is_encoder_decoder", False)
    ):
        return []
    rows: list[dict[str, Tensor]] = []
    for batch in batches:
        inputs = inputs_of(batch)
        named = dict(inputs) if isinstance(inputs, Mapping) else {"input_ids": inputs}
        # Floating-point inputs are pictures or embeddings, which are no tokens to predict.
        ids = named.get("input_ids")
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dim() != 2:
            return []
        mask = named.get("attention_mask")
        # Padding is no target.
        labels = ids if mask is None else ids.masked_fill(~mask.bool(), -100)
        rows.append({**named, "labels": labels})
    return rows


def _loss(model: Any, row: Mapping[str, Tensor]) -> Tensor:
    """Compute the mean loss of a token; its label is the next token."""
    # a model's own forward with labels may shift or average them in another way
    inputs = {name: value for name, value in row.items() if name != "labels"}
    logits: Tensor = model(**inputs).logits
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), row["labels"][:, 1:].flatten(), ignore_index=-100
    )


@torch.no_grad()
def _mean_loss(model: nn.Module, rows: Sequence[Mapping[str, Tensor]]) -> float:
    """Compute the mean loss over rows, without gradients."""
    return sum(float(_loss(model, row)) for row in rows) / max(1, len(rows))


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the model to work on, in evaluation and without gradients."""
    return copy.deepcopy(model).requires_grad_(False).eval()
