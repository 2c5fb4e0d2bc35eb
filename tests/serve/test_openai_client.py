"""OpenAI's own client runs every call that the page claims, and reads every answer and error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response as OpenAIResponse
from transformers import GenerationConfig

from intarsia.serve.choices import ChoicesRequest
from intarsia.serve.formats import Completions
from intarsia.serve.models import ServedModel
from intarsia.serve.parameters import CHATS
from intarsia.serve.responses import Responses
from intarsia.serve.sampling import NewToken, Sampling

from .conftest import Running, wanted

HELLO: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    address = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(api_key="none", base_url=address, max_retries=0) as opened_client:
        yield opened_client


def test_models(client: openai.OpenAI) -> None:
    assert [listed.id for listed in client.models.list()] == ["mix", "med", "law"]
    assert client.models.retrieve("law").id == "law"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("a/b")
    assert error.value.code == "model_not_found"


def test_completions(client: openai.OpenAI, opened: dict[str, ServedModel]) -> None:
    want = wanted(opened["mix"], "one")
    request: Any = {"model": "mix", "max_tokens": 8}
    completion = client.completions.create(prompt=["one", "one"], n=2, logprobs=1, **request)
    assert [choice.text for choice in completion.choices] == [want] * 4
    assert completion.usage is not None and completion.usage.completion_tokens == 32
    logprobs = completion.choices[0].logprobs
    assert (
        logprobs is not None
        and logprobs.top_logprobs is not None
        and len(logprobs.top_logprobs) == 8
    )
    options: Any = {"include_usage": True}
    chunks = list(
        client.completions.create(prompt="one", stream=True, stream_options=options, **request)
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == want
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 8
    assert chunks[-2].choices[0].finish_reason == "length"


def test_chats(client: openai.OpenAI, opened: dict[str, ServedModel]) -> None:
    want = wanted(opened["med"], "user:Hi\n")
    request: Any = {"model": "med", "messages": HELLO, "max_completion_tokens": 8}
    completion = client.chat.completions.create(logprobs=True, top_logprobs=2, **request)
    assert completion.choices[0].message.content == want
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 8
    chunks = list(client.chat.completions.create(stream=True, n=2, **request))
    for index in (0, 1):
        deltas = [c.choices[0].delta for c in chunks if c.choices[0].index == index]
        assert deltas[0].role == "assistant"
        assert "".join(delta.content or "" for delta in deltas) == want
    with client.chat.completions.stream(stop=want[4], **request) as stream:
        for _ in stream:
            pass
        last = stream.get_final_completion().choices[0]
        assert last.message.content == want[: want.index(want[4])] and last.finish_reason == "stop"


def test_responses(client: openai.OpenAI, opened: dict[str, ServedModel]) -> None:
    want = wanted(opened["law"], "system:Be kind.\nuser:Hi\n")
    request: Any = {"model": "law", "instructions": "Be kind.", "max_output_tokens": 8}
    response = client.responses.create(input="Hi", **request)
    assert response.output_text == want and response.status == "incomplete"
    assert response.usage is not None and response.usage.output_tokens == 8
    events = list(client.responses.create(input="Hi", stream=True, **request))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last: Any = events[-1]
    assert last.type == "response.incomplete" and last.response.output_text == want
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == want
    again: Any = [*HELLO, *(item.to_dict() for item in response.output), *HELLO]
    assert client.responses.create(input=again, **request).status == "incomplete"


def test_errors_are_the_client_s_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="mix", prompt="one", temperature=3)
    assert (error.value.param, error.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=HELLO)
    with pytest.raises(openai.NotFoundError) as error:  # not done: the models generate text
        client.embeddings.create(model="mix", input="one")
    assert error.value.code == "unknown_url"


CALL = '<think>Look.</think>It is <call>{"name": "look", "arguments": {"at": "sky"}}</call>'
TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "assistant:",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open": "<call>",
            "close": "</call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "<end>", "content": "text"},
    },
}


class Written:
    """A stand-in for a generation: a fixed text, token by token."""

    def __init__(self, served: ServedModel, text: str) -> None:
        self.served, self.text = served, text

    async def tokens(self, ids: list[int], sampling: Sampling) -> AsyncIterator[NewToken]:
        for token in self.served.tokenizer(self.text)["input_ids"]:
            yield NewToken(token)


def asked(opened: dict[str, ServedModel], text: str) -> ChoicesRequest:
    served = opened["mix"]
    tokenizer = type(served.tokenizer)(
        tokenizer_object=served.tokenizer.backend_tokenizer, eos_token="<end>"
    )
    tokenizer.response_template = TEMPLATE
    config = GenerationConfig(max_new_tokens=500)
    written: Any = Written(replace(served, tokenizer=tokenizer), text)
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    return ChoicesRequest(written, [[1]], [Sampling(config)], tools=tools, parsed=True)


def test_thoughts_and_calls_are_told_from_the_text(opened: dict[str, ServedModel]) -> None:
    ask = asked(opened, CALL)
    completion = ChatCompletion.model_validate(asyncio.run(Completions(ask, {}, CHATS).whole()))
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "It is "
    assert choice.message.tool_calls is not None
    function: Any = choice.message.tool_calls[0]
    assert function.function.name == "look" and json.loads(function.function.arguments) == {
        "at": "sky"
    }
    assert choice.message.model_extra == {"reasoning_content": "Look."}

    response = OpenAIResponse.model_validate(asyncio.run(Responses(ask, {}).whole()))
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert response.output_text == "It is " and response.status == "completed"

    async def events() -> list[Any]:
        lines = [event[6:] async for event in Completions(ask, {}, CHATS).events()]
        return [json.loads(line) for line in lines[:-1]]

    last = SimpleNamespace(calls=[], text="")
    for chunk in asyncio.run(events()):
        delta = chunk["choices"][0]["delta"]
        last.calls += delta.get("tool_calls", [])
        last.text += delta.get("content") or ""
    assert last.text == "It is " and [call["index"] for call in last.calls] == [0]


def test_a_call_that_is_no_json_is_text(opened: dict[str, ServedModel]) -> None:
    ask = asked(opened, "<call>{look</call> up")
    completion = asyncio.run(Completions(ask, {}, CHATS).whole())
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert "up" in completion["choices"][0]["message"]["content"]
