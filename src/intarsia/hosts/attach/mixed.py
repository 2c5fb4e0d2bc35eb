"""Batches whose samples each name their adapter: what is refused before a forward."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from ...core.errors import ConfigError

BASE = "__base__"  # no adapter


def check_names(
    names: Sequence[str], known: Collection[str], inputs: Sequence[Tensor], *, training: bool
) -> None:
    """One known adapter for each sample, in evaluation.

    Raises: ConfigError.
    """
    if training:
        raise ConfigError(
            "adapter_names",
            got="a model in training mode",
            want="a model in evaluation mode",
            fix="Call model.eval(); to train, set one adapter at a time.",
        )
    if unknown := sorted(set(names) - set(known) - {BASE}):
        raise ConfigError(
            "adapter_names",
            got=unknown,
            want=f"some of {sorted(known)} or {BASE!r}",
            fix="Name one adapter for each sample.",
        )
    if inputs and len(inputs[0]) != len(names):
        raise ConfigError(
            "adapter_names",
            got=f"{len(names)} names for {len(inputs[0])} samples",
            want="as many names as samples",
            fix="Name one adapter for each sample.",
        )
