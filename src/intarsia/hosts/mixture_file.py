"""An upcycled model on disk: all of its weights, and what makes a dense model take them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.errors import CheckpointError, ConfigError, IntarsiaError
from ..core.registry import KEY, card, method_to_dict, settings_from_dict
from ..mixtures import Mixture, ResidualMixture
from ..mixtures.capacity import Capacity
from .gates import HostedRouter
from .load import check_shapes
from .swap import Upcycled, UpcycleSettings, check_unadapted, restored

SETTINGS, WEIGHTS, FORMAT = "mixture.json", "mixture.safetensors", 1
PLAIN = ("how", "residual", "fraction", "seed", "act")


def save_mixture(model: nn.Module, folder: str | Path) -> Path:
    """Write an upcycled model: `mixture.safetensors` with every weight, `mixture.json` with how.

    Raises: ConfigError for a model that is not upcycled, whose router is in no list, or whose
    mixtures have something around them; TargetError for one with adapters. Nothing is written then.
    """
    check_unadapted(model)
    done: Upcycled | None = getattr(model, "upcycled", None)
    if done is None:
        raise ConfigError(
            "model", got="one that was not upcycled", want="one that was",
            fix="Call intarsia.upcycle(model), or save it as its library does.",
        )  # fmt: skip
    for path in done.paths:
        module = model.get_submodule(path)
        gate = getattr(module, "gate", None)
        if not isinstance(module, Mixture | ResidualMixture) and not isinstance(gate, HostedRouter):
            raise ConfigError(
                f"{path!r}", got=f"a {type(module).__name__} around it", want="the mixture alone",
                fix="Save model.state_dict() instead, or wrap the blocks after loading.",
            )  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    told = done.told
    stored = {
        "format": FORMAT,
        "router": method_to_dict(told.router),  # pyright: ignore[reportArgumentType]
        "extra": {n: v for n, v in model.state_dict().items() if not isinstance(v, Tensor)},
        "capacity": None if told.capacity is None else asdict(told.capacity),
        **{name: getattr(done, name) for name in ("paths", "experts", "parts")},
        **{name: getattr(told, name) for name in PLAIN},
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in _weights(model).items()}
    save_file(tensors, folder / WEIGHTS)
    (folder / SETTINGS).write_text(json.dumps(stored, indent=1) + "\n")
    return folder


def load_mixture(model: nn.Module, folder: str | Path) -> nn.Module:
    """Turn a dense model into the mixture that `save_mixture` wrote, in place.

    model: of the same architecture; its own weights do not matter.
    Raises: CheckpointError for a folder without a mixture, a damaged one, or one of another
    architecture; TargetError for a model that is a mixture already. It is then as it was.
    """
    folder = Path(folder)
    done, extra = _settings(folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise _damaged(folder / WEIGHTS, f"no readable safetensors file ({error})") from error
    try:
        restored(model, done, lambda: check_shapes(folder, _weights(model), weights))
    except ConfigError as error:
        raise CheckpointError(
            f"mixture in {str(folder)!r}", got=f"settings that do not suit this model ({error})",
            want="the architecture of the training run", fix="Create the dense model as it was.",
        ) from error  # fmt: skip
    model.load_state_dict(weights | extra, strict=False)  # tied weights are there once
    return model


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a state dict, tied ones once."""
    found: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            where = (value.data_ptr(), value.shape, value.stride()) if value.numel() else (name,)
            if where not in seen or value.is_meta:
                found[name] = value
            seen.add(where)
    return found


def _settings(folder: Path) -> tuple[Upcycled, dict[str, Any]]:
    """What was done, and the state of modules that is no tensor."""
    path = folder / SETTINGS
    try:
        stored = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"mixture folder {str(folder)!r}", got=f"no {SETTINGS}",
            want=f"a folder with {SETTINGS} and {WEIGHTS}",
            fix="Give the folder that save_mixture wrote; a dense checkpoint is loaded into the "
            "dense model, which intarsia.upcycle then turns into a mixture.",
        ) from error  # fmt: skip
    except ValueError as error:
        raise _damaged(path, f"text that is not JSON ({error})") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        got = stored.get("format") if isinstance(stored, dict) else "no object"
        raise _damaged(path, f"format {got!r}, not {FORMAT}")
    try:
        return _done(stored), dict(stored["extra"])
    except (IntarsiaError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path, f"settings that no mixture takes ({error})") from error


def _done(stored: Mapping[str, Any]) -> Upcycled:
    router = dict(stored["router"])
    found = card(str(router.pop(KEY)))
    if found.kind != "router":
        raise ValueError(f"{found.key!r} is no router")
    # files of before there was either say nothing of them
    capacity, residual = stored["capacity"], stored.get("residual")
    whole = stored["experts"] if stored["how"] == "slices" else [1] * len(stored["experts"])
    told = UpcycleSettings(
        router=settings_from_dict(found, router),
        how=str(stored["how"]),
        capacity=None if capacity is None else Capacity(**capacity),
        residual=None if residual is None else str(residual),
        fraction=float(stored["fraction"]),
        seed=int(stored["seed"]),
        act=None if (act := stored.get("act")) is None else str(act),
    )
    experts, parts = (
        tuple(map(int, numbers)) for numbers in (stored["experts"], stored.get("parts", whole))
    )
    paths = tuple(map(str, stored["paths"]))
    if not len(paths) == len(experts) == len(parts) or min(parts, default=1) < 1:
        raise ValueError("not a number of experts and of parts for each path")
    return Upcycled(told, paths, experts, parts)


def _damaged(path: Path, got: str) -> CheckpointError:
    return CheckpointError(
        str(path), got=got, want="a file as save_mixture wrote it",
        fix="Copy the folder again from its source, or train again.",
    )  # fmt: skip
