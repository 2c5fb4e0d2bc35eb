"""Check batches with samples that each name their adapter, before a forward."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from ...core.errors import ConfigError

BASE = "__base__"  # no adapter


def check_names(
    names: Sequence[str], available: Collection[str], inputs: Sequence[Tensor], *, training: bool
) -> None:
    """Check that each sample of a batch names one adapter of the model, in evaluation.

    inputs: tensors of the forward; the first one has a row for each sample.
    Raises: ConfigError.
    """
    # gradients would reach only the adapters of this batch
    if training:
        got = "a model in training mode"
        fix = "Call model.eval(); to train, set one adapter at a time."
        raise ConfigError("adapter_names", got=got, want="a model in evaluation mode", fix=fix)
    # BASE names the model without an adapter
    if unknown := sorted(set(names) - set(available) - {BASE}):
        subject, want = "adapter_names", f"some of {sorted(available)} or {BASE!r}"
        raise ConfigError(subject, got=unknown, want=want, fix="Name one adapter for each sample.")
    if inputs and len(inputs[0]) != len(names):
        got = f"{len(names)} names for {len(inputs[0])} samples"
        fix = "Name one adapter for each sample."
        raise ConfigError("adapter_names", got=got, want="as many names as samples", fix=fix)
