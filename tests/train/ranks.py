"""One rank of a data-parallel run; started by test_parallel.py, the same script as one process."""

from __future__ import annotations

import atexit
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import learning
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny import host, pictures, stir
from torch import nn

from intarsia.adapters import Bottleneck
from intarsia.core.errors import ConfigError
from intarsia.fitting import fit
from intarsia.methods import Mosa
from intarsia.mixtures.split_optimizer import split_adamw
from intarsia.schedules import RigL
from intarsia.train import features, one_backward, plain, two_pass
from intarsia.train.precision import learned_state

CASES: dict[str, dict[str, Any]] = {
    "sample": {"draw": "sample", "objective": plain},
    "batch": {"draw": "batch", "objective": two_pass},
    "backward": {"draw": "sample", "objective": one_backward},
    "parts": {"draw": "sample", "objective": plain, "accumulate": 2, "clip": 0.1},
    "lazy": {
        "draw": "batch", "objective": plain,
        "optimizer": partial(split_adamw, update="lazy"),
    },
    "rigl": {
        "draw": "sample", "objective": plain, "clip": 0.1,
        "schedule": RigL(density=0.5, every=2),
    },
}  # fmt: skip


TASKS = ("tokens", "items", "labels", "pairs")  # of `learning`, by their names there


class Stop(Exception):
    """Leaves a run in the middle, in every rank at once."""


STOPS: list[int] = []


def stop(_model: nn.Module, step: int, _steps: int) -> None:
    if step in STOPS:
        raise Stop


def train(draw: str, out: Path | None = None, **options: Any) -> tuple[nn.Module, Any]:
    model = host(method=Mosa(over=Bottleneck(4, norm="none", scale=1.0), draw=draw))
    stir(model)
    run = fit(
        # the last batch of 4 is shared out too, and so are 21 images of val
        model, pictures(44), pictures(21, seed=1), epochs=2, batch_size=8, lr=1e-2, out=out,
        trackers=(), **options,
    )  # fmt: skip
    return model, run


def train_task(case: learning.Case) -> dict[str, torch.Tensor]:
    """Weights, scores on val and the losses of a run, whose rows may differ in length."""
    model = case.build()
    run = fit(
        model, case.data(40, 1), case.data(13, 2), task=case.task, epochs=2, batch_size=8, lr=0.02,
        trackers=(),
    )  # fmt: skip
    assert run.val is not None
    losses = torch.tensor([line["loss"] for line in run.history], dtype=torch.float64)
    scores = torch.tensor([*run.val.scores().values()], dtype=torch.float64)
    weights = {n: p.detach().contiguous() for n, p in model.named_parameters()}
    return {**weights, "losses": losses, "scores": scores}


def group() -> str:
    return "open" if torch.distributed.is_initialized() else "closed"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.pop("OMP_NUM_THREADS", None)  # nobody has said how many they should be
    # runs last, after all that fit registers
    atexit.register(lambda: (folder / f"left-{world}-{rank}").write_text(group()))
    rank = int(os.environ.get("RANK", "0"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    for name, options in CASES.items():
        out = folder / f"out-{name}-{world}"
        model, run = train(out=out, **options)
        scores = torch.tensor([line["loss"] for line in run.history], dtype=torch.float64)
        assert run.val is not None
        states, _ = features(model, pictures(21, seed=1), batch_size=8)
        learned = learned_state(model)
        result = {**learned, "logits": run.val.logits, "losses": scores, "features": states}
        save_file({n: t.contiguous() for n, t in result.items()}, folder / f"{name}-{world}-{rank}")
    if world > 1:
        backend: Any = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        (folder / f"timeout-{world}-{rank}").write_text(str(backend.options._timeout))
        (folder / f"threads-{world}-{rank}").write_text(str(torch.get_num_threads()))
    for name in TASKS:
        save_file(train_task(learning.CASES[name]), folder / f"task-{name}-{world}-{rank}")
    try:
        train(**CASES["sample"], out=folder / f"out-sample-{world}")
    except ConfigError as error:
        (folder / f"refused-{world}-{rank}").write_text(str(error))
    again = {"schedule": stop, "checkpoint_steps": 2, "out": folder / f"out-stop-{world}"}
    STOPS.append(5)
    try:
        train(**CASES["backward"], **again)
    except Stop:
        STOPS.clear()
    model, _ = train(**CASES["backward"], **again, resume=True)
    state = {n: t.contiguous() for n, t in learned_state(model).items()}
    save_file(state, folder / f"stop-{world}-{rank}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
