"""Choose a classifier of labelled texts, or fit the one of a table of numbers, in some minutes.

found = intarsia.auto("texts.csv", text="text", label="label", minutes=5)
print(found)
found.open().predict(["Who was first?"])
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import AssetError, CheckpointError, ConfigError, MissingExtra, UnknownName
from ...core.files import read_json, write_json
from ...core.folders import check_empty, data_name
from ...core.labelled import AUTO, is_labelled
from ...core.locks import alone
from ...core.store import Store, key_of
from ...data.labelled import LabelledSplits, Rows, rows_at
from ...data.packages import announce
from ...data.sets import located
from ...models.classify.classifier import Member, RowClassifier, judged, method_of
from ...models.classify.features import Tfidf, states, text_model
from ...models.classify.words import (
    ADAPTED,
    MODELS,
    NUMBERS,
    SPARSE,
    TOKENS,
    check_method,
    split_adapter,
    split_word,
)
from ...reports import numbers
from ...reports.markdown import markdown
from ...reports.table import Table
from ...train.folds import deal
from ...train.probe import FOLDS
from ..labelled import (
    ONLY_PROBE,
    LabelledFit,
    LabelledRun,
    Report,
    is_labelled_run,
    open_labelled,
    write_run,
)
from ..labelled_adapting import deeper, fitted_member, training_seconds
from .blending import chosen
from .judging import ROUNDING, HeldOutAnswers, gap
from .texts_page import BASELINE, TextCandidate, candidates_table, sentences_of, write_page

ADAPTER = "lora"
CANDIDATES = (*SPARSE, *MODELS, ADAPTER)
CHOICE, PAGE = "choice", "report.html"
SAMPLE = 8  # texts by which the seconds of a model are estimated
SHARES = 0.6  # of the seconds that are left, which one candidate's features may take
TRAINING = 0.9  # of them, which one adapter may take: the search ends with adapters
LENGTHS = (TOKENS, 128, 64)  # tokens that a model reads of a text, as the minutes allow
CHARACTERS = 5  # of a token, about
LEAST_SECONDS = 10.0
LEFT_OUT = "left out, it would take more than the minutes that are left."
OPTIONS = ("text", "label", "split_seed", "images", "test", "model")


@dataclass(frozen=True, repr=False)
class AutoTexts:
    """Result of `auto` on labelled rows: the choice, the candidates, and the run of the choice.

    sentences: the choice, and how far it is ahead of TF-IDF.  candidates: in the order in
    which they were fitted.  run: of the choice, scored on the test part once.  report: the page.
    seconds: of everything.
    """

    sentences: tuple[str, ...]
    candidates: tuple[TextCandidate, ...]
    run: LabelledRun
    report: Path
    seconds: float

    @property
    def folder(self) -> Path:
        """The folder of the run of the choice."""
        return self.run.folder

    @property
    def test(self) -> Mapping[str, float]:
        """The test scores of the choice."""
        return self.run.record["results"]["test"]

    def open(self) -> LabelledRun:
        """Open the run of the choice, see `intarsia.open_run`."""
        return open_labelled(self.run.folder)

    def table(self) -> Table:
        """Return the candidates and the choice as a table."""
        return candidates_table(self)

    def __str__(self) -> str:
        return f"{' '.join(self.sentences)}\n\n{markdown(self.table()).strip()}"

    __repr__ = __str__


def auto_texts(
    data: str | Path | None = None,
    *,
    minutes: float = 10,
    out: str | Path | None = None,
    resume: bool = False,
    methods: Sequence[str] | None = None,
    model: str | None = None,
    text: str | None = None,
    label: str | None = None,
    seed: int = 0,
    split_seed: int | None = None,
    images: int | None = None,
    test: int | None = None,
    one: bool = False,
    report: Report = announce,
) -> AutoTexts:
    """Choose features, or a blend of up to three, on held-out rows, and fit a classifier with them.

    The first candidates are converged logistic regressions on frozen features: TF-IDF of words, of
    words and characters, the mean hidden states of MiniLM and of SmolLM2 at their best layer. LoRA
    with a head is trained on a model as soon as its features are clearly ahead of TF-IDF, and on
    the others in the end, the best first, as far as the minutes reach. Five folds of the training
    rows choose a penalty, and answer for each candidate; the blend is chosen by the same answers.
    The choice alone is scored on the test part. A table of numbers gets the regression alone.
    data, text, label: as for `load_labelled`.  minutes: on the clock, of everything; a candidate
    that would take more is left out, and that is said.  out: the folder, `runs/auto-DATA` if None.
    resume: continue the search in that folder.
    methods: words as of `RowClassifier`, None = CANDIDATES; models may be folders,
    and an adapter without a model is trained on each of them.  model: models
    instead of those that packages ship, with commas.  seed: of folds and split; split_seed: of the
    split, None = seed.  images, test: numbers of rows to train on and to test.  one: choose one
    candidate, no blend.  report: gets lines of progress.
    Raises: DataError, as `load_labelled`; ConfigError for a folder in use, minutes too few, or a
    resumed search with other settings; AssetError if no candidate can be had.
    """
    began = time.perf_counter()
    least = LEAST_SECONDS / 60
    if not minutes >= least:
        fix = "Try 2."
        raise ConfigError("minutes", got=minutes, want=f"{least:.2g} or more", fix=fix)
    words = _named(methods or (), model or "")
    request = {"minutes": minutes, "text": text, "label": label, "methods": words}
    request |= {"seed": seed, "split_seed": split_seed, "images": images, "test": test, "one": one}
    folder, request = _opened_folder(data, None if out is None else Path(out), request, resume)
    for word in request["methods"]:
        check_method(word)
    names = ("data", "text", "label", "seed", "split_seed", "test")
    settings = LabelledFit(train=request["images"], **{name: request[name] for name in names})
    splits = settings.splits()  # errors of the data come before anything is written
    with alone(folder):
        if not (folder / AUTO).exists():
            write_json(folder / AUTO, request)
        search = TextSearch(splits, request, folder, began, report)
        return search.result(settings)


def _named(methods: Sequence[str], model: str) -> list[str]:
    """Return the methods that were named, models among them; [] where nothing was."""
    models = [name.strip() for name in model.split(",") if name.strip()]
    if not models:
        return [*methods]
    return [*methods, *models] if methods else [*SPARSE, *models, ADAPTER]


def searches_rows(
    data: str | Path | None, out: str | Path | None, resume: bool, options: Mapping[str, Any]
) -> bool:
    """Decide whether a call of `auto` is about labelled rows.

    options: its further options by name.
    Raises: UnknownName for an option that such a search has not.
    """
    goes_on = resume and out is not None and (Path(out) / AUTO).is_file()
    columns = (options.get("text"), options.get("label"))
    if not (goes_on or is_labelled(data, *columns)):
        return False
    for name in options:
        if name not in OPTIONS:
            raise UnknownName("option of auto for labelled rows", name, OPTIONS)
    return True


def _opened_folder(
    data: str | Path | None, out: Path | None, request: Mapping[str, Any], resume: bool
) -> tuple[Path, dict[str, Any]]:
    """Return the search's folder, and its settings: this call's, or the recorded ones."""
    if out is None:
        if data is None:
            fix = "For example: intarsia auto texts.csv"
            raise ConfigError("data", got="nothing", want="labelled rows", fix=fix)
        out = Path("runs") / f"auto-{data_name(str(data))}"
    if not resume:
        check_empty(out, data, "Go on with it (resume=True), or choose another folder.")
        return out, {**request, "data": located(str(data))}
    try:
        stored = dict(read_json(out / AUTO))
        _ = [stored[name] for name in (*request, "data")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "Begin another search in another folder."
        raise CheckpointError(
            str(out / AUTO), got=error, want="what auto wrote", fix=fix
        ) from error
    defaults = {"minutes": 10, "methods": [], "seed": 0, "one": False}
    now = {**request} | ({} if data is None else {"data": located(str(data))})
    for name, value in now.items():
        if value != defaults.get(name) and value != stored[name]:
            got, fix = f"{value} for a search with {stored[name]}", "Leave it out to go on."
            raise ConfigError(name, got=got, want="the settings it was begun with", fix=fix)
    return out, stored


class TextSearch:
    """A search: candidates are fitted one after another, as far as the minutes reach."""

    def __init__(
        self,
        splits: LabelledSplits,
        request: Mapping[str, Any],
        folder: Path,
        began: float,
        report: Report,
    ) -> None:
        """Deal the folds; nothing is fitted yet.  began: time.perf_counter() at the start."""
        self.splits, self.request, self.folder, self.report = splits, request, folder, report
        folder.mkdir(parents=True, exist_ok=True)
        train = splits.train
        self.fold = deal(train.labels, FOLDS, request["seed"])
        self.store, self.began, self.limit = Store(folder), began, 60 * request["minutes"]
        self.rows = np.flatnonzero(judged(train.labels))
        # a resumed search has used the seconds from before it stopped
        self.used = sum(row.get("seconds", 0.0) for row in self.store.rows.values())

    @property
    def seconds(self) -> float:
        """Seconds that the search has taken, those before it was stopped included."""
        return self.used + time.perf_counter() - self.began

    @property
    def words(self) -> tuple[str, ...]:
        """The methods to try, the cheapest first, adapters last."""
        if self.splits.train.columns:
            return (NUMBERS,)
        named = tuple(self.request["methods"]) or CANDIDATES
        fast = [word for word in named if split_adapter(word)[0] is None]
        adapters = [word for word in named if word not in fast]
        if any("=" not in word for word in adapters) and not set(fast) - {*SPARSE}:
            fast.append(ADAPTED)
        return (*([] if BASELINE in fast else [BASELINE]), *fast, *adapters)

    def _untried(self, fitted: Sequence[TextCandidate]) -> Iterator[str]:
        """Yield the words; an adapter without a model once for each model.

        It follows its model at once where the frozen features are clearly ahead of TF-IDF, and
        else comes after all frozen ones, those on the best features first.
        """
        free = [w for w in self.words if split_adapter(w)[0] is not None and "=" not in w]
        early = list[TextCandidate]()
        for word in self.words:
            if word in free:
                continue
            count = len(fitted)
            yield word
            if len(fitted) > count and _promises(fitted[count], fitted[:count]):
                early.append(fitted[count])
                yield from (deeper(adapter, early[-1].word) for adapter in free)
        for adapter in free:
            slow = float("inf")
            models = [c for c in fitted if c.frozen and c.word not in SPARSE and c not in early]
            for candidate in sorted(models, key=lambda c: float(c.answers.loss.mean())):
                count, adapted = len(fitted), deeper(adapter, candidate.word)
                if candidate.seconds > slow:  # a quicker model took too long
                    self.report(f"{adapted}: {LEFT_OUT}")
                    continue
                yield adapted
                slow = candidate.seconds if len(fitted) == count else slow

    def candidates(self) -> list[TextCandidate]:
        """Fit every candidate for which there is time, and report each."""
        train, fitted = self.splits.train, list[TextCandidate]()
        self.report(f"{len(train):,} {train.unit} to train on, {len(self.splits.test):,} to test.")
        for word in self._untried(fitted):
            try:
                candidate = self._candidate(word)
            except (AssetError, MissingExtra) as error:
                self.report(f"{word}: left out. {error}")
                continue
            if candidate is None:
                continue
            fitted.append(candidate)
            right = numbers.percent(float(candidate.answers.score.mean()))
            first = "First answer, " if len(fitted) == 1 else ""
            self.report(
                f"{first}{candidate.word}: {right} of held-out {train.unit}, loss "
                f"{candidate.answers.loss.mean():.3f}, {numbers.seconds(candidate.seconds)}"
            )
        return fitted

    def _candidate(self, word: str) -> TextCandidate | None:
        """Return a candidate, from the folder or fitted now; None where it would take too long."""
        key = key_of({"word": word})
        if key in self.store and (self.folder / f"{key}.safetensors").is_file():
            logits, facts = self.store.tensors(key, lambda: ({}, {}))
            return self._scored(str(facts["word"]), logits["held_out"], facts["seconds"])
        began = time.perf_counter()
        timed = word if word in (*SPARSE, NUMBERS) else self._affordable(word)
        if timed is None or (word != self.words[0] and not self._fits(word)):
            self.report(f"{word}: {LEFT_OUT}")
            return None
        member = self._fit_member(timed)
        assert member.held_out is not None
        seconds, held_out = time.perf_counter() - began, member.held_out
        facts = {"word": member.feature.word, "seconds": seconds}
        self.store.tensors(key, lambda: ({"held_out": held_out}, facts))
        self.store.add(key, facts)
        return self._scored(member.feature.word, held_out, seconds, member)

    def _scored(
        self, word: str, held_out: Tensor, seconds: float, member: Member | None = None
    ) -> TextCandidate:
        """Return a candidate of its logits of the training rows; their temperature is 1."""
        shares = held_out[self.rows].double().softmax(1)
        labels = torch.from_numpy(self.splits.train.labels[self.rows])
        answers = HeldOutAnswers.of_shares(self.rows, shares, labels)
        return TextCandidate(word, answers, seconds, member)

    def _fits(self, word: str) -> bool:
        """Decide whether TF-IDF fits into the time that is left, by a sample of the texts."""
        if word not in SPARSE:
            return True
        began, sample = time.perf_counter(), self._sample(4 * SAMPLE)
        member_rows = rows_at(self.splits.train.rows, sample)
        Tfidf(word).fit(member_rows)
        seconds = (time.perf_counter() - began) * len(self.splits.train) / len(sample)
        # each text is read three times: terms, training rows, test rows
        return 3 * seconds < SHARES * (self.limit - self.seconds)

    def _affordable(self, word: str) -> str | None:
        """Return a model's word with as many tokens as the time allows; None = none."""
        adapter, rest = split_adapter(word)
        model, layer, tokens = split_word(rest)
        if adapter is not None:
            train = self.splits.train
            seconds = training_seconds(word, train.rows, train.labels)
            self.report(f"{word}: about {numbers.seconds(seconds)} of training.")
            return word if seconds < TRAINING * (self.limit - self.seconds) else None
        depth = layer or text_model(model)[0].config.num_hidden_layers
        sample = rows_at(self.splits.train.rows, self._sample(SAMPLE))
        texts = [*self.splits.train.rows, *self.splits.test.rows]
        for length in sorted({min(tokens, length) for length in LENGTHS}, reverse=True):
            began = time.perf_counter()
            states(model, sample, (depth,), length)
            # the sample is padded to its longest text, all texts hardly are: they are sorted
            padded = len(sample) * max(_characters_read(sample, length))
            seconds = (time.perf_counter() - began) * sum(_characters_read(texts, length)) / padded
            if seconds < SHARES * (self.limit - self.seconds):
                at = "" if layer is None else f"@{layer}"
                return f"{model}{at}:{length}"
        return None

    def _sample(self, count: int) -> np.ndarray:
        """Return positions of training texts, from the shortest to the longest."""
        texts = self.splits.train.rows
        order = np.argsort([len(text) for text in texts], kind="stable")
        return order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]

    def result(self, settings: LabelledFit) -> AutoTexts:
        """Fit the candidates, choose, and score the choice on the test part."""
        if self.splits.train.columns:
            self.report(ONLY_PROBE)
        candidates = self.candidates()
        if not candidates:
            want, fix = "one that can be had", "Leave --methods out."
            raise AssetError("candidates", got="none", want=want, fix=fix)
        blend, honest = chosen(
            [c.answers for c in candidates], self.request["seed"], one=self.request["one"]
        )
        picked = [candidates[i] for i in blend.members]
        method = method_of([c.word for c in picked], blend.weights)
        sentences = sentences_of(method, candidates, honest, self.splits.train.unit)
        self.report(f"{' '.join(sentences)} Scoring it on the test part.")
        run = self._written(settings, picked, blend.weights, sentences)
        outcome = AutoTexts(sentences, tuple(candidates), run, self.folder / PAGE, self.seconds)
        write_page(outcome)
        return outcome

    def _fit_member(self, word: str) -> Member:
        """Fit a member again, of whose first fit the folder keeps the answers and no weights."""
        train = self.splits.train
        count = len(train.classes)
        return fitted_member(word, train.rows, train.labels, count, self.fold, train.columns)

    def _written(
        self,
        settings: LabelledFit,
        picked: Sequence[TextCandidate],
        shares: Sequence[float],
        sentences: Sequence[str],
    ) -> LabelledRun:
        """Write the run of the choice, or open the one that a stopped search has written."""
        place = self.folder / CHOICE
        if is_labelled_run(place):
            return open_labelled(place)
        members = [c.member or self._fit_member(c.word) for c in picked]
        classes, seed = self.splits.train.classes, self.request["seed"]
        classifier = RowClassifier.of(members, shares, classes, seed)
        record = {"asked": classifier.method, "sentences": list(sentences)}
        return write_run(settings, self.splits, classifier, self.seconds, place, **record)


def _promises(candidate: TextCandidate, before: Sequence[TextCandidate]) -> bool:
    """Decide whether a model's frozen features are clearly ahead of TF-IDF, see `order`."""
    lexical = [c for c in before if c.word in SPARSE]
    if not lexical or not candidate.frozen or candidate.word in SPARSE:
        return False
    best = min(lexical, key=lambda c: float(c.answers.loss.mean()))
    ahead, error = gap(candidate.answers, best.answers, "score")
    return ahead > error + ROUNDING


def _characters_read(texts: Rows, tokens: int) -> list[int]:
    """Return the characters of each text that a model reads, about."""
    return [min(len(text), CHARACTERS * tokens) for text in texts]
