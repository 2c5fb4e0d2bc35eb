"""The average of models, of their tensors or of their folders."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from ..core.errors import CheckpointError
from ..core.files import repaired
from ..core.reading import read_tensors
from ..core.sealing import STOCK, check_if_sealed
from ..mixtures.sparse_soup import State, mixed
from ..sparse.prune.files import check_shards, decoded


def soup(
    candidates: Sequence[str | Path | nn.Module | State], weights: Sequence[float] | None = None
) -> Any:
    """Average models that were trained from one pruned model with one mask: sum_i w_i theta_i.

    Returns a model if all candidates are models, a copy of the first with the average in it; else
    the average's tensors by name.

    candidates: models theta_i, tensors by name, or folders with safetensors: of `save_pretrained`,
      of `save` or `save_sparse`, or runs of `intarsia fit`: their trained weights are read.
    weights: shares w_i that add up to 1, None = all equal.

    model = soup([a, b, c])
    Batch norms need their statistics counted again: `torch.optim.swa_utils.update_bn`. `intarsia
    merge` does that for runs, and chooses by validation with --greedy. An average of adapters
    (LoRA's two factors) is not the average of their changes: train them from one start.
    Raises: ConfigError unless the candidates have the same names, shapes, types and zeros;
    CheckpointError for a folder without weights, or damaged, missing or quantised ones.
    Source: arXiv:2306.16788, section 3; Wortsman et al. (2022).
    """
    names = [str(c) if isinstance(c, str | Path) else str(i + 1) for i, c in enumerate(candidates)]
    average = mixed([_state(candidate) for candidate in candidates], weights, names)
    if not candidates or not all(isinstance(c, nn.Module) for c in candidates):
        return average
    model: Any = copy.deepcopy(candidates[0])
    model.load_state_dict(average)
    return model


def _state(candidate: str | Path | nn.Module | State) -> State:
    """Return the weights of a candidate by name; a path is a folder, from which they are read."""
    if isinstance(candidate, nn.Module):
        return candidate.state_dict()
    if isinstance(candidate, Mapping):
        return candidate
    folder = repaired(candidate)
    # a run of `fit` has its weights in a folder inside
    folder = folder / ADAPTER_FOLDER if (folder / ADAPTER_FOLDER).is_dir() else folder
    files = sorted(folder.glob("*.safetensors"))
    # a run of `fit` keeps its predictions in the same format
    files = [file for file in files if file.name != "predictions.safetensors"]
    if not files:
        got, want = "no *.safetensors", "a run, or a folder with weights"
        fix = "Check the path."
        raise CheckpointError(f"candidate {candidate}", got=got, want=want, fix=fix)
    check_if_sealed(folder, STOCK, SETTINGS)
    check_if_sealed(Path(candidate), RUN)
    check_shards(folder)
    try:
        stored = {name: t for file in files for name, t in read_tensors(file).items()}
    except (SafetensorError, OSError) as error:
        got, fix = f"{type(error).__name__}: {error}", "Restore it from a copy."
        subject, want = f"candidate {candidate}", "whole files of weights"
        raise CheckpointError(subject, got=got, want=want, fix=fix) from error
    return decoded(folder, stored)


ADAPTER_FOLDER, RUN, SETTINGS = "adapter", "run.json", "intarsia.json"
