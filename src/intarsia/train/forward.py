"""The model as the loop calls it: recomputing, compiled, shared among processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..gating import finding_once, having, redraw
from ..processes.exchange import Meter, exchanged
from .record import bare
from .settings import Running
from .stack import Seated


@contextmanager
def wrapped(
    model: nn.Module, running: Running, accelerator: Accelerator, meter: Meter
) -> Iterator[nn.Module]:
    """Yield the model as it is called in training; its settings are restored afterwards.

    It is compiled, or wrapped for several processes, as the settings say. Random routers draw for
    the whole batch, and each process takes its own rows. With `recompute` (gradient checkpointing)
    draws are kept until the next step, so that both computations of a forward have the same
    experts.
    running: has `recompute`, `compile`, and `seat`, a run's place among runs that step together;
      meter: counts what processes on CPUs send of gradients, and wait for.
    Raises: ConfigError for recompute on a model that does not offer it.
    """
    # random routers draw for the joined batch and take their own rows: as in one process
    shared: dict[str, Any] = {"shard": (accelerator.process_index, accelerator.num_processes)}
    if running.recompute:
        _set_recompute(model, True)
        shared["hold"] = True
    try:
        with having(model, **shared):
            forward = model
            # from the inside out: seat or compiled model, then DistributedDataParallel
            if running.seat is not None:
                forward = Seated(model, running.seat)
            if running.compile:
                forward = cast(nn.Module, torch.compile(model))
            if accelerator.num_processes > 1:
                forward = accelerator.prepare_model(forward)
                # gloo's own sum depends on the ring; see `mean_in_order`
                if accelerator.device.type == "cpu":
                    ddp: Any = forward
                    # a lambda has no annotations; DistributedDataParallel takes none that are text
                    hook = lambda meter, bucket: mean_in_order(meter, bucket)  # noqa: E731
                    ddp.register_comm_hook(meter, hook)
            with finding_once(model, forward):
                yield forward
    finally:
        redraw(model)
        if running.recompute:
            _set_recompute(model, False)


def mean_in_order(meter: Meter, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average the gradients of W processes, always added up in the order of the processes.

    It is the communication hook of DistributedDataParallel. meter: counts bytes and waiting. It
    sends 2 (W - 1) / W of the bucket: a part to the process that adds it up, and back. In the usual
    sum over a ring the order depends on the place in a bucket, and the buckets are filled otherwise
    after a run's first step: a resumed run would end with other bits.
    """
    flat, world = bucket.buffer(), dist.get_world_size()
    # step 1: part p of the bucket goes to process p, from all the others
    parts = [len(part) for part in flat.tensor_split(world)]
    receive = [parts[dist.get_rank()]] * world
    with torch.no_grad():
        come = exchanged(flat / world, parts, receive, meter=meter, name="gradients")
        # step 2: it adds the W parts up, from process 0 on
        total, *rest = come.view(world, receive[0])
        for addend in rest:
            total = total + addend
        # step 3: every process gets every part's mean back
        mean = exchanged(total.repeat(world), receive, parts, meter=meter, name="gradients.back")
    future = torch.futures.Future[Tensor]()
    future.set_result(mean)
    return future


def _set_recompute(model: nn.Module, on: bool) -> None:
    """Switch gradient checkpointing of a timm or transformers model on or off."""
    host = bare(model)
    if hasattr(host, "set_grad_checkpointing"):  # timm
        host.set_grad_checkpointing(on)  # pyright: ignore
    elif hasattr(host, "gradient_checkpointing_enable"):  # transformers
        if on:
            host.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore
        else:
            host.gradient_checkpointing_disable()  # pyright: ignore
    else:
        subject, got = (
            f"recompute of {type(host).__name__}",
            "a model without gradient checkpointing",
        )
        fix = "Leave recompute off, or use a smaller batch."
        raise ConfigError(subject, got=got, want="a timm or transformers model", fix=fix)
