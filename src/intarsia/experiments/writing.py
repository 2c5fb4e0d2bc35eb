"""A finished run on texts as a model again: to score texts, and to go on from prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import ConfigError, DataError, UnknownName
from ..core.modes import evaluating
from ..data.language_models import language_model
from ..data.texts import Prompt, Texts, is_text, read_prompts, read_texts
from ..results.runs import read_run
from ..train.evaluate import device_of
from ..train.precision import cast_frozen
from . import experiment as experiments
from . import language
from .experiment import Experiment, located
from .runs import Report, check_unchanged, restored

STDIN = Path("-")
TOKENS = 64  # of a completion, unless --tokens says otherwise


@dataclass(frozen=True)
class Writer:
    """A trained language model, its tokenizer, and the run it comes from."""

    model: nn.Module
    tokenizer: Any
    experiment: Experiment
    record: Mapping[str, Any]  # what run.json says
    asked: bool  # it has learned answers; False = texts that go on


def open_writer(folder: Path, report: Report) -> Writer | None:
    """The model of a finished run on texts; None for a run on pictures.

    Raises: DataError or ConfigError for a folder that is no finished run of `intarsia fit`;
    CheckpointError for damaged files, or where the model is not the one of the run.
    """
    experiment = experiments.read(folder)
    if not is_text(experiment.pictures.data):
        return None
    record, chosen = read_run(folder).record, experiment.adapted
    model, tokenizer = language_model(
        chosen.model, pretrained=chosen.pretrained, seed=experiment.training.seed, progress=report
    )
    model = restored(model, folder, experiment, record)
    cast_frozen(model, experiment.training.precision)
    form = record.get("record", {}).get("data", {}).get("form")
    return Writer(model.eval(), tokenizer, experiment, record, form == "answers")


def score_texts(
    folder: Path, data: str | None, part: str | None, report: Report
) -> dict[str, Any] | None:
    """The scores of a run on texts, for JSON; None for a run on pictures.

    data: another text, None = the run's own; part: if not given, "test", of another text "all".
    Raises: as `open_writer`; UnknownName for a part that is not there; DataError where the run's
    own text is another one now.
    """
    opened = open_writer(folder, report)
    if opened is None:
        return None
    if data is not None and part in (None, "all"):
        length = language.length_of(opened.experiment)
        texts = read_texts(data, opened.tokenizer, length=length, progress=report)
    else:
        texts = _part(opened, data, part or "test", report)
    scores = language.scores(opened.model, texts, opened.experiment).scores()
    return {"set": texts.name, "n": len(texts)} | scores


def _part(opened: Writer, data: str | None, part: str, report: Report) -> Texts:
    """A part of the run's own text, or of another one in shares of its own."""
    asked = opened.experiment
    own = data is None or located(data) == located(asked.pictures.data)
    if not own:
        asked = asked.changed(data=data, images=None, val=None, test=None)
    found = language.texts_of(asked, opened.tokenizer, report)
    if own:
        check_unchanged(asked, opened.record, found.record)
    parts = {"test": found.test, "val": found.val, "train": found.train}
    rows = [row for texts in parts.values() if texts is not None for row in texts.rows]
    parts["all"] = Texts(f"{Path(asked.pictures.data).stem}/all", rows)
    if (texts := parts.get(part)) is None:
        raise UnknownName("part", part, [p for p, t in parts.items() if t is not None])
    return texts


def prompts_of(opened: Writer, files: Sequence[Path]) -> list[Prompt]:
    """The prompts of files, "-" for standard input.  Raises: DataError."""
    found: list[Prompt] = []
    for file in files:
        source = sys.stdin.read().split("\n") if file == STDIN else file
        found += read_prompts(source, opened.tokenizer, asked=opened.asked)
    return found


def complete(opened: Writer, prompts: Sequence[Prompt], tokens: int) -> Iterator[dict[str, str]]:
    """Each prompt with what the model goes on to say, the likeliest token at a time.

    tokens: at most so many, fewer where the model says that it is done.
    Raises: ConfigError for tokens < 1; DataError for a prompt that leaves no room for them.
    """
    if tokens < 1:
        raise ConfigError("--tokens", got=tokens, want="at least 1", fix=f"Try {TOKENS}.")
    model: Any = opened.model
    room = getattr(model.config, "max_position_embeddings", None)
    end = opened.tokenizer.eos_token_id
    for number, prompt in enumerate(prompts, 1):
        if room is not None and len(prompt.ids) + tokens > room:
            got = f"{len(prompt.ids)} tokens and {tokens} to come"
            fix = "Shorten it, or ask for fewer --tokens."
            raise DataError(f"prompt {number}", got=got, want=f"at most {room} together", fix=fix)
        ids = prompt.ids[None].to(device_of(model))
        with evaluating(model), torch.no_grad():
            whole = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=end,
            )
        said = opened.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        yield {"prompt": prompt.text, "completion": said}
