"""The page on serving as a newcomer walks it, and what `intarsia serve` refuses before it opens."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import runpy
import shlex
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from intarsia.cli import serving
from intarsia.folders.opened import save_language_model
from intarsia.formats import BlockInt
from intarsia.kernels import native
from intarsia.serve import running
from intarsia.sparse.swap.compress import compress

from ..language_models import byte_tokenizer
from .conftest import Intarsia

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "serve-a-mixture.md"


def asked(app: running.Application, listening: Any, say: Any) -> int:
    """Stand in for `run`: send a request over a real socket, whole and as a stream, then end."""
    server = running.Server(app)
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        (name,) = app.served_models.models
        for stream in (True, False):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            body = {"model": name, "prompt": "Once", "max_tokens": 4, "stream": stream}
            kind = {"content-type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(body), kind)
            say(connection.getresponse().read().decode())
            connection.close()
    finally:
        server.should_exit = True
        thread.join(30)
        app.close()
    return app.gate.cut


def test_the_page_s_five_commands_run(
    intarsia: Intarsia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "run", asked)
    text = PAGE.read_text()
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)):
        file = tmp_path / f"block_{number}.py"
        file.write_text(block)
        runpy.run_path(str(file))
    lines = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)).splitlines()
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        if words[0] == "serve":
            words += ["--port", "0"]
        result = intarsia(*words)
        assert result.code == 0, result.err
    answer = json.loads(result.out.splitlines()[-1])  # pyright: ignore[reportPossiblyUnboundVariable]
    assert answer["model"] == "mix" and answer["usage"]["completion_tokens"] == 4


@pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
def test_a_folder_that_compress_wrote_is_served_by_native_steps(
    intarsia: Intarsia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "run", asked)
    torch.manual_seed(0)
    settings: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    sizes = {"vocab_size": 257, "hidden_size": 48, "intermediate_size": 67, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, **settings, num_attention_heads=4, num_key_value_heads=2)
    packed = compress(LlamaForCausalLM(config).eval(), BlockInt(8), force=True)
    save_language_model(packed, tmp_path / "small", tokenizer=byte_tokenizer())
    result = intarsia("serve", str(tmp_path / "small"), "--port", "0")
    assert result.code == 0 and "small: native steps, one call a token" in result.err
    *events, end, answer = [
        line for line in result.out.splitlines() if line.startswith(("data", "{"))
    ]
    parts = [json.loads(event.removeprefix("data: ")) for event in events]
    completion = json.loads(answer)
    assert end == "data: [DONE]" and completion["usage"]["completion_tokens"] == 4
    assert "".join(p["choices"][0]["text"] for p in parts) == completion["choices"][0]["text"] != ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("m", "--engine", "sglang"), "one of"),
        (("m", "--policy", "fifo"), "UnknownChoice: --policy"),
        (("m", "--slots", "4", "--memory", "1GB"), "one of the two"),
        (("m", "--slots", "many"), "--slots 0.25"),
        (("m", "--slots", "2.5"), "2 or more"),
        (("m", "--slots", "1"), "2 or more"),
        (("m", "--slots", "nan"), "2 or more"),
        (("m", "--dtype", "int8"), "bfloat16"),
        (("here", "--arrival", "0"), "above 0"),
        (("here", "--tokens", "0"), "at least 1"),
        (("here", "--adapter", "=x"), "NAME=FOLDER"),
        (("m", "--port", "99999"), "65535"),
        (("m", "--port", "0"), "save_pretrained"),
        (("m", "--engine", "vllm", "--slots", "4"), "resident"),
        (("m", "--engine", "vllm"), "a stock checkpoint"),
    ],
)
def test_what_cannot_be_is_refused(
    intarsia: Intarsia,
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.json").write_text("{}")
    result = intarsia("serve", *words)
    assert result.code == 2 and message in result.words, result.err


def test_without_vllm_the_command_is_told(
    intarsia: Intarsia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("PATH", str(tmp_path))
    result = intarsia("serve", f"mix={tmp_path}", "--engine", "vllm")
    assert result.code == 2 and "pip install vllm" in result.words
    assert result.out.startswith(f"vllm serve {tmp_path} --served-model-name mix --host 127.0.0.1")


def test_without_its_extra_the_command_says_which(
    intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(serving, "find_spec", lambda n: None if n == "uvicorn" else find(n))
    result = intarsia("serve", "m")
    assert result.code == 2 and "intarsia[serve]" in result.words
