"""A name that cannot be had from the Hub is refused before its client tries for a minute."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from intarsia.core.errors import AssetError
from intarsia.data import hub
from intarsia.data.backbones import backbone
from intarsia.data.hub import check_reachable
from intarsia.data.language_models import language_model


@pytest.fixture(autouse=True)
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no proxy, a folder of its own, and a Hub that may be asked."""
    for name in hub.PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(name: str, local_names: tuple[str, ...] = ("smollm2",)) -> None:
    check_reachable(name, what=f"model {name!r}", want="a model", local_names=local_names)


def refused(name: str) -> AssetError:
    with pytest.raises(AssetError) as caught:
        check(name)
    return caught.value


def test_what_is_here_or_in_the_cache_is_not_asked_for(client: Path) -> None:
    (client / "folder").mkdir()
    (client / "cache" / "models--them--their-model").mkdir(parents=True)
    for name in ("folder", str(client / "folder"), "them/their-model"):
        check(name)


def test_the_nearest_name_is_suggested(client: Path) -> None:
    (client / "my-model").mkdir()
    assert refused("smolm2").fix == "Did you mean smollm2?"
    assert refused("my-modell").fix == "Did you mean my-model?"
    assert refused("gpt3").fix == "Check the name."
    assert "no way to the Hub" in str(refused("gpt3").got)  # the suite refuses every connection


def test_paths_and_an_offline_client_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("./folder", "/folder", "~/folder", "runs/a/model"):
        assert refused(name).got == "nothing there"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not in the cache" in str(refused("gpt3").got)
    assert refused("gpt3").fix == "Unset HF_HUB_OFFLINE."


def test_a_hub_or_a_proxy_that_answers_is_left_to_its_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", f"http://{address}")
        check("gpt3")
        monkeypatch.setattr(constants, "ENDPOINT", "https://nowhere.invalid")
        for proxy in (f"http://{address}", address):
            monkeypatch.setenv("https_proxy", proxy)
            check("gpt3")


def test_a_name_server_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(hub, "SECONDS", 0.1)

    def connect(*_: Any) -> None:
        over.wait(60)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", connect)
    assert "no answer in 0.1 s" in str(refused("gpt3").got)
    over.set()


@pytest.mark.parametrize(
    "open", [lambda: language_model("smolm2"), lambda: backbone("vit_tiny_patch16_224", classes=2)]
)
def test_models_are_refused_before_their_library_tries(open: Any) -> None:
    with pytest.raises(AssetError, match="no way to the Hub"):
        open()
