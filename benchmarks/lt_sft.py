"""Phase B of LT-SFT next to full fine-tuning: time and memory of a training step.

    python benchmarks/lt_sft.py                      # the table on the terminal
    python benchmarks/lt_sft.py --write              # and into docs/benchmarks/lt_sft.md
    python benchmarks/lt_sft.py --reps 1 --blocks 1 --tokens 64    # a smoke test

Two block stacks with random weights, one of ViT-S and one shaped as SmolLM2-135M (its embedding and
head tied), on one thread. Steps come from `intarsia.fit`; cases are timed in one interleaved run
in an order that rotates, in CPU time, which other work on the machine disturbs less than wall time;
a second copy of the baseline shows the noise. Memory is counted, not measured: tensors that a step
holds in addition to weights and activations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from intarsia.hosts.anatomy.own_weights import weights_of
from intarsia.partitions import entries, keep_random
from intarsia.schedules import Entries
from intarsia.schedules.phases import Make
from intarsia.train import Classes, Recipe, Training, plain
from intarsia.train.learner import Learner
from intarsia.train.optimisers import adamw
from intarsia.train.precision import training_mode
from intarsia.train.processes import accelerator
from intarsia.train.record import machine, versions

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "lt_sft.md"
DENSITIES, TARGET, CLASSES = (0.02, 0.3), 1.05, 100
FULL, AGAIN, MASKED = "full fine-tuning", "full fine-tuning again", "masked gradients, 2 %"


class Smol(nn.Module):
    """A causal language model with its last token's logits as answer.  (B, T) -> (B, vocab)."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=4096, hidden_size=576, intermediate_size=1536, num_hidden_layers=blocks,
            num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        )  # fmt: skip
        self.model = LlamaForCausalLM(config)

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids).logits[:, -1]


def vit(args: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    model = timm.create_model("vit_small_patch16_224", num_classes=CLASSES, depth=args.blocks)
    return model, torch.randn(max(1, args.tokens // 197), 3, 224, 224)


def smol(args: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    return Smol(args.blocks), torch.randint(
        4096, (max(1, args.tokens // 256), min(256, args.tokens))
    )


STACKS = {"ViT-S/16 blocks": vit, "SmolLM2 blocks": smol}


def masked(index: dict[nn.Parameter, Tensor], make: Make) -> Make:
    """Full moments, and gradients times a mask before every step."""
    masks = {}
    for parameter, places in index.items():
        masks[parameter] = torch.zeros(parameter.numel()).index_fill_(0, places, 1.0)

    def made(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        optimizer = make(model, lr, 0.0)  # decay would move all

        def mask(*_: Any) -> None:
            for parameter, keep in masks.items():
                assert parameter.grad is not None
                parameter.grad.mul_(keep.view_as(parameter))

        optimizer.register_step_pre_hook(mask)
        return optimizer

    return made


def stepper(
    stack: str, case: str, args: argparse.Namespace, stay: ExitStack
) -> tuple[Callable[[], object], int]:
    """One training step of a case, and the bytes of gradients and moments it keeps."""
    torch.manual_seed(0)
    model, x = STACKS[stack](args)
    training_mode(model)
    make: Make = adamw
    own, heads = weights_of(model, ("*",))
    total = sum(p.numel() for p in own.values())
    head = sum(p.numel() for p in heads.values())
    moved = total
    if case not in (FULL, AGAIN):
        density = DENSITIES[0] if case == MASKED else float(case.split()[-2]) / 100
        moved = round(density * total)
        shapes = {n: tuple(p.shape) for n, p in own.items()}
        part = keep_random(shapes, moved, generator=torch.Generator().manual_seed(0))
        index = {own[n]: places for n, places in entries(part).items()}
        if case == MASKED:
            make, moved = masked(index, make), total
        else:
            make = stay.enter_context(Entries(index).training()).optimizer(make)
    model.requires_grad_(False)
    for parameter in (*own.values(), *heads.values()):
        parameter.requires_grad_(True)
    recipe = Recipe(optimizer=make)
    ranks, task = accelerator((), None, None), Classes(CLASSES)
    learner = Learner(model, model, plain, Training(), recipe, ranks, task)
    batch = x, torch.arange(len(x)) % CLASSES
    return lambda: learner.step([batch], 0, 10_000), 3 * 4 * (moved + head)


def measure(stack: str, args: argparse.Namespace) -> list[str]:
    """Rows of the table: CPU ms a step, the ratio to the baseline in the same repetition, MB."""
    names = [FULL, AGAIN, *(f"phase B, {d * 100:g} %" for d in DENSITIES), MASKED]
    taken: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stay:
        calls = {name: stepper(stack, name, args, stay) for name in names}
        for repeat in range(args.reps + 1):
            turn = repeat % len(names)
            for name in (*names[turn:], *names[:turn]):
                start = time.process_time()
                calls[name][0]()
                if repeat:  # the first warms up
                    taken[name].append((time.process_time() - start) * 1e3)
    lines = []
    for name in names:
        ratios = [a / b for a, b in zip(taken[name], taken[FULL], strict=True)]
        ratio, target = statistics.median(ratios), name.startswith("phase B")
        verdict = ("holds" if ratio <= TARGET else "fails") if target else ""
        limit = f"<= {TARGET}" if target else ""
        lines.append(
            f"| {stack} | {name} | {statistics.median(taken[name]):.0f} | {ratio:.3f} "
            f"| {min(ratios):.2f} ... {max(ratios):.2f} | {limit} {verdict} "
            f"| {calls[name][1] / 2**20:.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reps", type=int, default=11)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    head = "| stack | case | CPU ms | ratio | range | target | gradients and moments, MB |"
    lines = [head, "|" + "---|" * 7]
    for stack in STACKS:
        lines += measure(stack, args)
    print(*lines, sep="\n")
    if args.write:
        found, now = machine(), datetime.now(UTC).strftime("%Y-%m-%d")
        PAGE.write_text(
            "# LT-SFT's second phase compared with full fine-tuning\n\n"
            f"{args.blocks} blocks, {args.tokens} tokens a step, one thread, float32, AdamW; "
            f"medians of {args.reps} interleaved repetitions of CPU\ntime. The target is {TARGET} "
            "of full fine-tuning's step.\nThe gathered form keeps gradients and moments of the "
            "chosen weights only; it is\ntested against masking gradients.\n\n"
            f"`python benchmarks/lt_sft.py --write` on {now}; {found['processor']}, "
            f"{found['cores']} cores, torch {versions()['torch']}.\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
