"""Maxima of logits in chunks are those of whole logits, forward and backward."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from intarsia.areas.search.max_logits import MaxLogits, in_chunks


def _inputs(texts: int, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = (texts, tokens, 3), (11, 3), (11,)
    hidden, weight, bias = (torch.randn(s, generator=generator).double() for s in sizes)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 200), st.booleans())
def test_any_number_at_a_time_gives_the_same(
    texts: int, tokens: int, size: int, has_bias: bool
) -> None:
    hidden, weight, bias = _inputs(texts, tokens, seed=size)
    logits = hidden @ weight.T + (bias if has_bias else 0)
    expected = logits.amax(1)
    got: Any = MaxLogits.apply(hidden, weight, bias if has_bias else None, size)
    torch.testing.assert_close(got, expected)
    values = torch.randn(expected.shape, dtype=torch.float64) * (torch.rand(expected.shape) < 0.5)
    inputs = [hidden, weight, *([bias] if has_bias else [])]
    for actual, naive in zip(
        torch.autograd.grad(got, inputs, values),
        torch.autograd.grad(expected, inputs, values),
        strict=True,
    ):
        torch.testing.assert_close(actual, naive)
    with torch.no_grad():
        again: Any = MaxLogits.apply(hidden, weight, bias if has_bias else None, size)
    torch.testing.assert_close(again, expected)


class _Pooling(nn.Module):
    """The library's pooling, written out."""

    pooling_strategy, activation_function = "max", "relu"

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = features["token_embeddings"] * features["attention_mask"][..., None]
        return features | {"sentence_embedding": logits.relu().log1p().amax(1)}


def _documents(head: nn.Module, vocabulary: int = 11) -> tuple[Any, _Pooling]:
    model = SimpleNamespace(
        get_output_embeddings=lambda: head, config=SimpleNamespace(vocab_size=vocabulary)
    )
    return SimpleNamespace(auto_model=model), _Pooling()


@pytest.mark.parametrize("mask", [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]])
def test_padding_on_either_side_is_not_read(mask: list[int]) -> None:
    torch.manual_seed(0)
    head, present = nn.Linear(3, 11), torch.tensor([mask, [1, 1, 1, 1]])
    documents = _documents(head)
    pooling, hidden = documents[1], torch.randn(2, 4, 3, requires_grad=True)
    expected = pooling({"token_embeddings": head(hidden), "attention_mask": present})
    with in_chunks(documents, 1):
        got = pooling({"token_embeddings": head(hidden), "attention_mask": present})
        assert head(hidden) is hidden  # no logits
    vectors, want = got["sentence_embedding"], expected["sentence_embedding"]
    torch.testing.assert_close(vectors, want)
    actual_grad, naive_grad = (
        torch.autograd.grad(v.square().sum(), hidden)[0] for v in (vectors, want)
    )
    torch.testing.assert_close(actual_grad, naive_grad)
    assert not actual_grad[0][~present[0].bool()].any()
    assert head(hidden).shape == (2, 4, 11)  # all is as it was


def test_models_of_another_form_stay_as_they_are() -> None:
    head = nn.Linear(3, 11)
    for documents in (
        _documents(head, vocabulary=7),  # the layer makes something else
        _documents(nn.Sequential(head)),
        (SimpleNamespace(), _Pooling()),
        (*_documents(head), nn.Identity()),
    ):
        with in_chunks(documents, 1):
            assert head(torch.zeros(1, 3)).shape == (1, 11)
    documents, logits = _documents(head), torch.randn(1, 2, 11)
    read = {"token_embeddings": logits, "attention_mask": torch.ones(1, 2)}
    with in_chunks(documents, 1):  # logits that were made elsewhere
        got = documents[1](read)["sentence_embedding"]
    torch.testing.assert_close(got, logits.relu().log1p().amax(1))
    with pytest.raises(RuntimeError), in_chunks(documents, 1):
        raise RuntimeError
    assert head(torch.zeros(1, 3)).shape == (1, 11)
