"""Laws of an unlearning: the text is forgotten, and nothing is touched but the trained weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card
from .cards import CARD_LAWS, tiny
from .made import normal, torch_seed
from .verdict import Law, laws_of, require

WORDS, STEPS = 16, 3


def mixture() -> nn.Module:
    """Return a tiny Mixtral of two layers of four experts, with weights always the same."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=WORDS,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    with torch_seed(0):
        return MixtralForCausalLM(config).eval()


def rows(seed: int) -> list[Tensor]:
    """Return four rows of token ids, (8,) each, that repeat two words.  seed: of the words."""
    pairs = (normal(4, 2, seed=seed) * 50).long().abs() % WORDS
    return list(pairs.repeat(1, 4))


def _no_progress(_: str) -> None: ...


def _run(card: Card, model: nn.Module, progress: Callable[[str], None] = _no_progress) -> Any:
    """Train a model to forget the rows of seed 3 and keep the rows of seed 4; return the result."""
    config: Any = tiny(card)
    # layer 1, expert 2
    options = {"at": (1, 2), "steps": STEPS, "every": 1, "seed": 0, "progress": progress}
    return config.unlearn(model, rows(3), rows(4), **options)


@torch.no_grad()
def _loss(model: Any) -> float:
    """Return a model's cross-entropy in nats for a token, on the rows to forget (seed 3)."""
    ids = torch.stack(rows(3))
    return float(
        F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    )


def _changed(model: nn.Module, before: dict[str, Tensor]) -> int:
    return sum(int((t != before[n]).sum()) for n, t in model.state_dict().items())


def forgets_what_it_is_told(card: Card) -> None:
    """Check that the unlearning raises the cross-entropy of the text to forget."""
    model = mixture()
    before = _loss(model)
    _run(card, model)
    after = _loss(model)
    require(after > before, f"{after:.4f} nats after {before:.4f}", "more", "Ascend.")


def changes_what_it_trains_alone(card: Card) -> None:
    """Check that the unlearning changes no more numbers than it says, and freezes none."""
    model = mixture()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    result = _run(card, model)
    changed, total = _changed(model, before), sum(t.numel() for t in before.values())
    fix = "Train parts as leaves of their own."
    require(changed <= result.trained < total, f"{changed} changed", f"{result.trained}", fix)
    # the mixture was trainable before
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    require(not frozen, f"frozen {frozen[:2]}", "gradients as before", "Ask for them again.")


def undoes_what_an_error_stops(card: Card) -> None:
    """Check that an error during the unlearning leaves the model as it was."""
    model = mixture()
    before = {n: t.clone() for n, t in model.state_dict().items()}

    # the error comes from the progress report, in the middle of the steps
    def stop(_: str) -> None:
        raise RuntimeError("stopped")

    with suppress(RuntimeError):
        _run(card, model, stop)
    require(not _changed(model, before), "a model half way", "the one before", "Restore it.")


def is_one_unlearning_for_one_seed(card: Card) -> None:
    """Check that the unlearning gives one result for one seed, whatever torch's generator does."""
    runs: list[dict[str, Tensor]] = []
    for seed in (3, 4):
        model = mixture()
        with torch_seed(seed):
            _run(card, model)
        runs.append(model.state_dict())
    differ = [n for n, t in runs[0].items() if not torch.equal(t, runs[1][n])]
    require(not differ, f"other {differ[:2]}", "the same bits", "Draw from the seed.")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
