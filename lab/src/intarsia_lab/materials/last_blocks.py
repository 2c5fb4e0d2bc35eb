"""The last blocks of pretrained language models, on states that the blocks below left once.

The frozen part below the first adapted block is computed once for each text. The last blocks are a
model of their own that reads these states: of SmolLM2 a `LlamaForCausalLM`, of MiniLM a classifier.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.core.store import Store
from intarsia.data import packages
from intarsia.data.language_models import language_model, quietly
from intarsia.data.packages import SENTENCE_ENCODERS, packaged_folder
from intarsia.train.order import IGNORED, Inputs
from intarsia.train.tasks.classes import Classes
from intarsia.train.tasks.tokens import Tokens

from .short_texts import QuestionAnswer

LAST = 2  # blocks that can be adapted
AT_ONCE = 32  # texts
Row = Mapping[str, Tensor]


def padded(items: Sequence[Row]) -> tuple[Inputs, Tensor]:
    """Join rows of hidden states to one batch of inputs and labels.

    items: each with "inputs_embeds" (T, d), "labels", and maybe "task_ids"; states are padded to
      the longest. Inputs have "inputs_embeds", "attention_mask" and, if the rows have them,
      "task_ids".
    """
    longest = max(len(row["inputs_embeds"]) for row in items)
    rests = [longest - len(row["inputs_embeds"]) for row in items]
    states = [F.pad(r["inputs_embeds"], (0, 0, 0, n)) for r, n in zip(items, rests, strict=True)]
    batch = {"inputs_embeds": torch.stack(states)}
    masks = [torch.ones(longest - n, dtype=torch.int64) for n in rests]
    batch["attention_mask"] = torch.stack(
        [F.pad(m, (0, n)) for m, n in zip(masks, rests, strict=True)]
    )
    if "task_ids" in items[0]:
        batch["task_ids"] = torch.stack([row["task_ids"] for row in items])
    labels = [row["labels"] for row in items]
    # a label for each token, padded as the states; else one for each row
    if labels[0].ndim:
        labels = [F.pad(y, (0, n), value=IGNORED) for y, n in zip(labels, rests, strict=True)]
    return batch, torch.stack(labels)


@dataclass(frozen=True)
class StateTokens(Tokens):
    """`Tokens` of rows of states."""

    labelled: ClassVar[bool] = False

    def collate(self, items: Sequence[Any]) -> tuple[Inputs, Any]:
        return padded(items)


@dataclass(frozen=True)
class StateClasses(Classes):
    """`Classes` of rows of states."""

    labelled: ClassVar[bool] = False

    def collate(self, items: Sequence[Any]) -> tuple[Inputs, Any]:
        return padded(items)


@lru_cache(maxsize=1)
def decoder() -> tuple[Any, Any]:
    """Return SmolLM2 and its tokenizer."""
    model, tokenizer = language_model("smollm2", progress=lambda _: None)
    return model.eval(), tokenizer


@lru_cache(maxsize=1)
def encoder() -> tuple[Any, Any]:
    """Return MiniLM and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    # from a package: no network is needed, and no code from the folder runs
    folder: Any = packaged_folder(SENTENCE_ENCODERS, "minilm", lambda _: None)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with quietly():
        return AutoModel.from_pretrained(folder, **options).eval(), AutoTokenizer.from_pretrained(
            folder, **options
        )


class LanguageRows:
    """Questions and answers as states of SmolLM2, and its last blocks over the answers' tokens.

    sets: name -> questions.  rows: name -> rows with labels on the answers, in numbers of `kept`.
    The head has the tokens that occur in an answer of any set, so that losses are over these.
    """

    def __init__(self, sets: Mapping[str, Sequence[QuestionAnswer]]) -> None:
        """Compute the hidden states and labels of all questions and answers by the frozen blocks.

        sets: name -> (question, answer) pairs.
        """
        _, tokenizer = decoder()
        tokens = {name: [_ids(tokenizer, pair) for pair in pairs] for name, pairs in sets.items()}
        answers = [a for encoded in tokens.values() for _, a in encoded]
        # the head has only the tokens of answers, renumbered
        self.kept = sorted({token for answer in answers for token in answer})
        number = {token: i for i, token in enumerate(self.kept)}
        self.rows: dict[str, list[Row]] = {}
        for name, encoded in tokens.items():
            states = decoder_states([p + a for p, a in encoded])
            # the loss is over the answer's tokens
            labels = [[IGNORED] * len(p) + [number[t] for t in a] for p, a in encoded]
            self.rows[name] = [
                {"inputs_embeds": x, "labels": torch.tensor(y)}
                for x, y in zip(states, labels, strict=True)
            ]

    def model(self) -> nn.Module:
        """Return a fresh copy of SmolLM2's last blocks, norm and head.

        It maps hidden states (B, T, d) to logits (B, T, V) of the tokens that occur in answers.
        """
        from transformers import LlamaForCausalLM

        full, _ = decoder()
        config = copy.deepcopy(full.config)
        config.num_hidden_layers, config.vocab_size = LAST, len(self.kept)
        config.bos_token_id = config.eos_token_id = config.pad_token_id = None
        config.use_cache = False
        # the random weights are replaced below
        with torch.random.fork_rng(devices=[]):
            tail: Any = LlamaForCausalLM(config)
        with torch.no_grad():
            tail.lm_head.weight.copy_(full.lm_head.weight[self.kept])
        tail.model.layers.load_state_dict(full.model.layers[-LAST:].state_dict())
        tail.model.norm.load_state_dict(full.model.norm.state_dict())
        return tail.eval()


def _ids(tokenizer: Any, pair: QuestionAnswer) -> tuple[list[int], list[int]]:
    """Return the tokens of a question, with a line's end, and the tokens of its answer."""
    prompt = tokenizer(f"{pair.prompt}\n", add_special_tokens=False)["input_ids"]
    answer = tokenizer(pair.answer, add_special_tokens=False)["input_ids"]
    return (prompt if pair.prompt else answer[:1]), (answer if pair.prompt else answer[1:])


def decoder_states(texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the hidden states that enter SmolLM2's last blocks, (T, d) for each text.

    texts: token ids of each. They are computed once and then read from the cache.
    """
    # the key of the cache: the number of blocks and all tokens
    digest = hashlib.sha256(repr((LAST, [list(ids) for ids in texts])).encode()).hexdigest()
    model, _ = decoder()
    folder = packages.cache_dir() / "features"

    def compute() -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Compute the states, joined over texts, for the cache."""
        with cut(model) as prefix:
            return {"states": torch.cat(_prefix_states(prefix, texts))}, {}

    states = Store(folder).tensors(f"last-blocks-{digest[:24]}", compute)[0]["states"]
    return list(states.split([len(ids) for ids in texts]))


@contextmanager
def cut(model: Any) -> Iterator[Any]:
    """Yield the decoder without its last blocks, norm and head; restore it afterwards.

    model: a causal language model as transformers builds it.
    """
    inner, layers, norm = model.model, model.model.layers, model.model.norm
    inner.layers, inner.norm = layers[:-LAST], nn.Identity()
    try:
        yield inner
    finally:
        inner.layers, inner.norm = layers, norm


@torch.no_grad()
def _prefix_states(prefix: Any, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Run the frozen first blocks of a causal model on texts, a batch at a time.

    prefix: those blocks; texts: token ids. Returns hidden states, (tokens, width) for each text.
    """
    outputs: list[Tensor] = []
    for first in range(0, len(texts), AT_ONCE):
        part = [torch.tensor(ids) for ids in texts[first : first + AT_ONCE]]
        ids = nn.utils.rnn.pad_sequence(part, batch_first=True)  # causal: padding is not seen
        states = prefix(input_ids=ids).last_hidden_state
        # without the padding
        outputs += [
            x[: len(ids_of_row)].clone() for x, ids_of_row in zip(states, part, strict=True)
        ]
    return outputs


class SentenceTail(nn.Module):
    """MiniLM's last blocks, the mean over tokens and a head.  states (B, T, d) -> logits (B, C)."""

    def __init__(self, layers: nn.ModuleList, classes: int) -> None:
        """Keep the last blocks, and draw a head.  classes: outputs of the head."""
        super().__init__()
        self.layers = layers
        last: Any = layers[-1]
        self.head = nn.Linear(last.output.dense.out_features, classes)

    def features(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mean of the hidden states over the tokens that are not padding, (B, d).

        inputs_embeds: states (B, T, d); attention_mask: (B, T), 0 = padding.
        """
        x = through(self.layers, inputs_embeds, attention_mask)
        weight = attention_mask[..., None].to(x)
        return (x * weight).sum(1) / weight.sum(1)

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.features(inputs_embeds, attention_mask))


def through(layers: Any, x: Tensor, attention_mask: Tensor) -> Tensor:
    """Run hidden states through some blocks of BERT.

    layers: the blocks; x: (B, T, d); attention_mask: (B, T), 0 = padding. Returns (B, T, d).
    """
    # added to scores: minus infinity at padding
    hidden = (1 - attention_mask[:, None, None, :].to(x)) * torch.finfo(x.dtype).min
    for layer in layers:
        x = layer(x, hidden)
    return x


def sentence_tail(classes: int) -> SentenceTail:
    """Return a fresh copy of MiniLM's last blocks, with a head of zeros for `classes`."""
    model, _ = encoder()
    with torch.random.fork_rng(devices=[]):
        tail = SentenceTail(copy.deepcopy(model.encoder.layer[-LAST:]), classes)
    nn.init.zeros_(tail.head.weight)
    nn.init.zeros_(tail.head.bias)
    return tail.eval()


@torch.no_grad()
def encoder_states(texts: Sequence[str], length: int) -> list[Tensor]:
    """Return the hidden states that enter MiniLM's last blocks, (T, d) for each text.

    texts: sentences; length: tokens at most, longer texts are cut.
    """
    model, tokenizer = encoder()
    outputs: list[Tensor] = []
    for first in range(0, len(texts), AT_ONCE):
        part = list(texts[first : first + AT_ONCE])
        inputs = tokenizer(
            part, max_length=length, truncation=True, padding=True, return_tensors="pt"
        )
        mask = inputs["attention_mask"]
        x = through(
            model.encoder.layer[:-LAST], model.embeddings(input_ids=inputs["input_ids"]), mask
        )
        # without the padding
        outputs += [row[: int(n)].clone() for row, n in zip(x, mask.sum(1), strict=True)]
    return outputs
