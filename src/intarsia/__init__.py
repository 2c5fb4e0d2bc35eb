"""Sparse and modular adaptation of pretrained PyTorch models.

model = intarsia.adapt(model, intarsia.Mosa(experts=4))
intarsia.fit(model, train, val, epochs=20)
stock = intarsia.fold(model)
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import Bottleneck as Bottleneck
    from .adapters import Lora as Lora
    from .adapters import Mos as Mos
    from .adapters import S2ft as S2ft
    from .adapters import Sparse as Sparse
    from .adapters import Ssf as Ssf
    from .core import Cell as Cell
    from .core import Partition as Partition
    from .core import Routing as Routing
    from .core import Site as Site
    from .core.errors import IntarsiaError as IntarsiaError
    from .data import backbone as backbone
    from .data import language_model as language_model
    from .data import load_data as load_data
    from .data import load_texts as load_texts
    from .fitting import fit as fit
    from .fitting import fit_in_phases as fit_in_phases
    from .gating import aux_loss as aux_loss
    from .gating import passes as passes
    from .gating import redraw as redraw
    from .gating import task_ids as task_ids
    from .hosts import SparseDelta as SparseDelta
    from .hosts import adapt as adapt
    from .hosts import attach_delta as attach_delta
    from .hosts import choose_channels as choose_channels
    from .hosts import co_permute as co_permute
    from .hosts import combine as combine
    from .hosts import delta_of as delta_of
    from .hosts import expert_loads as expert_loads
    from .hosts import fold as fold
    from .hosts import load as load
    from .hosts import load_mixture as load_mixture
    from .hosts import merge_mixtures as merge_mixtures
    from .hosts import pack as pack
    from .hosts import prune_experts as prune_experts
    from .hosts import save_mixture as save_mixture
    from .hosts import student_of as student_of
    from .hosts import unpack as unpack
    from .hosts import upcycle as upcycle
    from .methods import Adamix as Adamix
    from .methods import BiAdapter as BiAdapter
    from .methods import LlavaMole as LlavaMole
    from .methods import LtSft as LtSft
    from .methods import MixLora as MixLora
    from .methods import Mosa as Mosa
    from .methods import Mosl as Mosl
    from .methods import Poly as Poly
    from .mixtures import AdamOnce as AdamOnce
    from .mixtures import Capacity as Capacity
    from .mixtures import DeepSpeedMoE as DeepSpeedMoE
    from .mixtures import ExpertList as ExpertList
    from .mixtures import HeavyBall as HeavyBall
    from .mixtures import Mixture as Mixture
    from .mixtures import Residual as Residual
    from .mixtures import ResidualMixture as ResidualMixture
    from .mixtures import Robust as Robust
    from .mixtures import StackedExperts as StackedExperts
    from .mixtures import ZCodeM3 as ZCodeM3
    from .mixtures import activation_l0 as activation_l0
    from .mixtures import add_momentum as add_momentum
    from .mixtures import as_wide_mlp as as_wide_mlp
    from .models import SoftmaxGaussianMoE as SoftmaxGaussianMoE
    from .routers import ActivationGate as ActivationGate
    from .routers import Comet as Comet
    from .routers import DSelectK as DSelectK
    from .routers import EvoMoe as EvoMoe
    from .routers import ExpertChoice as ExpertChoice
    from .routers import Hash as Hash
    from .routers import MoeX as MoeX
    from .routers import NoisyTopK as NoisyTopK
    from .routers import PermutationSearch as PermutationSearch
    from .routers import Recurrent as Recurrent
    from .routers import Switch as Switch
    from .routers import TopK as TopK
    from .routers import TopP as TopP
    from .routers import Transport as Transport
    from .routers import anneal as anneal
    from .routers import search_step as search_step
    from .routers import set_ids as set_ids
    from .train import Training as Training
    from .train import evaluate as evaluate
    from .train import trainer_loss as trainer_loss

# name -> where it lives; read at first use, so that `import intarsia` costs nothing
_HOME = {
    "DeepSpeedMoE": "mixtures",
    "ZCodeM3": "mixtures",
    "anneal": "routers",
    "Recurrent": "routers",
    "EvoMoe": "routers",
    "SoftmaxGaussianMoE": "models",
    "add_momentum": "mixtures",
    "Robust": "mixtures",
    "Residual": "mixtures",
    "HeavyBall": "mixtures",
    "AdamOnce": "mixtures",
    "ActivationGate": "routers",
    "Adamix": "methods",
    "attach_delta": "hosts",
    "BiAdapter": "methods",
    "Bottleneck": "adapters",
    "Capacity": "mixtures",
    "Cell": "core",
    "delta_of": "hosts",
    "ExpertList": "mixtures",
    "fit_in_phases": "fitting",
    "IntarsiaError": "core.errors",
    "LlavaMole": "methods",
    "Lora": "adapters",
    "LtSft": "methods",
    "Mixture": "mixtures",
    "MixLora": "methods",
    "Mos": "adapters",
    "Mosa": "methods",
    "Mosl": "methods",
    "Partition": "core",
    "Poly": "methods",
    "ResidualMixture": "mixtures",
    "Routing": "core",
    "Site": "core",
    "S2ft": "adapters",
    "Sparse": "adapters",
    "SparseDelta": "hosts",
    "Ssf": "adapters",
    "StackedExperts": "mixtures",
    "Comet": "routers",
    "DSelectK": "routers",
    "ExpertChoice": "routers",
    "Hash": "routers",
    "NoisyTopK": "routers",
    "PermutationSearch": "routers",
    "Transport": "routers",
    "search_step": "routers",
    "set_ids": "routers",
    "MoeX": "routers",
    "activation_l0": "mixtures",
    "as_wide_mlp": "mixtures",
    "Switch": "routers",
    "TopK": "routers",
    "TopP": "routers",
    "Training": "train",
    "adapt": "hosts",
    "aux_loss": "gating",
    "backbone": "data",
    "choose_channels": "hosts",
    "co_permute": "hosts",
    "evaluate": "train",
    "expert_loads": "hosts",
    "merge_mixtures": "hosts",
    "prune_experts": "hosts",
    "fit": "fitting",
    "combine": "hosts",
    "fold": "hosts",
    "load": "hosts",
    "language_model": "data",
    "load_data": "data",
    "load_mixture": "hosts",
    "load_texts": "data",
    "pack": "hosts",
    "passes": "gating",
    "redraw": "gating",
    "save_mixture": "hosts",
    "task_ids": "gating",
    "upcycle": "hosts",
    "trainer_loss": "train",
    "student_of": "hosts",
    "unpack": "hosts",
}

__all__ = sorted(_HOME, key=str.casefold)  # pyright: ignore[reportUnsupportedDunderAll]


_RENAMED = {"Bi": "methods.BiAdapter", "Dts": "routers.EvoMoe", "Sparsity": "routers.MoeX"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        return importlib.import_module("intarsia.core.renamed").renamed(__name__, _RENAMED)(name)
    if name not in _HOME:
        near = difflib.get_close_matches(name, __all__)
        fix = f". Did you mean {' or '.join(near)}?" if near else ""
        # without its object: Python would suggest a second time at the end of the same line
        raise AttributeError(f"module 'intarsia' has no attribute {name!r}{fix}", name=name)
    return getattr(importlib.import_module(f"intarsia.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
