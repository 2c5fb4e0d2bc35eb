"""Every parameter of OpenAI's reference does what it says, or is refused in OpenAI's words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as Chat
from openai.types.completion_create_params import CompletionCreateParamsStreaming as Text
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming as Response

from intarsia.serve.choices import AnswerText
from intarsia.serve.models import ServedModel
from intarsia.serve.parameters import CHATS, COMPLETIONS, RESPONSES, names, table

from .conftest import Running, wanted

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "serve-a-mixture.md"
CHAT, TEXT, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HELLO = [{"role": "user", "content": "Hi"}]


def test_the_page_has_the_table_of_the_code() -> None:
    assert table() in PAGE.read_text()


@pytest.mark.parametrize(
    ("route", "reference"), [(COMPLETIONS, Text), (CHATS, Chat), (RESPONSES, Response)]
)
def test_the_table_has_every_parameter_of_openai_s_reference(route: str, reference: Any) -> None:
    assert reference.__mutable_keys__ <= set(names(route))


def text(answer: Any) -> str:
    return answer[1]["choices"][0]["text"]


def complete(server: Running, prompt: Any, **options: Any) -> Any:
    body = {"model": "mix", "prompt": prompt, "max_tokens": 8}
    return server.ask("/v1/completions", body | options)


def ids_of(served: ServedModel, tokens: int, **options: Any) -> list[int]:
    """The new tokens of `generate` after "one"."""
    ids = served.tokenizer("one", return_tensors="pt")["input_ids"]
    ones = torch.ones_like(ids)
    output = served.model.generate(
        input_ids=ids, attention_mask=ones, max_new_tokens=tokens, do_sample=False, **options
    )
    return output[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("amount", [100, 100.0])
def test_a_bias_forces_a_token_and_forbids_one(
    server: Running, opened: dict[str, ServedModel], amount: float
) -> None:
    served = opened["mix"]
    forced = served.tokenizer("z")["input_ids"][0]
    assert text(server.say("one", logit_bias={str(forced): amount})) == "z" * 8
    body = {"model": "mix", "messages": HELLO, "max_tokens": 4, "logit_bias": {forced: amount}}
    status, answer = server.ask(CHAT, body)
    assert status == 200 and answer["choices"][0]["message"]["content"] == "zzzz"
    first = ids_of(served, 1)[0]
    status, answer = server.say("one", logit_bias={str(first): -amount}, max_tokens=1, logprobs=2)
    logprobs = answer["choices"][0]["logprobs"]
    best = list(logprobs["top_logprobs"][0])  # of the model's own logits
    assert logprobs["tokens"] == [best[1]]


def test_penalties_are_those_of_openai_s_formula(
    server: Running, opened: dict[str, ServedModel]
) -> None:
    served = opened["mix"]
    ids, drawn = served.tokenizer("one")["input_ids"], list[int]()
    frequency, presence = 1.5, -0.5
    with torch.no_grad():
        for _ in range(8):  # step by step, from the formula
            logits = served.model(torch.tensor([ids + drawn])).logits[0, -1]
            for token in set(drawn):
                logits[token] -= frequency * drawn.count(token) + presence
            drawn.append(int(logits.argmax()))
    penalties = {"frequency_penalty": frequency, "presence_penalty": presence}
    assert text(server.say("one", **penalties)) == served.tokenizer.decode(drawn)
    assert drawn != ids_of(served, 8), "the penalties change nothing here: choose others"


def test_top_p_of_nothing_and_a_cold_temperature_take_the_likeliest(
    server: Running, opened: dict[str, ServedModel]
) -> None:
    want = wanted(opened["mix"], "one")
    for options in ({"temperature": 0}, {"temperature": 1e-30}, {"top_p": 0}, {"top_p": 1e-9}):
        assert text(server.say("one", **options)) == want
    again = [text(server.say("one", seed=3, temperature=1, top_p=0.5)) for _ in range(2)]
    assert again[0] == again[1]


def test_choices_are_those_of_each_prompt(server: Running, opened: dict[str, ServedModel]) -> None:
    served = opened["mix"]
    want = [wanted(served, prompt) for prompt in ("one", "x")]
    ids = [served.tokenizer(prompt)["input_ids"] for prompt in ("one", "x")]
    for prompt in (["one", "x"], ids):
        status, answer = complete(server, prompt, n=2)
        assert status == 200 and [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
        assert [c["text"] for c in answer["choices"]] == [want[0], want[0], want[1], want[1]]
        assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 32, "total_tokens": 36}
    assert text(complete(server, ids[0])) == want[0]
    sampled = {"n": 2, "temperature": 1.5, "seed": 5}
    both = [c["text"] for c in server.say("one", **sampled)[1]["choices"]]
    second = text(server.say("one", **(sampled | {"n": 1, "seed": 6})))
    assert both[0] != both[1] == second
    status, events = complete(server, ["one", "x"], stream=True)
    parts = [json.loads(e)["choices"][0] for e in events.split("data: ")[1:-1]]
    texts = ["".join(p["text"] for p in parts if p["index"] == index) for index in (0, 1)]
    assert texts == want


def test_log_probabilities_are_the_model_s_own(
    server: Running, opened: dict[str, ServedModel]
) -> None:
    served = opened["mix"]
    prompt, drawn = served.tokenizer("one")["input_ids"], ids_of(served, 4)
    with torch.no_grad():
        logits = served.model(torch.tensor([prompt + drawn])).logits[0, len(prompt) - 1 : -1]
    want = logits.log_softmax(-1)
    logprobs = server.say("one", logprobs=2, max_tokens=4)[1]["choices"][0]["logprobs"]
    for step, value in enumerate(logprobs["token_logprobs"]):
        assert math.isclose(value, want[step, drawn[step]], rel_tol=1e-4)
        best = want[step].topk(2).values.tolist()
        assert list(logprobs["top_logprobs"][step].values()) == pytest.approx(best, rel=1e-4)
    assert logprobs["text_offset"][0] == 0 and len(logprobs["tokens"]) == 4
    body = {"model": "mix", "messages": HELLO, "max_tokens": 3, "logprobs": True}
    chat = server.ask(CHAT, body | {"top_logprobs": 2})[1]["choices"][0]
    content = chat["logprobs"]["content"]
    assert len(content) == 3 and all(len(entry["top_logprobs"]) == 2 for entry in content)
    assert all(e["bytes"] in (None, list(e["token"].encode())) for e in content)
    events = server.ask(CHAT, body | {"stream": True})[1].split("data: ")[1:-1]
    choices = [json.loads(event)["choices"][0] for event in events]
    entries = [entry for c in choices if c["logprobs"] for entry in c["logprobs"]["content"]]
    assert [e["logprob"] for e in entries] == pytest.approx(
        [e["logprob"] for e in content], rel=1e-4
    )


def test_an_answer_ends_before_its_stop_text(
    server: Running, opened: dict[str, ServedModel]
) -> None:
    prompt, stop = "a longer beginning", "LL"
    before, part, _ = wanted(opened["mix"], prompt, 24).partition(stop)
    assert part, "choose a text that comes"
    for stream in (False, True):
        for options in ({}, {"temperature": 0, "logprobs": 0}):  # in the batch, and by itself
            request = {"stop": ["never seen", stop], "max_tokens": 24, "stream": stream} | options
            status, answer = server.say(prompt, **request)
            assert status == 200
            if stream:
                parts = [json.loads(e)["choices"][0] for e in answer.split("data: ")[1:-1]]
                part = {"text": "".join(p["text"] for p in parts)} | {
                    "finish_reason": parts[-1]["finish_reason"]
                }
            else:
                part = answer["choices"][0]
            assert (part["text"], part["finish_reason"]) == (before, "stop")


class Letters:
    """A tokenizer of letters, for `AnswerText`."""

    def __init__(self, opened: ServedModel) -> None:
        self.tokenizer = opened.tokenizer

    def words(self, text: str, *stops: str) -> tuple[list[str], bool]:
        words = AnswerText(self.tokenizer, stops)
        parts = [words.feed(token) for token in self.tokenizer(text)["input_ids"]]
        return ([*parts, words.end()] if not words.stopped else parts), words.stopped


def test_what_may_become_a_stop_text_is_held_back(opened: dict[str, ServedModel]) -> None:
    letters = Letters(opened["mix"])
    assert letters.words("abcd") == (["a", "b", "c", "d", ""], False)
    assert letters.words("abcx", "bcd") == (["a", "", "", "bcx", ""], False)
    assert letters.words("abab", "abc") == (["", "", "ab", "", "ab"], False)
    assert letters.words("é") == (["", "é", ""], False)
    parts, stopped = letters.words("xababc", "abc")
    assert "".join(parts) == "xab" and stopped
    parts, stopped = letters.words("xyz", "z", "yz")
    assert "".join(parts) == "x" and stopped, "the stop text that begins first"


REFUSED: list[tuple[str, dict[str, Any], int, str | None, str]] = [
    (TEXT, {"model": "mad"}, 404, "model", "model_not_found"),
    (TEXT, {"model": "gpt-4/../../etc"}, 404, "model", "model_not_found"),
    (TEXT, {"model": None}, 400, "model", "missing_required_parameter"),
    (TEXT, {"model": ["mix"]}, 400, "model", "invalid_type"),
    (TEXT, {"prompt": None}, 400, "prompt", "missing_required_parameter"),
    (TEXT, {"prompt": ""}, 400, "prompt", "empty_string"),
    (TEXT, {"prompt": []}, 400, "prompt", "empty_array"),
    (TEXT, {"prompt": ["a", 3]}, 400, "prompt", "invalid_type"),
    (TEXT, {"prompt": [1, 999]}, 400, "prompt", "invalid_value"),
    (TEXT, {"prompt": [True]}, 400, "prompt", "invalid_type"),
    (TEXT, {"prompt": ["a"] * 5}, 400, "prompt", "array_above_max_length"),
    (TEXT, {"prompt": ["a", "b"], "n": 3}, 400, "n", "invalid_value"),
    (TEXT, {"prompt": "x" * 300, "max_tokens": None}, 400, None, "context_length_exceeded"),
    (TEXT, {"prompt": "x" * 200, "max_tokens": 64}, 400, "max_tokens", "context_length_exceeded"),
    (TEXT, {"max_tokens": 65}, 400, "max_tokens", "integer_above_max_value"),
    (TEXT, {"max_tokens": 0}, 400, "max_tokens", "integer_below_min_value"),
    (TEXT, {"max_tokens": True}, 400, "max_tokens", "invalid_type"),
    (TEXT, {"max_tokens": 8.0}, 400, "max_tokens", "invalid_type"),
    (TEXT, {"temperature": "hot"}, 400, "temperature", "invalid_type"),
    (TEXT, {"temperature": 2.5}, 400, "temperature", "decimal_above_max_value"),
    (TEXT, {"top_p": -1}, 400, "top_p", "decimal_below_min_value"),
    (TEXT, {"n": 5}, 400, "n", "integer_above_max_value"),
    (TEXT, {"n": 10**400}, 400, "n", "integer_above_max_value"),
    (TEXT, {"logprobs": 6}, 400, "logprobs", "integer_above_max_value"),
    (TEXT, {"logprobs": True}, 400, "logprobs", "invalid_type"),
    (TEXT, {"echo": True}, 400, "echo", "unsupported_value"),
    (TEXT, {"suffix": "end"}, 400, "suffix", "unsupported_value"),
    (TEXT, {"best_of": 2}, 400, "best_of", "unsupported_value"),
    (TEXT, {"generation_config": "{}"}, 400, "generation_config", "unknown_parameter"),
    (TEXT, {"stop": [""]}, 400, "stop", "invalid_value"),
    (TEXT, {"stop": ["a"] * 5}, 400, "stop", "array_above_max_length"),
    (TEXT, {"stop": {"a": 1}}, 400, "stop", "invalid_type"),
    (TEXT, {"seed": 1.5}, 400, "seed", "invalid_type"),
    (TEXT, {"logit_bias": {"a": 1}}, 400, "logit_bias", "invalid_value"),
    (TEXT, {"logit_bias": {"1": "x"}}, 400, "logit_bias.1", "invalid_type"),
    (TEXT, {"logit_bias": {"1": 101}}, 400, "logit_bias.1", "decimal_above_max_value"),
    (TEXT, {"logit_bias": {"999": 1}}, 400, "logit_bias", "invalid_value"),
    (TEXT, {"logit_bias": [1]}, 400, "logit_bias", "invalid_type"),
    (TEXT, {"frequency_penalty": 3}, 400, "frequency_penalty", "decimal_above_max_value"),
    (TEXT, {"stream": 1}, 400, "stream", "invalid_type"),
    (TEXT, {"stream_options": {}}, 400, "stream_options", "invalid_value"),
    (TEXT, {"nonsense": 1}, 400, "nonsense", "unknown_parameter"),
    (TEXT, {"user": "x" * 5000}, 413, None, ""),
    (TEXT, {"user": "x" * 900_000}, 413, None, ""),
    (TEXT, {"prompt": "\ud800"}, 400, None, ""),
    (CHAT, {"messages": None}, 400, "messages", "missing_required_parameter"),
    (CHAT, {"messages": "Hi"}, 400, "messages", "invalid_type"),
    (CHAT, {"messages": []}, 400, "messages", "empty_array"),
    (CHAT, {"messages": ["Hi"]}, 400, "messages[0]", "invalid_type"),
    (CHAT, {"messages": [{"content": "x"}]}, 400, "messages[0].role", "missing_required_parameter"),
    (CHAT, {"messages": [{"role": 3}]}, 400, "messages[0].role", "invalid_type"),
    (CHAT, {"messages": [{"role": "boss", "content": ""}]}, 400, "messages[0].role", ""),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content", ""),
    (CHAT, {"messages": [{"role": "user", "content": [{}]}]}, 400, "messages[0].content[0].type",
     "unsupported_value"),
    (CHAT, {"messages": [{"role": "user", "content": "", "audio": 1}]}, 400, "messages[0].audio",
     "unknown_parameter"),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": "x"}]}, 400,
     "messages[0].tool_calls", "invalid_type"),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [
        {"function": {"name": "f", "arguments": "{"}}]}]}, 400,
     "messages[0].tool_calls[0].function.arguments", "invalid_value"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages", "invalid_value"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools",
     "unsupported_value"),
    (CHAT, {"tools": ["f"]}, 400, "tools[0]", "invalid_type"),
    (CHAT, {"tool_choice": "required"}, 400, "tool_choice", "unsupported_value"),
    (CHAT, {"response_format": {"type": "json_object"}}, 400, "response_format", ""),
    (CHAT, {"top_logprobs": 2}, 400, "top_logprobs", "invalid_value"),
    (CHAT, {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, 400, "chat_template_kwargs", ""),
    (RESPONSE, {"input": None}, 400, "input", "missing_required_parameter"),
    (RESPONSE, {"input": [{}]}, 400, "input[0].role", "missing_required_parameter"),
    (RESPONSE, {"input": [{"type": "function_call"}]}, 400, "input[0].call_id", ""),
    (RESPONSE, {"input": [{"type": "image"}]}, 400, "input[0].type", "unsupported_value"),
    (RESPONSE, {"previous_response_id": "resp_1"}, 400, "previous_response_id", ""),
    (RESPONSE, {"background": True}, 400, "background", "unsupported_value"),
    (RESPONSE, {"truncation": "auto"}, 400, "truncation", "unsupported_value"),
    (RESPONSE, {"reasoning": {"effort": "high"}}, 400, "reasoning", "unsupported_value"),
    (RESPONSE, {"text": {"format": {"type": "json_schema"}}}, 400, "text", "unsupported_value"),
    (RESPONSE, {"store": True}, 400, "store", "unsupported_value"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes", "status", "param", "code"), REFUSED)
def test_what_is_not_done_is_refused_in_openai_s_words(
    server: Running, path: str, changes: dict[str, Any], status: int, param: str | None, code: str
) -> None:
    request = {TEXT: {"prompt": "one"}, CHAT: {"messages": HELLO}, RESPONSE: {"input": "Hi"}}[path]
    got, answer = server.ask(path, {"model": "mix"} | request | changes)
    error = answer["error"]
    assert (got, error["param"]) == (status, param), error
    assert error["type"] == "invalid_request_error" and set(error) >= {"message", "code"}
    assert not code or error["code"] == code


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[1]", b"\xff\xfe", b"NaN", b'{"model": NaN}', b"[" * 3000, b'"' + b"9" * 3000],
)
def test_a_body_that_is_no_object_is_refused(server: Running, raw: bytes) -> None:
    status, answer = server.ask(TEXT, raw)
    assert status == 400 and answer["error"]["message"].startswith("We could not parse")


def test_what_openai_takes_and_changes_nothing_is_taken(server: Running) -> None:
    plain = {"n": 1, "user": "me", "best_of": 1, "logit_bias": {}, "stop": None, "seed": None}
    assert server.say("one", **plain, echo=False, suffix=None)[0] == 200
    body = {"model": "mix", "messages": HELLO, "max_completion_tokens": 2, "tool_choice": "auto"}
    options = {"response_format": {"type": "text"}, "metadata": {}, "service_tier": "auto"}
    assert server.ask(CHAT, body | options)[0] == 200
    body = {"model": "mix", "input": "Hi", "max_output_tokens": 2, "truncation": "disabled"}
    options = {"text": {"format": {"type": "text"}}, "include": [], "instructions": "Be kind."}
    status, answer = server.ask(RESPONSE, body | options)
    assert status == 200 and answer["status"] == "incomplete"
