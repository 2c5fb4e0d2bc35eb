"""What pruning costs compared with bare forwards, and sparse training with a fixed mask.

    python benchmarks/sparsify.py                        # the tables on the terminal
    python benchmarks/sparsify.py --write                # and into docs/benchmarks/sparsify.md
    python benchmarks/sparsify.py --rows 8 --length 32 --reps 1     # a smoke test

SmolLM2-135M with its weights. A pass has to compute every block twice: what its layers see, and
what the edited block gives to the next one. The lower bound is two forwards of the body, and
the ratio to it has the target. Seconds of pruning that no token causes (a choice among 106 million
weights) weigh less the more tokens there are. Peak memory is a fresh process's, above its memory
with the model loaded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from frame import Spent, interleaved, judged, markdown, parser, peak_over, publish, read
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia.data.language_models import language_model
from intarsia.schedules import FixedMask, RigL
from intarsia.schedules.masked import Masking
from intarsia.sparse.prune.pruner import stops_of

BAR_WANDA, BAR_STEP, BAR_BYTES, DENSITY = 1.3, 1.05, 1.0, 0.25
WIDE, AGAIN, RIGL = "fixed mask", "fixed mask again", "RigL, between updates"
HEAD = ["ratio", "measured", "target", "verdict"]
ABOUT = "SmolLM2-135M, float32; steps are of two of its blocks, 256 tokens, AdamW."
QUIET: Callable[[str], None] = lambda _: None  # noqa: E731


def calibration(args: argparse.Namespace) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(49_152, (args.rows, args.length), generator=draw)


def smollm2() -> Any:
    model: Any = language_model("smollm2", progress=QUIET)[0].eval()
    model.config.use_cache = False
    return model


def wanda(args: argparse.Namespace) -> dict[str, Spent]:
    """A walk, and two forwards of the body; from the second on, the walk prunes a pruned body."""
    model, ids = smollm2(), calibration(args)
    del model.model.layers[args.blocks :]

    @torch.no_grad()
    def forwards() -> None:
        for batch in (*ids.split(8), *ids.split(8)):
            model.model(batch)

    def walk() -> None:
        intarsia.sparsify(model, intarsia.Wanda(0.5), list(ids.split(8)))

    return interleaved({"walk": walk, "forwards": forwards}, args.reps)


def sparsegpt(args: argparse.Namespace) -> Spent:
    """One block, its forwards among it: all but the first are cut off."""
    model, ids = smollm2(), calibration(args)
    del model.model.layers[1:]

    def walk() -> None:
        intarsia.sparsify(model, intarsia.SparseGPT(0.5), list(ids.split(8)))

    return interleaved({"walk": walk}, 1)["walk"]


def stepper(case: str, args: argparse.Namespace) -> tuple[Callable[[], None], float]:
    """A step of two of SmolLM2's blocks; and the optimiser's bytes over density x dense + indices.

    RigL's masks are not due at any of the timed steps.
    """
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2}
    heads: Any = {"num_attention_heads": 9, "num_key_value_heads": 3}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=4096, **sizes, **heads))
    model.model.embed_tokens.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    store = "vectors" if case == "vectors" else "dense"
    first: Any = RigL(density=DENSITY, layers=("layers.*",))
    Masking(first, model, 0)  # zeros for the fixed mask
    fixed: Any = FixedMask(layers=("layers.*",), store=store)
    rigl: Any = RigL(density=DENSITY, every=10**6, layers=("layers.*",))
    masking = Masking(rigl if case == RIGL else fixed, model, 0)
    make = masking.masked.optimizer(lambda m, lr, _: torch.optim.AdamW(m.parameters(), lr))
    optimizer = make(model, 1e-4, 0.0)
    ids, count = torch.randint(4096, (4, 64)), [0]

    def step() -> None:
        count[0] += 1
        masking.before(count[0], 10**9)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        masking.replaces(count[0], 10**9)
        optimizer.step()

    with masking.masked.training():
        step()
    states = sum(
        value.nbytes
        for weight, state in optimizer.state.items()
        if weight.dim() != 1 or store == "vectors"
        for value in state.values()
        if isinstance(value, Tensor) and value.dim()
    )
    dense = sum(2 * w.nbytes for w in masking.weights.values())
    norms = sum(2 * p.nbytes for p in model.parameters() if p.requires_grad and p.dim() == 1)
    entries = masking.masked.entries
    indices = 0 if entries is None else sum(i.nbytes for i in entries.index.values())
    return step, (states + indices) / (masking.masked.density() * dense + indices + norms)


def memory(on_disk: bool, args: argparse.Namespace) -> float:
    """MB by which a walk raises the peak of a fresh process."""
    words = ["--peak", "disk" if on_disk else "memory", "--threads", str(args.threads)]
    found = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, check=True
    )
    return float(found.stdout.split()[-1])


def peak(where: str) -> None:
    """Few tokens, so that weights outweigh all that is computed of them."""
    model = smollm2()
    for parameter in model.parameters():  # off the memory map of its file
        parameter.data = parameter.data.clone()
    ids = torch.randint(49_152, (8, 64), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "walk" if where == "disk" else None
        walk = lambda: intarsia.sparsify(model, intarsia.Wanda(0.5), list(ids.split(4)), out=out)  # noqa: E731
        print(peak_over(walk, 1) / 1e6)


def block_bytes() -> tuple[float, float]:
    """MB of all layers that are pruned, and of one block of them."""
    stops = stops_of(smollm2(), ())
    each = [sum(m.stored.nbytes for m in stop.layers.values()) for stop in stops]
    return sum(each) / 1e6, each[0] / 1e6


def walked(args: argparse.Namespace) -> tuple[list[list[str]], str]:
    """Rows of the walk with Wanda, and a sentence with its seconds."""
    cost, tokens = wanda(args), args.rows * args.length
    over, under = cost["walk"], cost["forwards"]
    of = "" if args.blocks >= 30 else f" through {args.blocks} of 30 blocks"
    what = f"Wanda over two forwards of {tokens:,} tokens{of}, CPU"
    rows = [
        [what, *judged(over.cpu / under.cpu, BAR_WANDA)],
        ["the same, wall", *judged(over.wall / under.wall, None)],
    ]
    told = (
        f"Wanda took {over.cpu:.1f} CPU seconds for {tokens:,} tokens{of}, two forwards "
        f"{under.cpu:.1f}."
    )
    return rows, told


def main() -> None:
    made = parser(__doc__, threads=1, reps=1)
    made.add_argument("--rows", type=int, default=16)
    made.add_argument("--length", type=int, default=256)
    made.add_argument("--blocks", type=int, default=30, help="of the walk with Wanda")
    made.add_argument("--wanda", action="store_true", help="the walk with Wanda alone")
    made.add_argument("--peak", choices=("disk", "memory"))
    args = read(made)
    if args.peak:
        return peak(args.peak)
    rows, told = walked(args)
    if args.wanda:
        return publish("Pruning", ABOUT, [*markdown(HEAD, rows), "", told], args)
    one = sparsegpt(args)
    cases = {name: stepper(name, args) for name in (WIDE, AGAIN, RIGL)}
    steps = interleaved({n: step for n, (step, _) in cases.items()}, 9)
    rows += [
        ["RigL's step over a fixed mask's", *judged(steps[RIGL].cpu / steps[WIDE].cpu, BAR_STEP)],
        ["a fixed mask's again", *judged(steps[AGAIN].cpu / steps[WIDE].cpu, None)],
        [
            f"bytes of AdamW, store='vectors', density {DENSITY}, over density x dense + indices",
            *judged(stepper("vectors", args)[1], BAR_BYTES),
        ],
    ]
    body = markdown(HEAD, rows)
    everything, block = block_bytes()
    body += [
        "",
        f"{told} SparseGPT took {one.cpu:.1f} CPU seconds for one block, its forwards included; "
        "[a page of its own](sparsegpt_peer.md) compares it with llm-compressor's.",
        "",
        f"Peak memory of a walk above the loaded model, 8 x 64 tokens, one block being {block:.0f} "
        f"MB and all pruned layers {everything:.0f} MB: with `out=` {memory(True, args):.0f} MB, "
        f"without {memory(False, args):.0f} MB.",
    ]
    publish("Pruning and sparse training", ABOUT, body, args)


if __name__ == "__main__":
    main()
