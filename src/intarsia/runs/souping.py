"""Finished runs that share one mask, averaged into one more run folder (arXiv:2306.16788)."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..core.errors import ConfigError, DataError
from ..core.files import reserved, writing
from ..fitting import write_trained
from ..mixtures.sparse_soup import State, check_alike, distance, greedy, mixed, pairs
from ..train.batch_norms import has_batch_norms, recalibrate
from ..train.evaluation import device_of
from ..train.folder import write_results
from ..train.order import to_device
from ..train.processes import device_named
from ..train.record import shared_samples
from ..train.scores import Scores
from . import experiment as experiments
from . import language
from .execute import held
from .opening import open_single
from .runs import PictureRun, pictures_to_score, score
from .writing import TextRun

Report = Callable[[str], None]
BN_SHARE, BATCH = 0.2, 64
LINE = 11  # places on the way from one candidate to another
PARTS = ("train", "val", "test")
ADDED = ("steps", "seconds", "cpu_seconds")  # of a run's results, what a soup has cost in all


def soup_runs(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    weights: Sequence[float] | None = None,
    by_val: bool = False,
    line: bool = False,
    device: str | None = None,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """Write the average of the weights of finished runs (a "model soup") as a run.

    out: folder of the new one, to evaluate, predict, report and export. weights: of the average,
    None = equal. by_val: take runs in, from the best on, as long as the score on the val part does
    not fall. line: score 11 places on the way between the two runs that are farthest apart, on val,
    for the report. device: see `device_named`. Batch norms are counted again on a fifth of the
    training part. Returns the contents of run.json.
    Raises: as `intarsia.soup` and `open_run` do; ConfigError for runs of another pretrained model
    or other data, for one run named twice, and for weights with by_val; DataError without a val
    part of its own.
    """
    names = [str(folder) for folder in folders]
    if by_val and weights is not None:
        fix = "Leave one of them out."
        raise ConfigError("soup", got="weights and greedy", want="one of them", fix=fix)
    counts = Counter(Path(folder).resolve() for folder in folders)
    if twice := [str(folder) for folder, count in counts.items() if count > 1]:
        want, fix = "runs that differ", "Name each run once; --weights gives one a larger share."
        raise ConfigError("soup", got=f"{twice[0]} more than once", want=want, fix=fix)
    out = Path(out)
    with reserved(out):
        runs = [open_single(folder, report=report) for folder in folders]
        for run in runs:
            run.model.to(device_named(device))
        # an average keeps the zeros only if all candidates share one mask
        check_alike([run.model.state_dict() for run in runs], names)
        _check_same(runs, names)
        kitchen = Kitchen(runs[0], report)
        # copies, since the first run's model is the one that the averages are put into
        states = [_copy(run.model.state_dict()) for run in runs]
        members, state = list(range(len(states))), {}
        if by_val or line:
            kitchen.check_val()
        if by_val:
            # GreedySoup: in the order of their scores, each is kept if the average gets no worse
            picked = greedy(states, kitchen.value, names)
            members, state = sorted(picked.indices), picked.state
        else:
            # UniformSoup, or the weights given
            state = mixed(states, weights, names)
        soup = {
            "candidates": names,
            "chosen": [names[i] for i in members],
            "weights": list(weights or [1 / len(members)] * len(members)),
            "by": "val" if by_val else None,
            "distance": distance(states, state),
            "pairs": (apart := pairs(states)),
            "line": kitchen.line(states, apart) if line else None,
        }
        kitchen.put(state)
        return _written(out, runs, kitchen, soup)


def _written(
    out: Path, runs: Sequence[PictureRun | TextRun], kitchen: Kitchen, soup: dict[str, Any]
) -> dict[str, Any]:
    """Write the averaged model as a run folder of its own, and return its record."""
    first = runs[0]
    record = copy.deepcopy(dict(first.record))
    results = [run.record["results"] for run in runs]
    scores = kitchen.scores()
    selection = dict(record["results"]["selection"]) | {"rule": soup["by"] or "last"}
    record["results"] = {
        **{part: part_scores.scores() for part, part_scores in scores.items()},
        "selection": selection,
        # a soup has cost what all its candidates have cost
        **{name: round(sum(r[name] for r in results), 3) for name in ADDED},
        "peak_bytes": record["results"].get("peak_bytes"),
    }
    summary = record["record"]
    summary["label"] = f"soup of {len(soup['chosen'])}, {summary['label']}"
    summary["soup"] = soup
    split = "test" if "test" in scores else "val"
    part_scores, evaluated = scores.get(split), kitchen.part(split)
    # all of it or nothing: a half one could be neither opened nor written again
    with writing(out, refuse_loss=True) as scratch:
        scratch.mkdir()
        experiments.save(first.experiment, scratch)
        write_results(scratch, first.model, record, split, part_scores, write_trained, evaluated)
    return record


class Kitchen:
    """A run's model and its data, to try averages in."""

    def __init__(self, run: PictureRun | TextRun, report: Report) -> None:
        """Take a run; averages are loaded into its model.  report: gets lines of progress."""
        self.run, self.report = run, report
        self.norms = has_batch_norms(run.model)
        self.sets: dict[str, Any] = {}

    def part(self, name: str) -> Any:
        """Return a part of the run's data as the model sees it; None where there is none."""
        if name not in self.sets:
            self.sets |= self._parts()
        return self.sets[name]

    def _parts(self) -> Mapping[str, Any]:
        """Return the run's data by part: "train", "val" and "test", each None if there is none."""
        run = self.run
        if isinstance(run, TextRun):
            texts = language.texts_of(run.experiment, run.tokenizer, self.report)
            return {"train": texts.train, "val": texts.val, "test": texts.test}
        # a run may have been trained without a validation part
        has = run.record["record"]["data"]["parts"]
        sets = {n: pictures_to_score(run, None, n, self.report) for n in PARTS if n in has}
        return dict.fromkeys(PARTS) | sets

    def _as_read(self, name: str) -> Any:
        """Return a part of the data as the model reads it: pictures at its size, or texts."""
        images = self.part(name)
        return held(images, self.run.inputs) if isinstance(self.run, PictureRun) else images

    def check_val(self) -> None:
        """Check that there is a validation part of other samples.  Raises: DataError."""
        val = self.part("val")
        # candidates have learned training pictures: scores on them choose nothing
        shared = 0 if val is None else shared_samples(self._as_read("train"), self._as_read("val"))
        if val is None or shared:
            got = "none" if val is None else f"{shared} samples of train in it"
            fix = "Train with a val part, or make a uniform soup; test chooses nothing."
            raise DataError("val", got=got, want="samples of its own to choose by", fix=fix)

    def put(self, state: State) -> None:
        """Load averaged weights into the model; compute the statistics of its batch norms again.

        state: parameter and buffer names -> tensors.
        """
        model = self.run.model
        model.load_state_dict(state)
        if self.norms:
            rows = self._as_read("train")
            draw = torch.Generator().manual_seed(self.run.experiment.training.seed)
            loader = DataLoader(rows, BATCH, shuffle=True, generator=draw)
            # means and variances of an average are not the average of means and variances
            count = math.ceil(BN_SHARE * len(loader))
            batches = itertools.islice(loader, count)
            recalibrate(model, (to_device(x, device_of(model)) for x, _ in batches))
            model.eval()

    def value(self, state: State) -> float:
        """Return the score of tensors on val, more is better."""
        self.put(state)
        return self._score("val").best

    def line(self, states: Sequence[State], apart: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the validation scores of (1 - t) a + t b, for the two runs farthest apart.

        apart: the distance of each pair, with their indices "a" and "b". t takes LINE values from 0
        to 1.
        """
        # where a barrier lies between two candidates, it is seen best between the farthest
        widest = max(apart, key=lambda pair: pair["distance"])
        ends = [states[int(widest[end])] for end in ("a", "b")]
        points: list[tuple[float, float]] = []
        for place in range(LINE):
            share = place / (LINE - 1)
            points.append((share, self.value(mixed(ends, [1 - share, share]))))
            self.report(f"line {place + 1}/{LINE}: {points[-1][1]:.4f}")
        return {"a": widest["a"], "b": widest["b"], "points": points}

    def scores(self) -> dict[str, Scores]:
        """Score the model as it is, on val and test."""
        parts = [name for name in ("val", "test") if self.part(name) is not None]
        return {name: self._score(name) for name in parts}

    def _score(self, name: str) -> Scores:
        """Score the model as it is on a part of the run's data, "val" or "test"."""
        if isinstance(self.run, TextRun):
            return language.scores(self.run.model, self.part(name), self.run.experiment)
        return score(self.run, self.part(name))


def _check_same(runs: Sequence[PictureRun | TextRun], names: Sequence[str]) -> None:
    """Check that candidates have one pretrained model and the same parts of the data."""
    first = runs[0].record["record"]
    for run, name in zip(runs[1:], names[1:], strict=True):
        second, two = run.record["record"], f"candidates {names[0]} and {name}"
        if first["trunk"] != second["trunk"]:
            fix = "Train all from one pruned model."
            raise ConfigError(two, got="other pretrained weights", want="the same", fix=fix)
        parts = [
            {n: p.get("sha256") for n, p in record["data"].get("parts", {}).items()}
            for record in (first, second)
        ]
        if parts[0] != parts[1]:
            fix = "Give all runs one --split-seed: test samples of one are trained on by another."
            raise ConfigError(two, got="other parts of data", want="the same", fix=fix)


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in state.items()}
