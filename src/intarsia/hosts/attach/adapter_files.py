"""Read a saved adapter from PEFT's own files; what does not fit is refused."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import (
    PEFT_TYPE_TO_TUNER_MAPPING,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from torch import Tensor, nn

from ...core.errors import CheckpointError, ConfigError, IntarsiaError
from ...core.files import read_json, unbroken
from ...core.reading import read_tensors
from ..anatomy.origin import CONFIG, WEIGHTS, WRITER, check_sizes, damaged
from .adapt import attach, check_model
from .config import Family, IntarsiaConfig
from .lora_form import ours, read_left_out
from .peft import BaseTuner, is_adapted
from .plain_lora import own_config, plain_config


def read_adapter(
    model: nn.Module,
    folder: Path,
    name: str,
    *,
    trainable: bool = False,
    classes: Sequence[str] | None = None,
    left_out: Mapping[str, Any] | None = None,
) -> PeftModel:
    """Attach an adapter that is saved in PEFT's files to the model it was trained on, in place.

    Plain LoRA of PEFT is read as this library's LoRA; PEFT itself reads its other types.
    folder: with adapter_config.json and weights; trainable: False freezes it; classes: names that
    its head must have been trained for.
    left_out: for LoRA that `intarsia.save` wrote in PEFT's form, the settings that `write_plain`
    returned; None for other folders, and where they are in the file of the weights.
    Raises: CheckpointError, ConfigError, as `intarsia.load` does; the model may then be changed,
    which the caller undoes.
    """
    check_model(model, name)
    # three families: our methods, plain LoRA of either library, other types of PEFT
    stored, weights = _read_config(folder), read_weights(folder)
    if stored.get("peft_type") == Family.INTARSIA.value:
        config = read_config(folder)
    elif (plain := _plain_lora_config(model, folder, stored, weights, left_out)) is not None:
        config = plain
    else:
        _check_config(folder, stored)
        # PEFT reads its own; names and shapes are checked afterwards, since it passes over misfits
        foreign = read_foreign(model, folder, name, stored, trainable=trainable)
        check_shapes(folder, get_peft_model_state_dict(foreign, adapter_name=name), weights)
        return foreign if trainable else foreign.eval()
    _check_classes((config.origin or {}).get("classes"), classes)
    # PEFT freezes an adapter if its config has this mode
    config.inference_mode = not trainable
    try:
        adapted = attach(model, config, name)
    except IntarsiaError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(
            folder / CONFIG, f"places that the model has not ({error})", WRITER
        ) from error
    expected = ours(get_peft_model_state_dict(adapted, adapter_name=name))
    check_shapes(folder, expected, ours(weights))
    set_peft_model_state_dict(adapted, weights, adapter_name=name)
    if trainable:
        adapted.set_requires_grad(name)
    else:
        adapted.eval()
    return adapted


def read_config(folder: Path) -> IntarsiaConfig:
    """Read method and target modules of a saved adapter, and check the digest of its weights.

    Raises: CheckpointError if the folder holds no adapter of this library, or a damaged one.
    """
    path, stored = folder / CONFIG, _read_config(folder)
    kind = stored.get("peft_type")
    if kind != Family.INTARSIA.value:
        got = f"an adapter of type {kind!r}"
        fix = "Load adapters of PEFT's own with intarsia.load."
        raise CheckpointError(str(path), got=got, want=f"{Family.INTARSIA.value!r}", fix=fix)
    _check_config(folder, stored)
    try:
        return IntarsiaConfig.from_pretrained(str(folder))
    except CheckpointError:
        raise
    except (IntarsiaError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"settings that no method takes ({error})", WRITER) from error


def _plain_lora_config(
    model: nn.Module,
    folder: Path,
    stored: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    left_out: Mapping[str, Any] | None,
) -> IntarsiaConfig | None:
    """Return this library's config for an adapter that is plain LoRA; None for any other."""
    # left_out: settings that PEFT's config has no place for; None in files of PEFT's own
    try:
        if left_out is None and stored.get("peft_type") == "LORA":
            left_out = read_left_out(folder, stored)
        if left_out is None:
            return plain_config(model, stored, weights)
        _check_config(folder, stored)
        # PEFT's file has rank and places; the rest was saved in intarsia.json
        return own_config(stored, left_out)
    except CheckpointError:
        raise
    except (IntarsiaError, TypeError, ValueError, KeyError, AttributeError) as error:
        got = f"settings that no method takes ({error})"
        raise damaged(folder / CONFIG, got, "intarsia.save") from error


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the contents of a folder's adapter_config.json."""
    path = folder / CONFIG
    try:
        stored = read_json(path)
        if not isinstance(stored, dict):
            raise ValueError("not an object")
    except OSError as error:
        raise CheckpointError(
            f"adapter folder {str(folder)!r}",
            got=error.strerror or "unreadable",
            want=f"a folder with {CONFIG} and {WEIGHTS}",
            fix="Give the folder that model.save_pretrained wrote (a named adapter has its own).",
        ) from error
    except ValueError as error:
        raise damaged(path, f"text that is not JSON ({error})", WRITER) from error
    return stored


def _check_config(folder: Path, stored: Mapping[str, Any]) -> None:
    """Check a stranger's adapter_config.json before it is used."""
    path = folder / CONFIG
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        if not _is_plain(pattern := stored.get(name)):
            got = f"{name}={pattern!r}, a regular expression"
            fix = "If you trust the folder: peft.PeftModel.from_pretrained(model, folder)."
            raise CheckpointError(str(path), got=got, want="paths of modules", fix=fix)
    # a stranger's pattern could match for ever, and sizes could take all memory
    weights = next(folder.glob("adapter_*.safetensors"), folder / WEIGHTS)
    check_sizes(path, stored.get("options"), weights, "options")


def _is_plain(pattern: object) -> bool:
    """Return True if a pattern has only paths and alternatives: nothing repeats, so it is fast."""
    texts = pattern if isinstance(pattern, list) else [pattern]
    return all(re.fullmatch(r"([\w|.-]|\\[.\-])*", t) for t in texts if isinstance(t, str))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a saved adapter, on the CPU.

    Raises: CheckpointError if there are none, or the file is cut short or not safetensors.
    """
    path = folder / WEIGHTS
    try:
        with unbroken():
            return read_tensors(path)
    except (SafetensorError, OSError) as error:
        raise damaged(path, f"no readable safetensors file ({error})", WRITER) from error


def _check_classes(stored: Sequence[str] | None, expected: Sequence[str] | None) -> None:
    """Check that a head was trained for the expected classes; None = not known, not checked."""
    if expected is None or stored is None or list(stored) == list(expected):
        return
    subject, fix = "classes", "Use the data the adapter was trained on, or train a new head."
    raise CheckpointError(subject, got=list(stored), want=list(expected), fix=fix)


def check_shapes(folder: Path, expected: dict[str, Any], got: dict[str, Tensor]) -> None:
    """Check that a file has the tensors of the adapter just attached.  Raises: CheckpointError."""
    # PEFT would ignore foreign names, and leave missing weights at their first values
    missing, foreign = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    if missing or foreign:
        raise CheckpointError(
            f"weights in {str(folder)!r}",
            got=f"{len(foreign)} tensors that do not belong, such as {foreign[:1]}; "
            f"{len(missing)} missing, such as {missing[:1]}",
            want=f"the {len(expected)} tensors of the method in {CONFIG}",
            fix="The weights are of another method or model; copy the folder again.",
        )
    for key, tensor in got.items():
        if tensor.shape != expected[key].shape:
            subject, want = f"{key} in {str(folder)!r}", tuple(expected[key].shape)
            fix = "Create the model with the sizes and classes of the training run."
            raise CheckpointError(subject, got=tuple(tensor.shape), want=want, fix=fix)


ELSEWHERE = ("XLORA",)  # loads further adapters, from paths in its config


def read_foreign(
    model: nn.Module, folder: Path, name: str, stored: Mapping[str, Any], *, trainable: bool
) -> PeftModel:
    """Load a saved adapter of one of PEFT's own types, as DoRA, IA3 or OFT, into a model.

    trainable: False freezes it.
    Raises: CheckpointError for a type that PEFT has not, prompts (they load tokenizers), and what
    PEFT refuses; ConfigError for a model that has adapters of ours.
    """
    kind = stored.get("peft_type")
    subject = str(folder / "adapter_config.json")
    # types that only change layers: others read tokenizers, prompts or further adapters
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(kind)  # pyright: ignore[reportArgumentType]
    if kind in ELSEWHERE or not (isinstance(tuner, type) and issubclass(tuner, BaseTuner)):
        want = "'INTARSIA', or a type of PEFT that changes layers and reads no other files"
        fix = "Load it with peft.PeftModel.from_pretrained, if you trust where it comes from."
        raise CheckpointError(subject, got=f"type {kind!r}", want=want, fix=fix)
    if is_adapted(model):
        got, want = f"PEFT's {kind} beside adapters of ours", "one family of adapters in a model"
        raise ConfigError(
            subject, got=got, want=want, fix="Load it into a fresh copy of the model."
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
            return PeftModel.from_pretrained(
                model, str(folder), adapter_name=name, is_trainable=trainable
            )
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        got, want = f"one that PEFT cannot load ({error})", "an adapter of this model"
        fix = "Create the model with the name and settings of the training run."
        raise CheckpointError(subject, got=got, want=want, fix=fix) from error
