"""Check what saved weights belong to: the frozen trunk, the head's shape, classes, bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ...core.errors import CheckpointError
from ...core.reading import open_regular, open_tensors
from .blocks import unwrapped, walk
from .quantised import in_full

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WRITER = "model.save_pretrained"  # of both
SAMPLES = 96
# attribute of a module that a change has added: it is no part of the trunk
ADDED = "intarsia_added"
# attribute with a module's weights that are on disk, by name, on the meta device
ELSEWHERE = "intarsia_elsewhere"
# numbers up to FEW are always allowed; names of settings that are no sizes
FEW, UNSIZED = 4096, {"seed", "steps", "alpha", "scale"}
# tables in timm and transformers that depend on the picture size, and are resampled for another
POSITIONS = frozenset({"pos_embed", "position_embeddings", "relative_position_bias_table"})
# trunks are compared across dtypes: bfloat16 keeps 8 bits of a weight
RELATIVE, ABSOLUTE = 2**-6, 1e-6


def _tensors(model: nn.Module, heads: Sequence[str], sized: bool) -> dict[str, Tensor]:
    """Return the parameters and buffers of the pretrained model, without adapters and heads."""
    trunk: dict[str, Tensor] = {}
    heads = [*heads, *(p for p, m in walk(model) if ADDED in vars(unwrapped(m)))]
    for path, wrapped in walk(model):
        if any(path == h or path.startswith(f"{h}.") for h in heads):
            continue
        module = unwrapped(wrapped)
        tensors = dict(module.named_parameters(recurse=False)) | dict(
            module.named_buffers(recurse=False)
        )
        # weights that are on disk, on the meta device here, count as the module's
        tensors |= module.__dict__.get(ELSEWHERE, {})
        if not sized:
            excluded = POSITIONS | module._non_persistent_buffers_set
            tensors = {name: t for name, t in tensors.items() if name not in excluded}
        tensors = {name: in_full(module, name, t) for name, t in tensors.items()}
        trunk |= {f"{path}.{n}" if path else n: t for n, t in tensors.items()}
    return trunk


def fingerprint(
    model: nn.Module, heads: Sequence[str] = (), *, sized: bool = False
) -> dict[str, Any]:
    """Return what identifies a pretrained model: "layout", a digest, and "values", some weights.

    "layout" is the SHA-256 of the names and shapes of its tensors. "values" has one weight, at a
    fixed place, of each of up to 96 matrices: the same in float32, bfloat16 and float16 up to
    rounding, and different for another training run of the same architecture. The value of a
    quantised matrix is None, so that an adapter moves between a model and its quantised form.
    heads: paths that are left out. sized: False leaves the tables of positions out, too, so that a
    model is the same at every picture size; True includes them.
    """
    tensors = _tensors(model, heads, sized)
    # the order of modules may differ between versions of a library
    layout = sorted((name, tuple(t.shape)) for name, t in tensors.items())
    digest = hashlib.sha256(json.dumps(layout).encode()).hexdigest()
    matrices = [
        t for _, t in sorted(tensors.items()) if t.dim() > 1 and t.is_floating_point() and t.numel()
    ]
    # spread over the depth: fine-tuning may have left the first layers alone
    step = max(1, len(matrices) // SAMPLES)
    return {"layout": digest[:32], "values": [_sample_value(t) for t in matrices[::step]]}


def _sample_value(t: Tensor) -> float | None:
    """Return one weight, at a fixed place, to five digits; None on the meta device."""
    if t.is_meta:
        return None
    return float(f"{float(t.detach().reshape(-1)[t.numel() // 3]):.5g}")


def check_trunk(model: nn.Module, expected: Mapping[str, Any], heads: Sequence[str] = ()) -> None:
    """Check that a model, without its heads, is the pretrained one of an adapter.

    expected: what `fingerprint` returned when it was trained; heads: paths of heads, which are not
    compared.
    Raises: CheckpointError for another architecture, or other weights.
    """
    got = fingerprint(model, heads)
    if got["layout"] != expected.get("layout"):
        # older files count the tables of positions
        got = fingerprint(model, heads, sized=True)
    if got["layout"] != expected.get("layout"):
        raise CheckpointError(
            "trunk",
            got=f"{type(unwrapped(model)).__name__} with other layers",
            want="the architecture the adapter was trained on",
            fix="Create the model with the name and settings of the training run; with its picture "
            "size, too, where layers depend on it (MLP-Mixer), or if the adapter is an older file.",
        )
    if "values" not in expected:
        return
    # quantised, or on the meta device, there is nothing to compare
    try:
        count = len(got["values"]), len(expected["values"])
        pairs = [p for p in zip(got["values"], expected["values"], strict=False) if None not in p]
        a, b = torch.tensor(pairs, dtype=torch.float64).view(-1, 2).unbind(1)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        subject, fix = "fingerprint of the trunk", "Copy the folder again from its source."
        raise CheckpointError(subject, got=error, want="a list of numbers", fix=fix) from error
    if (all(count) and count[0] != count[1]) or not torch.allclose(
        a, b, rtol=RELATIVE, atol=ABSOLUTE
    ):
        raise CheckpointError(
            "trunk",
            got="the right architecture with other weights",
            want="the pretrained weights the adapter was trained on",
            fix="Load the same pretrained weights before the adapter; unmerge other adapters.",
        )


def resampled(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Interpolate saved position embeddings to the model's grid of patches, by timm's function.

    Returns them, with "pos_embed" of the model's size.
    """
    model_state, patches = model.state_dict(), getattr(model, "patch_embed", None)
    grid = getattr(patches, "grid_size", None)
    result = dict(weights)
    for name, table in weights.items():
        if (
            name == "pos_embed"
            and grid
            and name in model_state
            and model_state[name].shape != table.shape
        ):
            first = model_state[name].shape[1] - grid[0] * grid[1]  # tokens in front of the patches
            result[name] = resample_abs_pos_embed(table, list(grid), num_prefix_tokens=first)
    return result


def head_shapes(model: nn.Module, heads: Sequence[str]) -> dict[str, list[int]]:
    """Return the shapes of the parameters of the heads, by name; heads: their paths."""
    modules = dict(walk(model))
    return {
        f"{head}.{name}": list(p.shape)
        for head in heads
        if head in modules
        for name, p in unwrapped(modules[head]).named_parameters()
    }


def check_heads(
    model: nn.Module, expected: Mapping[str, Sequence[int]], heads: Sequence[str]
) -> None:
    """Check that a saved head has the shapes of the model's.  Raises: CheckpointError."""
    got = head_shapes(model, heads)
    if got != {name: list(shape) for name, shape in expected.items()}:
        subject, fix = "head", "Create the model with the number of classes of the training run."
        raise CheckpointError(subject, got=got, want=dict(expected), fix=fix)


def matched(
    expected: Mapping[str, Any] | None, model: nn.Module, heads: Sequence[str]
) -> dict[str, Any]:
    """Return what an adapter belongs to: fingerprint of the model and shapes of its heads.

    expected: the record that was saved with the adapter, which is checked; None or without "trunk"
    = a new record.
    Raises: CheckpointError if the model has another trunk or other heads.
    """
    if not expected or "trunk" not in expected:
        current = {"trunk": fingerprint(model, heads), "heads": head_shapes(model, heads)}
        return dict(expected or {}) | current
    check_trunk(model, expected["trunk"], heads)
    check_heads(model, expected.get("heads", {}), heads)
    return dict(expected)


def _digest(folder: Path, identity: Mapping[str, Any]) -> str | None:
    """Return the SHA-256 of a folder's weights and the settings they depend on."""
    weights = folder / WEIGHTS
    if not weights.is_file():
        return None
    # settings are part of it: the same bytes mean something else with others
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    with open_regular(weights) as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def with_digest(
    origin: Mapping[str, Any] | None, folder: str | Path, identity: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return a record with a digest of a folder's weights and the settings they depend on."""
    digest = _digest(Path(folder), identity)
    return dict(origin or {}) | {"digest": digest} if digest else dict(origin or {}) or None


def check_digest(
    origin: Mapping[str, Any] | None,
    folder: str | Path,
    subfolder: str | None,
    identity: Mapping[str, Any],
) -> None:
    """Check that weights and settings are those saved together.  Raises: CheckpointError."""
    place = Path(folder) / (subfolder or "")
    expected, got = (origin or {}).get("digest"), _digest(place, identity)
    if got and expected != got:
        raise CheckpointError(
            f"adapter in {place}",
            got="weights or settings that changed after they were saved",
            want="the files as they were written",
            fix="Copy the folder again from its source: a byte was damaged or a file was swapped.",
        )


def check_sizes(path: Path, settings: object, weights: Path, name: str = "settings") -> None:
    """Check that no number in settings is larger than any size in the file of the weights.

    A model with `experts=10**9` would run out of memory before any weight is looked at.
    Raises: CheckpointError.
    """
    try:
        with open_tensors(weights) as file:
            names = list(file.keys())
            sizes = [size for n in names for size in file.get_slice(n).get_shape()]
    except (SafetensorError, OSError):
        return  # the function that reads the file reports the error
    limit = max(len(names), *sizes, FEW)

    def look(value: object, name: str) -> None:
        """Compare the numbers in nested settings with the limit; name: path of `value` in them."""
        if isinstance(value, Mapping):
            for key, inner in cast("Mapping[str, object]", value).items():
                look(inner, f"{name}.{key}")
        elif isinstance(value, list):
            for inner in cast("list[object]", value):
                look(inner, name)
        elif isinstance(value, int) and name.rpartition(".")[2] not in UNSIZED and value > limit:
            raise damaged(path, f"{name}={value}, where the largest size is {limit}")

    look(settings, name)


def damaged(path: Path, got: str, writer: str = "intarsia.save") -> CheckpointError:
    """Build the error for a file that is not as it was written."""
    want, fix = f"a file as {writer} wrote it", "Copy the folder again from its source."
    return CheckpointError(str(path), got=got, want=want, fix=fix)
