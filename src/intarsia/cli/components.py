"""`intarsia components`: what sparse coding finds in pictures, as tiles."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError, ShapeError
from ..core.folders import check_kind
from ..core.schema import setting
from .declared import with_options
from .options import Json, Seed, writes
from .shell import note, say, show_json
from .targets import target

MODELS = ("bsc", "dsc", "gsc", "mca", "mmca", "mog", "mop", "tsc")
NOT_NEGATIVE = ("mca", "mop")


Out = Annotated[Path | None, writes("The PNG to write; RUN.png if not given.")]


@dataclass(frozen=True)
class Learning:
    """Settings of a sparse coding model that is learned from pictures."""

    fit: Path | None = setting(None, "Picture, or folder of them, to learn RUN from first.")
    model: str = setting("gsc", "Model to learn by --fit.", choices=MODELS, short="-m")
    atoms: int = setting(64, "Components to learn by --fit.", least=2)
    side: int = setting(8, "Side of a patch for --fit, in pixels.", least=2)
    patches: int = setting(5000, "Patches to learn from by --fit.", least=2)
    steps: int = setting(60, "Steps of EM in --fit.", least=2)


@with_options()
def components(
    run: Annotated[
        Path, typer.Argument(help="Model: a folder of its `save`; a new one with --fit.")
    ],
    learning: Learning,
    out: Out = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw the components of a sparse coding model as tiles, the most active ones first.

    With --fit the model is learned from patches of pictures less their mean, of mca and mop from
    patches as they are.

    Example:  intarsia components runs/gsc --fit photos/ --atoms 64
    """
    fit = learning.fit
    if fit is not None and not fit.exists():
        want = "a picture, or a folder of pictures"
        raise ConfigError("--fit", got=f"no {fit}", want=want, fix="Check the path.")
    from ..areas.coding.annealed import Annealed
    from ..areas.coding.pictures import SOFTWARE
    from ..models.saved import CARD, TENSORS

    picture = run.with_name(run.name + ".png") if out is None else out
    target(picture, "atoms.png", mark=SOFTWARE)
    if fit is None:
        want = "the folder of a sparse coding model"
        source = shlex.quote(str(run)) if run.is_dir() else "photos/"
        repair = f"Learn one from pictures: intarsia components NEW --fit {source}"
        check_kind(run, CARD, what=f"model {run}", want=want, fix=repair)
    else:
        target(run, "runs/gsc", option="RUN", written_names=(CARD, TENSORS))
        _learn(fit, run, learning, seed)
    # read back from the folder, also after --fit: the folder is then known to be whole
    learner = Annealed.load(run)
    try:
        learner.plot_components(picture)
    except ShapeError as error:  # its fix is one for Python
        name = type(learner).__name__
        fix = f"In Python: {name}.load({str(run)!r}).plot_components(shape=(height, width))"
        raise ShapeError("component", got=error.got, want=error.want, fix=fix) from error
    count, values = learner.components_.shape
    if as_json:
        row = {"picture": str(picture), "components": count, "values": values}
        show_json(row | {"usage": learner.usage_.tolist(), "log_evidence": learner.evidences_[-1]})
        return
    say(
        f"{picture}: {count} components of {values} values, on {learner.usage_.sum():.2f} at a time"
    )


def _learn(source: Path, run: Path, learning: Learning, seed: int) -> None:
    """Learn a sparse coding model from patches of pictures and save it."""
    import numpy as np

    from ..areas.coding.truncated import Truncated
    from ..core.registry import card
    from ..data.decode import SUFFIXES, read_image
    from ..data.photographs import grey
    from ..data.photographs import patches as cut
    from ..train.progress import Bar

    model, steps = learning.model, learning.steps
    files = [source] if source.is_file() else sorted(source.rglob("*"))
    files = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not files:
        fix = "Name a folder with .png or .jpg files."
        raise ConfigError("--fit", got=f"no picture in {source}", want="pictures", fix=fix)
    # brightness alone: a component is a grey patch
    pictures = [grey(np.asarray(read_image(file))) for file in files]
    kind: Any = card(model).config
    # These models else leave out, late in a run, the samples that they explain worst.
    settings = {"data_cut": False} if issubclass(kind, Truncated) else {}
    learner = kind(n_components=learning.atoms, n_iter=steps, random_state=seed, **settings)
    x = cut(pictures, learning.side, learning.patches, np.random.default_rng(seed))
    # Patches less their mean have negative values, which these models know nothing of.
    if model not in NOT_NEGATIVE:
        x = x - x.mean(axis=1, keepdims=True)
    note(
        f"The loss is at a temperature that falls to 1 by step {learner.cooled_at} of {steps}: "
        "until then it may rise, and losses of two steps do not compare."
    )
    start = time.monotonic()
    # Progress by the log evidence; its negative is the loss that the bar shows.
    with Bar(steps, 0, show=True, what=f"fitting {model}", unit="step").shown() as bar:

        def told(step: int, steps: int, evidence: float) -> None:
            seconds = time.monotonic() - start
            bar.step(step, {"split": "fit", "loss": -evidence, "seconds": seconds})

        fitted = learner.fit(x, progress=told)
    fitted.save(run)
