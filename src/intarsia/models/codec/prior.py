"""A trained prior: what coder and decoder share, in fixed point where a bit matters."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ...core.errors import CheckpointError, IntarsiaError
from ...core.files import read_json, repaired, unbroken, writing
from ...core.folders import check_kind
from ...core.reading import read_tensors
from ...core.sealing import check_sealed, seal_folder
from .levels import LatentLevel, numbered
from .philox import UNIT
from .recombiner import RecombinerSettings
from .siren import SignalDecoder

Array = np.ndarray[Any, Any]
TENSORS, ABOUT = "prior.safetensors", "prior.json"
FIXED = 1 << 24  # a mean or a deviation of 1; latents are whole numbers of 1 / (FIXED * UNIT)
LARGEST = (1 << 31) - 1
MOST_POINTS = 1 << 20  # of a patch
RHO = 5.0  # times the rate of the means is that of rho, which has further to go
Tell = Callable[[int, float], None]  # steps that are done, PSNR in dB


def sigma(rho: Tensor) -> Tensor:
    """A posterior's deviation: softplus(rho) / 6."""
    return torch.nn.functional.softplus(rho) / 6


def divergence(mu: Tensor, deviation: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """KL(N(mu, deviation^2) || N(mean, scale^2)) in nats, elementwise."""
    spread = (deviation.square() + (mu - mean).square()) / (2 * scale.square())
    return torch.log(scale / deviation) + spread - 0.5


def joined(parts: Sequence[Tensor], levels: Sequence[LatentLevel]) -> Tensor:
    """h of each patch: its own and what its wider rows add to the weights.

    parts: (signals, rows, columns) of each level.  -> (signals * patches, columns).
    """
    h = parts[0]
    for part, level in zip(parts[1:], levels[1:], strict=True):
        wide = part[:, torch.from_numpy(level.of)]
        h = h + torch.nn.functional.pad(wide, (0, h.shape[-1] - wide.shape[-1]))
    return h.flatten(0, 1)


def fixed(values: Tensor) -> Tensor:
    """Whole numbers of 1 / FIXED, at most 128 in size.  -> int32."""
    return (values.double() * FIXED).round().clamp(-LARGEST, LARGEST).to(torch.int32)


@dataclass(frozen=True, eq=False)
class Prior:
    """Prior of the latents of each level, and the decoder that all signals share.

    mean, scale: (columns,) int32 in units of 1 / FIXED, of each level; groups: (columns,) int32,
    the group of each column; rho: (columns,) where a posterior begins; beta: weight of a nat.
    """

    settings: RecombinerSettings
    decoder: SignalDecoder
    mean: tuple[Tensor, ...]
    scale: tuple[Tensor, ...]
    groups: tuple[Tensor, ...]
    rho: tuple[Tensor, ...]
    beta: float

    @cached_property
    def digest(self) -> bytes:
        """The first 8 bytes of the SHA-256 of all that decoding reads: what a file names."""
        hashed = hashlib.sha256(json.dumps(dataclasses.asdict(self.settings)).encode())
        for name, tensor in sorted(self._tensors().items()):
            if not name.startswith("rho"):
                little = tensor.numpy().astype(tensor.numpy().dtype.newbyteorder("<"))
                hashed.update(name.encode() + little.tobytes())
        return hashed.digest()[:8]

    @property
    def key(self) -> int:
        """Of the draws."""
        return int.from_bytes(self.digest, "little")

    def counts(self, levels: Sequence[LatentLevel]) -> list[int]:
        """Groups of each level of a signal."""
        return [
            level.rows * (int(group.max()) + 1)
            for level, group in zip(levels, self.groups, strict=True)
        ]

    def numbers(self, levels: Sequence[LatentLevel]) -> list[Array]:
        """The group of every latent of a signal, numbered through all levels.  (rows, columns)."""
        found, first = [], 0
        for index, (level, count) in enumerate(zip(levels, self.counts(levels), strict=True)):
            group = self.groups[index].numpy()
            found.append(first + numbered(group, level.rows, self.key, index))
            first += count
        return found

    def latents(self, level: int, deviates: Array) -> Array:
        """mean + scale z in units of 1 / (FIXED * UNIT), exactly.  (..., columns) int64."""
        mean, scale = (x[level].numpy().astype(np.int64) for x in (self.mean, self.scale))
        return mean * UNIT + scale * deviates.astype(np.int64)

    def _tensors(self) -> dict[str, Tensor]:
        lists = {"mean": self.mean, "scale": self.scale, "groups": self.groups, "rho": self.rho}
        found = {f"{name}.{i}": x for name, xs in lists.items() for i, x in enumerate(xs)}
        return found | {f"decoder.{k}": v for k, v in self.decoder.state_dict().items()}

    def save(self, folder: str | Path, about: Mapping[str, Any] | None = None) -> Path:
        """Write prior.safetensors and prior.json into a folder.  about: what else to note.

        Raises: ConfigError for a folder with other files; TrainingError if it cannot be written.
        """
        said = {
            "method": "recombiner",
            "digest": self.digest.hex(),
            "settings": dataclasses.asdict(self.settings),
            "beta": self.beta,
            **(about or {}),
        }
        with writing(folder, spare=True) as scratch:
            scratch.mkdir()
            tensors = {k: v.contiguous() for k, v in self._tensors().items()}
            safetensors.torch.save_file(tensors, scratch / TENSORS)
            seal_folder(scratch, ABOUT, said)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Prior:
        """Raises: CheckpointError for a folder that is none, or is damaged."""
        folder = repaired(folder)
        want, fix = "the folder of a prior", "For one: intarsia prior photographs/ --save my-prior"
        check_kind(folder, ABOUT, what=f"prior {folder}", want=want, fix=fix)
        try:
            said = check_sealed(folder / ABOUT, read_json(folder / ABOUT), needs=(TENSORS,))
            with unbroken():
                tensors = read_tensors(folder / TENSORS)
            settings = RecombinerSettings(**said["settings"])
            inside = {k[8:]: v for k, v in tensors.items() if k.startswith("decoder.")}
            _check_shapes(settings, tensors, inside)
            decoder = SignalDecoder(settings, generator=torch.Generator().manual_seed(0))
            decoder.load_state_dict(inside)
            levels = range(settings.levels)
            lists = [
                tuple(tensors[f"{name}.{i}"].clone() for i in levels)
                for name in ("mean", "scale", "groups", "rho")
            ]
            found = cls(settings, decoder.eval(), *lists, beta=float(said["beta"]))
            wanted = str(said["digest"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise _damaged(folder, error) from error
        except CheckpointError:
            raise
        except IntarsiaError as error:
            raise _damaged(folder, error) from error
        if found.digest.hex() != wanted:
            raise _damaged(folder, f"weights with the digest {found.digest.hex()}, not {wanted}")
        return found


def _check_shapes(
    settings: RecombinerSettings, tensors: Mapping[str, Tensor], inside: Mapping[str, Tensor]
) -> None:
    """Raises: ValueError where tensors are not those of the settings, before any is made."""
    if settings.points > MOST_POINTS:
        raise ValueError(f"a patch of {settings.points} points")
    with torch.device("meta"):
        empty = SignalDecoder(settings)
    wanted = {name: tuple(x.shape) for name, x in empty.state_dict().items()}
    if wanted != {name: tuple(x.shape) for name, x in inside.items()}:
        raise ValueError("a network of other sizes than the settings say")
    for level in range(settings.levels):
        columns = empty.columns if level == 0 else empty.weights
        for name in ("mean", "scale", "groups", "rho"):
            found = tensors[f"{name}.{level}"]
            kind = torch.float32 if name == "rho" else torch.int32
            if found.shape != (columns,) or found.dtype != kind:
                raise ValueError(f"{name} of level {level} with {tuple(found.shape)} {found.dtype}")
        groups = tensors[f"groups.{level}"].unique()
        if not torch.equal(groups, torch.arange(len(groups), dtype=torch.int32)):
            raise ValueError(f"groups of level {level} that are not numbered from 0 on")
        if int(tensors[f"scale.{level}"].min()) < 1:
            raise ValueError(f"a deviation of level {level} that is not above 0")


def _damaged(folder: Path, got: object) -> CheckpointError:
    want = "the folder of a prior as it was written"
    fix = "Copy it again from its source, or train one: Recombiner.train(photos).save(FOLDER)."
    return CheckpointError(f"prior {folder}", got=got, want=want, fix=fix)
