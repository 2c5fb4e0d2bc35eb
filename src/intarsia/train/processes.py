"""The processes of a data-parallel run, and the device of each, from accelerate."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from torch.distributed.distributed_c10d import _set_pg_timeout

from ..core.checks import check_device, from_environment
from ..core.errors import ConfigError, IntarsiaError
from ..processes.exchange import answered
from .progress import CSV

Result = TypeVar("Result")
SOON = 5.0  # seconds of waiting for other processes until that is said
RENDEZVOUS = 60  # seconds of waiting for them at most
LIMIT = "INTARSIA_RENDEZVOUS_SECONDS"  # the environment variable of another limit
SHARDED = {  # variables of accelerate's launcher that ask for shards of weights
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
EXCHANGE = 600  # seconds that a process waits for the others' part of an exchange
EXCHANGE_LIMIT = "INTARSIA_EXCHANGE_SECONDS"


def processes() -> PartialState:
    """Return this process among those that accelerate or torchrun started.

    Raises: ConfigError if the others do not start within `RENDEZVOUS` seconds, or were to shard
      the weights.
    """
    _check_environment()
    # accelerate keeps one state a program: only the first call waits for the others
    first = not PartialState._shared_state
    notice = threading.Timer(SOON, lambda: print(waiting(os.environ), file=sys.stderr))
    if first and waiting(os.environ):
        notice.start()
    # accelerate forms a group of CPU processes only when told that there is nothing else; it also
    # changes torch's number of threads, which is limited to this process's cores below
    alone, threads = not torch.accelerator.is_available(), torch.get_num_threads()
    try:
        # accelerate warns of the number of threads, which is set below
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "OMP_NUM_THREADS/MKL_NUM_THREADS unset")
            joined = _wait_for_all(alone) if first and waiting(os.environ) else None
            state = joined or PartialState(cpu=alone)
    finally:
        notice.cancel()
    if first and alone and state.num_processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(threads, cores_of(os.environ)))
    if first:
        # gloo's threads must end before Python does: one that then frees a tensor aborts
        atexit.register(state.destroy_process_group)
    return state


def cores_of(environment: Mapping[str, str]) -> int:
    """Return how many of its machine's cores this process may use.

    environment: variables of the launcher. accelerate gives each process all cores where no
      launcher says how many processes there are here, and threads would wait for each other.
    """
    near = environment.get("MASTER_ADDR") in ("127.0.0.1", "::1", "localhost")
    count = environment.get("LOCAL_WORLD_SIZE") or (
        environment.get("WORLD_SIZE", "1") if near else "1"
    )
    return max(1, (os.cpu_count() or 1) // max(1, int(count)))


def _wait_for_all(cpu: bool) -> PartialState:
    """Wait until all processes have started, and set the limit for waits in exchanges."""
    seconds = from_environment(LIMIT, RENDEZVOUS, "a number of seconds")
    later = from_environment(EXCHANGE_LIMIT, EXCHANGE, "a number of seconds")
    try:
        state = PartialState(cpu=cpu, timeout=timedelta(seconds=seconds))
    except (RuntimeError, ValueError) as error:  # of torch.distributed, and of its environment
        # so that a program may catch the error and train alone
        PartialState._reset_state()
        got = f"not all of WORLD_SIZE={os.environ['WORLD_SIZE']} ({str(error).splitlines()[0]})"
        fix = "Start them all (accelerate launch and torchrun do), or unset WORLD_SIZE to train "
        fix += f"in this process alone; {LIMIT}={5 * seconds} waits longer."
        want = f"all of them within {seconds} s"
        raise ConfigError("processes", got=got, want=want, fix=fix) from error
    if dist.is_initialized():
        # the group was made with the short limit of the rendezvous
        _set_pg_timeout(timedelta(seconds=later))
    return state


def waiting(environment: Mapping[str, str]) -> str:
    """Return a text that says which processes are awaited; "" if there is only this one."""
    world = environment.get("WORLD_SIZE", "1")
    if world in ("", "1"):
        return ""
    address = f"{environment.get('MASTER_ADDR', '?')}:{environment.get('MASTER_PORT', '?')}"
    return (
        f"Waiting at {address} for the other processes, since WORLD_SIZE={world} is set. Start "
        "them (accelerate launch and torchrun do), or unset it to train in this process alone."
    )


def _check_environment() -> None:
    """Raise ConfigError for weights that are sharded, or a device that does not exist."""
    for variable, name in SHARDED.items():
        # on CPUs accelerate would leave it out without a word, and no process would have less
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            got, want = f"{name} ({variable})", "data-parallel processes, each with all weights"
            fix = "Launch without it; `fit --expert-parallel` shares out the experts of a mixture."
            raise ConfigError("accelerate launch", got=got, want=want, fix=fix)
    name = os.environ.get("ACCELERATE_TORCH_DEVICE")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        subject, fix = "ACCELERATE_TORCH_DEVICE", "Unset it, or name one that is there: cpu."
        got = f"{name!r} ({str(error).splitlines()[0]})"
        raise ConfigError(subject, got=got, want="a device of this machine", fix=fix) from error


def device_named(name: str | None) -> torch.device:
    """Return the device of that name; None = what accelerate chooses.

    Raises: ConfigError for an unknown name, for a device that does not exist, and for any name
      where several processes have a device each.
    """
    state = processes()
    if name is None:
        # each process has a device of its own; one alone takes the best
        default = state.device if state.num_processes > 1 else state.default_device
        return cast(torch.device, default)
    if state.num_processes > 1:
        got = f"{name!r} for {state.num_processes} processes"
        fix = "Leave it out: each process has its own."
        raise ConfigError("device", got=got, want="none", fix=fix)
    check_device(name)
    device = torch.device(name)
    counts = {"cpu": 1, "mps": int(torch.backends.mps.is_available())}
    count = counts.get(device.type, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    if (device.index or 0) >= count:
        names = ["cpu"] + ["mps"] * counts["mps"]
        names += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        fix = "Leave it out: the best one that is there is used."
        raise ConfigError("device", got=repr(name), want=f"one of {', '.join(names)}", fix=fix)
    return device


def accelerator(trackers: Sequence[str], out: Path | None, device: str | None) -> Accelerator:
    """Return accelerate's object for one run, without its autocast, which would patch the model.

    out: folder for those that write files; device: name, None = the default.
    Raises: ConfigError if the program has an Accelerator of another precision, or for a device that
      does not exist.
    """
    torch_device = device_named(device)
    try:
        theirs: Any = [name for name in trackers if name != CSV] or None
        # the precision is set by our own autocast
        instance = Accelerator(mixed_precision="no", log_with=theirs, project_dir=out)
        # accelerate knows one device a program, a run may have another
        setattr(instance.state, "device", torch_device)  # noqa: B010
        return instance
    except ValueError as error:
        got, want = f"an Accelerator in use ({error})", "none, or one with mixed_precision='no'"
        fix = "Set the precision with fit(..., precision='bf16') only."
        raise ConfigError("accelerate", got=got, want=want, fix=fix) from error


def on_main(ranks: Accelerator | PartialState, job: Callable[[], Result]) -> Result:
    """Run a function in the main process; every process gets its result, or raises its error."""
    result: Result | IntarsiaError | None = None
    if ranks.is_main_process:
        try:
            result = job()
        # sent to all: the other processes must not wait for a result that never comes
        except IntarsiaError as error:
            if ranks.num_processes == 1:
                raise
            result = error
    if ranks.num_processes > 1:
        with answered(lambda: "what the first process says"):
            result = broadcast_object_list([result])[0]
    # every process fails in the same way
    if isinstance(result, IntarsiaError):
        raise result
    return cast(Result, result)


class DataShards:
    """The rows of this process among all processes that accelerate or torchrun started.

    model.fit(own_rows, shards=DataShards()) of an estimator that adds up statistics.
    Raises: as `processes`.
    """

    def __init__(self) -> None:
        self._ranks = processes()
        self.count: int = self._ranks.num_processes

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Add up an array over the processes, which all call this.  Returns float64."""
        total = torch.tensor(array, dtype=torch.float64, device=self._ranks.device)
        if self.count > 1:
            dist.all_reduce(total)
        return total.cpu().numpy()

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of all processes in order; each calls this with its own rows."""
        parts: list[Any] = [rows] * self.count
        if self.count > 1:
            dist.all_gather_object(parts, rows)
        return np.concatenate(parts)
