"""Tokens a CPU second of `intarsia serve` next to llama.cpp, at 1, 4 and 16 clients.

    python benchmarks/serving_speed.py --gguf smollm2-q4_0.gguf --write

SmolLM2-135M in dense int4 with a head of int8, the values of Q4_0, served as a process of its own
over loopback: each client sends one request after another. llama.cpp (`pip install
llama-cpp-python`; without it, it is left out) computes as many sequences in one batch of its
library: no HTTP, no tokenizer and no text, which its own server has to do as well, at the fastest
of its settings (keys and values in float16, bfloat16 or float32, flash attention or not). One
thread each; CPU time of the whole process, since other work on the machine only adds to wall time;
all take turns, and the best of each counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import frame
import psutil
import torch
from llama_cpp_rows import INSTALLED, SETTINGS, LlamaCpp, TokenRow
from serving import Ask, Client, started
from token_peers import LARGE_PAGES

from intarsia.data.language_models import language_model
from intarsia.folders.opened import save_language_model
from intarsia.formats import BlockInt
from intarsia.sparse.swap.compress import compress
from intarsia.sparse.swap.packed_head import pack_head

PROMPT = "The ship left the harbour before dawn, and nobody on the shore could say where it went."
CLIENTS, ROUNDS, TOKENS, ROOM = (1, 4, 16), 3, 48, 128
ABOUT = (
    "SmolLM2-135M in dense int4, head in int8 (llama.cpp: Q4_0, the same values), prompts of 19 "
    "tokens, answers of 48: new tokens a CPU second, prompts included. Ours is the whole server "
    "over HTTP; llama.cpp is its library with as many sequences in one batch, without a server, as "
    "it comes (float16 keys, flash attention) and at the fastest of its settings: keys and values "
    "in float16, bfloat16 or float32, flash attention or not. "
    "The values are the same, and so is the perplexity, see [a token](decode.md). Both have "
    f"`GLIBC_TUNABLES={LARGE_PAGES}`, so that llama.cpp's weights are in large pages, too. vLLM "
    "and SGLang are left out: their packages are for GPUs."
)


def written(folder: Path) -> tuple[Path, list[int]]:
    """A packed folder, and the prompt's tokens."""
    model: Any
    model, tokenizer = language_model("smollm2", progress=lambda _: None)
    model.bfloat16().config.dtype = torch.bfloat16  # embedding and cache, as llama.cpp's halves
    packed = pack_head(compress(model, BlockInt(4), force=True))
    ids = tokenizer(PROMPT).input_ids
    return save_language_model(packed, folder / "smollm2-int4", tokenizer=tokenizer), ids


def ours(pid: int, port: int, clients: int) -> float:
    """Tokens a CPU second of the server while so many clients ask, each `ROUNDS` times."""
    process, client = psutil.Process(pid), Client(port)
    ask = Ask("smollm2-int4", PROMPT, TOKENS, stream=False)
    with ThreadPoolExecutor(clients) as pool:
        before = sum(process.cpu_times()[:2])
        answers = list(pool.map(lambda _: client.ask(ask), range(clients * ROUNDS)))
        spent = sum(process.cpu_times()[:2]) - before
    assert all(status == 200 for status, *_ in answers), answers
    return clients * ROUNDS * TOKENS / spent


def serve_peer(file: str, ids: list[int], link: Any) -> None:
    """Answer a number of sequences with llama.cpp's tokens a CPU second, for each setting."""
    most = max(CLIENTS)
    peer = LlamaCpp(
        file, SETTINGS[0], threads=1, sequences=most, room=ROOM * most, rows=len(ids) * most
    )
    while count := int(link.recv()):
        speeds: list[float] = []
        for setting in SETTINGS:
            peer.use(setting)
            began = time.process_time()
            for _ in range(ROUNDS):
                answer(peer, ids, count)
            speeds.append(count * ROUNDS * TOKENS / (time.process_time() - began))
        link.send(speeds)


def answer(peer: LlamaCpp, ids: list[int], count: int) -> None:
    """Take a prompt in so many sequences, and append the likeliest tokens to each."""
    peer.clear()
    last = len(ids) - 1
    rows = [TokenRow(t, p, s, p == last) for s in range(count) for p, t in enumerate(ids)]
    for place in range(len(ids), len(ids) + TOKENS):
        tokens = [int(logits.argmax()) for logits in peer.decode(rows)]
        rows = [TokenRow(t, place, s, True) for s, t in enumerate(tokens)]


def peer_of(file: Path | None, ids: list[int]) -> Any:
    """llama.cpp in a process of its own; None without it."""
    if file is None or not INSTALLED:
        return None
    context = multiprocessing.get_context("spawn")
    link, end = context.Pipe()
    context.Process(target=serve_peer, args=(str(file), ids, end), daemon=True).start()
    return link


def measured(args: argparse.Namespace) -> dict[int, tuple[float, list[float]]]:
    """Tokens a CPU second by clients, the best of all turns: ours, and llama.cpp's by setting."""
    best: dict[int, tuple[float, list[float]]] = {clients: (0.0, []) for clients in CLIENTS}
    with tempfile.TemporaryDirectory() as place:
        folder, ids = written(Path(place))
        peer = peer_of(args.gguf, ids)
        with started(str(folder), "--tokens", str(TOKENS), "--context", str(ROOM)) as (
            server,
            port,
        ):
            for _ in range(args.reps):
                for clients in CLIENTS:
                    mine, rivals = best[clients]
                    mine = max(mine, ours(server.pid, port, clients))
                    if peer is not None:
                        peer.send(clients)
                        speeds: list[float] = peer.recv()
                        rivals = list(map(max, rivals, speeds)) if rivals else speeds
                    best[clients] = mine, rivals
        if peer is not None:
            peer.send(0)
    return best


def main() -> None:
    made = frame.parser(__doc__, threads=1, reps=3)
    made.add_argument("--gguf", type=Path, help="the same model in Q4_0")
    args = frame.read(made)
    # of the server and of llama.cpp's process, too
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ.setdefault("GLIBC_TUNABLES", LARGE_PAGES)
    best = measured(args)
    head = ["clients", "ours, tokens a CPU second", "llama.cpp as it comes", "at its best", "with"]
    table = [row_of(clients, mine, rivals) for clients, (mine, rivals) in best.items()]
    mine, rivals = best[max(CLIENTS)]
    said = "llama.cpp is left out: no package llama-cpp-python, or no --gguf."
    if rivals:
        ratio = mine / max(rivals)
        said = f"{max(CLIENTS)} clients: {ratio:.2f} of llama.cpp at its best."
    body = [*frame.markdown([*head, "ours of its best"], table), "", said]
    frame.publish("Tokens of the server", ABOUT, body, args)


def row_of(clients: int, mine: float, rivals: Sequence[float]) -> list[str]:
    """Return a line of the table; rivals: llama.cpp's tokens a CPU second, by setting."""
    cells = [str(clients), f"{mine:.0f}"]
    if not rivals:
        return [*cells, "", "", "", ""]
    fastest = max(rivals)
    setting = SETTINGS[rivals.index(fastest)]
    return [*cells, f"{rivals[0]:.0f}", f"{fastest:.0f}", str(setting), f"{mine / fastest:.2f}"]


if __name__ == "__main__":
    main()
