"""The page of hosts tells which families run on native steps, by the code's own list."""

from __future__ import annotations

from pathlib import Path

import pytest

from intarsia.core.foreign import model_type_of
from intarsia.decode.native_decoder import KINDS
from intarsia_lab.pages.host_models import host
from intarsia_lab.pages.native_hosts import TORCH, section

PAGE = Path(__file__).parents[3] / "docs" / "hosts.md"


def test_the_page_has_a_row_for_each_kind_of_the_code() -> None:
    text = section()
    assert text in PAGE.read_text(), "run intarsia_lab.pages.hosts"
    assert all(f"| `{kind}` | native steps" in text for kind in KINDS)
    mixtures = [line for line in text.splitlines() if "of its experts" in line]
    assert len(mixtures) == 5  # mixtral, qwen2_moe, qwen3_moe, olmoe, gpt_oss


@pytest.mark.parametrize("name", TORCH)
def test_the_others_that_it_names_are_no_kinds_of_the_code(name: str) -> None:
    assert model_type_of(host(name)) not in KINDS
