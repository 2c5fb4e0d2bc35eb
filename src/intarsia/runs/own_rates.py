"""Each method's own learning rate: what `--lr` is where nobody gives one."""

from __future__ import annotations

from torch import nn

from ..core.registry import card, keys
from ..train.settings import RATE
from .experiment import Experiment

ADAPTER = (3e-3, 3e-3)
"""Rates of adapters that OWN does not name: of a transformer, and of a net with batch norms."""
OWN = {
    "linear": (1e-2, 0.1),  # in steps; a plain one is fitted to convergence
    "full": (1e-4, 3e-3),
    "bitfit": (2e-3, 5e-2),
    "norms": (2e-3, 5e-2),
    "last-k": (5e-4, 2e-2),
    "lora": (3e-3, 1e-3),
    "ssf": (2e-3, 3e-3),
    "peft-dora": (3e-3, 2e-3),
    "peft-glora": (3e-3, 1e-3),
    "peft-ia3": (5e-3, 2e-2),
    "peft-loha": (1e-3, 5e-3),
}
"""The best of docs/benchmarks/even.md, and of validation pictures of an EfficientNet."""


def has_batch_norms(model: nn.Module) -> bool:
    """Return True for a network with batch norms, which takes other rates than a transformer."""
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def own_rate(method: str, *, batch_norms: bool) -> float:
    """Return a method's own learning rate.

    Methods of the kind "change" leave all weights trainable and have the rate of full fine-tuning.
    """
    start = OWN["full"] if method in keys("change") else ADAPTER
    return OWN.get(method, start)[batch_norms]


def with_own_rate(experiment: Experiment, model: nn.Module) -> Experiment:
    """Return an experiment on pictures with its method's own rate, if none was given.

    A plain linear probe stays without a rate, which is to say that it is fitted to convergence;
    random weights have the general rate.
    """
    method = experiment.adapted.method
    if experiment.training.lr is not None or converges(experiment):
        return experiment
    if method in keys("recipe"):
        return experiment.changed(lr=dict(vars(card(method).config())).get("lr") or RATE)
    if not experiment.adapted.pretrained:
        return experiment.changed(lr=RATE)
    return experiment.changed(lr=own_rate(method, batch_norms=has_batch_norms(model)))


def with_text_rate(experiment: Experiment) -> Experiment:
    """Return an experiment on texts with its method's rate, if none was given.

    Full training of pretrained weights has its own; adapters of a language model have RATE.
    """
    if experiment.training.lr is not None:
        return experiment
    full = experiment.adapted.method == "full" and experiment.adapted.pretrained
    return experiment.changed(lr=OWN["full"][0] if full else RATE)


def converges(experiment: Experiment) -> bool:
    """Decide whether an experiment on pictures is a probe that is fitted to convergence.

    It is the method `linear` without a rate, with the plain loss, on pictures that do not change.
    """
    start = Experiment(experiment.pictures)
    plain = (experiment.recipe, experiment.objective, experiment.schedule) == (
        start.recipe,
        start.objective,
        start.schedule,
    )
    unchanged = experiment.pictures.augment == "none"
    return (
        experiment.adapted.method == "linear"
        and experiment.training.lr is None
        and plain
        and unchanged
    )
