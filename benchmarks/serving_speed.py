"""Tokens a CPU second of `intarsia serve` next to llama.cpp, at 1, 4 and 16 clients.

    python benchmarks/serving_speed.py --gguf smollm2-q4_0.gguf --write

SmolLM2-135M in dense int4 with a head of int8, the values of Q4_0, served as a process of its own
over loopback: each client sends one request after another. llama.cpp (`pip install
llama-cpp-python`; without it, it is left out) computes as many sequences in one batch of its
library: no HTTP, no tokenizer and no text, which its own server has to do as well. One thread each;
CPU time of the whole process, since other work on the machine only adds to wall time; all take
turns, and the best of each counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import frame
import psutil
import torch
from serving import Ask, Client, started
from token_peers import LARGE_PAGES

from intarsia.data.language_models import language_model
from intarsia.folders.opened import save_language_model
from intarsia.formats import BlockInt
from intarsia.sparse.swap.compress import compress
from intarsia.sparse.swap.packed_head import pack_head

PROMPT = "The ship left the harbour before dawn, and nobody on the shore could say where it went."
CLIENTS, ROUNDS, TOKENS, ROOM = (1, 4, 16), 3, 48, 128
TARGET = 0.6  # of llama.cpp's tokens a CPU second, at 16 clients
ABOUT = (
    "SmolLM2-135M in dense int4, head in int8 (llama.cpp: Q4_0, the same values), prompts of 19 "
    "tokens, answers of 48: new tokens a CPU second, prompts included. Ours is the whole server "
    "over HTTP; llama.cpp is its library with as many sequences in one batch, without a server. "
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
    """Answer a number of sequences with llama.cpp's tokens a CPU second."""
    import llama_cpp as llama  # pyright: ignore[reportMissingImports]
    import numpy as np

    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
    words = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max = ROOM * max(CLIENTS), max(CLIENTS)
    settings.n_threads = settings.n_threads_batch = 1
    context = llama.llama_init_from_model(model, settings)
    batch = llama.llama_batch_init(len(ids) * max(CLIENTS), 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Compute rows of (token, place, sequence, whether its logits count); the likeliest."""
        batch.n_tokens = len(rows)
        for i, (token, place, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, place, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        assert llama.llama_decode(context, batch) == 0
        logits = (llama.llama_get_logits_ith(context, i) for i, row in enumerate(rows) if row[3])
        return [int(np.ctypeslib.as_array(row, (words,)).argmax()) for row in logits]

    last = len(ids) - 1
    while count := int(link.recv()):
        began = time.process_time()
        for _ in range(ROUNDS):
            llama.llama_memory_clear(llama.llama_get_memory(context), False)
            rows = [(t, p, s, p == last) for s in range(count) for p, t in enumerate(ids)]
            tokens = decode(rows)
            for place in range(len(ids), len(ids) + TOKENS - 1):
                tokens = decode([(t, place, s, True) for s, t in enumerate(tokens)])
        link.send(count * ROUNDS * TOKENS / (time.process_time() - began))


def peer_of(file: Path | None, ids: list[int]) -> Any:
    """llama.cpp in a process of its own; None without it."""
    if file is None or importlib.util.find_spec("llama_cpp") is None:
        return None
    context = multiprocessing.get_context("spawn")
    link, end = context.Pipe()
    context.Process(target=serve_peer, args=(str(file), ids, end), daemon=True).start()
    return link


def measured(args: argparse.Namespace) -> dict[int, tuple[float, float]]:
    """Tokens a CPU second of ours and of llama.cpp, by clients: the best of all turns."""
    best = dict.fromkeys(CLIENTS, (0.0, math.nan))
    with tempfile.TemporaryDirectory() as place:
        folder, ids = written(Path(place))
        peer = peer_of(args.gguf, ids)
        with started(str(folder), "--tokens", str(TOKENS), "--context", str(ROOM)) as (
            server,
            port,
        ):
            for _ in range(args.reps):
                for clients in CLIENTS:
                    mine, rival = best[clients]
                    mine = max(mine, ours(server.pid, port, clients))
                    if peer is not None:
                        peer.send(clients)
                        got = float(peer.recv())
                        rival = got if math.isnan(rival) else max(rival, got)
                    best[clients] = mine, rival
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
    head = ["clients", "ours, tokens a CPU second", "llama.cpp", "ours of llama.cpp"]
    table = [
        [str(clients), f"{mine:.0f}", f"{rival:.0f}", f"{mine / rival:.2f}"]
        for clients, (mine, rival) in best.items()
    ]
    mine, rival = best[max(CLIENTS)]
    word = "met" if mine >= TARGET * rival else "not met"
    said = f"{max(CLIENTS)} clients: {mine / rival:.2f} of llama.cpp, target {TARGET}: {word}."
    if math.isnan(rival):
        said = "llama.cpp is left out: no package llama-cpp-python, or no --gguf."
    frame.publish("Tokens of the server", ABOUT, [*frame.markdown(head, table), "", said], args)


if __name__ == "__main__":
    main()
