"""A server on loopback: answers are those of `generate`, what is refused costs nothing."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import intarsia
from intarsia.core.errors import CheckpointError, ConfigError
from intarsia.serve.app import PAGE
from intarsia.serve.gate import RequestGate
from intarsia.serve.models import ServedModel, open_models
from intarsia.serve.naming import names_of
from intarsia.serve.running import bound, hosts_of, is_local
from intarsia.serve.settings import Limits
from intarsia.serve.vllm import command

from ..refusals import refused
from .conftest import Running, mixture, until, wanted

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PROMPTS = ("one", "a longer beginning", "x")
# PEFT asks a transformers 5 model by the old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def test_adapters_are_models_over_one_trunk(
    opened: dict[str, ServedModel], folders: dict[str, Path]
) -> None:
    dense: Any = mixture()
    dense.set_experts_implementation("eager")
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        for name, served in opened.items():
            want = dense if name == "mix" else intarsia.load(mixture(), folders[name])
            if name != "mix":
                intarsia.folders.saved.base_of(want).set_experts_implementation("eager")  # pyright: ignore
            assert torch.equal(served.model(ids).logits, want(ids).logits)
    trunk, twin = opened["mix"].model, opened["med"].model
    assert trunk.lm_head.weight is twin.lm_head.weight
    assert opened["mix"].slots is opened["med"].slots is not None


def test_answers_are_those_of_generate(server: Running, opened: dict[str, ServedModel]) -> None:
    texts = {(p, n): wanted(opened[n], p) for p in PROMPTS for n in opened}
    requests = [*texts, *list(texts)[::2]]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda a: server.say(*a), requests))
    for (prompt, name), (status, answer) in zip(requests, answers, strict=True):
        assert status == 200, answer
        assert answer["choices"][0]["text"] == texts[prompt, name]
        assert answer["usage"]["completion_tokens"] == 8 and answer["model"] == name
    assert len({answer["choices"][0]["text"] for _, answer in answers}) > 3  # adapters do something


def test_a_stream_says_the_same_and_ends_as_clients_expect(
    server: Running, opened: dict[str, ServedModel]
) -> None:
    # the second one ends in the middle of a character
    requests = [
        (p, options) for p in ("one", "user:one\n") for options in ({}, {"stop": "\x00\x00\x00"})
    ]
    for prompt, options in requests:
        status, text = server.say(prompt, "med", stream=True, **options)
        assert status == 200
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        parts = [json.loads(line) for line in lines[:-1]]
        assert "".join(p["choices"][0].get("text", "") for p in parts) == wanted(
            opened["med"], prompt
        )
        assert parts[-1]["choices"][0]["finish_reason"] == "length"
    counted = {"stream": True, "stream_options": {"include_usage": True}}
    last = json.loads(server.say("one", **counted)[1].split("data: ")[-2])
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 8
    chat = {"model": "law", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6}
    status, answer = server.ask("/v1/chat/completions", chat)
    want = wanted(opened["law"], "user:Hi\n", 6)
    assert status == 200 and answer["choices"][0]["message"]["content"] == want
    request = {"model": "law", "input": "Hi", "max_output_tokens": 6}
    status, answer = server.ask("/v1/responses", request)
    assert status == 200 and answer["output"][0]["content"][0]["text"] == want


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


def test_only_this_server_s_routes_and_pages_may_ask(server: Running) -> None:
    for path in ("/load_model", "/reset", "/v1/audio/transcriptions", "/v1/systemone", "/docs"):
        assert server.ask(path, {"model": "hub/other"})[0] == 404
    say = {"model": "mix", "prompt": "one", "max_tokens": 1}
    assert server.ask("/v1/completions", say, {"origin": "http://elsewhere.com"})[0] == 403
    assert server.ask("/v1/completions", say, {"host": "elsewhere.com"})[0] == 400
    headers = {"origin": f"http://127.0.0.1:{server.port}"}
    assert server.ask("/v1/completions", say, headers)[0] == 200


def test_two_clients_with_one_name_get_their_own_answers(
    server: Running, opened: dict[str, ServedModel]
) -> None:
    named = {"x-request-id": "same"}
    bodies = [{"model": "mix", "prompt": p, "max_tokens": 12} for p in PROMPTS]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda b: server.ask("/v1/completions", b, named), bodies))
    for body, (status, answer) in zip(bodies, answers, strict=True):
        text = wanted(opened["mix"], body["prompt"], 12)
        assert status == 200 and answer["choices"][0]["text"] == text


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"temperature": 1.0}])
def test_a_client_that_hangs_up_ends_its_generation(
    server: Running, opened: dict[str, ServedModel], options: dict[str, Any]
) -> None:
    before = server.counts('requests_total{model="law",status="499"}')
    slots = opened["mix"].slots
    assert slots is not None
    slow = slots.store.read

    def read(*arguments: Any) -> int:
        time.sleep(0.01)
        return slow(*arguments)

    slots.store.read = read  # type: ignore[method-assign]
    try:
        body = json.dumps({"model": "law", "prompt": "abc", "max_tokens": 64, **options})
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost:{server.port}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall((head + body).encode())
            until(lambda: server.app.gate.running == 1)
            time.sleep(0.2)
        until(lambda: server.app.gate.running == 0)
        until(lambda: server.counts('requests_total{model="law",status="499"}') == before + 1)
    finally:
        slots.store.read = slow  # type: ignore[method-assign]
    until(lambda: not slots.cache.pinned and slots.in_use is None)
    batch: Any = server.app.generations.of["law"].batch
    if not options.get("temperature"):
        until(lambda: not batch.manager.batch_processor.scheduler.active_requests)
        assert not batch.manager.output_router.result_handlers
    assert server.say("one", "law")[1]["choices"][0]["text"] == wanted(opened["law"], "one")


def test_a_full_queue_says_so_and_what_waits_has_an_end(opened: dict[str, ServedModel]) -> None:
    running = Running(opened, at_once=1, queue=1, tokens=64, seconds=1.5, batching="none")
    release = threading.Event()
    running.app.generations.thread.submit(release.wait, 20)  # nothing is generated meanwhile
    try:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(running.say, "one")
            until(lambda: running.app.gate.running == 1)
            second = pool.submit(running.say, "one", stream=True)
            until(lambda: running.app.gate.waiting == 1)
            status, answer = running.say("one")
            assert status == 429 and answer["error"]["type"] == "rate_limit_error"
            assert first.result()[0] == 504 and "was not there" in str(first.result()[1])
            assert "was not there" in str(second.result()[1])  # a stream may have begun
        assert "requests_waiting 0.0" in running.ask("/metrics")[1]
        release.set()
        assert running.say("one")[1]["choices"][0]["text"] == wanted(opened["mix"], "one")
    finally:
        release.set()
        running.end()


def test_what_is_in_the_works_is_finished_before_the_end(opened: dict[str, ServedModel]) -> None:
    running = Running(opened, tokens=64, at_once=2, batching="none")
    release = threading.Event()
    running.app.generations.thread.submit(release.wait, 20)  # nothing is generated meanwhile
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(running.say, "one", name) for name in opened]
        until(lambda: running.app.gate.running == 2 and running.app.gate.waiting == 1)
        running.server.handle_exit(15, None)
        release.set()
        for name, answer in zip(opened, futures, strict=True):
            status, body = answer.result()
            assert status == 200 and body["choices"][0]["text"] == wanted(opened[name], "one")
    running.thread.join(20)
    assert not running.thread.is_alive()
    with pytest.raises(OSError):
        running.say("one")
    running.end()


def test_a_damaged_expert_is_an_error_and_no_hang(folders: dict[str, Path], tmp_path: Path) -> None:
    store = intarsia.offloading.pack_experts(folders["mix"], tmp_path / "store")
    file = store / "layer-0001.safetensors"
    raw = bytearray(file.read_bytes())
    raw[4096:] = bytes(len(raw) - 4096)
    file.write_bytes(raw)
    running = Running(open_models({"mix": str(store)}, slots=4))
    try:
        assert running.ask("/health")[0] == 200
        status, text = running.say("one", stream=True, temperature=1.0)
        error = json.loads(text.split("data: ")[-1])["error"]
        assert status == 200 and error["type"] == "server_error" and str(store) not in text
        assert running.counts('requests_total{model="mix",status="503"}') == 1
        assert running.say("one")[0] == 503
        assert running.say("one")[0] == 503 and running.ask("/health")[0] == 503
        assert running.say("one", stream=True)[0] == 503
    finally:
        running.end()


def test_models_and_pages_are_listed(server: Running) -> None:
    listed = {entry["id"]: entry for entry in server.ask("/v1/models")[1]["data"]}
    assert list(listed) == ["mix", "med", "law"] and listed["law"]["parent"] == "mix"
    assert listed["mix"]["chat"] and listed["mix"]["max_model_len"] == 256
    status, page = server.ask("/")
    assert (
        status == 200 and "http://" not in page and "https://" not in page
    )  # nothing from outside
    assert server.ask("/health") == (200, {"status": "ok"})
    assert server.say("one")[0] == 200
    assert server.counts("expert_hits_total") > 0 and server.counts("expert_slots_pinned") == 0


def test_the_page_has_the_colours_of_the_reports() -> None:
    css = (files("intarsia.reports") / "page" / "page.css").read_text("utf-8")
    colours = re.findall(r"--\w+: #\w+;", PAGE.read_text("utf-8"))
    assert len(colours) == 14 and all(colour in css for colour in colours)  # light and dark


def test_what_cannot_be_served_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    mix = str(folders["mix"])
    with refused(ConfigError, what="names of models", got="'mix' twice"):
        open_models({"mix": mix}, {"mix": folders["med"]})
    with refused(ConfigError, what="adapters"):
        open_models({"a": mix, "b": mix}, {"med": folders["med"]})
    with pytest.raises(CheckpointError):
        open_models({"a": mix}, {"b": tmp_path})
    wrong: dict[str, Any] = {"body": 3, "tokens": 0, "at_once": 0, "queue": -1, "batching": "x"}
    wrong |= {"drain": float("inf"), "arrival": 0}
    for name, value in wrong.items():
        with pytest.raises(ConfigError):
            Limits(**{name: value})
    listener = bound("127.0.0.1", 0)
    with pytest.raises(ConfigError, match="--port"):
        bound("127.0.0.1", listener.getsockname()[1])
    listener.close()
    assert is_local("127.0.0.1") and is_local("::1") and not is_local("0.0.0.0")
    assert hosts_of("localhost") and not hosts_of("0.0.0.0")
    assert names_of(["x=a", str(folders["mix"])]) == {"x": "a", "mix": mix}
    with refused(ConfigError, what="names of models", got="'x=b'"):
        names_of(["x=a", "x=b"])


def test_vllm_gets_a_stock_checkpoint_and_plain_lora(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    words = command("mix", str(folders["mix"]), {"med": folders["med"]}, "127.0.0.1", 8000)
    assert words[:5] == ["vllm", "serve", str(folders["mix"]), "--served-model-name", "mix"]
    assert words[-2:] == ["--lora-modules", f"med={folders['med']}"] and "8" in words
    with refused(ConfigError, what="model for vLLM"):
        command("mix", str(tmp_path), {}, "127.0.0.1", 8000)
    for config in (
        '{"peft_type": "IA3"}',
        '{"peft_type": "LORA", "target_modules": "m.experts"}',
        '{"peft_type": "LORA", "use_dora": true}',
        '{"peft_type": "LORA", "modules_to_save": ["lm_head"]}',
    ):
        (tmp_path / "adapter_config.json").write_text(config)
        with pytest.raises(ConfigError, match="plain LoRA"):
            command("mix", str(folders["mix"]), {"m": tmp_path}, "127.0.0.1", 8000)


def test_a_burst_does_not_pass_the_queue() -> None:
    """Requests all arrive before the first one is being answered."""
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
        gate = RequestGate(app, Limits(at_once=2, queue=1), counters)

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


def tried(page: Any, server: Running, opened: dict[str, ServedModel]) -> None:
    """Use the server as a user would: an answer, an error, a stop."""
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

    def slow(*arguments: Any) -> int:
        waits.wait(0.05)
        return read(*arguments)

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
