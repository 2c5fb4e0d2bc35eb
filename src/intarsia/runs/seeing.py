"""A model that sees or hears, from its questions to a folder and back: `intarsia fit --see`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..core.errors import CheckpointError, ConfigError, UnknownName
from ..core.files import read_json, write_json
from ..core.registry import card, find, keys, settings_to_dict
from ..data import trunk_fingerprint
from ..data.language_models import language_model
from ..fitting import evaluate, fit_as
from ..folders.saved import load
from ..folders.verbs import apply
from ..hosts.attach.adapt import Adapt
from ..reports.runs import read_run
from ..senses.answering import answer_of, processor
from ..senses.data.questions import (
    Processor,
    Question,
    QuestionRows,
    QuestionSplits,
    read_questions,
    split_questions,
)
from ..senses.modalities import Modalities, Senses, connectors_of
from ..train import Run
from ..train.tasks.answers import Answers
from . import settings as methods

FILE = "seeing.json"  # the request, in a run folder
PLAIN = "modalities"  # the method that trains the connectors alone
DEFAULTS = {"epochs": 4, "batch_size": 8, "lr": 5e-4}
Report = Callable[[str], None]


@dataclass(frozen=True)
class Seeing:
    """Settings of a run on questions: the model, its encoders, the method, the data.

    data: a .jsonl file of questions.  see, hear: encoders.  method: an adapter of the decoder, a
    change that sees on its own, or "modalities": connectors alone.  settings: name=value of it.
    rows: numbers of questions, of "images" (to train on), "val", "test".  options: of `fit`.
    """

    data: str
    model: str = "smollm2"
    see: str | None = None
    hear: str | None = None
    method: str = "lora"
    settings: tuple[str, ...] = ()
    rows: Mapping[str, int | None] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return int(self.options.get("seed", 0))


@dataclass(frozen=True)
class FittedReader:
    """A run with its scores on the test part: of all, and of each modality."""

    run: Run
    scores: Mapping[str, Mapping[str, float]]


def sees(method: Any) -> bool:
    """Return whether a change gives a decoder connectors on its own."""
    return isinstance(method, Senses)


def built(config: Seeing, report: Report) -> tuple[nn.Module, Processor, Any, str]:
    """Build a language model that sees or hears: with connectors to encoders, and adapters.

    Returns the model, its processor (which turns questions into rows), the method's settings, and
    the decoder's digest.
    Raises: as `language_model`, `apply` and the method's settings do; UnknownName; ConfigError for
    no encoder.
    """
    model, tokenizer = language_model(config.model, seed=config.seed, progress=report)
    # before connectors are added: the record names the pretrained decoder
    trunk = trunk_fingerprint(model)
    key = find(config.method, "adapter", "change")
    method = methods.method(key, config.settings, among=(*keys(), PLAIN, *seeing_methods()))
    # a method with connectors of its own, or plain connectors below an adapter
    if sees(method):
        change = _with_encoders(method, config)
        model = apply(model, change, seed=config.seed)
        adapter = change.over
        method = change
    else:
        change = Modalities(config.see, config.hear)
        model = apply(model, change, seed=config.seed)
        # an adapter by modality gets those that there are encoders for, unless they were given
        names = {name.partition("=")[0] for name in config.settings}
        if "modalities" in settings_to_dict(method) and "modalities" not in names:
            method = methods.with_settings(method, modalities=("text", *change.encoders))
        adapter = method
    if adapter is not None:
        model = apply(model, Adapt(adapter, head=None), seed=config.seed)
    # an adapter freezes everything else; connectors start from nothing and have to learn
    for connector in connectors_of(model).values():
        connector.requires_grad_(True)
    return model, processor(model, tokenizer, progress=report), method, trunk


def seeing_methods() -> tuple[str, ...]:
    """Return the changes that give a decoder connectors on their own."""
    return tuple(key for key in keys("change") if sees_by_key(key))


def sees_by_key(key: str) -> bool:
    """Return True for a method that makes a language model see or hear."""
    return card(key).family == "pictures and sounds"


def _with_encoders(method: Any, config: Seeing) -> Any:
    """Return a method's settings with the encoders that --see and --hear name."""
    encoders = {"image": config.see, "audio": config.hear}
    field_names = {f.name for f in fields(method)}
    for name in ("image", "audio"):
        if encoders[name] is not None and name not in field_names:
            got, want = f"{encoders[name]} for {config.method}", "a method that takes it"
            fix = "Leave it out, or use --method uni-moe."
            raise ConfigError("--hear" if name == "audio" else "--see", got=got, want=want, fix=fix)
    return replace(method, **{n: v for n, v in encoders.items() if n in field_names})


def fit_seeing(
    config: Seeing,
    out: Path,
    *,
    resume: bool = False,
    report: Report = lambda _: None,
    **running: Any,
) -> FittedReader:
    """Train a model on questions about pictures or sounds, and score it; write the run folder.

    Raises: as `built`, `read_questions` and `fit` do.
    """
    questions = read_questions(config.data)
    model, make, method, trunk = built(config, report)
    data = split_of(config, questions, make)
    report(
        f"Training {config.method} on {len(data.train):,} questions "
        f"({', '.join(f'{n:,} {m}' for m, n in data.train.modalities.items())})."
    )
    if not resume:
        # written first, so that a run that is killed can be resumed from its folder
        write_json(out / FILE, asdict(config))
    outputs: dict[str, Any] = {}

    def finish(run: Run) -> Run:
        """Score the trained model by modality; return the run with these scores in its record."""
        outputs["scores"] = scores_by_modality(model, data.test, run_batch(config))
        return replace(run, record={**run.record, "by_modality": outputs["scores"]})

    record = {"trunk": trunk, "model": config.model, "questions": data.record}
    options: dict[str, Any] = DEFAULTS | {"trackers": ()} | dict(config.options)
    run = fit_as(method)(
        model,
        data.train,
        data.val,
        test=data.test,
        task=Answers(),
        record=record,
        finish=finish,
        out=out,
        resume=resume,
        **options,
        **running,
    )
    return FittedReader(run, outputs["scores"])


def run_batch(config: Seeing) -> int:
    return int(config.options.get("batch_size", DEFAULTS["batch_size"]))


def split_of(config: Seeing, questions: Sequence[Question], make: Processor) -> QuestionSplits:
    """Split questions into training, validation and test rows, as the run's settings say.

    make: turns questions into rows of tokens and encoded pictures or sounds.
    """
    rows = config.rows
    return split_questions(
        questions,
        make,
        seed=config.seed,
        train=rows.get("images"),
        val=rows.get("val"),
        test=rows.get("test"),
    )


def scores_by_modality(
    model: nn.Module, questions: QuestionRows, batch_size: int = 8
) -> dict[str, dict[str, float]]:
    """Return loss, shares of right tokens and right answers, over all questions and by modality."""
    parts = {"all": questions} | {name: questions.of(name) for name in questions.modalities}
    by_modality: dict[str, dict[str, float]] = {}
    for name, part in parts.items():
        scores: Any = evaluate(model, part, task=Answers(), batch_size=batch_size)
        by_modality[name] = {"n": len(part)} | scores.scores()
    return by_modality


@dataclass(frozen=True)
class SeeingRun:
    """A finished run on questions about pictures and sounds.

    model: trained, in evaluation mode.  make: its processor.  asked: the request.  record: the
    contents of run.json.
    """

    model: nn.Module
    make: Processor
    asked: Seeing
    record: Mapping[str, Any]

    def evaluate(
        self, data: str | None = None, part: str | None = None
    ) -> dict[str, dict[str, float]]:
        """Return scores by modality on a part of the run's questions, or on other questions.

        data: a .jsonl file of other questions; None = the run's own. part: "test", "val" or "train"
        of these; None = "test".
        Raises: UnknownName for a part that is not there; as `read_questions` does.
        """
        if data is not None:
            return self._scores(self.make.asked(read_questions(data)))
        # the same seed gives the same parts as in training
        parts = split_of(self.asked, read_questions(self.asked.data), self.make)
        sets = {"test": parts.test, "val": parts.val, "train": parts.train}
        if (rows := sets.get(part or "test")) is None:
            raise UnknownName("part", part or "test", [n for n, p in sets.items() if p])
        return self._scores(rows)

    def _scores(self, rows: QuestionRows) -> dict[str, dict[str, float]]:
        return scores_by_modality(self.model, rows, run_batch(self.asked))

    def told(self, question: Question) -> list[str]:
        """Describe in words how the model reads each picture of a question, such as its tiles.

        Empty if every picture is one view, or the question has none.
        """
        connector = connectors_of(self.model).get("image")
        if connector is None or not question.image:
            return []
        row = self.make.rows([question])[0]
        described = (connector.describe(views) for views in row["image_views"].tolist())
        return [text for text in described if text]

    def predict(self, question: Question, tokens: int = 32) -> str:
        """Return the answer, the likeliest token first.  Raises: as `intarsia.senses.answer`."""
        return answer_of(self.model, self.make, question, tokens)


def is_seeing(folder: Path | None) -> bool:
    """Return whether a folder holds such a run, finished or not."""
    return folder is not None and (folder / FILE).is_file()


def read_asked(folder: Path) -> Seeing:
    """Read from a run's folder the settings it was started with.

    Raises: CheckpointError if the file is damaged.
    """
    try:
        content = read_json(folder / FILE)
        return Seeing(**content | {"settings": tuple(content["settings"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        want, fix = "the file as `intarsia fit` wrote it", "Restore it from a copy."
        raise CheckpointError(str(folder / FILE), got=error, want=want, fix=fix) from error


def open_seeing(folder: str | Path, report: Report = lambda _: None) -> SeeingRun:
    """Open a finished run on questions about pictures and sounds, with its trained model.

    Raises: ConfigError for a folder without a finished run; CheckpointError for damaged files, or
    another pretrained model than the training's.
    """
    folder = Path(folder)
    config, record = read_asked(folder), read_run(folder).record
    model, tokenizer = language_model(config.model, seed=config.seed, progress=report)
    # connectors and adapters fit only the decoder that they were trained on
    want = (record.get("record") or {}).get("trunk")
    if (got := trunk_fingerprint(model)) != want:
        fix = "Use the version of the weights that the run was trained on."
        subject = f"model {config.model!r} of {folder}"
        raise CheckpointError(subject, got=got[:12], want=str(want)[:12], fix=fix)
    model = load(model, folder).eval()
    return SeeingRun(model, processor(model, tokenizer, progress=report), config, record)
