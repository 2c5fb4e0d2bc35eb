"""Instruction files: a line's text, or the messages of a chat, and their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from intarsia.core.errors import DataError
from intarsia.core.files import parse_json

PROMPT = ("prompt", "instruction", "question")
ANSWER = ("response", "output", "completion", "answer")
Sample = str | list[dict[str, str]]  # a text, or the messages of a chat


def object_of(line: str, where: str) -> Mapping[str, Any]:
    try:
        found = parse_json(line)
    except ValueError as error:
        raise DataError(
            where, got=str(error), want="one JSON object", fix="Correct or delete the line."
        ) from error
    if not isinstance(found, dict):
        got, fix = type(found).__name__, 'For example {"prompt": "...", "response": "..."}.'
        raise DataError(where, got=got, want="one JSON object", fix=fix)
    return found


def tokens_of(sample: Sample, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens before the answer, and those of the answer with the end token."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if isinstance(sample, str):
        return [], tokenizer(sample)["input_ids"] + end
    if getattr(tokenizer, "chat_template", None):
        asked, whole = _chat(sample, tokenizer)
        if whole.startswith(asked):
            parts = asked, whole[len(asked) :].rstrip("\n")
            prompt, answer = (
                tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts
            )
            return prompt, answer
    answer = tokenizer(sample[-1]["content"], add_special_tokens=False)["input_ids"]
    return tokenizer(prompt_of(sample) + "\n")["input_ids"], answer + end


def _chat(sample: list[dict[str, str]], tokenizer: Any) -> tuple[str, str]:
    """Return a chat up to its answer, and all of it, as the tokenizer's template writes them.

    Raises: DataError for a template that fails.
    """
    try:
        asked = tokenizer.apply_chat_template(
            sample[:-1], tokenize=False, add_generation_prompt=True
        )
        return asked, tokenizer.apply_chat_template(sample, tokenize=False)
    except Exception as error:  # a template is a program, and may raise what it likes
        roles = [message["role"] for message in sample]
        want = f"a template that writes chats of {roles}"
        fix = "Give messages as the template wants them, or take the template out of the tokenizer."
        raise DataError("chat template", got=error, want=want, fix=fix) from error


def prompt_of(sample: Sample) -> str:
    """The text before the answer. Rows with the same one stay in one part."""
    return sample if isinstance(sample, str) else "\n".join(m["content"] for m in sample[:-1])


def sample_of(line: Mapping[str, Any], where: str) -> Sample:
    """The text or the messages of a line."""
    if isinstance(text := line.get("text"), str):
        return text
    messages = line.get("messages") or _messages(line, where)
    try:
        sample = [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
    except (TypeError, KeyError) as error:
        got = f"messages without {error}"
        fix = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}'
        raise DataError(where, got=got, want="role and content in each", fix=fix) from error
    if len(sample) < 2 or sample[-1]["role"] != "assistant":
        got, fix = f"roles {[m['role'] for m in sample]}", "Add it, or leave the line out."
        raise DataError(where, got=got, want="an answer of the assistant at the end", fix=fix)
    return sample


def _messages(line: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    prompt = next((line[k] for k in PROMPT if isinstance(line.get(k), str)), None)
    answer = next((line[k] for k in ANSWER if isinstance(line.get(k), str)), None)
    if prompt is None or answer is None:
        got, want = f"keys {sorted(line)}", "text, messages, or prompt and response"
        fix = f"Known: {', '.join(PROMPT)} with {', '.join(ANSWER)}."
        raise DataError(where, got=got, want=want, fix=fix)
    if isinstance(more := line.get("input"), str) and more:
        prompt = f"{prompt}\n{more}"
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
