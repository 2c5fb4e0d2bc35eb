"""What a verb that torchrun has started says of its processes; without importing torch."""

import os
from dataclasses import dataclass
from typing import Any

from ..core.errors import ConfigError
from ..core.registry import listed
from ..core.schema import option_name, setting, settings_of


@dataclass(frozen=True)
class ProcessOptions:
    """Settings of how the experts of mixtures are shared out among processes."""

    expert_parallel: int | None = setting(
        None,
        "Share the experts of mixtures out among so many processes, which torchrun has started.",
        least=1,
    )
    plan: str | None = setting(
        None,
        "Plan by which the experts are shared out: auto measures the links and simulates the "
        "others for each layer. ep: rows go to their experts; fssdp: and copies of the busiest "
        "experts come (Hecate); tutel: rows, or slices of weights; coordinated: tables of rows "
        "(DeepSpeed-MoE).",
        choices=lambda: listed("plan"),
    )


def plan_of(arguments: dict[str, Any]) -> str | None:
    """Return the plan by which processes share experts, None if they do not.

    arguments: the options of `intarsia fit` by name; expert_parallel and plan are taken out of
    them.
    Raises: ConfigError for --plan without --expert-parallel, or another number of processes;
    UnknownName for no plan.
    """
    count, plan = arguments.pop("expert_parallel"), arguments.pop("plan")
    values = {"expert_parallel": count, "plan": plan}
    # checked here, since they are no options of a single process
    for item, declared in settings_of(ProcessOptions):
        declared.check(option_name(item), values[item.name], item.type)
    if count is None:
        if plan is not None:
            fix = "For example: torchrun --nproc-per-node 4 -m intarsia fit ... --expert-parallel 4"
            want = "--expert-parallel with it"
            raise ConfigError("--plan", got="it alone", want=want, fix=fix)
        return None
    # torchrun tells each process how many there are; without it there is one.
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != count:
        started = "one process" if world == 1 else f"{world} processes"
        fix = f"torchrun --nproc-per-node {count} -m intarsia fit ... --expert-parallel {count}"
        want = f"{count}, started by torchrun"
        raise ConfigError("--expert-parallel", got=started, want=want, fix=fix)
    if arguments.get("task") is not None:
        got, fix = f"--task {arguments['task']}", "Leave one of both out."
        raise ConfigError("--expert-parallel", got=got, want="pictures or texts", fix=fix)
    return plan or "auto"


def is_main() -> bool:
    """Return True in the process that prints."""
    return os.environ.get("RANK", "0") == "0"
