"""Products of ggml, the library below llama.cpp, as `llama-cpp-python` installs it.

Its C interface is called through ctypes. A weight lies in one of ggml's buffers: the plain one, or
one that stores it rearranged for the processor, eight rows side by side or in tiles.
"""

from __future__ import annotations

import ctypes
import importlib.util
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TYPES = {"Q4_0": 2, "Q8_0": 8}  # the numbers of ggml.h
FLOAT = 0  # the number of float32
BYTES = {"Q4_0": 18, "Q8_0": 34}  # of a block of 32 weights
BLOCK = 32
TRIES = 3  # of each setting; the fastest is taken


class ContextRoom(ctypes.Structure):
    """The C structure ggml_init_params: room for the descriptions of tensors, not their data."""

    _fields_ = (("size", ctypes.c_size_t), ("room", ctypes.c_void_p), ("empty", ctypes.c_bool))


# result and arguments of the functions that are called; p: a pointer, i: an int, l: 64 bits
SIGNATURES = {
    "ggml_new_tensor_2d": "ppill",
    "ggml_mul_mat": "pppp",
    "ggml_new_graph_custom": "pplb",
    "ggml_graph_overhead_custom": "llb",
    "ggml_tensor_overhead": "l",
    "ggml_build_forward_expand": "vpp",
    "ggml_quantize_chunk": "lipplllp",
    "ggml_free": "vp",
    "ggml_backend_alloc_ctx_tensors_from_buft": "ppp",
    "ggml_backend_buffer_free": "vp",
    "ggml_backend_dev_backend_reg": "pp",
    "ggml_backend_dev_supports_op": "bpp",
    "ggml_backend_get_device": "pp",
    "ggml_backend_graph_compute": "ipp",
    "ggml_backend_reg_get_proc_address": "ppc",
    "ggml_backend_tensor_get": "vppll",
    "ggml_backend_tensor_set": "vppll",
}
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
SILENT = LOG(lambda *_: None)  # of each tensor it would print a line
LETTERS: dict[str, Any] = {
    "p": ctypes.c_void_p,
    "i": ctypes.c_int,
    "l": ctypes.c_int64,
    "b": ctypes.c_bool,
    "c": ctypes.c_char_p,
    "v": None,
}


class Ggml:
    """The opened library: its functions, its processor and the buffers for weights.

    Raises: ImportError without the package llama-cpp-python.
    """

    def __init__(self) -> None:
        package = importlib.util.find_spec("llama_cpp")
        if package is None or not package.submodule_search_locations:
            raise ImportError("no package llama-cpp-python")
        folder = Path(package.submodule_search_locations[0]) / "lib"
        self.base: Any = ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
        cpu: Any = ctypes.CDLL(str(folder / "libggml-cpu.so"), ctypes.RTLD_GLOBAL)
        for name, (result, *arguments) in SIGNATURES.items():
            function = getattr(self.base, name)
            function.restype = LETTERS[result]
            function.argtypes = [LETTERS[letter] for letter in arguments]
        self.base.ggml_log_set(SILENT, None)
        self.base.ggml_init.restype, self.base.ggml_init.argtypes = ctypes.c_void_p, [ContextRoom]
        for name in ("ggml_backend_cpu_init", "ggml_backend_cpu_buffer_type"):
            getattr(cpu if name.endswith("init") else self.base, name).restype = ctypes.c_void_p
        cpu.ggml_backend_cpu_set_n_threads.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self.backend = cpu.ggml_backend_cpu_init()
        cpu.ggml_backend_cpu_set_n_threads(self.backend, torch.get_num_threads())
        self.device = self.base.ggml_backend_get_device(self.backend)
        self.plain = self.base.ggml_backend_cpu_buffer_type()
        self.buffers = [*self._extra_buffers(), self.plain]

    def _extra_buffers(self) -> list[int]:
        """Return the buffers that store a weight rearranged for this processor."""
        registry = self.base.ggml_backend_dev_backend_reg(self.device)
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self.base.ggml_backend_reg_get_proc_address(registry, name)
        if not address:
            return []
        kind = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
        array, buffers = kind(address)(self.device), list[int]()
        # the array ends with a null pointer
        while array and (buffer := array[len(buffers)]):
            buffers.append(buffer)
        return buffers


@lru_cache(maxsize=1)
def ggml() -> Ggml:
    """Open the library once for this process."""
    return Ggml()


class GgmlProducts:
    """Graph of a row's products with copies of a weight.

    type: "Q4_0" or "Q8_0"; weight: (out, in); x: (1, in); copies: of the weight, one product each;
    buffer: a kind of ggml's, for the weights.

    Raises: ValueError where that buffer cannot hold such a weight.
    """

    def __init__(self, type: str, weight: Tensor, x: Tensor, copies: int, buffer: int) -> None:
        self.library = ggml()
        self.base, self.out = self.library.base, weight.shape[0]
        out, width = weight.shape
        self.kept, self.buffers = list[int](), list[int]()
        # weights in one context and all else in another: their buffers differ
        stored, rest = (self._context(3 * copies + 2) for _ in range(2))
        weights = [
            self.base.ggml_new_tensor_2d(stored, TYPES[type], width, out) for _ in range(copies)
        ]
        row = self.base.ggml_new_tensor_2d(rest, FLOAT, width, 1)
        self._allocate(stored, buffer)
        self.products = [self.base.ggml_mul_mat(rest, w, row) for w in weights]
        self._allocate(rest, self.library.plain)
        if not self.base.ggml_backend_dev_supports_op(self.library.device, self.products[0]):
            self.close()
            raise ValueError(f"ggml has no product of {type} in this buffer")
        self._fill(TYPES[type], out * width // BLOCK * BYTES[type], weight, weights)
        self._set(row, x)
        # without gradients, as in `_context`
        self.graph = self.base.ggml_new_graph_custom(rest, 2 * copies + 8, False)
        for product in self.products:
            self.base.ggml_build_forward_expand(self.graph, product)

    def _context(self, tensors: int) -> int:
        """Return a new context with room for descriptions of so many tensors and their graph.

        Without gradients a graph has at most a node for each tensor: twice as many and eight are
        room to spare.
        """
        size = tensors * self.base.ggml_tensor_overhead()
        size += self.base.ggml_graph_overhead_custom(2 * tensors + 8, False)
        # ggml takes the room, and the tensors have no data yet
        self.kept.append(self.base.ggml_init(ContextRoom(size, None, True)))
        return self.kept[-1]

    def _allocate(self, context: int, buffer: int) -> None:
        """Give all tensors of a context their data in a buffer of some kind."""
        allocated = self.base.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer)
        if not allocated:
            raise ValueError("ggml allocates no such buffer")
        self.buffers.append(allocated)

    def _fill(self, type: int, size: int, weight: Tensor, weights: Sequence[int]) -> None:
        """Round a weight as llama.cpp does, and store it in every copy.

        type: of ggml.h; size: bytes of the rounded weight; weights: pointers to the copies.
        """
        values = weight.float().contiguous()
        blocks = ctypes.create_string_buffer(size)
        # from the first weight on, all rows of that width, no matrix of importances
        rounded = self.base.ggml_quantize_chunk(
            type, values.data_ptr(), ctypes.addressof(blocks), 0, *weight.shape, None
        )
        assert rounded == size
        for tensor in weights:
            self.base.ggml_backend_tensor_set(tensor, ctypes.addressof(blocks), 0, size)

    def _set(self, tensor: int, values: Tensor) -> None:
        """Copy float32 values into a tensor."""
        values = values.float().contiguous()
        self.base.ggml_backend_tensor_set(tensor, values.data_ptr(), 0, values.nbytes)

    def __call__(self) -> None:
        """Compute all products."""
        self.base.ggml_backend_graph_compute(self.library.backend, self.graph)

    def output(self) -> Tensor:
        """Return the first product, (1, out) float32, computed again."""
        self()
        output = torch.empty(1, self.out)
        self.base.ggml_backend_tensor_get(self.products[0], output.data_ptr(), 0, output.nbytes)
        return output

    def close(self) -> None:
        """Give the memory back."""
        for buffer in self.buffers:
            self.base.ggml_backend_buffer_free(buffer)
        for context in self.kept:
            self.base.ggml_free(context)
        self.buffers, self.kept = [], []


def ggml_products(
    type: str, weight: Tensor, x: Tensor, copies: int
) -> tuple[Callable[[], object], int, Tensor]:
    """Prepare ggml's products in the buffer in which they are fastest.

    type: "Q4_0" or "Q8_0"; weight: (out, in), of whole blocks of 32 inputs; x: (1, in); copies: of
    the weight, one product each. Returns a call for all copies, the bytes of one, and its output.

    Raises: ImportError without llama-cpp-python; ValueError for a weight without whole blocks.
    """
    if weight.shape[1] % BLOCK:
        raise ValueError(f"{weight.shape[1]} inputs are no whole blocks of {BLOCK}")
    best: tuple[float, GgmlProducts] | None = None
    for buffer in ggml().buffers:
        try:
            products = GgmlProducts(type, weight, x, copies, buffer)
        except ValueError:
            continue
        products()
        seconds = best_seconds(products)
        if best is None or seconds < best[0]:
            if best is not None:
                best[1].close()
            best = seconds, products
        else:
            products.close()
    if best is None:
        raise ValueError(f"ggml has no product of {type}")
    products = best[1]
    return products, weight.numel() // BLOCK * BYTES[type], products.output()


def best_seconds(call: Callable[[], object]) -> float:
    """Return the least CPU seconds of a few calls, of all threads of this process."""
    times: list[float] = []
    for _ in range(TRIES):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return min(times)
