"""Trained and frozen parameters, and the type each is held in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..core.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_PATCHES = 400
NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm, nn.RMSNorm)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name.  Raises: ConfigError if there are none."""
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not learned:
        subject = f"trained parameters of {type(model).__name__}"
        fix = "Adapt the model first: model = intarsia.adapt(model)."
        raise ConfigError(subject, got="none", want="at least one", fix=fix)
    return learned


def frozen(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that do not learn, with their names."""
    return ((n, p) for n, p in model.named_parameters() if not p.requires_grad)


def cast_frozen(model: nn.Module, precision: str) -> None:
    """Convert frozen weights to the type of computation; norms and all adapters stay float32.

    The change is lossy and stays after training. A mixed-precision norm needs float32 weights.
    """
    dtype = DTYPES[precision]
    if dtype == torch.float32:
        return
    # an adapter that rests while another one is trained is frozen, but no part of the trunk
    adapters = set(getattr(model, "peft_config", ()))
    for path, module in model.named_modules():
        if isinstance(module, NORMS) or adapters & set(path.split(".")):
            continue
        # only a module's own parameters: its children come in their turn
        for name, parameter in module.named_parameters(recurse=False):
            rests = parameter.requires_grad or name in adapters
            if not rests and parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(dtype)


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Return the half-precision type of the frozen weights, float32 without one."""
    halves = {p.dtype for _, p in frozen(model)} & {torch.bfloat16, torch.float16}
    return halves.pop() if len(halves) == 1 else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return torch.autocast to a half type; a context that does nothing for float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


def slow_attention(model: nn.Module, device: torch.device, dtype: torch.dtype) -> list[nn.Module]:
    """Return timm's attention layers that are faster without fused attention.

    On a CPU, in half precision, torch's fused attention takes longer than two matrix products and a
    softmax; its scores are small for up to some hundred tokens.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return []
    # scores grow with the square of the patches: above the limit the fused kernel wins again
    embed = next((m for m in model.modules() if hasattr(m, "num_patches")), None)
    if embed is None or int(embed.num_patches) > MOST_PATCHES:  # pyright: ignore
        return []
    return [m for m in model.modules() if getattr(m, "fused_attn", False) is True]


@contextmanager
def written_out(attentions: list[nn.Module]) -> Iterator[None]:
    """Have attention layers compute without fused attention inside the context.

    attentions: timm's, with the attribute `fused_attn`.
    """
    for module in attentions:
        module.fused_attn = False  # pyright: ignore
    try:
        yield
    finally:
        for module in attentions:
            module.fused_attn = True  # pyright: ignore


def training_mode(model: nn.Module) -> None:
    """Set training mode, except for batch norms of frozen weights, which keep their statistics.

    A batch norm that is trained among frozen layers, as by BitFit, keeps its statistics too: its
    weights were not trained with a batch's statistics, and what follows cannot adapt to the noise.
    """
    model.train()
    for parent in model.modules():
        inside = list(parent.children())
        for norm in inside:
            if isinstance(norm, _BatchNorm):
                kind = nn.Linear if isinstance(norm, nn.BatchNorm1d) else _ConvNd
                # layers of its kind next to the norm: frozen ones cannot adapt to new statistics
                siblings = [m.weight.requires_grad for m in inside if isinstance(m, kind)]
                if not _learns(norm) or (siblings and not any(siblings)):
                    norm.eval()


def _learns(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def learned_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained parameters and the persistent buffers, by name; no frozen weights."""
    without = {n for n, _ in frozen(model)}
    return {n: t for n, t in model.state_dict().items() if n not in without}
