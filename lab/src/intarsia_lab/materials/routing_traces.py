"""Routing of small mixtures that were trained here, kept for the experiments that look at traces.

A stock Mixtral of 2.9 M parameters (6 layers of 16 experts, top-2) learns four kinds of text, a
sequence of one kind, for each seed: 850 steps under transformers' own balance loss, which balances
the sum of the layers ("skewed"), and 170 more under one for each layer ("balanced"). Its routing of
text that it was not trained on is what experiments score; a third trace is drawn, from Zipf's law
with an order of the experts that drifts ("drawn").
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.core.store import building
from intarsia.data import corpora, packages
from intarsia.hosts.tracing import trace
from intarsia.placement.trace import Trace

from ..kit import Report
from ..kit.arms import threads
from . import byte_pairs

VOCABULARY, EXPERTS, ACTIVE, LAYERS = 2048, 16, 2, 6
BATCH, LENGTH, FIRST, THEN = 16, 128, 850, 170
CHARACTERS = 900_000  # of each kind
HELD_OUT, TRAINED = 30, 150  # sequences of each kind in a trace
KINDS = ("balanced", "skewed", "drawn")
SETTINGS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": ACTIVE,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def folder(seed: int) -> Path:
    """Return the folder of a seed's mixture and its traces."""
    return packages.cache_dir() / "experiments" / "mixtures" / f"{FIRST}-{THEN}-{seed}"


def traces(seed: int, report: Report) -> dict[str, Trace]:
    """Return the three held-out routings of a seed, by kind; train the mixture the first time.

    report: prints progress.
    """
    made(seed, report)
    by_kind = {kind: kept(seed, kind) for kind in KINDS[:2]}
    return by_kind | {"drawn": drawn(seed)}


def kept(seed: int, name: str) -> Trace:
    """Read a recorded routing of a trained mixture.

    seed: of the mixture; name: "balanced", "skewed", or "trained", of the text that it learned.
    """
    return Trace.load_file(folder(seed) / f"{name}.safetensors")


def made(seed: int, report: Report) -> Path:
    """Return the folder of a seed's mixture; train it where the folder does not exist yet.

    report: prints progress.
    """
    with building(folder(seed)) as scratch:
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
            with threads(1):
                _train(seed, scratch, report)
    return folder(seed)


def texts() -> dict[str, str]:
    """Return four kinds of text: code, glosses of a dictionary, help pages and novels, by name."""
    quiet: Report = lambda _: None  # noqa: E731
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    code = "".join(file.read_text(encoding="utf-8", errors="replace") for file in library)
    glosses = "\n".join(row["prompt"] for row in corpora.read("wordnet", quiet))
    corpus = {
        "code": code,
        "glosses": glosses.replace("What kind of thing is this? ", ""),
        "help": corpora.read("python-docs", quiet),
        "novels": corpora.read("austen", quiet),
    }
    # as much of each kind, so that none is learned better
    return {name: text[:CHARACTERS] for name, text in corpus.items()}


def _train(seed: int, scratch: Path, report: Report) -> None:
    """Train a small Mixtral, and save its routing at two stages, and its weights."""
    from transformers import MixtralConfig, MixtralForCausalLM

    corpus = texts()
    words = byte_pairs.trained((text[:300_000] for text in corpus.values()), VOCABULARY)
    ids = {name: torch.tensor(words(text)["input_ids"]) for name, text in corpus.items()}
    draws = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = MixtralForCausalLM(MixtralConfig(**SETTINGS))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    for step in range(FIRST + THEN):
        if step == FIRST:
            _save_trace(model, ids, "skewed", scratch)
        # a warm-up of 50 steps, then a cosine down to a tenth
        rate = 3e-3 * min(1, (step + 1) / 50)
        rate *= 0.1 + 0.45 * (1 + math.cos(math.pi * step / (FIRST + THEN)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        rows = _random_rows(ids, draws)
        out = model(input_ids=rows, output_router_logits=True)
        loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        # the stage decides over what the loads are balanced
        balance = summed(out.router_logits) if step < FIRST else each_layer(out.router_logits)
        (loss + 0.2 * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 100 == 0:
            report(f"  mixture of seed {seed}, step {step}: loss {loss.item():.3f}")
    _save_trace(model, ids, "balanced", scratch)
    _save_trace(model, ids, "trained", scratch)
    model.to(torch.bfloat16).save_pretrained(scratch)


def _random_rows(ids: Mapping[str, Tensor], draws: torch.Generator) -> Tensor:
    """Draw a batch of token rows, each of one kind of text, from the first nine tenths."""
    rows: list[Tensor] = []
    for _ in range(BATCH):
        stream = list(ids.values())[int(torch.randint(len(ids), (), generator=draws))]
        start = int(torch.randint(int(len(stream) * 0.9) - LENGTH, (), generator=draws))
        rows.append(stream[start : start + LENGTH])
    return torch.stack(rows)


def summed(logits: tuple[Tensor, ...]) -> Tensor:
    """Return transformers' balance loss: shares and probabilities of all layers together."""
    return each_layer((torch.cat(logits),))


def each_layer(logits: tuple[Tensor, ...]) -> Tensor:
    """Return the balance loss of each layer, E sum_e f_e p_e / k, mean over layers.

    logits: router logits (tokens, E) of each layer; f_e: the mean of a token's chosen experts; p_e:
      mean probability of expert e; k: experts of a token.
    """
    total = torch.zeros(())
    for layer in logits:
        p = layer.float().softmax(-1)
        routed = torch.zeros_like(p).scatter(1, p.topk(ACTIVE, -1).indices, 1.0)
        total = total + EXPERTS * (routed.mean(0) * p.mean(0)).sum() / ACTIVE
    return total / len(logits)


def _save_trace(model: Any, ids: Mapping[str, Tensor], name: str, scratch: Path) -> None:
    """Record the routing of a model on whole rows of text, and write it to a file."""
    rows: list[Tensor] = []
    for stream in ids.values():
        cut = int(len(stream) * 0.9)
        part = stream[:cut] if name == "trained" else stream[cut:]
        count = TRAINED if name == "trained" else HELD_OUT
        rows += list(part[: count * LENGTH].view(-1, LENGTH))
    batches = torch.stack(rows).split(BATCH)
    trace(model, batches).save(scratch / f"{name}.safetensors")


def drawn(seed: int, tokens: int = 15_360) -> Trace:
    """Draw a routing with two experts for each token, by Zipf's law.

    The exponent is 0.9 to 1.2 by layer; the order of the experts changes a little with every
    sequence, and layers are independent. seed: of the draws; tokens: how many.
    """
    draws = torch.Generator().manual_seed(seed)
    rank = torch.arange(1, EXPERTS + 1, dtype=torch.float64)
    exponent = torch.linspace(0.9, 1.2, LAYERS, dtype=torch.float64)
    place = torch.rand(LAYERS, EXPERTS, generator=draws, dtype=torch.float64)
    choices: list[Tensor] = []
    for _ in range(tokens // LENGTH):
        # a random walk of the experts' scores; their order gives the ranks
        place = place + 0.02 * torch.randn(place.shape, generator=draws, dtype=torch.float64)
        order = place.argsort(1).argsort(1)
        share = (rank[None] ** -exponent[:, None]).gather(1, order)
        # two different experts, by their shares
        rows = [torch.multinomial(s.repeat(LENGTH, 1), ACTIVE, generator=draws) for s in share]
        choices.append(torch.stack(rows, 1))
    row = torch.arange(tokens)
    return Trace(torch.cat(choices), EXPERTS, row // LENGTH, row % LENGTH)


def uniform(seed: int, tokens: int = 15_360) -> Trace:
    """Draw a routing in which all experts are equally likely, in each layer on its own.

    No placement of experts can gain anything on it. seed: of the draws; tokens: how many.
    """
    draws = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, LAYERS, EXPERTS, generator=draws)
    row = torch.arange(tokens)
    return Trace(scores.topk(ACTIVE).indices, EXPERTS, row // LENGTH, row % LENGTH)
