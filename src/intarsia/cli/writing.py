"""A finished run on texts as a model again: to score texts, and to go on from prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import ConfigError, DataError, UnknownName
from ..core.modes import evaluating
from ..data.language_models import language_model
from ..data.texts import Prompt, Texts, is_text, read_prompts
from ..experiments import experiment as experiments
from ..experiments import language
from ..experiments.experiment import Experiment
from ..report import read_run
from ..train.evaluate import device_of
from ..train.precision import cast_frozen
from .runs import Report, restored

STDIN = Path("-")
TOKENS = 64  # of a completion, unless --tokens says otherwise


@dataclass(frozen=True)
class Writer:
    """A trained language model, its tokenizer, and the run it comes from."""

    model: nn.Module
    tokenizer: Any
    experiment: Experiment
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
    model = restored(
        model, folder, experiment, record, lambda m: language.with_method(m, experiment)[0], None
    )
    cast_frozen(model, experiment.training.precision)
    form = record.get("record", {}).get("data", {}).get("form")
    return Writer(model.eval(), tokenizer, experiment, form == "answers")


def score_texts(
    folder: Path, data: str | None, part: str | None, report: Report
) -> dict[str, Any] | None:
    """The scores of a run on texts, for JSON; None for a run on pictures.

    data: another text, None = the run's own; part: if not given, "test", of another text "all".
    Raises: as `open_writer`; UnknownName for a part that is not there.
    """
    opened = open_writer(folder, report)
    if opened is None:
        return None
    experiment = opened.experiment
    other = experiment if data is None else experiment.changed(data=data, images=None)
    found = language.texts_of(other, opened.tokenizer, report)
    parts = {"test": found.test, "val": found.val, "train": found.train}
    rows = [row for texts in parts.values() if texts is not None for row in texts.rows]
    parts["all"] = Texts(f"{Path(other.pictures.data).stem}/all", rows)
    chosen = part or ("test" if data is None else "all")
    if (texts := parts.get(chosen)) is None:
        raise UnknownName("part", chosen, [p for p, t in parts.items() if t is not None])
    scores = language.scores(opened.model, texts, experiment).scores()
    return {"set": texts.name, "n": len(texts)} | scores


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
            raise DataError(
                f"prompt {number}", got=f"{len(prompt.ids)} tokens and {tokens} to come",
                want=f"at most {room} together", fix="Shorten it, or ask for fewer --tokens.",
            )  # fmt: skip
        ids = prompt.ids[None].to(device_of(model))
        with evaluating(model), torch.no_grad():
            whole = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
                do_sample=False, temperature=None, top_p=None, top_k=None, pad_token_id=end,
            )  # fmt: skip
        said = opened.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        yield {"prompt": prompt.text, "completion": said}
