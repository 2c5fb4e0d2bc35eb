"""What ours gives for the inputs of the references on sparse coding, mixtures and RECOMBINER."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intarsia.areas.codec.coding import log_ratio
from intarsia.areas.codec.prior import divergence, sigma
from intarsia.areas.codec.recombiner import RecombinerSettings
from intarsia.areas.codec.relative_entropy import choose
from intarsia.areas.codec.siren import SignalDecoder, fourier
from intarsia.areas.coding import BSC, GSC, MCA, MMCA, MoG, MoP
from intarsia.models.dass import OPERATIONS, Cells, CellSizes, ChosenNet, Genotype, Supernet

from .gradients import Tensors, give


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
    give(decoder, {k: v.float() for k, v in (maps | convolutions).items()})
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


def darts_search(tensors: Tensors, sizes: dict[str, int]) -> Tensors:
    """Logits of a supernet in training, and gradients of the cross-entropy."""
    net = Supernet(CellSizes(**sizes), (tensors["x"], tensors["labels"]))
    net.alpha.copy_(tensors["alpha"]).requires_grad_(True)
    return _of_cells(net, tensors, {"grad_alpha": net.alpha})


def darts_chosen(tensors: Tensors, sizes: dict[str, int], cells: dict[str, Any]) -> Tensors:
    """The same of a net of chosen operations, each operation in one of its cells."""
    return _of_cells(ChosenNet(Genotype(**cells), CellSizes(**sizes)), tensors, {})


def _of_cells(net: Cells, tensors: Tensors, leaves: Tensors) -> Tensors:
    x = tensors["x"].requires_grad_()
    used: set[str] = set()
    for name, piece in _pieces(net).items():
        for number, weight in enumerate(piece.parameters()):
            used.add(f"{name}.{number}")
            with torch.no_grad():
                weight.copy_(tensors[f"{name}.{number}"])
    assert used == tensors.keys() - {"x", "labels", "alpha"}
    logits = net(x)
    leaves |= {"grad_x": x, "grad_stem": net.stem[0].weight}
    loss = F.cross_entropy(logits, tensors["labels"])
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True)) | {"logits": logits}


def _pieces(net: Any) -> dict[str, nn.Module]:
    """Parts of the net by name: stem, head, and of each cell its projections and edges."""
    found: dict[str, nn.Module] = {"stem": net.stem, "head": net.head}
    for number, cell in enumerate(net.cells):
        found |= {f"{number}.project.{i}": part for i, part in enumerate(cell.project)}
        for i, edge in enumerate(cell.edges):
            mixed = getattr(edge, "operations", [])
            found |= {f"{number}.{i}.{OPERATIONS[o]}": part for o, part in enumerate(mixed)}
            found |= {} if mixed else {f"{number}.{i}": edge}
    return found
