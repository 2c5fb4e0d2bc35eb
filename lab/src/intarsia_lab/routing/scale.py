"""How large the models of a comparison are, and how long they learn.

A cell of text is 1500 steps of 16 rows of 64 tokens, 1.5 million tokens; a cell of pictures 1000
steps of 64 pictures of 28 px in 16 patches. "topk" took 125 s of a core (AMD EPYC, one thread) on
"austen" and 54 s on "fashion-mnist", "switch" 101 and 112 s on "austen". Width 64 and four layers
are the smallest in which routers of different layers can differ at all; an expert has 128 hidden
units, so that "dense" is no wider than usual for its width twice over. More rows a step would buy
less noise than more steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from intarsia.core.errors import ConfigError
from intarsia.data.small_models import SmallModel


@dataclass(frozen=True)
class Scale:
    """shape: of the model; batch: rows or pictures a step; steps; lr: of AdamW, the largest.

    length, vocabulary: tokens of a row and of the BPE, for texts; patch: px, for pictures.
    test: rows or pictures of the test part that are scored, None = all there are.

    Raises: ConfigError for what leaves nothing to learn or to score.
    """

    shape: SmallModel = field(default_factory=SmallModel)
    batch: int = 16
    steps: int = 1500
    lr: float = 3e-3
    length: int = 64
    vocabulary: int = 1024
    patch: int = 7
    test: int | None = None

    def __post_init__(self) -> None:
        """Check that something is left to learn and to score.  Raises: ConfigError."""
        least = min(self.batch, self.steps, self.patch, 1 if self.test is None else self.test)
        if least < 1 or self.length < 4 or self.vocabulary < 256 or not self.lr > 0:
            subject, want = "scale", "counts of at least 1, rows of 4 tokens, 256 tokens of BPE"
            raise ConfigError(
                subject, got=self, want=want, fix="Leave out what you need not change."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the scale, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Scale:
        """Return the scale that `to_dict` wrote."""
        # the shape is a dataclass of its own
        return cls(**{**raw, "shape": SmallModel(**raw["shape"])})


TEXT = Scale()
PICTURES = Scale(batch=64, steps=1000, test=4000)
