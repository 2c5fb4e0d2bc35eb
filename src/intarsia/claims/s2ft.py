"""S2FT against LoRA of its size: what it forgets, what it learns, what its backward keeps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia

from ..adapters import Lora
from ..core import Claim, Method, Result
from ..core.claim import Report
from ..experiments.pool import Arm
from ..methods import S2ft
from . import mix6
from .study import each, result_of

SOURCE = "identity"
TARGETS = tuple(task for task in mix6.TASKS if task != SOURCE)
STEPS, EVERY, LR = 400, 20, 5e-3
CHANNELS, RANK = 12, 5  # for each block: 6,912 weights, and 6,720 of LoRA
ARMS: tuple[Arm[Method], ...] = (
    Arm("S2FT", S2ft(down=CHANNELS / mix6.HIDDEN)),
    Arm("LoRA", Lora(RANK)),
)
NAMES = tuple(arm.name for arm in ARMS)
SMOL: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 4,
    "vocab_size": 512,
}


@dataclass
class Track:
    """Accuracy on the new task and on the old one, while the new one is trained."""

    target: list[float] = field(default_factory=list)
    source: list[float] = field(default_factory=list)

    def kept(self, level: float) -> float:
        """Source accuracy when the target's first was at least `level`."""
        return next(s for t, s in zip(self.target, self.source, strict=True) if t >= level)


def train(method: Method, task: str, seed: int) -> Track:
    """One arm trained on one task, looked at every few steps."""
    model = intarsia.adapt(mix6.backbone(), method, targets=["fc2"], head=None, seed=seed)
    track = Track()

    def look(model: nn.Module, step: int, steps: int) -> None:
        if step % EVERY == 0 or step == steps:
            model.eval()
            track.target.append(1 - mix6.error(model, [task]))
            track.source.append(1 - mix6.error(model, [SOURCE]))
            model.train()

    intarsia.fit(
        model,
        mix6.data("train", [task]),
        epochs=mix6.epochs(STEPS, 1),
        lr=LR,
        seed=seed,
        batch_size=mix6.BATCH,
        trackers=(),
        schedule=look,
        lr_factor=lambda *_: 1.0,
    )
    look(model, STEPS, STEPS)
    return track


def tracks(seeds: Sequence[int], report: Report) -> Mapping[tuple[str, str, int], Track]:
    """Every arm on every task and seed."""
    return each(
        ARMS,
        seeds,
        train,
        report,
        tasks=TARGETS,
        said=lambda track: f"target {track.target[-1]:.3f}, source {track.source[-1]:.3f}",
    ).results


def matched(found: Mapping[tuple[str, str, int], Track], task: str, seed: int) -> Mapping[str, Any]:
    """The highest target accuracy that both arms reach, and what each kept of the source there."""
    level = min(max(found[arm, task, seed].target) for arm in NAMES)
    return {"level": level} | {arm: found[arm, task, seed].kept(level) for arm in NAMES}


def retention(seeds: Sequence[int], report: Report) -> Result:
    """Share of tasks in which S2FT keeps at least LoRA's source accuracy, one value per seed."""
    found = tracks(seeds, report)
    at = {(task, seed): matched(found, task, seed) for task in TARGETS for seed in seeds}
    values = tuple(
        statistics.mean(at[task, seed]["S2FT"] >= at[task, seed]["LoRA"] for task in TARGETS)
        for seed in seeds
    )
    rows = [
        {"task": task, "matched target accuracy": _mean(at[task, s]["level"] for s in seeds)}
        | {f"source kept, {arm}": _mean(at[task, s][arm] for s in seeds) for arm in NAMES}
        | {
            f"final target, {arm}": _mean(found[arm, task, s].target[-1] for s in seeds)
            for arm in NAMES
        }
        for task in TARGETS
    ]
    note = (
        f"One value per seed: the share of {len(TARGETS)} tasks. The source is {SOURCE}, the "
        f"learning rate constant, {STEPS} steps looked at every {EVERY}; both arms are read where "
        "they first reach the highest target accuracy that both reach. Second linear of each MLP."
    )
    return result_of(values, rows, note)


def in_domain(seeds: Sequence[int], report: Report) -> Result:
    """Final target accuracy of S2FT minus LoRA's, the mean over the tasks, one value per seed."""
    found = tracks(seeds, report)
    end = {key: track.target[-1] for key, track in found.items()}
    values = tuple(
        statistics.mean(end["S2FT", t, s] - end["LoRA", t, s] for t in TARGETS) for s in seeds
    )
    rows = [
        {"task": t} | {arm: _mean(end[arm, t, s] for s in seeds) for arm in NAMES} for t in TARGETS
    ]
    return result_of(values, rows)


def _mean(values: Any) -> str:
    return f"{statistics.mean(values):.3f}"


def kept_bytes(call: Callable[[], object], own: Sequence[Tensor]) -> int:
    """Bytes of the storages that a call keeps for its backward, the given tensors left out."""
    left_out = {t.untyped_storage().data_ptr() for t in own}
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t  # held, so that no address comes twice
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in left_out)


def smol(seed: int) -> LlamaForCausalLM:
    """Four layers in the shapes of SmolLM2-135M, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**SMOL, tie_word_embeddings=True))


def arms_of_memory(seed: int) -> dict[str, nn.Module]:
    """The same layers in three ways of training the down projections."""
    full = smol(seed)
    for name, parameter in full.named_parameters():
        parameter.requires_grad_("down_proj" in name)
    down = ["down_proj"]
    return {
        "full": full,
        "S2FT": intarsia.adapt(smol(seed), S2ft(down=0.03), head=None, seed=seed),
        "LoRA": intarsia.adapt(smol(seed), Lora(16), targets=down, head=None, seed=seed),
    }


def activations(model: nn.Module, tokens: Tensor) -> tuple[int, int]:
    """Bytes kept by the down projections, and by the whole forward."""
    layers = {n: m for n, m in model.named_modules() if n.endswith("down_proj")}
    seen: dict[str, Tensor] = {}

    def see(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[name] = args[0]

    hooks = [m.register_forward_pre_hook(partial(see, n)) for n, m in layers.items()]
    own = [*model.parameters(), *model.buffers(), tokens]
    whole = kept_bytes(lambda: model(input_ids=tokens, labels=tokens), own)
    for hook in hooks:
        hook.remove()
    inputs = {n: x.detach().clone().requires_grad_() for n, x in seen.items()}
    return sum(kept_bytes(partial(layers[n], x), own) for n, x in inputs.items()), whole


def memory(seeds: Sequence[int], report: Report) -> Result:
    """What S2FT's down projections keep for the backward over what full fine-tuning's do."""
    values: list[float] = []
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        tokens = torch.randint(
            0, SMOL["vocab_size"], (2, 256), generator=torch.Generator().manual_seed(seed)
        )
        found = {arm: activations(m, tokens) for arm, m in arms_of_memory(seed).items()}
        values.append(found["S2FT"][0] / found["full"][0])
        rows += [
            {
                "seed": seed,
                "down projections": arm,
                "kept by them, KiB": f"{own / 1024:.0f}",
                "kept by the whole forward, MiB": f"{whole / 2**20:.1f}",
            }
            for arm, (own, whole) in found.items()
        ]
        report(f"seed {seed}: {values[-1]:.4f}")
    width, count = SMOL["intermediate_size"], SMOL["num_hidden_layers"]
    share = int(0.03 * width * count + 0.5) / (width * count)
    note = (
        f"Counted: {share:.4f}, the share of channels; measured with saved_tensors_hooks, whole "
        "storages, weights left out; 512 tokens, float32, four layers in SmolLM2-135M's shapes. "
        "Rows (up, value) keep their whole input, as full fine-tuning does."
    )
    return result_of(values, rows, note)


PAPER = "(arXiv:2412.06289, abstract)"

claim = partial(Claim, sense=">=", minutes=4)

CLAIMS = (
    claim(
        "s2ft",
        sentence="S2FT forgets less than LoRA: at the same accuracy on a new task it keeps at "
        f"least LoRA's accuracy on the old one, in two thirds of the tasks {PAPER}.",
        baseline="LoRA of the same size, where both first reach the same target accuracy",
        bar=2 / 3,
        run=retention,
    ),
    claim(
        "s2ft-in-domain",
        sentence="S2FT learns a new task about as well as LoRA of its size: at most 4 points worse "
        f"{PAPER}.",
        baseline="LoRA of the same size; final target accuracy, S2FT minus LoRA",
        bar=-0.04,
        run=in_domain,
    ),
    claim(
        "s2ft-memory",
        sentence="What S2FT's trained linear layers keep for the backward is at most a tenth of "
        f"what full fine-tuning's keep {PAPER}.",
        baseline="full fine-tuning of the same layers; bytes of saved activations",
        bar=0.1,
        sense="<=",
        run=memory,
        minutes=0.5,
    ),
)
