"""SE-MoE's ring (arXiv:2205.10034): a model with blocks that pass through K places in memory.

A thread reads blocks i + 1 ... i + K - 1 while block i is computed; block i + K then takes its
place.
`placement.layer_ring` says beforehand how long that takes.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core.checks import between
from ..core.errors import CheckpointError, ConfigError, TargetError
from ..core.files import writing
from ..core.reading import open_tensors
from ..core.sealing import OPEN, check_file, seal_file
from ..hosts.anatomy.blocks import blocks
from ..placement.cache import Residency

Read = Callable[[Path, Mapping[str, Tensor]], None]
RING = "intarsia_ring"  # the attribute of a model that has one


def read_block(path: Path, into: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a block's file into existing tensors of the same names and shapes.

    Raises: CheckpointError for a file that is missing, damaged or of another block.
    """
    try:
        with open_tensors(path) as file:
            for name, tensor in into.items():
                tensor.copy_(file.get_tensor(name))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def check_block(path: Path) -> None:
    """Check that a block's file is there, with the bytes written.  Raises: CheckpointError."""
    try:
        check_file(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    want, fix = "the block that was written", "Open the model and call ring_offload again."
    return CheckpointError(f"block {path}", got=error, want=want, fix=fix)


def ring_offload(
    model: nn.Module, folder: str | Path, *, slots: int = 2, read: Read = read_block
) -> nn.Module:
    """Write a model's blocks to files and keep only K of them in memory at a time, in place.

    Outputs have the same bits: the same products of the same weights. The memory of the N blocks
    falls to K / N; embeddings, head and norms outside the blocks stay. With K = 2, a thread reads
    the next block while one is computed, so that a forward takes the longer of both times; a larger
    K gains nothing on a machine of even speed.
    folder: a new one, for one safetensors file of each block; slots: K; read: the function that
    reads a file, for tests and other stores.
    `ring_residency(model)` counts how often a forward had to wait.

    Raises: TargetError for a model with blocks of different shapes; ConfigError for slots
    outside 1 ... N, a folder with something in it, a model that has a ring, and in a forward with
    gradients; CheckpointError, in the forward, for a file that cannot be read.
    Not for training, nor for a model that fits: every forward reads every block.
    Source: arXiv:2205.10034, section 4.2.
    """
    if RING in model.__dict__:
        got, fix = "a model with a ring", "Open the model again."
        raise ConfigError("model for a ring", got=got, want="its blocks in memory", fix=fix)
    if (target := Path(folder)).is_file() or (target.is_dir() and any(target.iterdir())):
        fix = "Choose a new folder."
        raise ConfigError(f"folder {folder}", got="something there", want="nothing", fix=fix)
    model_blocks = blocks(model)
    # a place in memory holds any block, so all need equal shapes
    shapes = [{n: (t.shape, t.dtype) for n, t in b.state_dict().items()} for _, b in model_blocks]
    if not model_blocks or any(s != shapes[0] for s in shapes):
        got, fix = (
            f"{len(model_blocks)} blocks of {len({str(s) for s in shapes})} shapes",
            "Use offload.",
        )
        raise TargetError("model for a ring", got=got, want="blocks of one shape", fix=fix)
    between("slots", slots, 1, len(model_blocks), "2 hide the shorter of reading and computing.")
    with writing(folder) as scratch:
        scratch.mkdir()
        for number, (_, block) in enumerate(model_blocks):
            tensors = {n: t.detach().contiguous() for n, t in block.state_dict().items()}
            file = scratch / f"{number:04d}.safetensors"
            save_file(tensors, file, metadata=OPEN)
            seal_file(file)
    ring = Ring([block for _, block in model_blocks], Path(folder), slots, read)
    model.__dict__[RING] = ring
    # the thread ends with the model
    weakref.finalize(model, ring.close)
    return model.eval().requires_grad_(False)


def ring_residency(model: nn.Module) -> Residency:
    """Count blocks that were read in time, blocks that were waited for, bytes read and seconds.

    Raises: ConfigError for a model that `ring_offload` did not change.
    """
    ring = model.__dict__.get(RING)
    if ring is None:
        got, fix = f"a {type(model).__name__} in memory", "Call ring_offload(model, folder)."
        raise ConfigError("model", got=got, want="one with a ring", fix=fix)
    return Residency(ring.ready, ring.waited, ring.bytes, ring.seconds)


class Ring:
    """Memory for K blocks of a model, which all blocks pass through in turn.

    A thread reads the blocks in order; hooks make each block wait for its weights, and free its
    place after it was computed.
    """

    def __init__(self, model_blocks: list[nn.Module], folder: Path, slots: int, read: Read) -> None:
        """Allocate memory for K blocks, free the blocks' own, and start the reading thread."""
        self.blocks, self.folder, self.read = model_blocks, folder, read
        first = model_blocks[0].state_dict()
        self.places = [{n: torch.empty_like(t) for n, t in first.items()} for _ in range(slots)]
        self.size = sum(t.nbytes for t in first.values())
        self.ready = self.waited = self.bytes = 0
        self.checked: set[int] = set()
        self.seconds = 0.0
        self.failed: BaseException | None = None
        self.todo: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self.done = [threading.Event() for _ in model_blocks]
        self.turn = 0  # the block that is computed next
        self.place_of = {
            number: number for number in range(slots)
        }  # block -> its place, now or next
        for number, block in enumerate(model_blocks):
            block.register_forward_pre_hook(self._waiting_hook(number))
            block.register_forward_hook(self._freeing_hook(number))
            # the block's own memory is given up; outside its turn it has none
            _set_tensors(block, {n: t.new_empty(0) for n, t in first.items()})
        self.thread = threading.Thread(target=self._load, name="ring", daemon=True)
        self.thread.start()
        for number in range(slots):
            self.todo.put((number, number))

    def close(self) -> None:
        """Let the thread end."""
        self.todo.put(None)

    def _load(self) -> None:
        """Read queued blocks into their places, in order, until None comes; runs on a thread."""
        while (task := self.todo.get()) is not None:
            block, place = task
            try:
                path = self.folder / f"{block:04d}.safetensors"
                if block not in self.checked:  # once: every forward reads all of them again
                    check_block(path)
                    self.checked.add(block)
                self.read(path, self.places[place])
                self.bytes += self.size
            except BaseException as error:  # raised where the block is needed
                self.failed = error
            self.done[block].set()

    def _restart(self) -> None:
        """Begin again at the first block, after a forward that an error has interrupted."""
        broken, self.turn = self.turn, 0
        count, slots = len(self.blocks), len(self.places)
        if slots == count:
            return
        for number in range(broken, broken + slots):  # reads under way end before new ones begin
            self.done[number % count].wait()
            self.done[number % count].clear()
        empty = {n: t.new_empty(0) for n, t in self.places[0].items()}
        _set_tensors(self.blocks[broken], empty)
        self.failed = None
        self.place_of = {number: number for number in range(slots)}
        for number in range(slots):
            self.todo.put((number, number))

    def _waiting_hook(self, number: int) -> Any:
        """Return the hook of a block's forward that waits for its weights; number: the block's."""

        def wait(block: nn.Module, _: Any) -> None:
            """Wait until the block's file was read, and give the block its weights."""
            if torch.is_grad_enabled():
                fix = "Run it under torch.no_grad()."
                raise ConfigError("model with a ring", got="gradients", want="inference", fix=fix)
            if number == 0 and self.turn:
                self._restart()
            if number != self.turn:
                got, fix = f"block {number} after {self.turn - 1}", "Run whole forwards."
                raise ConfigError("model with a ring", got=got, want="blocks in order", fix=fix)
            # if the thread was faster, the computation does not wait
            if self.done[number].is_set():
                self.ready += 1
            else:
                started = time.perf_counter()
                self.done[number].wait()
                self.seconds += time.perf_counter() - started
                self.waited += 1
            if self.failed is not None:
                raise self.failed
            _set_tensors(block, self.places[self.place_of[number]])

        return wait

    def _freeing_hook(self, number: int) -> Any:
        """Return the hook that frees a block's place, and queues the read of its next block."""

        def free(block: nn.Module, *_: Any) -> None:
            """Take the block's weights away, and queue the read of the next block in its place."""
            count, slots = len(self.blocks), len(self.places)
            self.turn = (number + 1) % count
            # with a place for every block nothing is ever read again
            if slots < count:
                place = self.place_of[number]
                _set_tensors(block, {n: t.new_empty(0) for n, t in self.places[0].items()})
                self.done[number].clear()
                after = (number + slots) % count
                self.place_of[after] = place
                self.todo.put((after, place))

        return free


def _set_tensors(block: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace a block's weights and buffers by these tensors, without a copy."""
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        owner = block.get_submodule(path)
        parameter = owner._parameters.get(last)
        if parameter is not None:
            parameter.data = tensor
        else:
            owner._buffers[last] = tensor
