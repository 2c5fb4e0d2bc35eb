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

from intarsia.cli import serving
from intarsia.hosts.serving import running

from .conftest import Intarsia

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "serve-a-mixture.md"


def asked(app: running.Application, listening: Any, said: Any) -> int:
    """In the place of `run`: one request over a real socket, then the end."""
    server = running.Server(app)
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        to = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps({"model": "mix", "prompt": "Once", "max_tokens": 4})
        to.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        said(to.getresponse().read().decode())
        to.close()
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
        said = intarsia(*words)
        assert said.code == 0, said.err
    answer = json.loads(said.out.splitlines()[-1])  # pyright: ignore[reportPossiblyUnboundVariable]
    assert answer["model"] == "mix" and answer["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("m", "--engine", "sglang"), "one of"),
        (("m", "--policy", "fifo"), "unknown --policy"),
        (("m", "--slots", "4", "--memory", "1GB"), "one of the two"),
        (("m", "--slots", "many"), "--slots 0.25"),
        (("m", "--slots", "2.5"), "2 or more"),
        (("m", "--slots", "1"), "2 or more"),
        (("m", "--slots", "nan"), "2 or more"),
        (("m", "--dtype", "int8"), "bfloat16"),
        (("m", "--arrival", "0"), "above 0"),
        (("m", "--tokens", "0"), "at least 1"),
        (("m", "--adapter", "=x"), "NAME=FOLDER"),
        (("m", "--port", "99999"), "65535"),
        (("m", "--port", "0"), "save_pretrained"),
        (("m", "--engine", "vllm", "--slots", "4"), "resident"),
        (("m", "--engine", "vllm"), "a stock checkpoint"),
    ],
)
def test_what_cannot_be_is_refused(
    intarsia: Intarsia,
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = intarsia("serve", *words)
    assert found.code == 2 and said in found.words, found.err


def test_without_vllm_the_command_is_told(
    intarsia: Intarsia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = intarsia("serve", f"mix={tmp_path}", "--engine", "vllm")
    assert found.code == 2 and "pip install vllm" in found.words
    assert found.out.startswith(f"vllm serve {tmp_path} --served-model-name mix --host 127.0.0.1")


def test_without_its_extra_the_command_says_which(
    intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(serving, "find_spec", lambda n: None if n == "uvicorn" else find(n))
    found = intarsia("serve", "m")
    assert found.code == 2 and "intarsia[serve]" in found.words
