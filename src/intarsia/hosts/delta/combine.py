"""Combine adapters with cells that are changes of weights: sums, means, differences."""

from __future__ import annotations

from collections.abc import Mapping

from peft import PeftModel

from ...core.errors import ConfigError
from .cells import attach_delta, delta_of


def combine(model: PeftModel, weights: Mapping[str, float], name: str) -> PeftModel:
    """Add an adapter with sum_i w_i (change of adapter i) as its change of the weights, in place.

    model: with the adapters; weights: name of an adapter i -> its factor w_i; name: of the new one.
    combine(model, {"a": 0.5, "b": 0.5}, "mean") averages, {"task": 1, "other": -1} subtracts: task
    arithmetic (arXiv:2212.04089). The adapters may be of any methods that add modules linear in
    their input, at different layers; they stay as they are. The new adapter is inactive. It is
    stored as the single weights that change, for LoRA and its like all weights of a layer: if size
    matters, fold it, or keep the parts. Its heads are the parts' heads, which must be equal, or
    one part's heads only.

    Raises: ConfigError for no adapters, unknown ones, or two heads that differ; FoldError for a
    module that is not linear; TargetError for a change that is no weight of a linear layer.
    """
    if not weights:
        raise ConfigError("weights", got="none", want="a number for each adapter", fix="Add some.")
    # deltas are summed entry by entry, so that ranks and layers may differ
    first, *rest = (factor * delta_of(model, part) for part, factor in weights.items())
    return attach_delta(model, sum(rest, first), name)
