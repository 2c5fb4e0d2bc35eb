"""The page of a run that sees: pictures, the parts that were read, answers, and experts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.decode import read_image
from ..gating import learned_routers
from ..senses.data.questions import Question
from ..senses.data.views import grid_of
from ..senses.modalities import connectors_of
from ..senses.report.page import Shown, write_seen
from ..senses.slime import TiledView, selection
from ..sparse.swap.modality_loads import modality_loads
from ..train.tasks.answers import answers_batch
from .seeing import SeeingRun


def write_page(
    run: SeeingRun, questions: Sequence[Question], answers: Sequence[str], out: str | Path
) -> Path:
    """Write a page of questions with their pictures and the run's answers; return its path.

    Raises: as `write_seen` does, and the processor for what cannot be read.
    """
    items = [_shown(run, q, a) for q, a in zip(questions, answers, strict=True)]
    # connectors may have routers of their own, which the page does not show
    routers = {p for p in learned_routers(run.model) if "connectors" not in p}
    loads: dict[str, Any] = {}
    if routers:
        # without answers, as in prediction
        rows = [{n: t for n, t in r.items() if n != "labels"} for r in run.make.rows(questions)]
        all_loads = modality_loads(run.model, [answers_batch([row]) for row in rows])
        loads = {path: table for path, table in all_loads.items() if path in routers}
    return write_seen(out, items, loads, heading=f"{run.asked.method}: what was seen")


def _shown(run: SeeingRun, question: Question, answer: str) -> Shown:
    description = "; ".join(run.told(question))
    text = question.question
    if not question.image:
        return Shown(text, answer, right=question.answer)
    source = question.image[0]
    # the page shows the first picture of a question
    picture: Image.Image = source if isinstance(source, Image.Image) else read_image(source)
    view = connectors_of(run.model)["image"]
    row = run.make.rows([question])[0]
    # only a picture that was cut into tiles has a choice of them to show
    if not isinstance(view, TiledView) or int(row["image_views"][0]) == 1:
        return Shown(text, answer, picture, told=description, right=question.answer)
    read_vectors = selection(run.model, row)[0][1].numpy()
    side = run.make.encoders["image"].side
    grid = grid_of(*picture.size, side, run.make.tiles)
    return Shown(text, answer, picture, read_vectors, grid, description, question.answer)
