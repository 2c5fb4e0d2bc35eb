"""S2FT against LoRA of its size, each at its own best rate: forgetting and learning."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from intarsia.adapters import Lora
from intarsia.core.change import Change
from intarsia.fitting import fit
from intarsia.folders.verbs import apply
from intarsia.hosts.anatomy.blocks import base_of
from intarsia.hosts.anatomy.prefix import Tail
from intarsia.hosts.attach.adapt import Adapt
from intarsia.methods import S2ft
from intarsia.runs.pool import Arm
from intarsia.train import Training

from ..kit import ArmRate, Effect, Rates, Report, Result, Study
from ..kit.arms import class_scores, each, result_of, threads
from ..kit.stored import StoredResults
from ..materials import tails, task_tracks
from ..materials.low_rank import by_peft
from ..materials.tails import TailTokens

stored = StoredResults(__file__)

FIRST = 9  # of twelve blocks; the three from there on are adapted
SOURCE, TARGETS = "fashion-mnist", ("elpv", "photo-rotation", "prompt-kind")
IMAGES, EPOCHS, BATCH, EVERY = 640, 3, 16, 20  # 120 steps
# the old task is read by a probe with a fixed head: forgetting is of features
PROBED, TEST = 1000, 250  # pictures of the source's probe; test pictures of either task
# for each block 15,360 weights: 40 of 1,536 channels, rank 8 of fc2, rank 4 of both linear maps
CHANNELS, RANK, BOTH = 40, 8, 4
METHODS: Mapping[str, Change] = {
    task_tracks.OURS: Adapt(S2ft(down=CHANNELS / 1536), targets=("fc2",)),
    task_tracks.LORA: Adapt(Lora(RANK), targets=("fc2",)),
    # by PEFT's own code, in both linear maps, which is where it has no slices
    "PiSSA": by_peft("PiSSA", BOTH, ("mlp_linear",)),
    "DoRA": by_peft("DoRA", BOTH, ("mlp_linear",)),
}
ALL, PAIR = tuple(METHODS), (task_tracks.OURS, task_tracks.LORA)


def grid(names: Sequence[str]) -> Rates:
    """Return the learning rates that each of some methods chooses from.  names: of METHODS."""
    return Rates(task_tracks.GRID, dict.fromkeys(names, EPOCHS * IMAGES // BATCH))


def pictures(task: str) -> TailTokens:
    """Return a task's pictures as inputs of the adapted blocks, to draw from and to test on."""
    return tails.pictures(task, FIRST, TEST)


@torch.no_grad()
def features(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the features that the classification head reads, (n, d) float32.

    model: the last blocks of a ViT-S; tokens: (n, T, d), their inputs.
    """
    trunk: Any = base_of(model)
    dtype = trunk.norm.weight.dtype
    with torch.autocast("cpu", torch.bfloat16):
        parts = [
            trunk.fc_norm(trunk.pool(trunk.norm(trunk.blocks(x.to(dtype)))))
            for x in tokens.split(125)
        ]
    return torch.cat(parts).float()


Probe = Callable[[nn.Module], float]


@lru_cache
def probe() -> Probe:
    """Return a function that scores how well a model's features still solve the old task, 0 to 1.

    A logistic regression is fitted on the pretrained features of the old task's pictures and then
    stays as it is: a lower accuracy means that training on a new task has moved the features.
    """
    source = pictures(SOURCE)
    x, y = (t[:PROBED] for t in source.pool.tensors)
    pretrained = tails.tail(source.classes, FIRST, 0).eval()
    read_features = features(pretrained, x).numpy()
    mean, spread = read_features.mean(0), read_features.std(0) + 1e-6
    # fitted once on the pretrained features, and read again on what training makes of them
    lines: Any = LogisticRegression(C=0.1, max_iter=500).fit(
        (read_features - mean) / spread, y.numpy()
    )
    xs, ys = source.test.tensors

    def accuracy(model: nn.Module) -> float:
        """Return the probe's accuracy on the old task's test pictures."""
        return float(lines.score((features(model, xs).numpy() - mean) / spread, ys.numpy()))

    return accuracy


def fitted(arm: str, task: str, rate: float, seed: int, **options: Any) -> nn.Module:
    """Train the last blocks of a ViT-S on one new task with one method; return them.

    arm: key of METHODS; task: one of TARGETS; rate: learning rate, the same in all steps; options:
    of `fit`.
    """
    target = pictures(task)
    model = apply(tails.tail(target.classes, FIRST, seed), METHODS[arm], seed=seed)
    training = Training(EPOCHS, BATCH, rate, 0.0, precision="bf16", seed=seed)
    rows = target.few(IMAGES, seed)
    # a constant rate, or the end of a course would hide what came before
    fit(model, rows, training=training, lr_factor=lambda *_: 1.0, trackers=(), **options)
    return model


def inputs(arm: str, task: str, seed: int) -> dict[str, Any]:
    """Return what a run's stored result depends on.

    arm: key of METHODS; task: one of TARGETS; seed: of the training.
    """
    return {
        "arm": arm,
        "method": repr(METHODS[arm]),
        "task": task,
        "seed": seed,
        "blocks": FIRST,
        "sizes": [IMAGES, EPOCHS, BATCH, TEST],
    }


def tried(arm: str, task: str, rate: float) -> float:
    """Return a method's accuracy on validation pictures of a task at a learning rate, 0 to 1.

    arm: key of METHODS; task: one of TARGETS; rate: learning rate. Stored and read if it was
    computed before.
    """

    def run() -> float:
        with threads(1):
            model = fitted(arm, task, rate, task_tracks.TUNED)
            return class_scores(model, pictures(task).val).accuracy

    return stored("s2ft", inputs(arm, task, task_tracks.TUNED) | {"rate": rate}, run)


@lru_cache
def rates(names: tuple[str, ...]) -> tuple[ArmRate, ...]:
    """Return the rate at which each arm is best on validation pictures, the mean over the tasks.

    names: of METHODS; all of them try the same rates.
    """
    return grid(names).choose(
        lambda arm, lr: statistics.mean(tried(arm, task, lr) for task in TARGETS)
    )


def train(arm: str, lr: float, task: str, seed: int) -> task_tracks.Track:
    """Train a method on a new task; return both tasks' accuracy every 20 steps.

    The new task's accuracy is on its test pictures, the old task's is read by a fixed probe.
    arm: key of METHODS; lr: its own learning rate; task: one of TARGETS. Stored and read if it was
    computed before.
    """

    def run() -> dict[str, list[float]]:
        """Train on the new task; return its accuracy and the old one's every 20 steps."""
        track, old = task_tracks.Track(), probe()
        x, y = pictures(task).test.tensors

        def look(model: nn.Module, step: int, steps: int) -> None:
            """Record accuracy on the new and the old task, at every EVERY-th of `steps` steps."""
            # the whole curve: new task and old, every 20 steps
            if step % EVERY == 0 or step == steps:
                model.eval()
                head = cast(Tail, base_of(model)).head
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    predicted = head(features(model, x)).argmax(-1)
                track.target.append(float((predicted == y).float().mean()))
                track.source.append(old(model))
                model.train()

        model = fitted(arm, task, lr, seed, schedule=look)
        steps = EPOCHS * -(-min(IMAGES, len(pictures(task).pool)) // BATCH)
        look(model, steps, steps)
        return vars(track)

    extra = {"rate": lr, "source": SOURCE, "every": EVERY, "probed": PROBED}
    return task_tracks.Track(**stored("s2ft", inputs(arm, task, seed) | extra, run))


def tracks(
    names: tuple[str, ...], seeds: Sequence[int], report: Report
) -> Mapping[tuple[str, str, int], task_tracks.Track]:
    """Train methods on every new task from every seed; return the curves of accuracy.

    names: of METHODS. The keys are (method, task, seed).
    """
    return each(
        [Arm(rate.arm, rate) for rate in rates(names)],
        seeds,
        lambda rate, task, seed: train(rate.arm, rate.rate, task, seed),
        report,
        tasks=TARGETS,
        describe=lambda track: f"target {track.target[-1]:.3f}, source {track.source[-1]:.3f}",
    ).results


def retention(seeds: Sequence[int], report: Report) -> Result:
    """Return how much more of an old task S2FT keeps than LoRA, at equal accuracy on a new one.

    Both adapt the last blocks of a ViT-S. Each is read where it first reaches the highest accuracy
    on the new task that both reach; the old task's accuracy there is compared, as a share from 0 to
    1. One value for each seed, the mean over three new tasks.
    """
    by_run = tracks(PAIR, seeds, report)
    # the old task's accuracy before any training
    start = statistics.mean(
        by_run[task_tracks.LORA, t, s].source[0] for t in TARGETS for s in seeds
    )
    # (matched target accuracy, source accuracy of S2FT, source accuracy of LoRA)
    matches = {
        (task, seed): task_tracks.matched(*(by_run[name, task, seed] for name in PAIR))
        for task in TARGETS
        for seed in seeds
    }
    values = [statistics.mean(matches[t, s][1] - matches[t, s][2] for t in TARGETS) for s in seeds]
    columns = ("matched target accuracy", "source kept, S2FT", "source kept, LoRA")
    rows = [
        {"task": task}
        | {c: _mean(matches[task, s][i] for s in seeds) for i, c in enumerate(columns)}
        for task in TARGETS
    ]
    note = (
        f"ViT-S at 56 px, its last {12 - FIRST} blocks; the source is {SOURCE}: a probe of the "
        f"pretrained features ({start:.3f} right at first) is read again on what training has made "
        f"of them. The rate is constant, {IMAGES} pictures x {EPOCHS} epochs looked at every "
        f"{EVERY} steps; two arms are read where they first reach the highest target accuracy that "
        "both reach. Both are in the second linear map of each MLP, with as many parameters."
    )
    return result_of(values, rows, note, rates=rates(PAIR))


def _mean(values: Any) -> str:
    return f"{statistics.mean(values):.3f}"


STUDIES = (
    Study(
        "s2ft",
        system="S2FT",
        arxiv="2412.06289",
        question="Does S2FT forget less than LoRA at equal accuracy on a new task?",
        effect=Effect(
            "+4.6 % and +1.3 % over LoRA, +11.5 % over full training out of domain",
            "LLaMA of 7 billion weights, common sense and arithmetic",
            "abstract",
            sign=1,
        ),
        work="ViT-S, three new tasks after Fashion-MNIST",
        baseline="LoRA of the same size, where both first reach the same target accuracy",
        unit="of accuracy kept, where .01 is a point",
        differs="Forgetting; the paper's figures are accuracy in its domain and out of it.",
        measure=retention,
        seeds=tuple(range(8)),
        minutes=14,
    ),
)
