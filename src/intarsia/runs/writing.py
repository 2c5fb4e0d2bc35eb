"""A finished run on texts as a model again: to score texts, and to continue prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..core.checks import at_least
from ..core.errors import DataError, UnknownName
from ..core.modes import evaluating
from ..data.language_models import language_model
from ..data.sets import located
from ..data.texts import Prompt, Texts, read_prompts, read_texts
from ..reports.runs import read_run
from ..train.evaluation import device_of
from ..train.precision import cast_frozen
from . import experiment as experiments
from . import language
from .experiment import Experiment
from .restoring import restored
from .runs import Report, check_unchanged

STDIN = Path("-")
TOKENS = 64  # of a completion, unless --tokens says otherwise


@dataclass(frozen=True)
class TextRun:
    """A finished run on texts.

    model: trained, in evaluation mode.  tokenizer: its own.  experiment: as asked for.  record: the
    contents of run.json.  asked: it was trained on answers; False = on running text.
    """

    model: nn.Module
    tokenizer: Any
    experiment: Experiment
    record: Mapping[str, Any]
    asked: bool

    classes: ClassVar[tuple[str, ...]] = ()

    def evaluate(
        self, data: str | None = None, part: str | None = None, report: Report = lambda _: None
    ) -> dict[str, Any]:
        """Return scores on a part of the run's own text, or of another text.

        data: another text, None = the run's own. part: "train", "val", "test" or "all"; None =
        "test", of another text "all". report: gets lines of progress.
        Raises: UnknownName for a part that is not there; DataError where the run's own text is not
        the training run's.
        """
        if data is not None and part in (None, "all"):
            length = self.experiment.pictures.length
            texts = read_texts(data, self.tokenizer, length=length, progress=report)
        else:
            texts = _part(self, data, part or "test", report)
        scores = language.scores(self.model, texts, self.experiment).scores()
        return {"set": texts.name, "n": len(texts)} | scores

    def predict(
        self, prompts: str | Path | Sequence[str | Path], tokens: int = TOKENS
    ) -> list[dict[str, str]]:
        """Return each prompt with its completion, the likeliest token at a time.

        prompts: texts, or paths of files with prompts.  tokens: at most so many for each.
        Raises: ConfigError for tokens < 1; DataError for files that cannot be read, and prompts
        that leave no room.
        """
        several = [prompts] if isinstance(prompts, str | Path) else prompts
        sources = [prompt if isinstance(prompt, Path) else [prompt] for prompt in several]
        return list(complete(self, prompts_of(self, sources), tokens))


def open_texts(folder: Path, *, as_trained: bool = True, report: Report) -> TextRun:
    """Open a finished run on texts.

    as_trained: keep the frozen weights in the dtype of the training; False = float32.
    """
    experiment = experiments.read(folder)
    record, adapted = read_run(folder).record, experiment.adapted
    model, tokenizer = language_model(
        adapted.model, pretrained=adapted.pretrained, seed=experiment.training.seed, progress=report
    )
    model = restored(model, folder, experiment, record)
    if as_trained:
        cast_frozen(model, experiment.training.precision)
    form = record.get("record", {}).get("data", {}).get("form")
    return TextRun(model.eval(), tokenizer, experiment, record, form == "answers")


def _part(opened: TextRun, data: str | None, part: str, report: Report) -> Texts:
    """Return a part of the run's text, or of another one, split in the default shares."""
    experiment = opened.experiment
    # the run's own text is split as in training; another one has no numbers of rows to keep
    is_own = data is None or located(data) == located(experiment.pictures.data)
    if not is_own:
        experiment = experiment.changed(data=data, images=None, val=None, test=None)
    splits = language.texts_of(experiment, opened.tokenizer, report)
    if is_own:
        check_unchanged(experiment, opened.record, splits.record)
    parts = {"test": splits.test, "val": splits.val, "train": splits.train}
    rows = [row for texts in parts.values() if texts is not None for row in texts.rows]
    parts["all"] = Texts(f"{Path(experiment.pictures.data).stem}/all", rows)
    if (texts := parts.get(part)) is None:
        raise UnknownName("part", part, [p for p, t in parts.items() if t is not None])
    return texts


def _stdin() -> list[str]:
    """Return the lines of standard input.  Raises: DataError for bytes that are no UTF-8."""
    try:
        return sys.stdin.read().split("\n")
    except UnicodeDecodeError as error:
        fix = "Convert it, for example with iconv."
        raise DataError("standard input", got=error, want="UTF-8", fix=fix) from error


def prompts_of(opened: TextRun, sources: Iterable[Path | Sequence[str]]) -> list[Prompt]:
    """Return the prompts of files, "-" for standard input, and of lines.

    sources: files, "-", or lists of lines.
    Raises: DataError.
    """
    prompts: list[Prompt] = []
    for source in sources:
        lines = _stdin() if source == STDIN else source
        prompts += read_prompts(lines, opened.tokenizer, as_questions=opened.asked)
    return prompts


def complete(opened: TextRun, prompts: Sequence[Prompt], tokens: int) -> Iterator[dict[str, str]]:
    """Yield each prompt with its completion; the likeliest token is taken at each step.

    tokens: at most so many new ones, fewer where the model ends on its own.
    Raises: ConfigError for tokens < 1; DataError for a prompt that leaves no room for them.
    """
    at_least("--tokens", tokens, 1, f"Try {TOKENS}.")
    model: Any = opened.model
    # models without a limit of positions have room for any length
    room = getattr(model.config, "max_position_embeddings", None)
    end = opened.tokenizer.eos_token_id
    for number, prompt in enumerate(prompts, 1):
        if room is not None and len(prompt.ids) + tokens > room:
            got = f"{len(prompt.ids)} tokens and {tokens} to come"
            fix = "Shorten it, or ask for fewer --tokens."
            raise DataError(f"prompt {number}", got=got, want=f"at most {room} together", fix=fix)
        # one prompt at a time, greedily: no padding, and no draw
        ids = prompt.ids[None].to(device_of(model))
        with evaluating(model), torch.no_grad():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=end,
            )
        # what comes after the prompt's own tokens
        completion = opened.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        yield {"prompt": prompt.text, "completion": completion}
