"""An adapter and a head for labelled texts, trained by `fit`, and judged on folds as probes are.

member = fitted_member("lora=minilm@6", texts, labels, 3, fold)
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.labelled import Rows, rows_at
from ..fitting import fit
from ..folders.verbs import adapt
from ..hosts.attach.as_lora import low_rank_changes
from ..models.classify.classifier import Member, best_layer, member_of, tempered
from ..models.classify.features import AdaptedMean, HiddenMean, text_model
from ..models.classify.standalone import blocks_of
from ..models.classify.words import split_adapter, split_word
from ..train.probe import FOLDS, Probe
from ..train.tasks import Classes
from .own_rates import own_rate

EPOCHS, BATCH = 4, 16
ABOVE = 2  # blocks that are adapted behind the best layer of the frozen model
STEPS = 2  # that are timed, to estimate a training
TRUNK = "trunk"


class MeanClassifier(nn.Module):
    """Linear classifier of the mean over a text's tokens of a model's last hidden states.

    logits = W (sum_t m_t h_t / sum_t m_t) + b, with the attention mask m (n, tokens), and the
    states h (n, tokens, width) behind the model's last block, in front of a last norm.
    """

    def __init__(self, trunk: Any, classes: int) -> None:
        """Put a head of zeros behind a model of transformers without one."""
        super().__init__()
        self.trunk, self.config = trunk, trunk.config
        self.score = nn.Linear(trunk.config.hidden_size, classes)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits, (n, classes).  input_ids, attention_mask: (n, tokens)."""
        states: list[Tensor] = []

        def take(_block: nn.Module, _inputs: Any, output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        hook = blocks_of(self.trunk)[-1].register_forward_hook(take)
        try:
            self.trunk(input_ids=input_ids, attention_mask=attention_mask)
        finally:
            hook.remove()
        mask = attention_mask[:, :, None].to(states[0].dtype)
        return self.score((states[0] * mask).sum(1) / mask.sum(1).clamp_min(1))


def fitted_member(
    word: str,
    rows: Rows,
    labels: np.ndarray,
    classes: int,
    fold: np.ndarray,
    columns: tuple[str, ...] = (),
) -> Member:
    """Fit the member of a blend that a word such as "minilm@6" or "lora=minilm@6" names.

    It is a converged probe, see `member_of`, or an adapter with its head.
    Of an adapter each fold is answered by a training without it. A layer that is left out is chosen
    by probes, see `deeper`.
    Raises: as `member_of`; ConfigError for an adapter that is no low-rank change of weights.
    """
    adapter, model = split_adapter(word)
    if adapter is None or columns:
        return member_of(word, rows, labels, classes, fold, columns)
    name, layer, tokens = split_word(model)
    if layer is None:
        model = best_layer(name, tokens, rows, labels, classes, fold)[0].word
        _, model = split_adapter(deeper(adapter, model))
    base = _base(model)
    held_out = torch.full((len(labels), classes), math.nan)
    for number in range(FOLDS):
        inside, rest = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        if len(inside):
            part = _trained(base, adapter, rows_at(rows, rest), labels[rest], classes)
            logits = part.logits(part.feature(rows_at(rows, inside)))
            held_out[torch.from_numpy(inside)] = logits.float()
    # the one that answers from now on has seen every fold
    final = _trained(base, adapter, rows, labels, classes)
    return tempered(final.feature, Probe(final.weight, final.bias, 0.0, "one", held_out), labels)


def deeper(adapter: str, model: str) -> str:
    """Return the word of an adapter for a model that has its best probe at some layer.

    Trained blocks behind that layer help, where frozen ones do not.
    """
    name, layer, tokens = split_word(model)
    depth = text_model(name)[0].config.num_hidden_layers
    layer = depth if layer is None else min(layer + ABOVE, depth)
    return f"{adapter}={HiddenMean(name, layer, tokens).word}"


def _base(model: str) -> HiddenMean:
    """Return the feature of MODEL@LAYER:TOKENS, behind the first block at least."""
    name, layer, tokens = split_word(model)
    depth = text_model(name)[0].config.num_hidden_layers
    return HiddenMean(name, depth if layer is None else max(1, layer), tokens)


def _trained(
    base: HiddenMean,
    adapter: str,
    rows: Rows,
    labels: np.ndarray,
    classes: int,
    epochs: int = EPOCHS,
) -> Member:
    """Train an adapter and a head on all of some rows; return them without held-out answers."""
    # a copy without what stands above the layer
    trunk, tokenizer = base.network()
    model = adapt(MeanClassifier(trunk, classes), adapter)
    low_rank_changes(model)  # refuses an adapter that could not be kept, before it is trained
    rate = own_rate(adapter, batch_norms=False)
    items = _items(tokenizer, rows, labels, base.tokens)
    options: Any = {"epochs": epochs, "batch_size": BATCH, "lr": rate}
    fit(model, items, task=Classes(classes), **options)
    head: Any = next(m for name, m in model.named_modules() if name.endswith("score"))
    tensors = dict(head.modules_to_save["default"].named_parameters())
    weight, bias = (tensors[name].detach().clone() for name in ("weight", "bias"))
    pairs = low_rank_changes(model).items()
    changes = {path.removeprefix(f"{TRUNK}."): pair for path, pair in pairs}
    return Member(AdaptedMean(adapter, base, changes), weight, bias, 0.0)


def _items(tokenizer: Any, rows: Rows, labels: np.ndarray, tokens: int) -> Any:
    """Return what `fit` takes: the tokens of each text with its label."""
    # rows of one length each: the loop pads a batch to its longest
    encoded = tokenizer(list(rows), truncation=True, max_length=tokens)
    names = ("input_ids", "attention_mask")
    return [
        {name: torch.tensor(encoded[name][i]) for name in names} | {"labels": int(label)}
        for i, label in enumerate(labels)
    ]


def training_seconds(word: str, rows: Rows, labels: np.ndarray) -> float:
    """Estimate the seconds of `fitted_member` for an adapter, by two short trainings."""
    adapter, model = split_adapter(word)
    assert adapter is not None
    base, classes, seconds = _base(model), int(labels.max()) + 1, list[float]()
    order = np.random.default_rng(0).permutation(len(rows))
    # the two differ by the time of steps; the rest is the time of preparing
    for steps in (1, 1 + STEPS):
        sample = order[: steps * BATCH]
        began = time.perf_counter()
        _trained(base, adapter, rows_at(rows, sample), labels[sample], classes, epochs=1)
        seconds.append(time.perf_counter() - began)
    step = max(0.0, seconds[1] - seconds[0]) / STEPS
    # every fold is left out of one training, and the last one has all rows
    return (FOLDS + 1) * seconds[0] + step * EPOCHS * FOLDS * len(rows) / BATCH
