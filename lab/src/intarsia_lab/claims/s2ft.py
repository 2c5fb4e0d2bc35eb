"""S2FT against LoRA of its size, each at its own best rate: what it forgets, what it learns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, cast

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from intarsia.adapters import Lora
from intarsia.core.change import Change
from intarsia.experiments.pool import Arm
from intarsia.fitting import fit
from intarsia.hosts import apply
from intarsia.hosts.anatomy.blocks import base_of
from intarsia.hosts.anatomy.prefix import Tail
from intarsia.hosts.attach.adapt import Adapt
from intarsia.methods import S2ft
from intarsia.train import Training

from ..kit import Control, Report, Result, Study, above, numbers
from ..kit.arms import class_scores, each, result_of, threads
from ..kit.stored import StoredResults
from ..materials import tails, task_tracks
from ..materials.low_rank import by_peft
from ..materials.tails import TailTokens

stored = StoredResults(__file__)

FIRST = 9  # of twelve blocks; the three from there on are adapted
SOURCE, TARGETS = "fashion-mnist", ("elpv", "photo-rotation", "prompt-kind")
IMAGES, EPOCHS, BATCH, EVERY = 640, 3, 16, 20  # 120 steps
PROBED, TEST = 1000, 250  # pictures of the source's probe; test pictures of either task
# for each block 15,360 weights: 40 of 1,536 channels, rank 8 of fc2, rank 4 of both linear maps
CHANNELS, RANK, BOTH = 40, 8, 4
METHODS: Mapping[str, Change] = {
    task_tracks.OURS: Adapt(S2ft(down=CHANNELS / 1536), targets=("fc2",)),
    task_tracks.LORA: Adapt(Lora(RANK), targets=("fc2",)),
    "PiSSA": by_peft("PiSSA", BOTH, ("mlp_linear",)),
    "DoRA": by_peft("DoRA", BOTH, ("mlp_linear",)),
}
ARMS = tuple(Arm(name, name) for name in METHODS)


def pictures(task: str) -> TailTokens:
    return tails.pictures(task, FIRST, TEST)


@torch.no_grad()
def features(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the features that a head reads, (n, d) float32.  tokens: (n, T, d)."""
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
    """Return the function that scores a model's features of the source by the pretrained probe."""
    source = pictures(SOURCE)
    x, y = (t[:PROBED] for t in source.pool.tensors)
    pretrained = tails.tail(source.classes, FIRST, 0).eval()
    read_features = features(pretrained, x).numpy()
    mean, spread = read_features.mean(0), read_features.std(0) + 1e-6
    lines: Any = LogisticRegression(C=0.1, max_iter=500).fit(
        (read_features - mean) / spread, y.numpy()
    )
    xs, ys = source.test.tensors

    def accuracy(model: nn.Module) -> float:
        return float(lines.score((features(model, xs).numpy() - mean) / spread, ys.numpy()))

    return accuracy


def fitted(arm: str, task: str, rate: float, seed: int, **options: Any) -> nn.Module:
    """Return the blocks with one arm's cells, trained on one task at a constant rate."""
    target = pictures(task)
    model = apply(tails.tail(target.classes, FIRST, seed), METHODS[arm], seed=seed)
    training = Training(EPOCHS, BATCH, rate, 0.0, precision="bf16", seed=seed)
    rows = target.few(IMAGES, seed)
    fit(model, rows, training=training, lr_factor=lambda *_: 1.0, trackers=(), **options)
    return model


def inputs(arm: str, task: str, seed: int) -> dict[str, Any]:
    """Return the inputs that a run's result depends on."""
    return {
        "arm": arm,
        "method": repr(METHODS[arm]),
        "task": task,
        "seed": seed,
        "blocks": FIRST,
        "sizes": [IMAGES, EPOCHS, BATCH, TEST],
    }


def tried(arm: str, task: str, rate: float) -> float:
    """Return accuracy on validation pictures."""

    def run() -> float:
        with threads(1):
            model = fitted(arm, task, rate, task_tracks.TUNED)
            return class_scores(model, pictures(task).val).accuracy

    return stored("s2ft", inputs(arm, task, task_tracks.TUNED) | {"rate": rate}, run)


@lru_cache
def rate(arm: str) -> float:
    """Return the rate at which an arm is best on validation pictures, the mean over the tasks."""
    return max(
        task_tracks.RATES, key=lambda lr: statistics.mean(tried(arm, task, lr) for task in TARGETS)
    )


def train(arm: str, task: str, seed: int) -> task_tracks.Track:
    """Train one arm on one task, with scores every few steps."""
    lr = rate(arm)

    def run() -> dict[str, list[float]]:
        track, old = task_tracks.Track(), probe()
        x, y = pictures(task).test.tensors

        def look(model: nn.Module, step: int, steps: int) -> None:
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
    seeds: Sequence[int], report: Report
) -> Mapping[tuple[str, str, int], task_tracks.Track]:
    """Return every arm on every task and seed."""
    return each(
        ARMS,
        seeds,
        train,
        report,
        tasks=TARGETS,
        describe=lambda track: f"target {track.target[-1]:.3f}, source {track.source[-1]:.3f}",
    ).results


def matched(
    tracks_by_arm: Mapping[tuple[str, str, int], task_tracks.Track],
    task: str,
    seed: int,
    rival: str = task_tracks.LORA,
) -> tuple[float, float, float]:
    """Return the highest target accuracy that both reach; what ours and the other kept there."""
    both = [tracks_by_arm[arm, task, seed] for arm in (task_tracks.OURS, rival)]
    level = min(max(track.target) for track in both)
    return level, both[0].kept(level), both[1].kept(level)


def retention(seeds: Sequence[int], report: Report) -> Result:
    """Share of tasks in which S2FT keeps at least LoRA's source accuracy, one value per seed."""
    tracks_by_arm = tracks(seeds, report)
    start = statistics.mean(
        tracks_by_arm[task_tracks.LORA, t, s].source[0] for t in TARGETS for s in seeds
    )
    matches = {
        (t, s, o): matched(tracks_by_arm, t, s, o) for t in TARGETS for s in seeds for o in METHODS
    }
    values = [
        statistics.mean(
            matches[t, s, task_tracks.LORA][1] >= matches[t, s, task_tracks.LORA][2]
            for t in TARGETS
        )
        for s in seeds
    ]
    rows = [
        {
            "task": t,
            "against": rival,
            "matched target accuracy": _mean(matches[t, s, rival][0] for s in seeds),
        }
        | {
            "source kept, S2FT": _mean(matches[t, s, rival][1] for s in seeds),
            "source kept, the other": _mean(matches[t, s, rival][2] for s in seeds),
        }
        for t in TARGETS
        for rival in METHODS
        if rival != task_tracks.OURS
    ]
    note = (
        f"One value per seed: the share of {len(TARGETS)} tasks. ViT-S at 56 px, its last "
        f"{12 - FIRST} blocks; the source is {SOURCE}: a probe of the pretrained features "
        f"({start:.3f} right at first) is read again on what training has made of them. Each arm "
        f"has the rate of {task_tracks.RATES} that is best on validation pictures: "
        f"{', '.join(f'{arm} {rate(arm):g}' for arm in METHODS)}; the rate is constant, "
        f"{IMAGES} pictures x {EPOCHS} epochs looked at every {EVERY} steps; two arms are read "
        "where they first reach the highest target accuracy that both reach. S2FT and LoRA are in "
        "the second linear map of each MLP, PEFT's PiSSA and DoRA in both, with as many parameters "
        "(DoRA: its magnitudes more)."
    )
    return result_of(values, rows, note)


def in_domain(seeds: Sequence[int], report: Report) -> Result:
    """Final target accuracy of S2FT minus LoRA's, the mean over the tasks, one value per seed."""
    tracks_by_arm = tracks(seeds, report)
    end = {key: track.target[-1] for key, track in tracks_by_arm.items()}
    values = tuple(
        statistics.mean(end[task_tracks.OURS, t, s] - end[task_tracks.LORA, t, s] for t in TARGETS)
        for s in seeds
    )
    rows = [
        {"task": t} | {arm: _mean(end[arm, t, s] for s in seeds) for arm in METHODS}
        for t in TARGETS
    ]
    note = "The runs of `s2ft`; accuracy on test pictures at the end of training."
    return result_of(values, rows, note)


def _mean(values: Any) -> str:
    return f"{statistics.mean(values):.3f}"


PAPER = "(arXiv:2412.06289, abstract)"

study = partial(
    Study,
    sense=">=",
    control=Control(
        "Every task is learned: the turn of a picture above chance, 25 %, by 10 points.",
        lambda rows: numbers(rows, "matched target accuracy", {"task": "photo-rotation"})[0] > 0.35,
    ),
    minutes=15,
)

CLAIMS = (
    study(
        "s2ft",
        system="S2FT",
        work="ViT-S, three new tasks after Fashion-MNIST",
        sentence="S2FT forgets less than LoRA, each at its own best rate: in a pretrained ViT-S, "
        "at the same accuracy on a new task it keeps at least LoRA's accuracy on another one, in "
        f"two thirds of the tasks {PAPER}.",
        baseline="LoRA of the same size, where both first reach the same target accuracy",
        target=2 / 3,
        measure=retention,
    ),
    study(
        "s2ft-in-domain",
        sentence="S2FT learns a new task about as well as LoRA of its size: at most 4 points worse "
        f"{PAPER}.",
        baseline="LoRA of the same size; final target accuracy, S2FT minus LoRA",
        target=-0.04,
        control=above(
            "LoRA sees which way a picture is turned: above chance, 25 %, by 10 points.",
            "LoRA",
            0.35,
            {"task": "photo-rotation"},
        ),
        measure=in_domain,
    ),
)
