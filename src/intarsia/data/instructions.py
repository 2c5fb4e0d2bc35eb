"""Instruction files: the text or the chat of a line, and their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from intarsia.core.errors import DataError
from intarsia.core.files import parse_json

PROMPT = ("prompt", "instruction", "question")
ANSWER = ("response", "output", "completion", "answer")
Sample = str | list[dict[str, str]]  # a text, or the messages of a chat


def parse_row(line: str, place: str) -> Mapping[str, Any]:
    """Parse a line as a JSON object; place: where the line is, for errors.  Raises: DataError."""
    try:
        row = parse_json(line)
    except ValueError as error:
        raise DataError(
            place, got=str(error), want="one JSON object", fix="Correct or delete the line."
        ) from error
    if not isinstance(row, dict):
        got, fix = type(row).__name__, 'For example {"prompt": "...", "response": "..."}.'
        raise DataError(place, got=got, want="one JSON object", fix=fix)
    return row


def tokens_of(sample: Sample, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens of a sample's prompt, and of its answer with the end token.

    sample: a text, which is all answer, or the messages of a chat: the last one is the answer.
    tokenizer: of transformers; its chat template is used if it has one.
    """
    # The answer ends with the end token, so that a model learns to stop.
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if isinstance(sample, str):
        return [], tokenizer(sample)["input_ids"] + end
    if getattr(tokenizer, "chat_template", None):
        prompt_text, chat_text = _render_chat(sample, tokenizer)
        # Templates that rewrite the prompt once an answer follows cannot be cut in two.
        if chat_text.startswith(prompt_text):
            parts = prompt_text, chat_text[len(prompt_text) :].rstrip("\n")
            prompt, answer = (
                tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts
            )
            return prompt, answer
    answer = tokenizer(sample[-1]["content"], add_special_tokens=False)["input_ids"]
    return tokenizer(prompt_of(sample) + "\n")["input_ids"], answer + end


def _render_chat(sample: list[dict[str, str]], tokenizer: Any) -> tuple[str, str]:
    """Render a chat as text by the tokenizer's template: up to its answer, and all of it."""
    try:
        prompt_text = tokenizer.apply_chat_template(
            sample[:-1], tokenize=False, add_generation_prompt=True
        )
        return prompt_text, tokenizer.apply_chat_template(sample, tokenize=False)
    except Exception as error:  # a template is a program, and may raise any error
        roles = [message["role"] for message in sample]
        want = f"a template that writes chats of {roles}"
        fix = "Give messages as the template wants them, or take the template out of the tokenizer."
        raise DataError("chat template", got=error, want=want, fix=fix) from error


def prompt_of(sample: Sample) -> str:
    """Return the text before the answer, by which rows are grouped into parts."""
    return sample if isinstance(sample, str) else "\n".join(m["content"] for m in sample[:-1])


def sample_of(line: Mapping[str, Any], place: str) -> Sample:
    """Return the text, or the chat, of an instruction file's line.  Raises: DataError."""
    if isinstance(text := line.get("text"), str):
        return text
    messages = line.get("messages") or _messages_of_prompt(line, place)
    try:
        sample = [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
    except (TypeError, KeyError) as error:
        got = f"messages without {error}"
        fix = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}'
        raise DataError(place, got=got, want="role and content in each", fix=fix) from error
    if len(sample) < 2 or sample[-1]["role"] != "assistant":
        got, fix = f"roles {[m['role'] for m in sample]}", "Add it, or leave the line out."
        raise DataError(place, got=got, want="an answer of the assistant at the end", fix=fix)
    return sample


def _messages_of_prompt(line: Mapping[str, Any], place: str) -> list[dict[str, str]]:
    """Make the two messages of a chat from a line with a prompt and a response."""
    prompt = next((line[k] for k in PROMPT if isinstance(line.get(k), str)), None)
    answer = next((line[k] for k in ANSWER if isinstance(line.get(k), str)), None)
    if prompt is None or answer is None:
        got, want = f"keys {sorted(line)}", "text, messages, or prompt and response"
        fix = f"Known: {', '.join(PROMPT)} with {', '.join(ANSWER)}."
        raise DataError(place, got=got, want=want, fix=fix)
    # Alpaca's form: an instruction with its input.
    if isinstance(details := line.get("input"), str) and details:
        prompt = f"{prompt}\n{details}"
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
