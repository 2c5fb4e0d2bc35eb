"""A server on loopback: answers are those of `generate`, what is refused costs nothing."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi import HTTPException
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

import intarsia
from intarsia.core.errors import CheckpointError, ConfigError
from intarsia.hosts.serving.app import Application
from intarsia.hosts.serving.gate import Gate
from intarsia.hosts.serving.models import ServedModel, open_models
from intarsia.hosts.serving.naming import names_of
from intarsia.hosts.serving.requests import handlers
from intarsia.hosts.serving.running import Server, bound, hosts_of, is_local, uvicorn
from intarsia.hosts.serving.settings import Limits
from intarsia.hosts.serving.vllm import command

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PROMPTS = ("one", "a longer beginning", "x")
# PEFT asks a transformers 5 model by the old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def mixture() -> Any:
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=257,
            hidden_size=16,
            intermediate_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=8,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
            initializer_range=0.2,
        )
    ).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random mixture whose tokens are bytes, two LoRA, and a change that is no adapter."""
    at = tmp_path_factory.mktemp("served")
    words = {c: i for i, c in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokens = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>")
    fast.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}"
        "{% endif %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    )
    mixture().save_pretrained(at / "mix")
    fast.save_pretrained(at / "mix")
    for seed, name in enumerate(("med", "law")):
        adapted = intarsia.adapt(mixture(), intarsia.Lora(rank=2))
        torch.manual_seed(seed)
        for weight in adapted.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight)
        intarsia.save(adapted, at / name)
    return {path.name: path for path in at.iterdir()}


@pytest.fixture(scope="module")
def opened(folders: dict[str, Path]) -> dict[str, ServedModel]:
    return open_models(
        {"mix": str(folders["mix"])}, {n: folders[n] for n in ("med", "law")}, slots=6
    )


class Running:
    """A server in a thread, and how to ask it."""

    def __init__(self, opened: dict[str, ServedModel], **limits: Any) -> None:
        self.app = Application(opened, Limits(**limits))
        self.socket = bound("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        config = uvicorn.Config(
            self.app, lifespan="off", log_level="error", timeout_graceful_shutdown=20
        )
        self.server = Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self.thread.start()

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON, or text."""
        to = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        json_of = {"content-type": "application/json"}
        to.request("GET" if raw is None else "POST", path, raw, json_of | (headers or {}))
        answer = to.getresponse()
        text = answer.read().decode()
        to.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text

    def say(self, prompt: str, model: str = "mix", **more: Any) -> Any:
        body = {"model": model, "prompt": prompt, "max_tokens": 8, **more}
        return self.ask("/v1/completions", body)

    def counts(self, name: str) -> float:
        lines = self.ask("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"intarsia_{name}"))

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.app.close()
        self.socket.close()


@pytest.fixture(scope="module")
def server(opened: dict[str, ServedModel]) -> Iterator[Running]:
    found = Running(opened, body=4000, tokens=64, at_once=4, queue=8)
    yield found
    found.end()


def wanted(one: ServedModel, prompt: str, tokens: int = 8, **more: Any) -> str:
    ids = one.tokenizer(prompt, return_tensors="pt")["input_ids"]
    made = one.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        **({"do_sample": False} | more),
    )
    return one.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_adapters_are_models_over_one_trunk(
    opened: dict[str, ServedModel], folders: dict[str, Path]
) -> None:
    whole: Any = mixture()
    whole.set_experts_implementation("eager")
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        for name, one in opened.items():
            want = whole if name == "mix" else intarsia.load(mixture(), folders[name])
            if name != "mix":
                intarsia.hosts.saved.base_of(want).set_experts_implementation("eager")  # pyright: ignore
            assert torch.equal(one.model(ids).logits, want(ids).logits)
    trunk, twin = opened["mix"].model, opened["med"].model
    assert trunk.lm_head.weight is twin.lm_head.weight
    assert opened["mix"].slots is opened["med"].slots is not None


def test_answers_are_those_of_generate(server: Running, opened: dict[str, ServedModel]) -> None:
    texts = {(p, n): wanted(opened[n], p) for p in PROMPTS for n in opened}
    asked = [*texts, *list(texts)[::2]]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda a: server.say(*a), asked))
    for (prompt, name), (status, said) in zip(asked, found, strict=True):
        assert status == 200, said
        assert said["choices"][0]["text"] == texts[prompt, name]
        assert said["usage"]["completion_tokens"] == 8 and said["model"] == name
    assert len({said["choices"][0]["text"] for _, said in found}) > 3  # adapters do something


def test_a_stream_says_the_same_and_ends_as_clients_expect(
    server: Running, opened: dict[str, ServedModel]
) -> None:
    # the second one ends in the middle of a character
    asked = [(p, more) for p in ("one", "user:one\n") for more in ({}, {"stop": "\x00\x00\x00"})]
    for prompt, more in asked:
        status, text = server.say(prompt, "med", stream=True, **more)
        assert status == 200
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        parts = [json.loads(line) for line in lines[:-1]]
        assert "".join(p["choices"][0].get("text", "") for p in parts) == wanted(
            opened["med"], prompt
        )
        assert parts[-1]["usage"]["completion_tokens"] == 8
    chat = {"model": "law", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6}
    status, said = server.ask("/v1/chat/completions", chat)
    want = wanted(opened["law"], "user:Hi\n", 6)
    assert status == 200 and said["choices"][0]["message"]["content"] == want
    given = {"model": "law", "input": "Hi", "max_output_tokens": 6}
    status, said = server.ask("/v1/responses", given)
    assert status == 200 and said["output"][0]["content"][0]["text"] == want


def test_a_seed_gives_the_same_sample_again(
    server: Running, opened: dict[str, ServedModel]
) -> None:
    sampled = {"temperature": 1.5, "max_tokens": 12}
    texts = [server.say("one", seed=s, **sampled)[1]["choices"][0]["text"] for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    torch.manual_seed(1)
    assert texts[0] == wanted(opened["mix"], "one", 12, do_sample=True, temperature=1.5)
    free = {server.say("one", **sampled)[1]["choices"][0]["text"] for _ in range(3)}
    assert len(free) > 1


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ({"model": "mad"}, 404, "Did you mean 'med'"),
        ({"model": "gpt-4/../../etc"}, 404, "There are: mix, med, law"),
        ({"model": None}, 400, "one of mix, med, law"),
        ({"prompt": ""}, 400, "no tokens"),
        ({"prompt": ["a", "b"]}, 400, "string"),
        ({"prompt": "x" * 300}, 400, "at most 256 together"),
        ({"prompt": "x" * 200, "max_tokens": 64}, 400, "at most 256 together"),
        ({"max_tokens": 65}, 400, "1 ... 64"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 2}, 400, "n: got 2"),
        ({"logprobs": 0}, 400, "logprobs"),
        ({"generation_config": '{"max_new_tokens": 9999}'}, 400, "generation_config"),
        ({"stop": [""]}, 400, "stop"),
        ({"seed": 1.5}, 400, "seed"),
        ({"prompt": "\ud800"}, 400, "surrogate"),
        ({"logit_bias": {"a": 1}}, 400, "logit_bias"),
        ({"frequency_penalty": 1.0}, 400, "frequency_penalty"),
        ({"nonsense": 1}, 422, "nonsense"),
        ({"padding": "x" * 5000}, 413, "at most 4000"),
        ({"padding": "x" * 900_000}, 413, "at most 4000"),
    ],
)
def test_what_is_not_done_is_refused(
    server: Running, more: dict[str, Any], status: int, said: str
) -> None:
    body = {"model": "mix", "prompt": "one", "max_tokens": 8} | more
    got, text = server.ask("/v1/completions", body)
    assert got == status and said in text["error"]["message"]


def test_other_bad_requests_are_refused(server: Running) -> None:
    for path in ("/load_model", "/reset", "/v1/audio/transcriptions", "/v1/systemone", "/docs"):
        assert server.ask(path, {"model": "hub/other"})[0] == 404
    assert server.ask("/v1/completions", b"{")[0] == 400
    assert server.ask("/v1/completions", b"[1]")[0] == 400
    for messages in (None, [], ["hello"], [{"content": "x"}], [{"role": "user", "content": 3}]):
        body = {"model": "mix", "messages": messages, "max_tokens": 2}
        assert server.ask("/v1/chat/completions", body)[0] == 400
    image = [{"type": "image_url", "image_url": {"url": "http://example.com"}}]
    body = {"model": "mix", "messages": [{"role": "user", "content": image}]}
    assert server.ask("/v1/chat/completions", body)[0] == 400
    body = {"model": "mix", "messages": [{"role": "user", "content": "x"}]}
    tool = {"messages": [{"role": "tool", "content": "x"}]}
    status, said = server.ask("/v1/chat/completions", body | tool)
    assert status == 400 and "no tools here" in said["error"]["message"]
    given = {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}
    assert server.ask("/v1/chat/completions", body | given)[0] == 400
    say = {"model": "mix", "prompt": "one", "max_tokens": 1}
    assert server.ask("/v1/completions", say, {"origin": "http://elsewhere.com"})[0] == 403
    assert server.ask("/v1/completions", say, {"host": "elsewhere.com"})[0] == 400
    own = {"origin": f"http://127.0.0.1:{server.port}"}
    assert server.ask("/v1/completions", say, own)[0] == 200


def test_two_clients_with_one_name_get_their_own_answers(
    server: Running, opened: dict[str, ServedModel]
) -> None:
    named = {"x-request-id": "same"}
    bodies = [{"model": "mix", "prompt": p, "max_tokens": 12} for p in PROMPTS]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda b: server.ask("/v1/completions", b, named), bodies))
    for body, (status, said) in zip(bodies, found, strict=True):
        text = wanted(opened["mix"], body["prompt"], 12)
        assert status == 200 and said["choices"][0]["text"] == text


def until(true: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true()


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"temperature": 1.0}])
def test_a_client_that_hangs_up_ends_its_generation(
    server: Running, opened: dict[str, ServedModel], more: dict[str, Any]
) -> None:
    before = server.counts('requests_total{model="law",status="499"}')
    slots = opened["mix"].slots
    assert slots is not None
    slow = slots.store.read

    def read(*given: Any) -> int:
        time.sleep(0.01)
        return slow(*given)

    slots.store.read = read  # type: ignore[method-assign]
    try:
        body = json.dumps({"model": "law", "prompt": "abc", "max_tokens": 64, **more})
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost:{server.port}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as to:
            to.sendall((head + body).encode())
            until(lambda: server.app.gate.running == 1)
            time.sleep(0.2)
        until(lambda: server.app.gate.running == 0)
        until(lambda: server.counts('requests_total{model="law",status="499"}') == before + 1)
    finally:
        slots.store.read = slow  # type: ignore[method-assign]
    until(lambda: not slots.cache.pinned and slots.held is None)
    batch = server.app.state.get_manager("law").batch
    if not more.get("temperature"):
        assert batch._cb is not None
        until(lambda: not batch.scheduler.active_requests)
        assert not batch._cb.output_router.result_handlers
    assert server.say("one", "law")[1]["choices"][0]["text"] == wanted(opened["law"], "one")


def test_a_full_queue_says_so_and_what_waits_has_an_end(opened: dict[str, ServedModel]) -> None:
    found = Running(opened, at_once=1, queue=1, tokens=64, seconds=1.5, batching="none")
    held = threading.Event()
    found.app.state.thread.submit(held.wait, 20)  # nothing is generated meanwhile
    try:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(found.say, "one")
            until(lambda: found.app.gate.running == 1)
            second = pool.submit(found.say, "one", stream=True)
            until(lambda: found.app.gate.waiting == 1)
            status, said = found.say("one")
            assert status == 429 and said["error"]["type"] == "rate_limit_error"
            assert first.result()[0] == 504 and "was not there" in str(first.result()[1])
            assert "was not there" in str(second.result()[1])  # a stream may have begun
        assert "requests_waiting 0.0" in found.ask("/metrics")[1]
        held.set()
        assert found.say("one")[1]["choices"][0]["text"] == wanted(opened["mix"], "one")
    finally:
        held.set()
        found.end()


def test_what_is_in_the_works_is_finished_before_the_end(opened: dict[str, ServedModel]) -> None:
    found = Running(opened, tokens=64, at_once=2, batching="none")
    held = threading.Event()
    found.app.state.thread.submit(held.wait, 20)  # nothing is generated meanwhile
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(found.say, "one", name) for name in opened]
        until(lambda: found.app.gate.running == 2 and found.app.gate.waiting == 1)
        found.server.handle_exit(15, None)
        held.set()
        for name, answer in zip(opened, asked, strict=True):
            status, said = answer.result()
            assert status == 200 and said["choices"][0]["text"] == wanted(opened[name], "one")
    found.thread.join(20)
    assert not found.thread.is_alive()
    with pytest.raises(OSError):
        found.say("one")
    found.end()


def test_a_damaged_expert_is_an_error_and_no_hang(folders: dict[str, Path], tmp_path: Path) -> None:
    store = intarsia.pack_experts(folders["mix"], tmp_path / "store")
    file = store / "layer-0001.safetensors"
    raw = bytearray(file.read_bytes())
    raw[4096:] = bytes(len(raw) - 4096)
    file.write_bytes(raw)
    found = Running(open_models({"mix": str(store)}, slots=4))
    try:
        assert found.ask("/health")[0] == 200
        assert found.say("one")[0] == 503
        assert found.say("one")[0] == 503 and found.ask("/health")[0] == 503
        status, text = found.say("one", stream=True, temperature=1.0)
        assert status == 200 and "the server's log" in text and str(store) not in text
    finally:
        found.end()


def test_models_and_pages_are_listed(server: Running) -> None:
    listed = {one["id"]: one for one in server.ask("/v1/models")[1]["data"]}
    assert list(listed) == ["mix", "med", "law"] and listed["law"]["parent"] == "mix"
    assert listed["mix"]["chat"] and listed["mix"]["max_model_len"] == 256
    status, page = server.ask("/")
    assert (
        status == 200 and "http://" not in page and "https://" not in page
    )  # nothing from outside
    assert server.ask("/health") == (200, {"status": "ok"})
    assert server.say("one")[0] == 200
    assert server.counts("expert_hits_total") > 0 and server.counts("expert_slots_pinned") == 0


def test_what_cannot_be_served_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    mix = str(folders["mix"])
    with pytest.raises(ConfigError, match="'mix' twice"):
        open_models({"mix": mix}, {"mix": folders["med"]})
    with pytest.raises(ConfigError, match="beside 2 models"):
        open_models({"a": mix, "b": mix}, {"med": folders["med"]})
    store = intarsia.pack_experts(mix, tmp_path / "store")
    with pytest.raises(ConfigError, match=r"--slots 0\.25"):
        open_models({"a": str(store)})
    with pytest.raises(CheckpointError):
        open_models({"a": mix}, {"b": tmp_path})
    pruned = intarsia.apply(mixture(), intarsia.Magnitude(density=0.5))
    intarsia.save(pruned, tmp_path / "pruned")
    with pytest.raises(CheckpointError, match="own weights"):
        open_models({"a": mix}, {"b": tmp_path / "pruned"})
    wrong: dict[str, Any] = {"body": 3, "tokens": 0, "at_once": 0, "queue": -1, "batching": "x"}
    wrong["drain"] = float("inf")
    for name, value in wrong.items():
        with pytest.raises(ConfigError):
            Limits(**{name: value})
    taken = bound("127.0.0.1", 0)
    with pytest.raises(ConfigError, match="--port"):
        bound("127.0.0.1", taken.getsockname()[1])
    taken.close()
    assert is_local("127.0.0.1") and is_local("::1") and not is_local("0.0.0.0")
    assert hosts_of("localhost") and not hosts_of("0.0.0.0")
    assert names_of(["x=a", str(folders["mix"])]) == {"x": "a", "mix": mix}
    with pytest.raises(ConfigError, match="each name once"):
        names_of(["x=a", "x=b"])


def test_vllm_gets_a_stock_checkpoint_and_plain_lora(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    words = command("mix", str(folders["mix"]), {"med": folders["med"]}, "127.0.0.1", 8000)
    assert words[:5] == ["vllm", "serve", str(folders["mix"]), "--served-model-name", "mix"]
    assert words[-2:] == ["--lora-modules", f"med={folders['med']}"] and "8" in words
    with pytest.raises(ConfigError, match="a stock checkpoint"):
        command("mix", str(tmp_path), {}, "127.0.0.1", 8000)
    for said in (
        '{"peft_type": "IA3"}',
        '{"peft_type": "LORA", "target_modules": "m.experts"}',
        '{"peft_type": "LORA", "use_dora": true}',
        '{"peft_type": "LORA", "modules_to_save": ["lm_head"]}',
    ):
        (tmp_path / "adapter_config.json").write_text(said)
        with pytest.raises(ConfigError, match="plain LoRA"):
            command("mix", str(folders["mix"]), {"m": tmp_path}, "127.0.0.1", 8000)


def test_a_burst_does_not_pass_the_queue() -> None:
    """All of them come before the first one is in the works."""
    ended: list[int] = []
    counters: Any = SimpleNamespace(
        running=SimpleNamespace(set_function=id),
        waiting=SimpleNamespace(set_function=id),
        ended=lambda _, status: ended.append(status),
    )

    async def app(_: Any, __: Any, send: Any) -> None:
        await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def all_at_once() -> None:
        gate = Gate(app, Limits(at_once=2, queue=1), counters)

        async def one() -> None:
            body = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

            async def receive() -> Any:
                await asyncio.sleep(0)
                return next(body, None) or await asyncio.sleep(60)

            async def send(_: Any) -> None:
                pass

            scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
            await gate(scope, receive, send)

        await asyncio.gather(*(one() for _ in range(8)))

    asyncio.run(all_at_once())
    assert sorted(ended) == [200] * 3 + [429] * 5


@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"background": True},
        {"text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}},
        {"tool_choice": "required"},
        {"truncation": "auto"},
        {"reasoning": {"effort": "high"}},
    ],
)
def test_what_a_response_would_leave_out_is_refused(more: dict[str, Any]) -> None:
    shelf: Any = None
    _, chats, responses = handlers(shelf, None, Limits())
    body = {"model": "mix", "input": "Hi"}
    with pytest.raises(HTTPException, match=next(iter(more))):
        responses._validate_request(body | more)
    plain = {"text": {"format": {"type": "text"}}, "truncation": "disabled", "include": []}
    plain |= {"tool_choice": "auto", "background": False, "reasoning": None}
    body |= plain
    responses._validate_request(body)
    assert body["stream"] is False, "as OpenAI has it where nothing is said"
    chat = {"model": "mix", "messages": [{"role": "user", "content": "Hi"}]}
    chats._validate_request(chat | {"tool_choice": "auto"})
    with pytest.raises(HTTPException, match="tool_choice"):
        chats._validate_request(chat | {"tool_choice": "required"})


def tried(page: Any, server: Running, opened: dict[str, ServedModel]) -> None:
    """As a user would: an answer, an error, a stop."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.locator("#model option").first.wait_for(state="attached")
    page.get_by_label("Model").select_option("med")
    page.get_by_label("New tokens").fill("8")
    page.get_by_label("Message").fill("one")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("8 tokens in").wait_for()
    assert page.locator("#answer").text_content() == wanted(opened["med"], "user:one\n")
    page.get_by_text("Experts found in memory").wait_for()
    page.get_by_label("New tokens").fill("9999")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("1 ... 64, which this server gives").wait_for()
    page.get_by_label("New tokens").fill("64")
    slots, waits = opened["mix"].slots, threading.Event()
    assert slots is not None
    read = slots.store.read

    def slow(*given: Any) -> int:
        waits.wait(0.05)
        return read(*given)

    slots.store.read = slow  # type: ignore[method-assign]
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped").wait_for()
    waits.set()
    slots.store.read = read  # type: ignore[method-assign]
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0, "the page is wider than its window"
    assert not problems, problems


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_the_page_works_in_a_browser(opened: dict[str, ServedModel], tmp_path: Path) -> None:
    play_of = pytest.importorskip("playwright.sync_api").sync_playwright
    server = Running(opened, tokens=64)
    try:
        with play_of() as play:
            browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            for width, height in ((1280, 800), (390, 844)):
                page = browser.new_page(viewport={"width": width, "height": height})
                page.set_default_timeout(300_000)
                tried(page, server, opened)
                page.screenshot(path=tmp_path / f"page-{width}.png")
            browser.close()
    finally:
        server.end()
