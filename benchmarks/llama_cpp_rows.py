"""llama.cpp's library on rows of several sequences, at each of its settings for keys and values.

Its package compiles it for this processor: `pip install llama-cpp-python`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

KEYS = {"float16": 1, "bfloat16": 30, "float32": 0}  # ggml's numbers of types
FLASH = {"flash": 1, "plain": 0}  # its own choice is one of these two
INSTALLED = importlib.util.find_spec("llama_cpp") is not None


class KeysSetting(NamedTuple):
    """Type of keys and values, and how attention is computed."""

    keys: str
    attention: str

    def __str__(self) -> str:
        return f"{self.keys} keys, {self.attention} attention"


# float16 and its own choice of attention are what it comes with
SETTINGS = [KeysSetting(keys, attention) for keys in KEYS for attention in FLASH]


class TokenRow(NamedTuple):
    """Token to compute, its place in its sequence, and whether its logits count."""

    token: int
    place: int
    sequence: int
    counts: bool


class LlamaCpp:
    """Model of a GGUF file, and a context for some sequences.

    sequences: how many at most; room: tokens of all of them together; rows: tokens of a call.
    """

    def __init__(
        self, file: str, setting: KeysSetting, *, threads: int, sequences: int, room: int, rows: int
    ) -> None:
        import llama_cpp as llama  # pyright: ignore[reportMissingImports]

        self.llama: Any = llama
        self.quiet = llama.llama_log_callback(lambda *_: None)
        llama.llama_log_set(self.quiet, None)
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(
            file.encode(), llama.llama_model_default_params()
        )
        self.words: int = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.sizes = threads, sequences, room, rows
        self.batch = llama.llama_batch_init(rows, 0, 1)
        self.context: Any = None
        self.use(setting)

    def use(self, setting: KeysSetting) -> None:
        """Take another setting; what was computed is lost."""
        llama, (threads, sequences, room, rows) = self.llama, self.sizes
        if self.context is not None:
            llama.llama_free(self.context)
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max = room, sequences
        params.n_batch = params.n_ubatch = rows
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KEYS[setting.keys]
        params.flash_attn_type = FLASH[setting.attention]
        self.context = llama.llama_init_from_model(self.model, params)
        assert self.context, f"llama.cpp takes no {setting}"

    def clear(self) -> None:
        """Forget all sequences."""
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), False)

    def decode(self, rows: Sequence[TokenRow]) -> list[np.ndarray]:
        """Compute rows; return the logits (words,) of those that count."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, row in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = row.token, row.place, 1
            batch.seq_id[i][0], batch.logits[i] = row.sequence, row.counts
        assert self.llama.llama_decode(self.context, batch) == 0
        counted = [i for i, row in enumerate(rows) if row.counts]
        pointers = (self.llama.llama_get_logits_ith(self.context, i) for i in counted)
        return [np.ctypeslib.as_array(p, (self.words,)) for p in pointers]
