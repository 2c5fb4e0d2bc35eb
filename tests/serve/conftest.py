"""A random mixture whose tokens are bytes, adapters, and a server over them in a thread."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

import intarsia
from intarsia.serve.app import Application
from intarsia.serve.models import ServedModel, open_models
from intarsia.serve.running import Server, bound
from intarsia.serve.settings import Limits


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


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random mixture whose tokens are bytes, two LoRA, and a change that is no adapter."""
    root = tmp_path_factory.mktemp("served")
    words = {c: i for i, c in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokens = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>")
    fast.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no such role') }}"
        "{% endif %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    )
    mixture().save_pretrained(root / "mix")
    fast.save_pretrained(root / "mix")
    for seed, name in enumerate(("med", "law")):
        adapted = intarsia.adapt(mixture(), intarsia.Lora(rank=2))
        torch.manual_seed(seed)
        for weight in adapted.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight)
        intarsia.save(adapted, root / name)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="session")
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
        self.server = Server(self.app)
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self.thread.start()

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and JSON, or text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        json_of = {"content-type": "application/json"}
        connection.request("GET" if raw is None else "POST", path, raw, json_of | (headers or {}))
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text

    def say(self, prompt: str, model: str = "mix", **options: Any) -> Any:
        body = {"model": model, "prompt": prompt, "max_tokens": 8, **options}
        return self.ask("/v1/completions", body)

    def counts(self, name: str) -> float:
        lines = self.ask("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"intarsia_{name}"))

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.app.close()
        self.socket.close()


@pytest.fixture(scope="session")
def server(opened: dict[str, ServedModel]) -> Iterator[Running]:
    running = Running(opened, body=4000, tokens=64, at_once=4, queue=8)
    yield running
    running.end()


def wanted(served: ServedModel, prompt: str, tokens: int = 8, **options: Any) -> str:
    ids = served.tokenizer(prompt, return_tensors="pt")["input_ids"]
    output = served.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        **({"do_sample": False} | options),
    )
    return served.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def until(true: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true()
