"""Handing a stock checkpoint to vLLM: the command, and whether it can be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ..core.errors import ConfigError
from ..core.files import read_json
from ..hosts.attach.adapter_files import CONFIG
from ..offloading.store import INDEX

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values that vLLM accepts for --max-lora-rank
NOT_PLAIN = ("use_dora", "modules_to_save")  # settings of a LoRA that vLLM refuses


def command(
    name: str, folder: str, adapters: Mapping[str, Path], host: str, port: int
) -> list[str]:
    """Return the words of the command `vllm serve` for a stock folder and plain LoRA adapters.

    adapters: name -> folder.
    Raises: ConfigError for what vLLM cannot read: packed experts, adapters that are not plain LoRA.
    """
    checkpoint = Path(folder)
    if (checkpoint / INDEX).is_file() or not (checkpoint / "config.json").is_file():
        got, want = str(folder), "a stock checkpoint, as `intarsia place --write` writes it"
        fix = "Give the folder of save_pretrained; fold adapters first."
        raise ConfigError("model for vLLM", got=got, want=want, fix=fix)
    words = ["vllm", "serve", str(checkpoint), "--served-model-name", name, "--host", host]
    words += ["--port", str(port)]
    if not adapters:
        return words
    ranks = [_rank(path) for path in adapters.values()]
    # vLLM takes only some limits: the smallest one that fits
    rank_limit = next((rank for rank in RANKS if rank >= max(ranks)), max(ranks))
    words += [
        "--enable-lora",
        "--max-loras",
        str(len(adapters)),
        "--max-lora-rank",
        str(rank_limit),
    ]
    return [*words, "--lora-modules", *(f"{key}={path}" for key, path in adapters.items())]


def _rank(folder: Path) -> int:
    """Return the rank of a plain LoRA, from its adapter_config.json."""
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError) as error:
        want, fix = "PEFT's files of a LoRA", "Save it with intarsia.save."
        raise ConfigError(f"adapter {folder}", got=error, want=want, fix=fix) from error
    config = config if isinstance(config, dict) else {}
    kind, names = config.get("peft_type"), str(config.get("target_modules"))
    unsupported = next((name for name in NOT_PLAIN if config.get(name)), None)
    if kind != "LORA" or ".experts" in names or unsupported:
        got = f"an adapter of type {kind!r}" if kind != "LORA" else unsupported or "LoRA on experts"
        want, fix = "plain LoRA on attention", "Fold it: intarsia.fold, then save_pretrained."
        raise ConfigError(f"adapter {folder} for vLLM", got=got, want=want, fix=fix)
    return int(config.get("r") or 8)


def hand_over(words: list[str]) -> None:
    """Replace this process by the program that the words name, vLLM.

    Raises: ConfigError if it is not installed.
    """
    executable = shutil.which(words[0])
    if executable is None:
        got, fix = "no such command", f"pip install vllm, or where it is: {' '.join(words)}"
        raise ConfigError("vllm", got=got, want="vLLM in this environment", fix=fix)
    # the same process id, so that whoever started us can stop it
    os.execv(executable, words)
