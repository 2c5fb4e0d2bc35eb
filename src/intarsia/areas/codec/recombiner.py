"""RECOMBINER: signals coded as samples of a small network's weights (arXiv:2309.17182)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...core import Card, Paper
from ...core.errors import ShapeError
from ...core.schema import check, setting

DIMENSIONS = {"image": 2, "audio": 1, "video": 3, "structure": 1}
"""Kinds of signals: over how many axes they are sampled; their order is that of a file's byte."""
CHANNELS = {"image": 3, "audio": 1, "video": 3, "structure": 3}
STEP = 16  # points along each axis that one latent of the positions covers
SPARE = 2  # bits of an index beyond the divergence of its group


@dataclass(frozen=True)
class RecombinerSettings:
    """Settings of a RECOMBINER codec: its network and its rate.

    A patch of a signal is f(x) of a SIREN with `depth` hidden layers of `width`. Its weights are
    w = h A, layer by layer (`reparametrise`), h ~ q = N(mu, sigma^2); its inputs are coordinates
    and channels that a convolution computes from `positions` latents for 16 points along each axis.
    With `levels` above 1, h = h_patch (+ h_block) + h_signal, a block being 4 patches a side.

    positions=0 and reparametrise=False is COMBINER (Guo et al., arXiv:2305.19185).
    Raises: ConfigError; ShapeError for a patch with an axis that is no multiple of 16.
    Not for large pictures in a hurry: encoding is an optimisation, of half an hour a megapixel.
    """

    kind: str = setting(
        "image",
        'The kind of signal: "image" (H, W), "audio" (T), "video" (T, H, W), or "structure" (a '
        "chain of 3-D points).",
        choices=tuple(DIMENSIONS),
    )
    patch: tuple[int, ...] = setting(
        (32, 32), "The size of a patch along each axis of the signal, multiples of 16 points."
    )
    width: int = setting(16, "The width of the network's hidden layers.", least=1)
    depth: int = setting(3, "The number of the network's hidden layers.", least=1, most=64)
    positions: int = setting(
        16, "The latents of the positions for 16 points along each axis; 0 = none.", least=0
    )
    reparametrise: bool = setting(
        True, "Whether a layer's weights are w = h A, with a matrix A that is learned once."
    )
    levels: int = setting(
        1,
        "The levels of latents: of patches, of the whole signal, and of blocks between them.",
        choices=(1, 2, 3),
    )
    kl_bits: int = setting(
        14,
        "The bits of divergence of a group of latents, which costs kl_bits + 2 bits in the file.",
        least=2,
        most=18,
    )

    def __post_init__(self) -> None:
        """Check the settings, among them a patch of as many axes as the kind, multiples of 16."""
        check(self)
        object.__setattr__(self, "patch", tuple(self.patch))  # a list, read from JSON
        axes = DIMENSIONS[self.kind]
        if len(self.patch) != axes or any(side < 1 or side % STEP for side in self.patch):
            want = f"{axes} multiples of {STEP} for kind {self.kind!r}"
            fix = f"For example: patch={(32,) * axes}."
            raise ShapeError("patch", got=self.patch, want=want, fix=fix)

    @property
    def bits(self) -> int:
        """Number of bits of a group's index."""
        return self.kl_bits + SPARE

    @property
    def points(self) -> int:
        """Number of points of a patch."""
        return math.prod(self.patch)

    @property
    def channels(self) -> int:
        """Number of values of a point."""
        return CHANNELS[self.kind]


CARD = Card(
    "recombiner",
    kind="model",
    config=RecombinerSettings,
    paper=Paper(
        "2309.17182",
        2024,
        "RECOMBINER: Robust and Enhanced Compression with Bayesian Implicit Neural Representations",
    ),
    tiny={"patch": (16, 16), "width": 4, "depth": 1, "positions": 2, "kl_bits": 6},
    summary="A codec: a signal is a sample of the weights of a small network, near their prior.",
    family="codecs",
    names=("RECOMBINER", "COMBINER", "Bayesian implicit neural representations"),
    exceptions={"is_an_estimator": "a codec codes a signal to bytes; it predicts nothing"},
)
