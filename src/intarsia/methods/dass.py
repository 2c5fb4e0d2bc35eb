"""DASS: architectures are searched for the sparse net that they become (arXiv:2207.06968)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from torch import nn

from ..core import Card, Paper, Partition
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..models.dass import Genotype, Supernet
from ..schedules import FixedMask
from ..schedules.phases import Phase
from ..schedules.scored import put_scores, take_scores


@dataclass(frozen=True)
class DassResult:
    """Result of `Dass`: the final masks, and a `Supernet`'s architecture (None for other nets)."""

    partition: Partition
    genotype: Genotype | None


@dataclass(frozen=True)
class Dass:
    """Training in three parts: dense, with learned scores that choose a mask, with the mask fixed.

    In each layer the round(density n) weights of the largest |s| are used; scores learn through
    the mask as if it were not there. Of a `Supernet`: (w, s) on the training data and alpha on
    the validation data in turn, so that operations are chosen as they are when sparse; then
    `genotype()` says which. Of any other net, such as `ChosenNet`: scores alone, on frozen weights,
    and then the weights (HYDRA).

    found = fit_in_phases(Supernet(CellSizes(), (val_x, val_y)), Dass(0.05), train, epochs=5).found
    fit_in_phases(ChosenNet(found.genotype, CellSizes()), Dass(0.05), train, epochs=5)
    Raises: ConfigError on settings that cannot be.
    Source: paper, section 3; lengths are ours. Not for short searches without a
    comparison with random genotypes, `Genotype.drawn`: two epochs choose little.
    """

    density: float = setting(
        0.05, "The share of each layer's weights that is used.", above=0, most=1, fix="Try 0.05."
    )
    lengths: tuple[float, float, float] = setting(
        (1.0, 1.0, 1.0),
        "The lengths of the three trainings, in shares of the epochs; a supernet has the first "
        "two. The first may be 0: sparse from the start.",
        least=0,
        fix="Use lengths=(1, 1, 1).",
    )
    layers: tuple[str, ...] | None = setting(
        None,
        "The layers with scores, as globs of paths; None = all linear maps and ungrouped "
        "convolutions.",
    )

    def __post_init__(self) -> None:
        """Check the settings; of the phases only the first may have no length."""
        check(self)
        object.__setattr__(self, "lengths", tuple(self.lengths))
        if len(self.lengths) != 3 or min(self.lengths[1:]) == 0:
            want, fix = "three numbers, the last two above 0", "Use lengths=(1, 1, 1)."
            raise ConfigError("lengths", got=self.lengths, want=want, fix=fix)

    def phases(self, model: nn.Module, *, seed: int = 0) -> Generator[Phase, None, DassResult]:
        """Yield the two or three trainings; return the final masks, and a supernet's genotype.

        model: a `Supernet`, which has the phases "dense" and "search", or any other net, which has
          "dense", "scores" and "fine". The caller trains the model in each yielded phase, then
          resumes. seed: unused, since nothing is drawn here. Other methods of training need it.
        """
        dense, scores, fine = self.lengths
        # A supernet chooses operations, too; of any other net the scores alone are trained.
        searches = isinstance(model, Supernet)
        trained = [p for p in model.parameters() if p.requires_grad]
        if isinstance(model, Supernet):
            model.searching = False
        if dense:
            yield Phase("dense", dense)
        if isinstance(model, Supernet):
            model.searching = True
        # Scores take the weights' place as parameters, which casts frozen weights to the run's
        # dtype.
        weights_before = [p.data for p in trained]
        # Second training: a score for each weight; the forward uses the share with the largest
        # scores.
        paths = put_scores(model, self.density, self.layers, alone=not searches)
        yield Phase("search" if searches else "scores", scores, last=searches)
        for parameter, data in zip(trained, weights_before, strict=True):
            if parameter.dtype != data.dtype:  # frozen weights have the run's precision
                parameter.data = data.to(parameter.device)
        # The mask is fixed: the weights with the largest scores stay.
        partition = take_scores(model, paths)
        for parameter in trained:
            parameter.requires_grad_(True)
        if isinstance(model, Supernet):
            model.searching = False
            return DassResult(partition, model.genotype())
        # The third training, of the weights under the mask; a supernet's genotype is trained apart.
        fixed = FixedMask(layers=tuple(paths)) if partition.density() < 1 else None
        yield Phase("fine", fine, last=True, schedule=fixed)
        return DassResult(partition, None)


CARD = Card(
    "dass",
    kind="training",
    config=Dass,
    paper=Paper(
        "2207.06968", 2022, "DASS: Differentiable Architecture Search for Sparse Neural Networks"
    ),
    summary="Scores of weights are learned with the architecture, and few weights are kept.",
    family="sparse training",
    tiny={"density": 0.5},
    exceptions={"never_fills_a_zero": "scores move the mask until it is fixed"},
)
