"""The predictor of a run on labelled texts, on this machine alone: a page, and POST /predict."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, DataError
from .options import flag
from .shell import note, say

if TYPE_CHECKING:
    from ..runs.labelled import LabelledRun

PATH = "/predict"
MOST = 256  # texts of a question
TAKEN = ("port", "threads")  # options of `serve` that mean something here


def answers(run: LabelledRun) -> dict[str, Any]:
    """Return the function that answers {"texts": [...]} with the classes of each, by its path."""
    # features are read by hooks in the one model: requests take turns
    turn = Lock()

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        """Return the class and all probabilities of each text.  Raises: DataError."""
        texts: Any = question.get("texts")
        listed = isinstance(texts, list) and 0 < len(texts) <= MOST
        if not (listed and all(isinstance(text, str) and text.strip() for text in texts)):
            want, fix = f"1 to {MOST} texts that are not empty", 'For example {"texts": ["..."]}.'
            raise DataError("question", got=sorted(question), want=want, fix=fix)
        with turn:
            return {"answers": run.predict(texts)}

    return {PATH: answer}


def page_of(run: LabelledRun) -> str:
    """Return the HTML page to try the classifier."""
    from ..reports.page import live
    from ..reports.report import Report

    lead = f"{run.settings.method} tells {len(run.classes)} classes apart."
    title = f"Classify texts, by {run.folder.resolve().name}"
    return live(Report(title, (lead,), eyebrow="intarsia serve"), "classify")


def serve_rows(folder: Path, port: int, words: set[str]) -> None:
    """Serve the predictor until Ctrl-C.

    words: names of the options that were given.
    Raises: ConfigError for a run on numbers, and for options that language models have alone.
    """
    if strange := sorted(words - {"models", *TAKEN}):
        got, want = (", ".join(map(flag, names)) for names in (strange, TAKEN))
        raise ConfigError("options for labelled texts", got=got, want=want, fix="Leave it out.")
    from ..reports.local_page import serve_page
    from ..runs.labelled import open_labelled

    run = open_labelled(folder)
    if run.columns:
        fix = "Use intarsia predict, or intarsia export, which writes predict.py."
        raise ConfigError("model to serve", got="a run on numbers", want="one on texts", fix=fix)
    say(f'Ask: POST {PATH} with JSON {{"texts": ["..."]}}')
    serve_page(page_of(run), answers(run), port, say, note)
