"""The steps of a run: data in order, a learner's steps, scores, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from ..core.errors import CheckpointError, ConfigError
from ..core.modes import evaluating, modes_kept
from ..core.seeds import mix
from ..gating import load as statistics
from ..processes.exchange import answered
from ..processes.parallelism import WholeModel
from ..schedules import LayerSchedule, SparseSchedule
from ..schedules.phases import Settle
from . import checkpoint, resume
from .batch_norms import recalibrate
from .evaluation import evaluate
from .folder import METRICS, RUN, STATE, Log
from .forward import wrapped
from .interrupt import Interrupted, stop_on_signals
from .learner import Learner
from .objectives import Objective, Staged, logits_of
from .one_pass import OnePass
from .order import Batch, Key, Order, Reader, labels_of, read, size_of, to_device
from .precision import autocast, compute_dtype, training_mode
from .processes import on_main
from .progress import CSV, Bar, FirstSteps, track, tracking
from .randomness import generator_states, global_kept, seed_all, set_generator_states
from .scores import Metrics, Scores
from .settings import Recipe, Running, Training
from .straggler import Busy, backward
from .tasks import Task

Sets = tuple[Dataset[Any], Dataset[Any] | None, Dataset[Any] | None]  # train, val, test


@dataclass(frozen=True)
class Job:
    """The order for a run: the model, its sets, the loss, and the settings."""

    model: nn.Module
    sets: Sets
    task: Task
    objective: Objective | Staged | OnePass
    training: Training
    recipe: Recipe
    running: Running
    settle: Settle | None = None
    solve: Callable[[Loop], Mapping[str, Any]] | None = None  # fits the weights instead of steps


class Loop:
    """A run from its first step, or from its checkpoint, to its last."""

    def __init__(self, job: Job) -> None:
        self.job, self.model, self.task = job, job.model, job.task
        self.train_set, self.val, self.test = job.sets
        self.training, self.recipe, self.how = job.training, job.recipe, job.running
        self.at = resume.Position()
        self.log = Log(None)
        self.val_scores: tuple[int, Scores] | None = None  # (step, scores) of the latest validation
        self.solution: Mapping[str, Any] = {}  # what `solve` chose
        self.warned = False
        self.side: int | None = None  # side of the pictures in pixels, on a CPU
        self.forward = 0.0  # seconds of one forward
        self.fix_weights: Callable[[], None] = lambda: None  # see `LayerSchedule`

    @contextmanager
    def running(self, identity: dict[str, Any]) -> Iterator[None]:
        """Open everything that belongs to a run in progress: learner, checkpoint, log, bar.

        identity: settings and data that a checkpoint must have in common with the run to be resumed
          by it. Entered inside of `shared_out`.
        """
        ranks, job = self.ranks, self.job
        shares = ranks.num_processes * job.training.accumulate
        size, seed = job.training.batch_size, job.training.seed
        # the order is as in one process; each takes its share of every batch
        # which samples are in which batch, as a function of the seed
        self.order = Order(size_of(self.train_set), size, seed, shares)
        if self.task.whole and shares > 1:
            raise ConfigError(
                f"a batch of {type(self.task).__name__}",
                got=f"{shares} parts of it (processes times accumulate)",
                want="all of it at once: its loss compares the rows",
                fix="Use accumulate=1 in one process, or Pairs(group=...).",
            )
        self.reader = Reader(self.train_set, seed, self.task)
        self.steps = self.training.epochs * self.order.steps
        self.at.identity = identity
        main = ranks.is_main_process
        with ExitStack() as stack:
            seat = self.how.seat
            # signals first: all that follows is undone in the reverse order if one comes
            self.stop = seat.stop if seat else stack.enter_context(stop_on_signals())
            stack.enter_context(global_kept())
            stack.enter_context(modes_kept(self.model))
            training_mode(self.model)
            schedule = job.recipe.schedule
            if isinstance(schedule, LayerSchedule):
                self.fix_weights = stack.enter_context(schedule.training(self.model))
            self.task = self._fitted_task()
            forward = stack.enter_context(wrapped(self.model, self.how, ranks, self.busy.meter))
            self.learner = Learner(
                self.model, forward, job.objective, job.training, job.recipe, ranks, self.task
            )
            self.learner.parts, self.learner.meter = self.parts, self.busy.meter
            if seat is not None:
                self.learner.backward = seat.backward
            elif self.busy.measured:
                self.learner.backward = partial(backward, meter=self.busy.meter)
            self.learner.remember(size_of(self.train_set))
            if (masking := self.learner.masking) is not None:
                stack.enter_context(masking.masked.training())
            # global draws differ between processes; routers' draws are the first process's
            seed_all(mix(seed, ranks.process_index))
            statistics.forget(self.model)
            set_generator_states(self.model, on_main(ranks, lambda: generator_states(self.model)))
            # everything that a checkpoint restores exists by now
            if self.how.resume:
                self._restore()
            out = self.how.out
            self.log = Log(out / METRICS if out is not None and main else None)
            self.log.open(self.at.metrics_bytes)
            stack.callback(self.log.close)
            csv_in = out if CSV in (self.how.trackers or ()) else None
            stack.enter_context(tracking(ranks, self.at.step, csv_in))
            guess = 2 * self.forward * self.training.batch_size * (self.steps - self.at.step)
            start = FirstSteps(self.at.step, self.at.seconds, self.side, guess)
            bar = Bar(self.steps, self.training.epochs, show=main, start=start)
            self.bar = stack.enter_context(bar.shown())
            yield

    @contextmanager
    def shared_out(self, ranks: Accelerator) -> Iterator[WholeModel]:
        """Distribute the model's experts over the processes in the context, if that is set.

        Yields this process's part of the model.
        Raises: TrainingError inside, where another process does not answer.
        """
        self.ranks, self.busy = ranks, Busy(ranks)
        guard = answered(lambda: f"after step {self.at.step}")
        with guard, self._distributed() as self.parts:
            yield self.parts

    def _distributed(self) -> AbstractContextManager[WholeModel]:
        parallel, recipe = self.how.parallel, self.job.recipe
        # settings that need all weights in one process
        conflicts = {
            type(recipe.schedule).__name__: isinstance(
                recipe.schedule, SparseSchedule | LayerSchedule
            ),
            "ema": recipe.ema is not None,
            "runs that step together": self.how.seat is not None,
        }
        if parallel is None:
            return nullcontext(WholeModel())
        if any(conflicts.values()):
            got = next(name for name, present in conflicts.items() if present)
            fix = "Leave one of both out."
            raise ConfigError("parallel", got=got, want="a run of its own weights", fix=fix)
        gather = self.how.gather
        return parallel.attached(self.model, meter=self.busy.meter, gather=gather)

    def _fitted_task(self) -> Task:
        """Return the task, fitted to the model's output for one sample; check all labels."""
        device, dtype = self.ranks.device, compute_dtype(self.model)
        x, y = self.reader[(0, (0,))]
        if isinstance(x, torch.Tensor) and x.dim() == 4 and device.type == "cpu":
            self.side = x.shape[-1]
        with torch.no_grad(), evaluating(self.model), autocast(device, dtype):
            started = time.perf_counter()
            # one forward, also the guess of how long the run takes
            output = logits_of(self.model, to_device(x, device))
            self.forward = time.perf_counter() - started
        task = self.task.seen(output, (x, y))
        for dataset in (self.train_set, self.val, self.test):
            # a label that the head has no output for is refused now, not in the last batch
            labels = labels_of(dataset) if dataset is not None and task.labelled else None
            if labels is not None and len(labels):
                task.check(torch.as_tensor(labels))
        return task

    def _restore(self) -> None:
        """Restore the run folder's newest checkpoint, if there is one."""
        assert self.how.out is not None
        path = checkpoint.latest(self.how.out / STATE)
        state = on_main(self.ranks, lambda: path and checkpoint.load(path))
        if not state and (self.how.out / RUN).exists():
            subject, fix = f"run {self.how.out}", "It is done; train anew in another folder."
            got = "a finished one without its state/"
            raise CheckpointError(subject, got=got, want="a checkpoint to go on from", fix=fix)
        if state:
            resume.restore(self.model, self.learner, self.at, state, self.ranks)

    def train(self, evaluate_every: int) -> None:
        """Take all remaining steps, with validation scores and checkpoints where they are due.

        A job that has a way of its own to fit the weights (`solve`) takes no steps.

        evaluate_every: epochs between two validations, 0 for none.
        Raises: Interrupted on a request to stop, after a checkpoint.
        """
        if self.job.solve is not None:
            self.steps = 0
            wall, cpu = self._clocks()
            self.solution = self.job.solve(self)
            wall_now, cpu_now = self._clocks()
            self.at.seconds, self.at.cpu_seconds = wall_now - wall, cpu_now - cpu
            return
        last_save, saved = time.monotonic(), self.at.step
        batches = self._batches()
        while True:
            self._score(evaluate_every)
            stop, due = self._stop_and_save(time.monotonic() - last_save)
            if (stop or due) and self.at.step > saved:
                self.save()
                last_save, saved = time.monotonic(), self.at.step
            if stop:
                raise self._interrupted()
            steps = self._steps_in_time()
            if self.at.step >= steps or self._is_stale(evaluate_every):
                break
            self._step(batches, steps)
        self.save()

    def _steps_in_time(self) -> int:
        """Return the number of steps: all of them, or as many as fit into the time that is set."""
        limit, done = self.how.most_seconds, self.at.step
        if limit is None or done == 0:
            return self.steps
        # one clock decides for all processes
        guess = on_main(self.ranks, lambda: math.floor(done * limit / (self.at.seconds or 1e-9)))
        steps = min(self.steps, max(done, guess))
        self.bar.plan(steps, -(-steps // self.order.steps))
        return steps

    def _is_stale(self, evaluate_every: int) -> bool:
        """Return True if the validation score has not improved for as long as the recipe allows."""
        best, patience = self.at.best, self.recipe.patience
        if best is None or patience is None or self.at.step % self.order.steps:
            return False
        # patience counts scores on val, which are `evaluate_every` epochs apart
        return self.epochs - best.epoch >= patience * evaluate_every

    @property
    def epochs(self) -> int:
        """The number of epochs begun so far."""
        return -(-self.at.step // self.order.steps)

    def _batches(self) -> Iterator[tuple[list[Batch], list[tuple[int, ...]]]]:
        """Yield, for each remaining step, this process's parts of the batch and their positions."""
        parts, rank = self.training.accumulate, self.ranks.process_index
        world = self.ranks.num_processes
        # a resumed run begins in the middle of an epoch; the seed gives its order
        epoch, first = divmod(self.at.step, self.order.steps)
        while epoch < self.training.epochs:
            keys: list[Key] = [
                (epoch, self.order.part(batch, part * world + rank))
                for batch in self.order.epoch(epoch, first)
                for part in range(parts)
            ]
            stream = read(self.reader, keys, self.how.workers)
            for first in range(0, len(keys), parts):
                positions = [key[1] for key in keys[first : first + parts]]
                yield [next(stream) for _ in range(parts)], positions
            epoch, first = epoch + 1, 0

    def _step(
        self, batches: Iterator[tuple[list[Batch], list[tuple[int, ...]]]], steps: int
    ) -> None:
        """Train one step, then log it; at an epoch's end also the loads of the routers."""
        clock, cpu = self._clocks()
        with self.busy.step():
            parts, positions = next(batches)
            values = self.learner.step(parts, self.at.step, steps, positions)
        self.at.step += 1
        best = self.at.best
        # experts may change their process, and the best epoch's copies go with them
        self.learner.reshard(self.at.step, None if best is None else best.learned)
        wall, cores = self._clocks()
        self.at.seconds += wall - clock
        self.at.cpu_seconds += cores - cpu
        if ended := self.at.step % self.order.steps == 0:
            self.learner.end_epoch()
            values |= self.busy.end_epoch()
        if self.learner.routed and ended:
            self.at.loads = statistics.loads(self.model)
            values |= statistics.summary(self.at.loads)
            self.warned = self.warned or statistics.warn_of_collapse(self.at.loads)
            statistics.forget(self.model)
        self._log_values("train", self.epochs, values)

    def _clocks(self) -> tuple[float, float]:
        """Return wall-clock and CPU seconds; for runs that step together this run's share."""
        seat = self.how.seat
        return seat.now() if seat else (time.perf_counter(), time.process_time())

    def _score(self, evaluate_every: int) -> None:
        """Score the validation part if that is due, and remember the best epoch."""
        epoch, rest = divmod(self.at.step, self.order.steps)
        due = (
            not rest
            and evaluate_every
            and epoch % evaluate_every == 0
            and self.at.step > self.at.scored
        )
        if self.val is None or not due:
            return
        average = self.learner.average
        with average.in_place() if average else nullcontext():
            try:
                scores = self._evaluate(self.val)
            # the step is done and unscored: the resumed run scores it first
            except Interrupted:
                return
            self.at.scored = self.at.step
            self.val_scores = self.at.step, scores
            self._log_values("val", epoch, scores.scores())
            best, value = self.at.best, scores.best
            # while a schedule still prunes, the model is denser than asked for: no best epoch yet
            masks = self.learner.masking
            early = masks is not None and masks.pruning(self.at.step, self._steps_in_time())
            selects = self.recipe.select == "val" and not early
            if selects and (best is None or value > best.value):
                self.at.best = resume.Score(epoch, value, resume.learned_copy(self.model))

    def _evaluate(self, dataset: Dataset[Any]) -> Scores:
        # without gradients small outputs fit in larger batches
        size = max(1, self.training.batch_size // self.ranks.num_processes)
        size = max(size, 32) if self.task.small_outputs else size
        options: dict[str, Any] = {"batch_size": size, "workers": self.how.workers}
        return evaluate(self.model, dataset, task=self.task, watch=self._watch, **options)

    def _watch(self) -> None:
        """Raise Interrupted on a request to stop; several processes stop after a step only."""
        if self.stop and self.ranks.num_processes == 1:
            raise self._interrupted()

    def _log_values(self, split: str, epoch: int, values: dict[str, float]) -> None:
        """Write values to the metrics file, the progress bar and the trackers."""
        line = {"step": self.at.step, "epoch": epoch, "split": split, **values}
        line["seconds"] = round(self.at.seconds, 4)
        if self.ranks.is_main_process:
            self.log.write(line)
            self.bar.step(self.at.step, line)
        track(self.ranks, line)

    def _stop_and_save(self, since: float) -> tuple[bool, bool]:
        """Return two flags, the same in every process: stop now, and write a checkpoint now."""
        running = self.how
        due = (
            running.checkpoint_steps is not None and self.at.step % running.checkpoint_steps == 0
        ) or (running.checkpoint_seconds is not None and since >= running.checkpoint_seconds)
        flags = torch.tensor([bool(self.stop), due], dtype=torch.float32, device=self.ranks.device)
        if self.ranks.num_processes > 1:
            # one process's signal stops all; clocks differ, so that saving is decided together
            flags = self.ranks.reduce(flags, "sum")
        stop, save = (bool(flag) for flag in flags.tolist())  # pyright: ignore
        return stop, save and running.out is not None

    def recalibrate(self, share: float) -> None:
        """Compute the statistics of batch norms again.  share: of the training data to use."""
        count = math.ceil(share * self.order.steps)
        batches = (self.reader[(0, batch)][0] for batch in islice(self.order.epoch(0), count))
        device, dtype = self.ranks.device, compute_dtype(self.model)
        with autocast(device, dtype):
            recalibrate(self.model, (to_device(x, device) for x in batches))

    def score(self) -> float:
        """Return the model's score on the validation set, more is better."""
        assert self.val is not None
        return self._evaluate(self.val).best

    def save(self) -> None:
        """Write a checkpoint, if there is a folder."""
        out = self.how.out
        if out is None:
            return
        # a run that is resumed from here cuts later lines off the log
        self.at.metrics_bytes = self.log.size()
        state = resume.capture(self.model, self.learner, self.at, self.ranks)
        if self.parts.shared:
            checkpoint.save_together(out / STATE, state)
        else:
            on_main(self.ranks, lambda: checkpoint.save(out / STATE, state))

    def _interrupted(self) -> Interrupted:
        """Return the error of a run that was stopped; its text says how to continue the run."""
        out = self.how.out
        progress = f"stopped after step {self.at.step} of {self.steps}"
        if out is None:
            return Interrupted(f"{progress}; nothing was saved, since no out=... was given")
        return Interrupted(f"{progress}; go on with fit(..., out={str(out)!r}, resume=True)")

    def finish(self) -> dict[str, Scores]:
        """Put the chosen weights into the model, and score it on the validation and test parts.

        The weights come from the best epoch, the average, or the last step. Returns the
        scores by part.
        """
        if self.at.best is not None:
            resume.put_back(self.model, self.at.best.learned)
        elif self.learner.average is not None:
            self.learner.average.keep()
        self.fix_weights()
        # what a phase does to the model at its end makes older scores void
        if self.job.settle is not None:
            self.val_scores = None
            self.job.settle.run(self)
        # the last validation scored these very weights
        fresh = self.at.best is None and self.val_scores and self.val_scores[0] == self.at.step
        scores: dict[str, Scores] = {}
        if self.val_scores and fresh:
            scores["val"] = self.val_scores[1]
        elif self.val is not None:
            scores["val"] = self._evaluate(self.val)
        if self.test is not None:
            test_scores, val = self._evaluate(self.test), scores.get("val")
            if isinstance(test_scores, Metrics) and isinstance(val, Metrics):
                test_scores = test_scores.tempered(val)
            scores["test"] = test_scores
            self._log_values("test", self.epochs, scores["test"].scores())
        return scores
