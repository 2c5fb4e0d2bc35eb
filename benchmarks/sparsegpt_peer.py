"""SparseGPT on one block of SmolLM2 next to llm-compressor's, in an environment of its own.

    python benchmarks/sparsegpt_peer.py                          # makes the environment, 1 minute
    python benchmarks/sparsegpt_peer.py --environment FOLDER     # keeps it there, or takes it
    python benchmarks/sparsegpt_peer.py --write                  # into docs/benchmarks

Both are given the same weights and the same inputs of the block's seven linear layers, batch by
batch: they add up second moments, choose half of the weights and make up for the others. The error
is ||(W' - W) X|| / ||W X|| over all inputs. llm-compressor pins another transformers, so that it
cannot live next to ours: its environment has its own packages first, and this one's behind them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from functools import partial
from pathlib import Path
from typing import Any

import torch
from frame import markdown, parser, publish, read
from safetensors.torch import load_file, save_file
from torch import Tensor

from intarsia.data.language_models import language_model
from intarsia.data.texts import load_texts
from intarsia.partitions import choose_and_compensate
from intarsia.scores import Statistics
from intarsia.sparse.prune.pruner import output_error, stops_of
from intarsia.sparse.prune.rows import batched
from intarsia.sparse.prune.walk import inputs_of

PACKAGES = (
    "llmcompressor==0.14.0.1", "compressed-tensors==0.19.0", "transformers==5.17.0",
    "huggingface_hub==1.33.0", "loguru", "httpx", "httpcore",
)  # fmt: skip
DENSITY, BLOCK, DAMP = 0.5, 128, 0.01
PEER = """
import json, sys, time, torch
from safetensors.torch import load_file, save_file
from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import (
    accumulate_hessian, make_empty_hessian, sparsify_weight)
inputs, outputs, reps, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
given = load_file(inputs)
names = sorted(n[2:] for n in given if n.startswith("w:"))
x = {n: [given[f"x:{n}:{i}"] for i in range(int(given["batches"]))] for n in names}
spent = []
with torch.no_grad():
    for rep in range(reps + 1):
        start, found = time.process_time(), {}
        for name in names:
            layer = torch.nn.Linear(*given[f"w:{name}"].shape[::-1], bias=False)
            layer.weight.data = given[f"w:{name}"].clone()
            moments, count = make_empty_hessian(layer), 0
            for batch in x[name]:
                moments, count = accumulate_hessian(batch, layer, moments, count)
            made = {layer: moments}
            _, found[name] = sparsify_weight(layer, made, SPARSITY, 0, 0, BLOCK, DAMP, False)
        spent.append(time.process_time() - start)
save_file(found, outputs)
print(json.dumps(spent[1:]))
"""


def environment(folder: Path) -> Path:
    """An interpreter with llm-compressor, made where there is none."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        install = [python, "-m", "pip", "install", "-q", "--no-deps", *PACKAGES]
        subprocess.run(install, check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        behind = folder / "lib" / version / "site-packages" / "zz_behind.pth"
        behind.write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def _take(taken: list[Tensor], layer: Any, args: tuple[Tensor, ...]) -> None:
    taken.append(args[0].clone())


@torch.no_grad()
def inputs_of_block(number: int, rows: int, length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights of a block's linear layers, and what each batch gives them."""
    model, tokenizer = language_model("smollm2", progress=lambda _: None)
    found = load_texts("austen", tokenizer, length=length, progress=lambda _: None).train
    stop = stops_of(model, ())[number]
    seen: dict[str, list[Tensor]] = {name: [] for name in stop.layers}
    hooks: list[Any] = []
    for name, layer in stop.layers.items():
        take = partial(_take, seen[name])
        hooks.append(layer.owner.register_forward_pre_hook(take))
    body: Any = model
    for batch in batched([found[i] for i in range(rows)]):
        body.model(**inputs_of(batch), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: layer.read().clone() for name, layer in stop.layers.items()}, seen


def ours(weights: dict[str, Any], seen: dict[str, Any], reps: int) -> tuple[list[float], Any]:
    """CPU seconds of each repetition, and the pruned weights."""
    spent: list[float] = []
    found: dict[str, Tensor] = {}
    for _ in range(reps + 1):
        start = time.process_time()
        for name, weight in weights.items():
            stats = [Statistics.of(x.flatten(0, -2), needs={"hessian"}) for x in seen[name]]
            joined = sum(stats[1:], stats[0])
            found[name] = choose_and_compensate(
                weight, joined, DENSITY, block=BLOCK, damp=DAMP, name=name
            )[1]
        spent.append(time.process_time() - start)
    return spent[1:], found


def theirs(
    python: Path, weights: dict[str, Any], seen: dict[str, Any], args: Any
) -> tuple[list[float], Any]:
    with tempfile.TemporaryDirectory() as folder:
        given = {f"w:{n}": w for n, w in weights.items()}
        given |= {f"x:{n}:{i}": x for n, xs in seen.items() for i, x in enumerate(xs)}
        count = len(next(iter(seen.values())))
        given = {n: t.clone().contiguous() for n, t in given.items()}
        save_file(given | {"batches": torch.tensor(count)}, f"{folder}/given")
        settings = f"SPARSITY, BLOCK, DAMP = {1 - DENSITY}, {BLOCK}, {DAMP}\n"
        words = [f"{folder}/given", f"{folder}/found", str(args.reps), str(args.threads)]
        done = subprocess.run(
            [python, "-c", settings + PEER, *words], check=True, capture_output=True, text=True
        )
        return json.loads(done.stdout.splitlines()[-1]), load_file(f"{folder}/found")


def main() -> None:
    made = parser(__doc__, threads=1, reps=2)
    made.add_argument("--rows", type=int, default=16)
    made.add_argument("--length", type=int, default=256)
    made.add_argument("--block", type=int, default=10)
    made.add_argument("--environment", type=Path)
    args = read(made)
    with tempfile.TemporaryDirectory() as folder:
        python = environment((args.environment or Path(folder) / "peer").resolve())
        weights, seen = inputs_of_block(args.block, args.rows, args.length)
        (mine, own), (its, other) = (
            ours(weights, seen, args.reps),
            theirs(python, weights, seen, args),
        )
    rows: list[list[str]] = []
    ratios: list[float] = []
    for name, weight in weights.items():
        stats = Statistics.of(torch.cat([x.flatten(0, -2) for x in seen[name]]), needs={"hessian"})
        one, two = (output_error(weight, found[name], stats) for found in (own, other))
        kept = [f"{float((found[name] != 0).float().mean()):.4f}" for found in (own, other)]
        ratios.append(one / two)
        short = name.split(".", 3)[-1]
        rows.append([short, f"{one:.4f}", f"{two:.4f}", f"{one / two:.4f}", " / ".join(kept)])
    cost = min(mine) / min(its)
    body = markdown(["layer", "error", "llm-compressor's", "ratio", "density, both"], rows)
    of_its = [
        ["largest ratio of errors", f"{max(ratios):.3f}"],
        ["CPU seconds over llm-compressor's", f"{cost:.3f}"],
    ]
    body += ["", *markdown(["ratio", "measured"], of_its)]
    body += ["", f"{min(mine):.2f} CPU seconds next to {min(its):.2f}, the best of {args.reps}."]
    about = (
        f"Block {args.block} of SmolLM2-135M, {args.rows} x {args.length} tokens of Austen, "
        f"density {DENSITY}, {args.threads} thread; {PACKAGES[0].replace('==', ' ')}."
    )
    publish("SparseGPT compared with llm-compressor", about, body, args)


if __name__ == "__main__":
    main()
