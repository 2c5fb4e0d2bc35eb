"""Ours beside the official functions of retrieval."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from intarsia.areas.search.inference_free import WeightedFlops, ensemble
from intarsia.areas.search.max_logits import in_chunks

from .gradients import give


def retrieval_flops(tensors: dict[str, Tensor], places: int) -> dict[str, Tensor]:
    documents = tensors["documents"].unflatten(0, (-1, places))  # of a query, one after another
    penalty = WeightedFlops(torch.ones(documents.shape[-1]), places)
    return {
        "penalty": penalty.compute_loss_from_embeddings(documents.transpose(0, 1).flatten(0, 1))
    }


def retrieval_ensemble(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    scores: list[Any] = []
    for teacher in ("0", "1"):
        queries, documents = tensors[f"queries_{teacher}"], tensors[f"documents_{teacher}"]
        own_documents = documents.unflatten(0, (len(queries), -1))
        scores.append(torch.einsum("qd,qcd->qc", queries, own_documents))
    return {"scores": torch.from_numpy(ensemble(scores))}


class _Pooling(nn.Module):
    pooling_strategy, activation_function = "max", "relu"


def retrieval_document(tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    vocabulary, width = tensors["weight"].shape
    head = nn.Linear(width, vocabulary)
    give(head, {"weight": tensors["weight"], "bias": tensors["bias"]})
    model = SimpleNamespace(
        get_output_embeddings=lambda: head, config=SimpleNamespace(vocab_size=vocabulary)
    )
    pooling = _Pooling()
    outputs: dict[str, Tensor] = {}
    with in_chunks([SimpleNamespace(auto_model=model), pooling], size):
        for name, activation in (("once", "relu"), ("twice", "log1p_relu")):
            pooling.activation_function = activation
            read = {"token_embeddings": tensors["hidden"], "attention_mask": tensors["mask"]}
            outputs[name] = pooling(read)["sentence_embedding"]
    return outputs
