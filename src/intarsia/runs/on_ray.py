"""Trials on a Ray cluster: `pip install intarsia[ray]`; RAY_ADDRESS names one of many machines.

Every machine needs intarsia and sees the results' folder, and the suites', at the same path.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping
from typing import Any

from ..core.errors import ConfigError, MissingExtra
from ..data.packages import announce
from ..reports.numbers import plural
from .workers import Died, Work, begin, sendable

NICENESS = "RAY_worker_niceness"  # read when a cluster is started
PATIENCE = 30.0  # seconds without a worker before a person is told


class OnRay:
    """A slot of the cluster: a worker with so many cores, replaced when it is lost."""

    def __init__(self, threads: int) -> None:
        """Connect to the cluster; a worker starts at the first run.  threads: cores of it."""
        self._ray = connected()
        self._worker: Any = None
        self.threads = threads

    def run(self, work: Work, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one trial's work on a Ray worker, started at the first call; return its result.

        work: a function that can be imported.
        Raises: Died if the worker is lost; the work's own error.
        """
        ray = self._ray
        if self._worker is None:
            actor = ray.remote(num_cpus=self.threads)(RayWorker)
            self._worker = actor.remote(self.threads, settings())
            self._tell_if_busy()
        try:
            right, result = ray.get(self._worker.run.remote(work, dict(inputs)))
        except ray.exceptions.RayError as error:  # of a trial's own errors none is raised here
            # the next trial gets a new worker
            self.close()
            raise Died(lost(error)) from error
        if right:
            return result
        raise result

    def _tell_if_busy(self) -> None:
        """Announce it if the worker has not begun after PATIENCE seconds."""
        begun, _ = self._ray.wait([self._worker.begun.remote()], timeout=PATIENCE)
        if not begun:
            announce(
                f"intarsia: a Ray worker of {plural(self.threads, 'core')} has not begun and is "
                "waited for: the cluster has no such cores free (`ray status` shows what holds "
                "them), or its machine is busy."
            )

    def close(self) -> None:
        """End the worker, if there is one; it may be dead already."""
        worker, self._worker = self._worker, None
        if worker is not None:
            with contextlib.suppress(Exception):  # it may be dead already
                self._ray.kill(worker)


class FreshOnRay(OnRay):
    """A slot with a new worker for each trial, as `FreshProcess` is on one machine."""

    def run(self, work: Work, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one trial's work on a new Ray worker, which ends with it; return its result."""
        try:
            return super().run(work, inputs)
        finally:
            self.close()


class RayWorker:
    """Process of one slot on a machine of the cluster."""

    def __init__(self, threads: int, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        begin(threads)

    def begun(self) -> None:
        """Return as soon as the cluster has found cores for the worker."""

    # errors are returned, not raised: Ray would wrap them in a type of its own
    def run(self, work: Work, inputs: Mapping[str, Any]) -> tuple[bool, Any]:
        """Run work(inputs); return (True, result), or (False, error) if it raised."""
        try:
            return True, work(inputs)
        except BaseException as error:
            return False, sendable(error)


def connected() -> Any:
    """Return the ray package, connected to the cluster, or to one started on this machine.

    Raises: MissingExtra without it.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra("ray", "ray") from error
    if not ray.is_initialized():
        # by default Ray's workers have the lowest priority but four: next to any other work an
        # import of torch takes minutes; trials in processes of our own have ours
        os.environ.setdefault(NICENESS, "0")
        ray.init(log_to_driver=False, configure_logging=False)
    return ray


def settings() -> dict[str, str]:
    """Return this process's INTARSIA_ variables, which a cluster's workers do not inherit."""
    return {name: value for name, value in os.environ.items() if name.startswith("INTARSIA_")}


def lost(error: Exception) -> str:
    """Return the message about a worker that is gone."""
    text = f"its worker was lost: {type(error).__name__}: {error}"
    memory = "OutOfMemory" in type(error).__name__ or "memory" in str(error).lower()
    return text + ("; try fewer --jobs" if memory else "")


def threads_on(cores: list[int], jobs: int, requested: int | None) -> int:
    """Return how many cores each of `jobs` workers gets that run at the same time.

    cores: number of cores of each machine. requested: cores of a worker, None = as many as there is
    room for. A worker without room would wait for ever.
    Raises: ConfigError if they do not all have room.
    """

    def room(threads: int) -> int:
        return sum(n // threads for n in cores)

    # a worker lives on one machine: it has no more cores than the largest of them
    largest = max(cores, default=0)
    # the largest number of cores at which all workers still have room
    if requested is None and (fits := [n for n in range(1, largest + 1) if room(n) >= jobs]):
        return fits[-1]
    if requested is not None and room(requested) >= jobs:
        return requested
    # there is no room: say how many workers would have it
    share = requested or 1
    subject, fix = (
        "--jobs and --threads on Ray",
        "Use fewer --jobs or --threads, or a larger cluster.",
    )
    want = f"at most {room(share)} such jobs on machines of {cores or 'no'} cores"
    raise ConfigError(subject, got=f"{jobs} jobs of {share} cores", want=want, fix=fix)


def threads_for(jobs: int, requested: int | None) -> int:
    """Return `threads_on` of the cluster's machines.  Raises: ConfigError, MissingExtra."""
    nodes = [node for node in connected().nodes() if node["Alive"]]
    return threads_on([int(node["Resources"].get("CPU", 0)) for node in nodes], jobs, requested)
