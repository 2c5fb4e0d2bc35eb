"""Formulas of docstrings on the pages: what is set, and what stays prose."""

import html
import re

import pytest

from intarsia_lab.pages.formulas import typeset
from intarsia_lab.pages.prose import cell, markdown


def shown(text: str) -> str:
    """Return a text with its formulas set, in short: indices behind _, powers behind ^, no tags."""
    marked = typeset(text).replace("<sub>", "_").replace("<sup>", "^")
    marked = marked.replace('<span class="formula">', "«").replace("</span>", "»")
    return html.unescape(re.sub(r"<[^>]+>", "", marked))


@pytest.mark.parametrize(
    ("plain", "set_"),
    [
        (
            "the k of largest p = softmax(x W^T), for each",
            "the k of largest «p = softmax(x W^T)», for each",
        ),
        (
            "y = W x + (alpha / r) B A x (Hu et al. 2021)",
            "«y = W x + (α / r) B A x» (Hu et al. 2021)",
        ),
        ("y ~ N(sum_h b_h z_h W_h, sigma^2), b_h on", "«y ∼ N(∑_h b_h z_h W_h, σ^2)», «b_h» on"),
        ("h_l = GRU(W1_l x_l, h_{l-1}), for", "«h_l = GRU(W_1_l x_l, h_l−1)», for"),
        ("P = (X^T X + reg I)^-1.", "«P = (X^T X + reg I)^−1»."),
        ("log p(y | b) = -1/2 [D log(2 pi)]", "«log p(y | b) = −1/2 [D log(2 π)]»"),
        ("y[c] = (W x)[c] + S x", "«y[c] = (W x)\u2009[c] + S x»"),
        ("max_{i != j} C_ij / B_ij, C", "«max_i ≠ j C_ij / B_ij», C"),
        ("|theta_A - theta_0| are kept", "«|θ_A − θ_0|» are kept"),
    ],
)
def test_a_formula_is_set(plain: str, set_: str) -> None:
    """Indices, powers, Greek letters and signs are set; the sentence around them stays."""
    assert shown(plain) == set_


@pytest.mark.parametrize(
    "prose",
    [
        "n of m along the inputs, of k experts a token",
        "slab_mean_ (H,) and n_iter_ after kl_bits + 2 bits",
        "weights of shape (N, E), top-k routing, N's",
        "draws=1 is a random choice; see docs/benchmarks/even.md",
        "+1.19 points (+0.05 to +2.32; 15 pairs), 50 % - 20 %",
    ],
)
def test_prose_is_no_formula(prose: str) -> None:
    """Letters, shapes, names of attributes, settings and intervals stay as they are."""
    assert "«" not in shown(prose)


def test_a_formula_of_its_own_has_a_line() -> None:
    """A paragraph that is one formula is marked; a bar in a cell does not end the cell."""
    assert markdown("L = CE + w sum_t L_t.", {}).startswith('<span class="formula alone">')
    assert "|" not in cell("p(y | x) = sum_i p_i")


def test_a_call_in_a_docstring_is_code() -> None:
    """A line that Python reads as a call is a block, not the beginning of a sentence."""
    text = markdown("How.\n\nfit(model, train, schedule=FixedMask())\nRaises: ConfigError.", {})
    assert "```python\nfit(model, train, schedule=FixedMask())\n```\n\n**Raises:** Config" in text
