"""Trained priors, which encoder and decoder share, in fixed point where bits must agree."""

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
from .levels import LatentLevel, number_groups
from .philox import UNIT
from .recombiner import RecombinerSettings
from .siren import SignalDecoder

Array = np.ndarray[Any, Any]
TENSORS, ABOUT = "prior.safetensors", "prior.json"
FIXED = 1 << 24  # a mean or a deviation of 1; latents are whole numbers of 1 / (FIXED * UNIT)
LARGEST = (1 << 31) - 1
MOST_POINTS = 1 << 20  # of a patch
RHO = 5.0  # learning rate of rho over mu's, since rho has further to go
Tell = Callable[[int, float], None]  # receives the steps that are done, and the PSNR in dB


def sigma(rho: Tensor) -> Tensor:
    """Return a posterior's standard deviation, softplus(rho) / 6."""
    return torch.nn.functional.softplus(rho) / 6


def divergence(mu: Tensor, deviation: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Compute KL(N(mu, deviation^2) || N(mean, scale^2)) in nats, elementwise."""
    spread = (deviation.square() + (mu - mean).square()) / (2 * scale.square())
    return torch.log(scale / deviation) + spread - 0.5


def join_levels(parts: Sequence[Tensor], levels: Sequence[LatentLevel]) -> Tensor:
    """Sum each patch's latents over the levels: the patch's, its block's, and the whole signal's.

    parts: the latents of each level, (signals, rows, columns), a row for each part of a signal at
      this level; levels: the same levels, which say to which row a patch belongs. At wide levels
      columns are those for the network's weights alone.  -> (signals * patches, columns).
    """
    h = parts[0]
    for part, level in zip(parts[1:], levels[1:], strict=True):
        wide = part[:, torch.from_numpy(level.row_of_patch)]
        h = h + torch.nn.functional.pad(wide, (0, h.shape[-1] - wide.shape[-1]))
    return h.flatten(0, 1)


def to_fixed_point(values: Tensor) -> Tensor:
    """Round numbers to whole multiples of 1 / FIXED, clamped to 128 in size.  -> int32."""
    return (values.double() * FIXED).round().clamp(-LARGEST, LARGEST).to(torch.int32)


@dataclass(frozen=True, eq=False)
class Prior:
    """Prior of the latents of each level, and the decoder that all signals share.

    mean, scale: (columns,) int32 in units of 1 / FIXED, of each level; groups: (columns,) int32,
    the group of each column; rho: (columns,), initial value for posteriors; beta: initial weight of
    a nat of divergence in the loss.
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
        """Digest that a file records: 8 bytes of the SHA-256 of all that decoding depends on."""
        hashed = hashlib.sha256(json.dumps(dataclasses.asdict(self.settings)).encode())
        for name, tensor in sorted(self._tensors().items()):
            # rho is where an encoder starts; decoding does not depend on it
            if not name.startswith("rho"):
                # little-endian bytes, so that the digest is the same on every machine
                little = tensor.numpy().astype(tensor.numpy().dtype.newbyteorder("<"))
                hashed.update(name.encode() + little.tobytes())
        return hashed.digest()[:8]

    @property
    def key(self) -> int:
        """Key of the random draws."""
        return int.from_bytes(self.digest, "little")

    def counts(self, levels: Sequence[LatentLevel]) -> list[int]:
        """Return how many groups of latents a signal has at each level."""
        return [
            level.rows * (int(group.max()) + 1)
            for level, group in zip(levels, self.groups, strict=True)
        ]

    def numbers(self, levels: Sequence[LatentLevel]) -> list[Array]:
        """Return the number of each latent's group, (rows, columns) for each level.

        levels: the signal's levels, each with a row for each part (patch, block or the whole).
          Groups of all levels are numbered consecutively.
        """
        groups, first = [], 0
        for index, (level, count) in enumerate(zip(levels, self.counts(levels), strict=True)):
            group = self.groups[index].numpy()
            groups.append(first + number_groups(group, level.rows, self.key, index))
            first += count
        return groups

    def latents(self, level: int, deviates: Array) -> Array:
        """Compute latents of the prior from normal deviates z: mean + scale z, in whole numbers.

        deviates: z, (..., columns), in units of 1 / UNIT.  -> (..., columns) int64, in units of 1 /
          (FIXED * UNIT), the same on every machine.
        """
        mean, scale = (x[level].numpy().astype(np.int64) for x in (self.mean, self.scale))
        return mean * UNIT + scale * deviates.astype(np.int64)

    def _tensors(self) -> dict[str, Tensor]:
        """Return all tensors by the names of prior.safetensors."""
        lists = {"mean": self.mean, "scale": self.scale, "groups": self.groups, "rho": self.rho}
        tensors = {f"{name}.{i}": x for name, xs in lists.items() for i, x in enumerate(xs)}
        return tensors | {f"decoder.{k}": v for k, v in self.decoder.state_dict().items()}

    def save(self, folder: str | Path, extra: Mapping[str, Any] | None = None) -> Path:
        """Write prior.safetensors and prior.json into a folder.

        extra: more entries of the JSON. Raises: ConfigError for a folder with other files;
          TrainingError if it cannot be written.
        """
        record = {
            "method": "recombiner",
            "digest": self.digest.hex(),
            "settings": dataclasses.asdict(self.settings),
            "beta": self.beta,
            **(extra or {}),
        }
        # written next to the folder and moved there: a folder is never half of one
        with writing(folder, refuse_loss=True) as scratch:
            scratch.mkdir()
            tensors = {k: v.contiguous() for k, v in self._tensors().items()}
            safetensors.torch.save_file(tensors, scratch / TENSORS)
            seal_folder(scratch, ABOUT, record)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Prior:
        """Read the folder that `save` wrote.  Raises: CheckpointError if it is none, or damaged."""
        # a kill while it was replaced may have left the new folder under another name
        folder = repaired(folder)
        want, fix = (
            "the folder of a prior",
            "For one: intarsia codec train photographs/ --out my-prior",
        )
        check_kind(folder, ABOUT, what=f"prior {folder}", want=want, fix=fix)
        try:
            record = check_sealed(folder / ABOUT, read_json(folder / ABOUT), needs=(TENSORS,))
            # Ctrl-C has to wait: torch would turn it into an error, as if the file were damaged
            with unbroken():
                tensors = read_tensors(folder / TENSORS)
            settings = RecombinerSettings(**record["settings"])
            of_decoder = {
                name.removeprefix("decoder."): tensor
                for name, tensor in tensors.items()
                if name.startswith("decoder.")
            }
            _check_shapes(settings, tensors, of_decoder)
            decoder = SignalDecoder(settings, generator=torch.Generator().manual_seed(0))
            decoder.load_state_dict(of_decoder)
            levels = range(settings.levels)
            lists = [
                tuple(tensors[f"{name}.{i}"].clone() for i in levels)
                for name in ("mean", "scale", "groups", "rho")
            ]
            prior = cls(settings, decoder.eval(), *lists, beta=float(record["beta"]))
            digest = str(record["digest"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            # a broken file of safetensors raises errors of many kinds
            raise _damaged(folder, error) from error
        except CheckpointError:
            raise
        except IntarsiaError as error:
            raise _damaged(folder, error) from error
        # settings and weights must be those that were saved, bit by bit
        if prior.digest.hex() != digest:
            raise _damaged(folder, f"weights with the digest {prior.digest.hex()}, not {digest}")
        return prior


def _check_shapes(
    settings: RecombinerSettings, tensors: Mapping[str, Tensor], of_decoder: Mapping[str, Tensor]
) -> None:
    """Raise ValueError where tensors do not fit the settings, before any of that size is built."""
    # tensors: all of the file; of_decoder: the decoder's among them, by their names in it
    if settings.points > MOST_POINTS:
        raise ValueError(f"a patch of {settings.points} points")
    # the meta device gives shapes without memory
    with torch.device("meta"):
        empty = SignalDecoder(settings)
    shapes = {name: tuple(x.shape) for name, x in empty.state_dict().items()}
    if shapes != {name: tuple(x.shape) for name, x in of_decoder.items()}:
        raise ValueError("a network of other sizes than the settings say")
    for level in range(settings.levels):
        # patches, level 0, have latents of positions next to those of weights
        columns = empty.columns if level == 0 else empty.weights
        for name in ("mean", "scale", "groups", "rho"):
            tensor = tensors[f"{name}.{level}"]
            kind = torch.float32 if name == "rho" else torch.int32
            if tensor.shape != (columns,) or tensor.dtype != kind:
                raise ValueError(
                    f"{name} of level {level} with {tuple(tensor.shape)} {tensor.dtype}"
                )
        # a group without columns, or a deviation of 0, would break coding later
        groups = tensors[f"groups.{level}"].unique()
        if not torch.equal(groups, torch.arange(len(groups), dtype=torch.int32)):
            raise ValueError(f"groups of level {level} that are not numbered from 0 on")
        if int(tensors[f"scale.{level}"].min()) < 1:
            raise ValueError(f"a deviation of level {level} that is not above 0")


def _damaged(folder: Path, got: object) -> CheckpointError:
    want = "the folder of a prior as it was written"
    fix = "Copy it again from its source, or train one: Recombiner.train(photos).save(FOLDER)."
    return CheckpointError(f"prior {folder}", got=got, want=want, fix=fix)
