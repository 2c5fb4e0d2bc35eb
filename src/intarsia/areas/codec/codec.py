"""Codec of signals: train a prior, encode a signal to bytes, decode it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.checks import above, at_least, between, one_of
from ...core.errors import CheckpointError, ConfigError, DataError
from ...core.seeds import mix
from ...train.progress import Bar
from . import coding, irc, signals
from .levels import levels_of
from .prior import Prior, Tell
from .recombiner import RecombinerSettings
from .relative_entropy import pack, packed_bytes, unpack
from .training import PriorTraining

Array = np.ndarray[Any, Any]
MINI = RecombinerSettings()
PHOTOGRAPHS = Path(__file__).with_name("photographs")  # the built-in prior
FAR = 0.1  # share of groups over their budget above which `encode` warns


@dataclass(frozen=True, eq=False)
class Recombiner:
    """Codec of signals: `encode` to bytes, `decode` on any machine (arXiv:2309.17182).

    A signal is the function f(x; w) of a small network. Its weights w are one sample of their
    posterior q, coded relative to the prior p in about KL(q || p) bits: no weight is quantised.

        codec = Recombiner()            # of photographs, or Recombiner.train(signals)
        data = codec.encode(picture)
        picture = codec.decode(data)

    The decoded weights are whole numbers, equal on every machine; values are computed from them in
    float64 and rounded. Not for large pictures in a hurry: encoding takes half an hour a megapixel.
    """

    prior: Prior = field(default_factory=lambda: Prior.load(PHOTOGRAPHS))

    @classmethod
    def train(
        cls,
        data: Sequence[Any],
        bits_per_pixel: float = 0.5,
        settings: RecombinerSettings = MINI,
        *,
        crops: int = 128,
        tiles: int = 1,
        steps: int = 800,
        batch: int = 128,
        out: str | Path | None = None,
        every: int = 100,
        seed: int = 0,
        start: str = "shared",
    ) -> Recombiner:
        """Train a prior, the distribution of the networks' weights, on random parts of signals.

        data: signals, see `signals.FORMS`; bits_per_pixel: of the payload, for each point of a
          signal; a file has some 24 bytes more; settings: the network and its rate; crops: number
          of parts to train on; tiles: patches along each axis of a part; steps: of Adam; batch:
          parts in a step; out: a folder for the training's state, saved after each `every` steps,
          from which a killed training continues with the same bits; seed: of all draws.
        start: "shared", all signals begin with one draw of latents and the maps A with I + U(-1, 1)
          / p, or "own", as released: each signal with a draw of its own, the maps with U(-1, 1) /
          p, which needs tens of thousands of steps. The maps' rate is the released 2e-4, a tenth of
          the others'.
        Raises: DataError for signals that cannot be read or are too small; ConfigError for a rate
          below one group a patch.
        """
        above("bits_per_pixel", bits_per_pixel, 0)
        for name, value in (("crops", crops), ("tiles", tiles), ("steps", steps), ("batch", batch)):
            at_least(name, value, 1)
        one_of("start", start, ("shared", "own"))
        payload = bits_per_pixel * settings.points
        if payload < settings.bits:
            got = f"{bits_per_pixel:g} bits x {settings.points} points = {payload:.0f} bits a patch"
            fix = "Raise bits_per_pixel, take larger patches, or fewer kl_bits."
            raise ConfigError("rate", got=got, want=f"at least {settings.bits}", fix=fix)
        arrays = [signals.check_signal(signal, settings.kind) for signal in data]
        if not arrays:
            raise DataError("signals", got="none", want="at least one", fix="Pass some.")
        # random parts of the signals, cut into patches: (crops, patches, points, channels)
        sizes = [side * tiles for side in settings.patch]
        parts = signals.crops(arrays, sizes, crops, np.random.default_rng(mix(seed, 4)))
        read = [signals.read(part, settings.kind).values for part in parts]
        values = np.stack([signals.patches(part, settings)[0] for part in read])
        training = PriorTraining(
            torch.from_numpy(values).float(),
            (tiles,) * len(sizes),
            settings,
            payload=payload,
            steps=steps,
            batch=batch,
            seed=seed,
            start=start,
        )
        with _progress("training a prior", steps) as tell:
            return cls(training.run(None if out is None else Path(out), tell, every))

    def save(self, folder: str | Path) -> Path:
        """Write the prior into a folder: safetensors and JSON; a folder of this kind is replaced.

        Raises: ConfigError for a folder with other files in it; TrainingError if the disk refuses.
        """
        return self.prior.save(folder)

    @classmethod
    def load(cls, folder: str | Path = PHOTOGRAPHS) -> Recombiner:
        """Load the codec of a folder that `save` wrote, by default the built-in one of photographs.

        Raises: CheckpointError for a folder that is no prior, or is damaged."""
        return cls(Prior.load(folder))

    @property
    def settings(self) -> RecombinerSettings:
        return self.prior.settings

    def steps_of(self, steps: int) -> int:
        """Count the steps of an encoding in all: `steps`, and those between the parts it codes."""
        return coding.total_steps(self.prior, steps)

    def encode(self, signal: Any, *, steps: int = 600, rate: int = 0, seed: int = 0) -> bytes:
        """Encode one signal as the bytes of an .irc file.

        signal: of the form in `signals.FORMS`; steps: fitting steps before the first group is
          coded, and as many between groups; rate: of audio in Hz, recorded in the file; seed: of
          the fit. Warns of a signal so far from the prior that its groups would need more bits than
          they have.
        Raises: DataError for a signal of another form; ConfigError for steps or a rate out of
          range.
        """
        return self.encode_many([signal], steps=steps, rate=rate, seed=seed)

    def encode_many(
        self, data: Sequence[Any], *, steps: int = 600, rate: int = 0, seed: int = 0
    ) -> bytes:
        """Encode a pack of signals of one size, which share a header and are fitted together.

        data: signals of one kind; steps: fitting steps before the first group is coded; rate:
          audio's, in Hz, recorded in the file; seed: of the fit.
        Raises: as `encode`.
        """
        at_least("steps", steps, 1)
        between("rate", rate, 0, irc.LARGEST - 1, "Pass the samples of a second.")
        read = [signals.read(signal, self.settings.kind) for signal in data]
        if len({signal.sizes for signal in read}) != 1:
            got = f"sizes {sorted({signal.sizes for signal in read})}"
            want, fix = "signals of one size", "Encode each size in a file of its own."
            raise DataError("pack", got=got, want=want, fix=fix)
        if self.settings.kind == "structure" and len(read) > 1:
            got, want = f"{len(read)} structures", "one, whose centre is noted in the header"
            raise DataError("pack", got=got, want=want, fix="Encode each in a file of its own.")
        sizes = read[0].sizes
        tiles = signals.tiles_of(sizes, self.settings)
        cut = [signals.patches(signal.values, self.settings) for signal in read]
        values = torch.from_numpy(np.stack([values for values, _ in cut])).float()
        # points that only fill the last patches have weight 0; the mean weight of a patch is 1
        inside = torch.from_numpy(cut[0][1]).float()
        with _progress("encoding", self.steps_of(steps)) as tell:
            indices, over = coding.encode(
                self.prior,
                values,
                tiles,
                weight=inside / inside.mean(1, keepdim=True),
                steps=steps,
                seed=seed,
                tell=tell,
            )
        if over > FAR:
            warnings.warn(
                f"{over:.0%} of the groups needed more bits than theirs: the signal is far from "
                "the prior, or steps are too few. Its quality suffers; its size does not grow.",
                stacklevel=3,
            )
        bits = self.settings.bits
        header = irc.Header(
            self.prior.digest,
            self.settings.kind,
            bits,
            sizes,
            len(read),
            round(rate),
            read[0].centre,
        )
        return irc.write(header, pack(indices.ravel(), bits))

    def decode(self, data: bytes) -> Array:
        """Decode the signal of a file, or a pack of several as (signals, ...).

        data: the file's bytes. Pictures and video are uint8, audio is float in -1 ... 1, a
          structure in angstroms.
        Raises: CheckpointError for a damaged file, or one of another prior.
        """
        header, indices = self._indices(data)
        tiles = signals.tiles_of(header.sizes, self.settings)
        decoded = []
        for row in indices:
            values = coding.decode(self.prior, row, tiles)
            joined = signals.join_patches(values, header.sizes, self.settings)
            decoded.append(signals.write(joined, header.kind, header.centre))
        return np.stack(decoded) if header.count > 1 else decoded[0]

    def weights(self, data: bytes) -> Array:
        """Decode the latents of a file as whole numbers, which are equal on every machine.

        data: the file's bytes. Raises: CheckpointError as `decode` does.  -> (signals, patches,
          columns) int64.
        """
        header, indices = self._indices(data)
        tiles = signals.tiles_of(header.sizes, self.settings)
        return np.stack([coding.latents(self.prior, row, tiles) for row in indices])

    def _indices(self, data: bytes) -> tuple[irc.Header, Array]:
        """Read a compressed file's header and its indices, int (signals, groups)."""
        header, payload = irc.read(data)
        if header.prior != self.prior.digest:
            raise CheckpointError(
                "prior",
                got=f"the one with the digest {self.prior.digest.hex()}",
                want=f"{header.prior.hex()}, which the file names",
                fix="Decode with the prior that it was encoded with.",
            )
        settings = self.settings
        fits = header.kind == settings.kind and header.bits == settings.bits
        # the number of indices follows from the sizes; check it before anything large is computed
        points = math.prod(header.sizes)
        groups = 0
        if fits and points <= signals.MOST_POINTS:
            tiles = signals.tiles_of(header.sizes, settings)
            groups = sum(self.prior.counts(levels_of(settings, tiles)))
        if not groups or len(payload) != packed_bytes(groups * header.count, settings.bits):
            got = f"{len(payload)} bytes for {header.count} of {header.kind} {header.sizes}"
            want = "as many as the prior's groups need"
            raise CheckpointError(".irc file", got=got, want=want, fix="Encode it anew.")
        indices = unpack(payload, settings.bits, groups * header.count)
        return header, indices.reshape(header.count, groups)


@contextmanager
def _progress(label: str, steps: int) -> Iterator[Tell]:
    """Show a progress bar inside the context; yield the function that advances it."""
    start = time.monotonic()
    with Bar(steps, 0, show=True, what=label, unit="step").shown() as bar:
        yield lambda done, quality: bar.step(
            done, {"split": "now", "psnr": quality, "seconds": time.monotonic() - start}
        )
