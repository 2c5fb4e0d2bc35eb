"""A model of 7 billion weights on a laptop: what compressing, opening and running it takes.

    python benchmarks/large_model.py --make mistral-shapes          # 14.8 GB of random weights
    intarsia export mistral-shapes --format gguf --quant q4_0 --out mistral-shapes-q4_0.gguf
    python benchmarks/large_model.py --make olmoe-shapes --shapes olmoe
    python benchmarks/large_model.py mistral-shapes olmoe-shapes \
        --gguf mistral-shapes-q4_0.gguf --write

The weights are random, in bfloat16, in the shapes of Mistral-7B and of OLMoE-1B-7B (64 experts, 8
of which compute a token): times, bytes and memory are those of such a model, and texts mean
nothing. Every step is a process of its own. Memory is the largest
part of the process that stands for no file (`RssAnon`): mapped files may be dropped. llama.cpp
(`pip install llama-cpp-python`) computes the same steps on the same weights in Q4_0, at the fastest
of its settings for each: keys and values in float16, bfloat16 or float32, flash attention or not.
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
from llama_cpp_rows import INSTALLED, SETTINGS, LlamaCpp, TokenRow
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, MistralConfig, OlmoeConfig

from intarsia.decode.native_decoder import NativeText
from intarsia.folders.opened import open_language_model
from intarsia.hosts.in_memory import hold

COMMON: dict[str, Any] = {
    "vocab_size": 49152, "tie_word_embeddings": False, "dtype": torch.bfloat16,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
SHAPES = {
    "mistral": MistralConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=32768, sliding_window=None,
        architectures=["MistralForCausalLM"], **COMMON,
    ),
    "olmoe": OlmoeConfig(  # OLMoE-1B-7B: 64 experts, 8 of which compute a token
        hidden_size=2048, intermediate_size=1024, num_hidden_layers=16, num_attention_heads=16,
        num_key_value_heads=16, max_position_embeddings=4096, num_experts=64,
        num_experts_per_tok=8, architectures=["OlmoeForCausalLM"], **COMMON,
    ),
}  # fmt: skip
SHARD = 2_000_000_000  # bytes of a file
DRAWN = 1 << 24  # numbers that are drawn; every weight repeats them from another place on
PROMPT, TOKENS, CLIENTS = 512, 16, 4
STEP = 0.05  # seconds between two looks at the memory
ABOUT = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()


def checkpoint(config: Any) -> dict[str, torch.Size]:
    """Return the tensors of a model's files as they lie on the Hub: experts apart."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes: dict[str, torch.Size] = {}
    for name, tensor in model.state_dict().items():
        owner, _, stack = name.rpartition(".")
        if tensor.dim() < 3:
            shapes[name] = tensor.shape
            continue
        _, rows, width = tensor.shape
        parts = ("gate_proj", "up_proj") if stack == "gate_up_proj" else (stack,)
        shapes |= {
            f"{owner}.{expert}.{part}.weight": torch.Size((rows // len(parts), width))
            for expert in range(len(tensor))
            for part in parts
        }
    return shapes


def make(folder: Path, config: Any) -> None:
    """Write a stock folder of random weights in shards, and SmolLM2's tokenizer."""
    drawn = 0.02 * torch.randn(DRAWN, generator=torch.Generator().manual_seed(0))
    drawn, place, files = drawn.bfloat16(), 0, {}
    folder.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    names = list(checkpoint(config).items())
    for number, (name, shape) in enumerate(names):
        count = shape.numel()
        place = (place + 7919) % DRAWN
        whole = drawn.roll(place).repeat(-(-count // DRAWN))[:count].clone().view(shape)
        tensors[name] = torch.ones(shape, dtype=whole.dtype) if len(shape) == 1 else whole
        if number + 1 == len(names) or sum(t.nbytes for t in tensors.values()) > SHARD:
            file = f"model-{len(set(files.values())) + 1:05d}.safetensors"
            save_file({n: t.contiguous() for n, t in tensors.items()}, folder / file)
            files |= dict.fromkeys(tensors, file)
            tensors = {}
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
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


class Clock:
    """CPU seconds of steps, by name: the least of those with the same name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, job: Callable[[], Any], times: int = 1) -> Any:
        began, done = time.process_time(), None
        for _ in range(times):
            done = job()
        spent = (time.process_time() - began) / times
        self.seconds[name] = min(spent, self.seconds.get(name, spent))
        return done


def prompt() -> list[int]:
    """Return the tokens of a long prompt."""
    return torch.randint(9, 40_000, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()


def used_by_llama_cpp(file: str) -> dict[str, float]:
    """Open a GGUF file in llama.cpp and compute with it; the least CPU seconds of each step."""
    ids, timed, room = prompt(), Clock(), (PROMPT + 4 * TOKENS) * CLIENTS
    peer = timed(
        "opening",
        lambda: LlamaCpp(file, SETTINGS[0], threads=1, sequences=CLIENTS, room=room, rows=PROMPT),
    )

    def tokens(places: Sequence[int]) -> None:
        for step in range(TOKENS):
            peer.decode([TokenRow(9, place + step, i, True) for i, place in enumerate(places)])

    for setting in SETTINGS:
        peer.use(setting)
        short = [TokenRow(t, place, 0, place == 8) for place, t in enumerate(ids[:9])]
        long = [TokenRow(t, place, 0, place == PROMPT - 1) for place, t in enumerate(ids)]
        peer.decode(short)
        timed("a token", lambda: tokens([9]))
        peer.clear()
        timed(f"a prompt of {PROMPT}", lambda rows=long: peer.decode(rows))
        timed(f"a token behind {PROMPT}", lambda: tokens([PROMPT]))
        for sequence in range(1, CLIENTS):
            peer.decode([row._replace(sequence=sequence) for row in short])
        timed(
            f"a token of each of {CLIENTS}", lambda: tokens([PROMPT + TOKENS] + [9] * (CLIENTS - 1))
        )
    one = {name: name.startswith("a token") for name in timed.seconds}
    return {name: s / TOKENS if one[name] else s for name, s in timed.seconds.items()}


def used(packed: Path) -> dict[str, float]:
    """Open the packed model and compute with it; return CPU seconds of each step."""
    ids, timed = prompt(), Clock()
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
    return timed.seconds


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def measured(folder: Path, packed: Path, gguf: Path | None) -> list[list[str]]:
    """Return the lines of the table; gguf: the same weights for llama.cpp."""
    command = ["compress", str(folder), "--format", "blockint", "--bits", "4", "--force"]
    _, spent = watched(["-m", "intarsia", *command, "--out", str(packed)])
    gigabytes = lambda number: f"{number / 1e9:.2f} GB"  # noqa: E731
    file = "" if gguf is None else gigabytes(gguf.stat().st_size)
    lines = [
        ["weights in bfloat16", gigabytes(size_of(folder)), "", ""],
        ["packed: int4, head int8", gigabytes(size_of(packed)), file, ""],
        [
            "`intarsia compress`",
            f"{spent['cpu']:.0f} s, {gigabytes(spent['memory'])} of memory",
            "",
            "",
        ],
    ]
    output, spent = watched([__file__, "--use", str(packed)])
    ours: dict[str, float] = json.loads(output.splitlines()[-1])
    rival: dict[str, float] = {}
    if gguf is not None and INSTALLED:
        output, rival_spent = watched([__file__, "--use", str(gguf)])
        rival = json.loads(output.splitlines()[-1])
        file = gigabytes(rival_spent["memory"])
    for name, seconds in ours.items():
        cells = ["", ""]
        if name in rival:
            cells = [in_units(rival[name]), f"{seconds / rival[name]:.2f}"]
        lines.append([name, in_units(seconds), *cells])
    return [*lines, ["all of these, most memory", gigabytes(spent["memory"]), file, ""]]


def in_units(seconds: float) -> str:
    """Return "166 ms" or "23.7 s"."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def main() -> None:
    made: argparse.ArgumentParser = parser(__doc__, threads=1, reps=1)
    made.add_argument("folders", nargs="*", type=Path, help="that --make wrote")
    made.add_argument("--make", type=Path, help="write random weights there, and end")
    made.add_argument("--shapes", default="mistral", choices=SHAPES, help="of --make")
    made.add_argument("--gguf", type=Path, help="the first folder in Q4_0, for llama.cpp")
    made.add_argument("--use", type=Path, help="compute with a packed folder or file; JSON")
    args = read(made)
    if args.make:
        make(args.make, SHAPES[args.shapes])
        return
    if args.use:
        steps = used_by_llama_cpp(str(args.use)) if args.use.is_file() else used(args.use)
        print(json.dumps(steps))
        return
    head = ("What, CPU time of one thread", "intarsia", "llama.cpp Q4_0 at its best", "of that")
    body: list[str] = []
    for number, folder in enumerate(args.folders):
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            lines = measured(folder, Path(place) / "packed", None if number else args.gguf)
        body += [f"## {folder.name}", "", *markdown(head, lines), ""]
    publish("A 7B on 16 GB", ABOUT, body, args)


if __name__ == "__main__":
    main()
