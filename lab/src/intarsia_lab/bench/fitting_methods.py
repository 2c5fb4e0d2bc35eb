"""What of a plan suits its model: the methods that have a place in it, at their rates there."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from intarsia.core.errors import ConfigError, IntarsiaError
from intarsia.runs.choosing.arms import among_batch_norms
from intarsia.runs.execute import method_of, with_method
from intarsia.sparse.prune.pruner import Pruner, stops_of

from .plan import BenchPlan, Slot
from .preflight import check_model

CLASSES = "0", "1"  # of no task: a place does not depend on them


def suited(plan: BenchPlan, *, named: bool) -> BenchPlan:
    """Return the plan with the methods that fit its model, each at its rate for such a network.

    named: the methods were asked for by name, so that none may be left out; else those that do not
    fit are, and `cut` of the plan says so. A model that lies in a hub is not checked.

    Raises: ConfigError for a named method that does not fit, or if none does; what
    `preflight.check_model` raises.
    """
    adapted, model = plan.start.adapted, check_model(plan)
    if model is None:
        return plan
    unfit = _unfit(plan, model)
    fit = tuple(c for c in plan.arms if c.name not in unfit)
    if unfit and (named or not fit):
        fitting = ", ".join(c.name for c in fit)
        raise ConfigError(
            f"methods with model {adapted.model!r}",
            got="".join(f"\n  {name}: {reason}" for name, reason in unfit.items()) + "\n",
            want=f"those that fit it, as {fitting}" if fit else "one that fits",
            fix="Leave --methods out to run those that fit." if named else "Use another --model.",
        )
    if unfit:
        omission = f"Left out, for {adapted.model} has no place for them: {', '.join(unfit)}."
        plan = plan.smaller(omission, arms=fit)
    # convolutional networks have rates of their own for some methods
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        plan = replace(plan, arms=tuple(among_batch_norms(c) for c in plan.arms))
    return plan


def _unfit(plan: BenchPlan, model: nn.Module) -> Mapping[str, str]:
    """Return the methods that cannot be put into a model, with the error of each, by name.

    model: on the meta device, so that no weight is computed.
    """
    reasons: dict[str, str] = {}
    for arm in plan.arms:
        experiment = plan.final(Slot(plan.tasks[0], arm, plan.seeds[0]))
        try:
            if isinstance(method := method_of(experiment), Pruner):
                # a pruner is asked for its layers alone
                stops_of(model, method.layers)  # to prune, it would need rows
            else:
                with_method(copy.deepcopy(model), method, experiment, CLASSES)
        except IntarsiaError as error:
            reasons[arm.name] = str(error)
    return reasons
