"""Other runtimes' whole models for `benchmarks/decode.py`, one token at a time.

Each runs in a process of its own, which answers over a pipe: torch leaves llama.cpp no tile
registers, and no runtime then meets the settings of another one.
"""

from __future__ import annotations

import atexit
import importlib.util
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from llama_cpp_rows import SETTINGS, KeysSetting, LlamaCpp, TokenRow
from torch import Tensor, nn

from intarsia.data.language_models import language_model
from intarsia.kernels.decoder import DecoderStep
from intarsia_lab.kit.openvino_core import openvino_core

TRIED = 12  # tokens with each setting of llama.cpp
LENGTH = 512  # tokens of a text, and of the room for keys and values
ROOM = 64  # tokens of the room that torch reads whole for each token
LARGE_PAGES = "glibc.malloc.hugetlb=1"  # of 2 MiB, for what malloc gives
GROUP = 32  # weights of torchao's int4 that share a scale
WEIGHTS = 134_515_008 - 61 * 576  # of SmolLM2's matrices, the head among them; not of norms
BITS = {"q4_0": 4, "q4_1": 4, "q8_0": 8, "int4": 4, "int8": 8}


@dataclass(frozen=True)
class Arm:
    """start: take the prompt.  step: CPU ms of one more token.  score: perplexity on rows.

    form, bits: the format's name on the command line, None = another runtime's, and bits of a
    weight; density: share of the weights that is kept.
    """

    name: str
    start: Callable[[], object]
    step: Callable[[], float]
    score: Callable[[Sequence[Tensor]], float]
    megabytes: float
    form: str | None = None
    bits: int | None = None
    density: float = 1.0
    steps: Sequence[DecoderStep] = ()


@dataclass(frozen=True)
class Runtime:
    """A model in another runtime.

    start: take these tokens as the prompt; step: one more token; logits: of a row of tokens,
    (length, words).
    """

    start: Callable[[list[int]], object]
    step: Callable[[int], object]
    logits: Callable[[list[int]], Tensor]


def perplexity(logits: Iterable[Tensor], rows: Sequence[Tensor]) -> float:
    """Return exp of the mean loss of all tokens but the first of each row.

    logits: of each row, (length, words); rows: of tokens, (length,).
    """
    losses = [
        nn.functional.cross_entropy(values[:-1].float(), row[1:], reduction="sum")
        for values, row in zip(logits, rows, strict=True)
    ]
    return math.exp(float(sum(losses)) / sum(len(row) - 1 for row in rows))


class Peer:
    """A runtime in a process of its own, with its weights in large pages, as ours are.

    open: builds it there from `settings`; ids: the prompt.
    """

    def __init__(self, open: Callable[..., Runtime], *settings: object, ids: list[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.link, end = context.Pipe()
        # the C library reads it when the process starts, as a user sets it before a command
        os.environ.setdefault("GLIBC_TUNABLES", LARGE_PAGES)
        self.process = context.Process(target=serve, args=(open, settings, ids, end), daemon=True)
        self.process.start()
        atexit.register(self.link.send, None)

    def ask(self, request: object) -> float:
        """Return the CPU milliseconds of "start" or "step", or the perplexity of rows.

        Raises: RuntimeError with the words of an error over there.
        """
        self.link.send(request)
        answer = self.link.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def arm(self, name: str, megabytes: float, bits: int | None) -> Arm:
        """Return the arm of this process, once it has opened its model."""
        return Arm(
            name, partial(self.ask, "start"), partial(self.ask, "step"), self.ask, megabytes,
            bits=bits,
        )  # fmt: skip


def serve(open: Callable[..., Runtime], settings: Sequence[object], ids: list[int], link: Any):  # noqa: ANN201
    """Answer requests of `Peer.ask`, until there is None."""
    runtime: Runtime | None = None
    while (request := link.recv()) is not None:
        try:
            runtime = runtime or open(*settings)
            if not isinstance(request, str):
                logits = (runtime.logits(row.tolist()) for row in request)
                link.send(perplexity(logits, request))
                continue
            started = time.process_time()
            if request == "start":
                runtime.start(ids)
            else:
                runtime.step(5)
            link.send(1e3 * (time.process_time() - started))
        except Exception as error:  # another library's, of any kind
            link.send(f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}")


def in_llama_cpp(file: str, threads: int) -> Runtime:
    """Open a GGUF file in llama.cpp, at the setting with which a token takes it least time."""
    peer = LlamaCpp(file, SETTINGS[0], threads=threads, sequences=1, room=LENGTH, rows=LENGTH)
    place = 0

    def start(ids: list[int]) -> None:
        nonlocal place
        peer.clear()
        peer.decode([TokenRow(t, p, 0, p + 1 == len(ids)) for p, t in enumerate(ids)])
        place = len(ids)

    def step(token: int) -> None:
        nonlocal place
        peer.decode([TokenRow(token, place, 0, True)])
        place += 1

    def logits(row: list[int]) -> Tensor:
        peer.clear()
        rows = peer.decode([TokenRow(t, p, 0, True) for p, t in enumerate(row)])
        return torch.stack([torch.from_numpy(values.copy()) for values in rows])

    def least_time(setting: KeysSetting) -> float:
        peer.use(setting)
        start([5] * 10)
        times: list[float] = []
        for _ in range(TRIED):
            began = time.process_time()
            step(5)
            times.append(time.process_time() - began)
        return min(times)

    peer.use(min(SETTINGS, key=least_time))
    return Runtime(start, step, logits)


def in_openvino(folder: str, threads: int) -> Runtime:
    """Open a folder of `optimum-cli export openvino` in OpenVINO.

    Keys and values are its state, rounded as it chooses. With float32, which is faster for one row
    than the bfloat16 that it takes on processors with AMX, inputs of products are rounded to int8.
    """
    import numpy as np
    import openvino  # pyright: ignore[reportMissingImports]

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    file = str(Path(folder) / "openvino_model.xml")
    request = openvino_core().compile_model(file, "CPU", settings).create_infer_request()
    past = 0

    def feed(tokens: list[int]) -> None:
        nonlocal past
        total = past + len(tokens)
        arrays = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(past, total, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        for name, array in arrays.items():
            request.set_tensor(name, openvino.Tensor(array))
        request.infer()
        past = total

    def start(ids: list[int]) -> None:
        nonlocal past
        request.reset_state()
        past = 0
        feed(ids)

    def logits(row: list[int]) -> Tensor:
        start(row)
        return torch.from_numpy(request.get_tensor("logits").data[0].copy())

    return Runtime(start, lambda token: feed([token]), logits)


def in_onnxruntime(folder: str, threads: int) -> Runtime:
    """Open a folder of `onnxruntime_genai.models.builder` in onnxruntime-genai."""
    import onnxruntime_genai  # pyright: ignore[reportMissingImports]

    config = onnxruntime_genai.Config(folder)
    options = f'{{"intra_op_num_threads": {threads}, "inter_op_num_threads": 1}}'
    config.overlay(f'{{"model": {{"decoder": {{"session_options": {options}}}}}}}')
    model = onnxruntime_genai.Model(config)
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=LENGTH)
    generator: Any = None

    def start(ids: list[int]) -> None:
        nonlocal generator
        generator = onnxruntime_genai.Generator(model, settings)
        generator.append_tokens(ids)

    def logits(row: list[int]) -> Tensor:
        start(row)
        return torch.tensor(generator.get_output("logits")[0])

    return Runtime(start, lambda token: generator.append_tokens([token]), logits)


def in_torchao(kind: str, threads: int) -> Runtime:
    """Round SmolLM2's layers with torchao, and compile one token's step with torch.

    kind: int8, or int4 in groups of 32. Weights are constants of the graph (`freezing`), for which
    inductor compiles products of its own: they are faster than ATen's, the int8 head's 15
    times. Keys and values have their room before: if the first token gives it to them, the whole
    graph is compiled twice.
    """
    from torch._inductor import config as inductor
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig  # pyright: ignore[reportMissingImports]
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # pyright: ignore[reportMissingImports]
    from transformers import StaticCache

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model: Any = language_model("smollm2", progress=lambda _: None)[0]
    model = model.bfloat16().eval()
    # the head shares its weight with the embedding: only the head's becomes codes
    configs = {"int8": Int8WeightOnlyConfig(), "int4": PrototypeInt4WeightOnlyConfig(GROUP)}
    quantize_(model, configs[kind])
    # dynamo reads it, too: among torch.compile's options it has no effect
    inductor.freezing = True
    compiled: Any = torch.compile(model.forward, dynamic=False, mode="max-autotune")
    cache: Any = StaticCache(config=model.config, max_cache_len=ROOM)
    heads, width = model.config.num_key_value_heads, model.config.head_dim
    cache.early_initialization(1, heads, width, torch.bfloat16, torch.device("cpu"))
    past = 0

    def feed(tokens: list[int]) -> None:
        nonlocal past
        for token in tokens:  # one shape, so that one graph serves prompt and answer
            place = torch.tensor([[past]])
            compiled(
                input_ids=torch.tensor([[token]]), position_ids=place, cache=cache,
                use_cache=True,
            )  # fmt: skip
            past += 1

    def start(ids: list[int]) -> None:
        nonlocal past
        cache.reset()
        past = 0
        feed(ids)

    def logits(row: list[int]) -> Tensor:
        return model(input_ids=torch.tensor([row])).logits[0].float()

    return Runtime(start, lambda token: feed([token]), logits)


def size_of_file(file: Path) -> float:
    """Return the megabytes of a file: its embedding is the head, too, which is read whole."""
    return file.stat().st_size / 1e6


def size_in_onnx(folder: Path) -> float:
    """Return the megabytes of a model's weights but its embedding, from which one row is read."""
    import onnx

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    lengths = (
        int(entry.value)
        for weight in model.graph.initializer
        for entry in weight.external_data
        if entry.key == "length" and not weight.name.endswith(("embed_tokens.weight", "_cache"))
    )
    return sum(lengths) / 1e6


def size_in_torchao(kind: Path) -> float:
    """Return the megabytes of SmolLM2's matrices with int8 or int4 codes.

    int4 has a scale and a least value for 32 weights, in bfloat16; int8 a scale for a row.
    """
    return WEIGHTS * (1 if kind.name == "int8" else 0.5 + 4 / GROUP) / 1e6


class RuntimeKind(NamedTuple):
    """option: of its models; package: that is needed; open: builds it; megabytes: of a token."""

    option: str
    package: str
    open: Callable[[str, int], Runtime]
    megabytes: Callable[[Path], float]


KINDS = {
    "llama.cpp": RuntimeKind("gguf", "llama_cpp", in_llama_cpp, size_of_file),
    "OpenVINO": RuntimeKind(
        "openvino",
        "openvino",
        in_openvino,
        lambda folder: size_of_file(folder / "openvino_model.bin"),
    ),
    "onnxruntime": RuntimeKind("onnxruntime", "onnxruntime_genai", in_onnxruntime, size_in_onnx),
    "torchao": RuntimeKind("torchao", "torchao", in_torchao, size_in_torchao),
}


def peers_of(
    models: Mapping[str, Sequence[Path]], ids: list[int], threads: int
) -> tuple[list[Arm], list[str]]:
    """Return the arms of other runtimes, and sentences on those that are left out.

    models: files or folders of one model, by the keys of KINDS, with names that end in -q4_0,
    -int8 and their like; ids: the prompt.
    """
    arms: list[Arm] = []
    left_out: list[str] = []
    for runtime, kind in KINDS.items():
        if importlib.util.find_spec(kind.package) is None:
            left_out.append(f"{runtime} is left out: no package {kind.package}.")
        elif not models.get(runtime):
            left_out.append(f"{runtime} is left out: no model of it was given.")
        else:
            for model in models[runtime]:
                weights = model.stem.rpartition("-")[2]  # as q4_0, int8
                name = f"{runtime} {weights.upper() if weights.startswith('q') else weights}"
                peer = Peer(kind.open, str(model), threads, ids=ids)
                try:
                    peer.ask("start")
                except RuntimeError as error:
                    left_out.append(f"{name} is left out: {error}.")
                else:
                    arms.append(peer.arm(name, kind.megabytes(model), BITS.get(weights)))
    return arms, left_out
