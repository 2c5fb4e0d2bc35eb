"""What ours gives for the inputs of the references on sparse coding, mixtures and RECOMBINER."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from intarsia.models.codec.coding import log_ratio
from intarsia.models.codec.prior import divergence, sigma
from intarsia.models.codec.recombiner import RecombinerSettings
from intarsia.models.codec.relative_entropy import choose
from intarsia.models.codec.siren import SignalDecoder, fourier
from intarsia.models.coding import BSC, GSC, MCA, MMCA, MoG, MoP

Tensors = dict[str, Tensor]


def fitted(kind: Any, start: dict[str, Any], y: Tensor, **settings: Any) -> Tensors:
    """Return the posterior mean under given parameters, and the parameters after one EM step."""
    start = {name: np.asarray(value).copy() for name, value in start.items()}

    class Started(kind):
        def _start(self, *_: Any) -> dict[str, Any]:
            return {name: value.copy() for name, value in start.items()}

    options = {"temperature": 1.0, "reseed": False, "random_state": 0} | settings
    model = Started(n_components=len(start["W"]), n_iter=1, **options).fit(y.numpy())
    after = {name: getattr(model, attribute) for name, attribute in model._fitted.items()}
    for name, attribute in model._fitted.items():
        setattr(model, attribute, start[name])
    outputs = {"code": model.transform(y.numpy())} | after
    return {name: torch.from_numpy(np.asarray(value)) for name, value in outputs.items()}


def only(outputs: Tensors, *names: str) -> Tensors:
    return {name: outputs[name] for name in names}


def binary(kind: Any, tensors: Tensors, candidates: int, active: int, **settings: Any) -> Tensors:
    """Return code, W, pi and sigma of a model whose causes are on or off."""
    start = {"W": tensors["W"], "noise": tensors["sigma"][0] ** 2, "prior": tensors["pi"]}
    options = {"n_candidates": candidates, "max_active": active} | settings
    outputs = fitted(kind, start, tensors["y"], **options)
    return outputs | {"pi": outputs["prior"], "sigma": outputs["noise"].sqrt()[None]}


def bsc(tensors: Tensors, **arguments: Any) -> Tensors:
    outputs = binary(BSC, tensors, noise_from="old", **arguments)
    return only(outputs, "code", "W", "pi", "sigma")


def mca(tensors: Tensors, **arguments: Any) -> Tensors:
    return only(binary(MCA, tensors, **arguments), "code", "pi", "sigma")


def mmca(tensors: Tensors, **arguments: Any) -> Tensors:
    return only(binary(MMCA, tensors, **arguments), "code", "pi", "sigma")


def mmca_step(tensors: Tensors, **arguments: Any) -> Tensors:
    return only(binary(MMCA, tensors, **arguments), "W")


def slabs(tensors: Tensors, **arguments: Any) -> Tensors:
    start = {"W": tensors["W"], "noise": tensors["sigma2"][0], "prior": tensors["pi"]}
    start |= {"mean": tensors["mu"], "slab": tensors["psi"]}
    outputs = fitted(GSC, start, tensors["y"], data_cut=False, **arguments)
    return outputs | {"pi": outputs["prior"], "mu": outputs["mean"]}


def gsc(tensors: Tensors, **arguments: Any) -> Tensors:
    return only(slabs(tensors, **arguments), "code", "W", "pi", "mu")


def gsc_full(tensors: Tensors, **arguments: Any) -> Tensors:
    return only(slabs(tensors, **arguments), "code", "W", "pi")


def gsc_exponent(tensors: Tensors, **arguments: Any) -> Tensors:
    return only(slabs(tensors, **arguments), "code")


def mog(tensors: Tensors, **arguments: Any) -> Tensors:
    start = {name: tensors[key] for name, key in (("W", "W"), ("prior", "pi"))}
    start |= {"covariance": tensors["covariance"], "least": 0.0}
    outputs = fitted(MoG, start, tensors["y"], **arguments)
    return only(outputs | {"pi": outputs["prior"]}, "code", "W", "pi", "covariance")


def mog_diagonal(tensors: Tensors, **arguments: Any) -> Tensors:
    return mog(tensors, **arguments)


def mop(tensors: Tensors, **arguments: Any) -> Tensors:
    start = {"W": tensors["W"], "prior": tensors["pi"], "least": 0.0}
    outputs = fitted(MoP, start, tensors["y"], **arguments)
    return only(outputs | {"pi": outputs["prior"]}, "code", "W", "pi")


def mop_total(tensors: Tensors, **arguments: Any) -> Tensors:
    return mop(tensors, **arguments)


def recombiner_network(tensors: Tensors) -> Tensors:
    settings = RecombinerSettings(patch=(16, 16), width=4, depth=1, positions=16)
    decoder = SignalDecoder(settings)
    maps = {f"maps.{i}": tensors[f"map.{i}"] for i in range(len(decoder.maps))}
    names = [(i, part) for i in range(3) for part in ("weight", "bias")]
    convolutions = {f"convolutions.{i}.{part}": tensors[f"conv{i + 1}.{part}"] for i, part in names}
    decoder.load_state_dict({k: v.float() for k, v in (maps | convolutions).items()})
    decoder.points = tensors["x"]
    h = torch.cat([tensors["h"], tensors["z"]], dim=1)
    return {"y": decoder(h, (1, 1)) - 0.5}


def recombiner_fourier(tensors: Tensors, side: int) -> Tensors:
    by_axis = fourier((side, side))[: len(tensors["xy"])].float()
    return {"x": by_axis.view(-1, 2, 2, 4).transpose(1, 2).flatten(1)}  # cos of all axes, then sin


def recombiner_divergence(tensors: Tensors) -> Tensors:
    nats = divergence(tensors["mu"], sigma(tensors["rho"]), tensors["mean"], tensors["scale"])
    return {"nats": nats.sum()[None]}


def recombiner_index(tensors: Tensors) -> Tensors:
    deviation = sigma(tensors["rho"])
    t, d = tensors["scale"] / deviation, (tensors["mean"] - tensors["mu"]) / deviation
    ratios = log_ratio(tensors["candidates"], t.T, d.T).double().numpy()
    order = tensors["gumbels"].numpy()
    return {"index": torch.tensor([choose(ratio, order) for ratio in ratios.T])}
