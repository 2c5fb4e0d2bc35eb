"""The stages that train: BQPO, block by block, and E2E-OQP, scales alone (GQSA, 3.2, 3.3)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import AdamW

from ...core.errors import ConfigError, TargetError
from ...hosts.prune.matrices import Matrix
from ...hosts.prune.walk import Chain, Flow, Stop, inputs_of
from .coded import CodedGroups, passing

LR_WEIGHTS, LR_SCALES, LR_END = 1e-5, 1e-4, 1e-5


def tuned_block(
    stop: Stop,
    flow: Flow,
    number: int,
    dense: Mapping[str, Tensor],
    found: Mapping[str, CodedGroups],
    epochs: int,
    generator: torch.Generator,
) -> dict[str, CodedGroups]:
    """min ||B(X) - B^(X)||^2 over weights, scales and zeros of a block; X has gone through the
    compressed blocks before it (eq. 7).

    dense: (out, in) of each layer as it was; found: its codes so far, by path. The codes after all
    epochs, or those before where they fit the same rows no worse.

    Raises: TargetError for a model whose blocks do not follow one another.
    """
    if not isinstance(flow, Chain):
        got, fix = "blocks that do not follow one another", "Set epochs=(0, 0)."
        raise TargetError("model", got=got, want="a chain of blocks", fix=fix)

    def run(weights: Mapping[str, Tensor], batch: int) -> Tensor:
        args, kwargs = flow.calls[batch][number]
        named = {_parameter(stop, p): w.to(stop.layers[p].stored) for p, w in weights.items()}
        out = functional_call(stop.block, named, (flow.hidden[batch], *args), kwargs)
        return out[0] if isinstance(out, tuple) else out

    count = len(flow.hidden)
    turned = {path: _turned(stop.layers[path], w) for path, w in dense.items()}
    wanted = [run(turned, batch) for batch in range(count)]

    def error(coded: Mapping[str, CodedGroups]) -> float:
        now = {path: _turned(stop.layers[path], c.weight()) for path, c in coded.items()}
        return sum(float(_off(run(now, b), wanted[b])) for b in range(count))

    leaves = {
        path: tuple(t.clone().requires_grad_() for t in (c.raw, c.scale, c.zero))
        for path, c in found.items()
    }
    groups = [
        {"params": [parts[0] for parts in leaves.values()], "lr": LR_WEIGHTS},
        {"params": [t for parts in leaves.values() for t in parts[1:]], "lr": LR_SCALES},
    ]
    optimiser = AdamW(groups, weight_decay=0)
    with torch.enable_grad():
        for _ in range(epochs):
            for batch in torch.randperm(count, generator=generator).tolist():
                now = {
                    path: _turned(stop.layers[path], found[path].rounded(*parts))
                    for path, parts in leaves.items()
                }
                optimiser.zero_grad()
                _off(run(now, batch), wanted[batch]).backward()
                optimiser.step()
    trained = {path: _settled(found[path], *parts) for path, parts in leaves.items()}
    return trained if error(trained) < error(found) else dict(found)


def _off(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean square, in float32 of a model in halves."""
    if found.dtype in (torch.bfloat16, torch.float16):
        found, wanted = found.float(), wanted.float()
    return F.mse_loss(found, wanted)


def _settled(coded: CodedGroups, raw: Tensor, scale: Tensor, zero: Tensor) -> CodedGroups:
    """Scales as bfloat16 has them, zeros as codes."""
    most = 2**coded.form.bits - 1
    fixed = scale.detach().bfloat16().float().clamp(min=0)
    whole = zero.detach().round().clamp(0, most)
    return replace(coded, raw=raw.detach(), scale=fixed, zero=whole)


def _parameter(stop: Stop, path: str) -> str:
    """A layer's weight by its name in the block."""
    return f"{path.removeprefix(stop.path).removeprefix('.')}.weight".lstrip(".")


def _turned(matrix: Matrix, weight: Tensor) -> Tensor:
    """As the layer holds it."""
    return weight.T if matrix.turned else weight


class Scaled(nn.Module):
    """y = x W^T + b with W = s (q - z), s alone to be trained; bfloat16 as it will be stored."""

    def __init__(self, coded: CodedGroups, bias: Tensor | None) -> None:
        super().__init__()
        self.width, self.bias = coded.width, bias
        self.scale = nn.Parameter(coded.scale.clone())
        self.register_buffer("steps", coded.steps)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        scale = passing(self.scale, self.scale.bfloat16().float())
        weight = (self.get_buffer("steps") * scale[..., None]).flatten(1)[:, : self.width]
        return F.linear(x, weight.to(x.dtype), self.bias)


def tuned_scales(
    model: nn.Module,
    layers: Mapping[str, Matrix],
    found: Mapping[str, CodedGroups],
    batches: Sequence[Any],
    epochs: int,
    generator: torch.Generator,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, CodedGroups]:
    """min of the language model's loss over all scales, codes and zeros as they are (section 3.3).

    The scales after all epochs, or those before where their loss on the same rows is no higher.
    Raises: ConfigError for rows that are no tokens.
    """
    scaled = {
        path: Scaled(c, getattr(layers[path].owner, "bias", None)) for path, c in found.items()
    }
    optimiser = AdamW([m.scale for m in scaled.values()], lr=LR_END, weight_decay=0)
    rows = [_tokens(batch) for batch in batches]
    with _in_place(model, scaled):
        before = _mean_loss(model, rows)
        with torch.enable_grad():
            for epoch in range(epochs):
                for batch in torch.randperm(len(rows), generator=generator).tolist():
                    optimiser.zero_grad()
                    _loss(model, rows[batch]).backward()
                    optimiser.step()
                report(f"scales, epoch {epoch + 1}/{epochs}")
        after = _mean_loss(model, rows)
    if after >= before:
        return dict(found)
    return {
        # codes are kept: the numbers before rounding are those of the codes from here on
        path: _with_scale(found[path], scaled[path].scale.detach().bfloat16().float())
        for path in found
    }


def _with_scale(coded: CodedGroups, scale: Tensor) -> CodedGroups:
    steps = coded.codes - coded.zero[..., None]
    return replace(coded, scale=scale, raw=steps * scale[..., None])


@contextmanager
def _in_place(model: nn.Module, layers: Mapping[str, nn.Module]) -> Any:
    """Inside, these layers stand in the model."""
    held = {path: model.get_submodule(path) for path in layers}
    try:
        for path, layer in layers.items():
            model.set_submodule(path, layer)
        yield
    finally:
        for path, layer in held.items():
            model.set_submodule(path, layer)


def _tokens(batch: Any) -> dict[str, Tensor]:
    """A batch with its labels.  Raises: ConfigError for rows that are no tokens."""
    given = inputs_of(batch)
    named = dict(given) if isinstance(given, Mapping) else {"input_ids": given}
    ids = named.get("input_ids")
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dim() != 2:
        fix = "Set epochs=(n, 0)."
        raise ConfigError("rows of the last stage", got="no tokens", want="token ids", fix=fix)
    mask = named.get("attention_mask")
    labels = ids if mask is None else ids.masked_fill(~mask.bool(), -100)
    return {**named, "labels": labels}


def _loss(model: Any, row: Mapping[str, Tensor]) -> Tensor:
    """The mean loss of a token; labels are those behind.

    Computed here: a model's own loss needs its head's outputs anyway.
    """
    given = {name: value for name, value in row.items() if name != "labels"}
    logits: Tensor = model(**given).logits
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), row["labels"][:, 1:].flatten(), ignore_index=-100
    )


@torch.no_grad()
def _mean_loss(model: nn.Module, rows: Sequence[Mapping[str, Tensor]]) -> float:
    return sum(float(_loss(model, row)) for row in rows) / max(1, len(rows))


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy to work on, nothing of which is trained."""
    return copy.deepcopy(model).requires_grad_(False).eval()
