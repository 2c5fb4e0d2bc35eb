"""A model of 7 billion weights on a laptop: what compressing, opening and running it takes.

    python benchmarks/large_model.py --make mistral-shapes          # 14.5 GB of random weights
    python benchmarks/large_model.py mistral-shapes --write

The weights are random, in bfloat16, in the shapes of Mistral-7B: times, bytes and memory are those
of such a model, and texts mean nothing. Every step is a process of its own. Memory is the largest
part of the process that stands for no file (`RssAnon`): mapped files may be dropped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from frame import markdown, parser, publish, read
from safetensors.torch import save_file
from transformers import MistralConfig, MistralForCausalLM

from intarsia.decode.native_decoder import NativeText
from intarsia.folders.opened import open_language_model
from intarsia.hosts.in_memory import hold

SHAPES: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 49152,
    "max_position_embeddings": 32768, "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip
SHARD = 5_000_000_000  # bytes of a file
DRAWN = 1 << 24  # numbers that are drawn; every weight repeats them from another place on
PROMPT, TOKENS, CLIENTS = 512, 16, 4
STEP = 0.05  # seconds between two looks at the memory
ABOUT = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()


def make(folder: Path) -> None:
    """Write a stock folder of random weights in shards, and SmolLM2's tokenizer."""
    config = MistralConfig(**SHAPES, dtype=torch.bfloat16)
    with torch.device("meta"):
        model = MistralForCausalLM(config)
    drawn = 0.02 * torch.randn(DRAWN, generator=torch.Generator().manual_seed(0))
    drawn, place, files = drawn.bfloat16(), 0, {}
    folder.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    names = list(model.state_dict().items())
    for number, (name, tensor) in enumerate(names):
        count = tensor.numel()
        place = (place + 7919) % DRAWN
        whole = drawn.roll(place).repeat(-(-count // DRAWN))[:count].view(tensor.shape)
        tensors[name] = torch.ones(tensor.shape, dtype=whole.dtype) if count < DRAWN / 99 else whole
        if number + 1 == len(names) or sum(t.nbytes for t in tensors.values()) > SHARD:
            file = f"model-{len(set(files.values())) + 1:05d}.safetensors"
            save_file({n: t.contiguous() for n, t in tensors.items()}, folder / file)
            files |= dict.fromkeys(tensors, file)
            tensors = {}
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.architectures = ["MistralForCausalLM"]
    config.save_pretrained(folder)
    open_tokenizer().save_pretrained(folder)


def open_tokenizer() -> Any:
    """Return SmolLM2's tokenizer, of 49,152 tokens."""
    from intarsia.data.language_models import language_model

    return language_model("smollm2", pretrained=False, drawn=False)[1]


def watched(command: Sequence[str]) -> tuple[str, dict[str, float]]:
    """Run a command; return its output, its seconds, CPU seconds, and most memory in bytes."""
    began, most = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    status = Path(f"/proc/{process.pid}/status")
    cpu = 0.0
    while process.poll() is None:
        try:
            line = next(t for t in status.read_text().splitlines() if t.startswith("RssAnon"))
            most = max(most, int(line.split()[1]) * 1024)
            ticks = (status.parent / "stat").read_text().rpartition(")")[2].split()[11:13]
            cpu = sum(map(int, ticks)) / 100
        except (OSError, StopIteration):
            pass
        time.sleep(STEP)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(process.returncode)
    spent = {"seconds": time.perf_counter() - began, "cpu": cpu, "memory": float(most)}
    return process.stdout.read(), spent


def used(packed: Path) -> dict[str, float]:
    """Open the packed model and compute with it; return CPU seconds of each step."""
    ids = torch.randint(9, 40_000, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
    results: dict[str, float] = {}

    def timed(name: str, job: Callable[[], Any], times: int = 1) -> Any:
        began, done = time.process_time(), None
        for _ in range(times):
            done = job()
        results[name] = (time.process_time() - began) / times
        return done

    model, _ = timed("opening", lambda: open_language_model(str(packed)))
    hold(model, str(packed))
    text = NativeText(model, slots=CLIENTS, length=PROMPT + 4 * TOKENS)
    with torch.inference_mode():
        text.prefill(0, ids[:9])
        timed("a token", lambda: text.step([9], [0]), TOKENS)
        text.clear(0)
        timed(f"a prompt of {PROMPT}", lambda: text.prefill(0, ids))
        timed(f"a token behind {PROMPT}", lambda: text.step([9], [0]), TOKENS)
        for slot in range(1, CLIENTS):
            text.prefill(slot, ids[:9])
        timed(f"a token of each of {CLIENTS}", lambda: text.step([9] * CLIENTS), TOKENS)
    return results


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def measured(folder: Path, packed: Path) -> list[list[str]]:
    """Return the lines of the table."""
    command = ["compress", str(folder), "--format", "blockint", "--bits", "4", "--force"]
    _, spent = watched(["-m", "intarsia", *command, "--out", str(packed)])
    gigabytes = lambda number: f"{number / 1e9:.2f} GB"  # noqa: E731
    lines = [
        ["weights in bfloat16", gigabytes(size_of(folder)), ""],
        ["packed folder, int4, head int8", gigabytes(size_of(packed)), ""],
        ["`intarsia compress`", f"{spent['cpu']:.0f} s", gigabytes(spent["memory"])],
    ]
    output, spent = watched([__file__, "--use", str(packed)])
    for name, seconds in json.loads(output.splitlines()[-1]).items():
        short = f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
        lines.append([name, short, ""])
    return [*lines, ["all of these, most memory", "", gigabytes(spent["memory"])]]


def main() -> None:
    made: argparse.ArgumentParser = parser(__doc__, threads=1, reps=1)
    made.add_argument("folder", nargs="?", type=Path)
    made.add_argument("--make", type=Path, help="write random weights there, and end")
    made.add_argument(
        "--packed", type=Path, help="folder of the packed model; none is kept if not given"
    )
    made.add_argument("--use", type=Path, help="compute with a packed folder; JSON")
    args = read(made)
    if args.make:
        make(args.make)
        return
    if args.use:
        print(json.dumps(used(args.use)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder.parent) as place:
        lines = measured(args.folder, args.packed or Path(place) / "packed")
    table = markdown(("What", "CPU time, one thread", "Memory"), lines)
    rival = (
        "llama.cpp on a file of the same weights has no column here yet: it was not measured on a "
        "model of this size."
    )
    publish("A 7B on 16 GB", ABOUT, [*table, "", rival], args)


if __name__ == "__main__":
    main()
