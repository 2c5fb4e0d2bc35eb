"""The processor of a model that sees or hears, and its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core.change import steps_of
from ..core.checks import at_least
from ..core.errors import DataError
from ..core.modes import evaluating
from ..data.packages import announce
from ..train.tasks.answers import answers_batch
from .data.encoders import encoder
from .data.questions import Processor, Question
from .modalities import INPUTS, Senses, connectors_of, decoder_of, embed_with_senses


def processor(
    model: nn.Module,
    tokenizer: Any,
    *,
    length: int = 2048,
    progress: Callable[[str], None] = announce,
) -> Processor:
    """Build the processor that turns questions, pictures and sounds into inputs of this model.

    tokenizer: of the language model; length: tokens of a row, at most, including the marks of
    pictures and sounds; progress: function that is given a line of text, as when an encoder is
    loaded.
    Raises: ConfigError for a model without connectors.
    """
    connectors = connectors_of(model)
    changes = (step.plan.change for step in steps_of(decoder_of(model)))
    change = next(change for change in changes if isinstance(change, Senses))
    return Processor(
        tokenizer,
        {modality: encoder(name, modality) for modality, name in change.encoders.items()},
        {modality: connector.count for modality, connector in connectors.items()},
        change.tiles,
        length,
        progress,
    )


def prompt(model: nn.Module, row: dict[str, Tensor]) -> Tensor:
    """Return the embeddings (1, T, d) of a question with its pictures and sounds.

    row: of the processor; vectors that the model is not to read are left out.
    """
    batch = answers_batch([{n: t for n, t in row.items() if n != "labels"}])
    host: Any = decoder_of(model)
    device = next(host.parameters()).device
    batch = {n: t.to(device) for n, t in batch.items()}
    ids, inputs = batch["input_ids"], {n: batch.get(n) for n in INPUTS}
    embedded = embed_with_senses(host, ids, batch["attention_mask"], inputs)
    if embedded is None:
        return host.get_input_embeddings()(ids)
    return embedded[0][:, embedded[1][0].bool()]


@torch.no_grad()
def answer(
    model: nn.Module,
    processor: Processor,
    question: str = "",
    *,
    image: Any = (),
    audio: Any = (),
    tokens: int = 32,
) -> str:
    """Answer a question about pictures and sounds, by the most probable token at each step.

    processor: see `processor`; image: a path, a PIL picture, or several; audio: a path,
    (samples, rate), or a list of them; tokens: length of the answer, at most.
    Raises: DataError for files that cannot be read, and a prompt that leaves no room.
    """
    asked_question = Question(question, None, _as_tuple(image), _as_tuple(audio))
    return answer_of(model, processor, asked_question, tokens)


@torch.no_grad()
def answer_of(model: nn.Module, processor: Processor, question: Question, tokens: int = 32) -> str:
    """Return the model's answer to a `Question`; an answer that the question has is ignored.

    processor, tokens: as in `answer`. Raises: DataError for a prompt that leaves no room.
    """
    at_least("tokens", tokens, 1)
    # the answer must not be part of the prompt
    unanswered = Question(
        question.question, None, question.image, question.audio, where=question.where
    )
    row = processor.rows([unanswered])[0]
    host: Any = model
    with evaluating(model):
        embeds = prompt(model, row)
        # pictures count with as many tokens as they have vectors
        room = getattr(decoder_of(model).config, "max_position_embeddings", None)
        if room is not None and embeds.shape[1] + tokens > room:
            got = f"{embeds.shape[1]} tokens and {tokens} to come"
            fix = "Shorten the question, or ask for fewer tokens."
            raise DataError(question.where, got=got, want=f"at most {room} together", fix=fix)
        # one row without padding: every vector is read
        mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
        out = host.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=processor.tokenizer.eos_token_id,
        )
    return processor.tokenizer.decode(out[0], skip_special_tokens=True).strip()


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """Return pictures or sounds as a tuple; value: None, one, or a list of them."""
    if value is None:
        return ()
    # (samples, rate) is one sound, not two
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Real)
    if isinstance(value, list) or (isinstance(value, tuple) and not pair):
        return tuple(Path(v) if isinstance(v, str) else v for v in cast(Sequence[Any], value))
    return (Path(value) if isinstance(value, str) else value,)
