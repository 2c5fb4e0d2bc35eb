"""Points of a training at which the new task and the old one are scored."""

from __future__ import annotations

from dataclasses import dataclass, field

# S2FT and LoRA change their order between 3e-4 and 3e-3, so that the grid goes beyond both
GRID = (3e-4, 1e-3, 3e-3, 1e-2)
TUNED = 100  # the seed of the trainings by which a rate is chosen
OURS, LORA = "S2FT", "LoRA"


@dataclass
class Track:
    """Accuracy on the new task and on the old one, while the new one is trained."""

    target: list[float] = field(default_factory=list)
    source: list[float] = field(default_factory=list)

    def kept(self, level: float) -> float:
        """Return the old task's accuracy when the new one's first was at least `level`."""
        return next(s for t, s in zip(self.target, self.source, strict=True) if t >= level)


def matched(ours: Track, theirs: Track) -> tuple[float, float, float]:
    """Return the highest accuracy on the new task that two trainings reach, and both's on the old.

    ours, theirs: accuracies on both tasks along a training. Forgetting is compared at the same
      point of the new task, since a method that learns less of it forgets less, too.
    """
    level = min(max(ours.target), max(theirs.target))
    return level, ours.kept(level), theirs.kept(level)
