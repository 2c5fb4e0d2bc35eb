"""Of a source file only what computes is in a digest."""

from __future__ import annotations

import pytest

from intarsia_lab.kit.source import computing

PLAIN = """
from dataclasses import dataclass

@dataclass
class Config:
    rank: int = 8
    sizes: tuple[int, ...] = (1, 2)

    def half(self) -> int:
        if self.rank % 2:
            self.rank += 1
        return (self.rank // 2)
"""
DECLARED = '''
"""A module."""

from dataclasses import dataclass
from ..core.checks import whole
from ..core.errors import ConfigError
from ..core.schema import check, setting

@dataclass
class Config:
    """Settings."""

    rank: int = setting(8, "The rank, r.", least=1)
    sizes: tuple[int, ...] = setting(
        (
            1,
            2,  # a comment
        ), "Sizes, in px."
    )

    def __post_init__(self) -> None:
        """Check."""
        check(self)
        whole("rank", self.rank, 1)
        if 3 in self.sizes:
            got = "3"
            raise ConfigError("sizes", got=got, want="no 3", fix="Leave it out.")

    def half(self) -> int:
        """Return r / 2, rounded up."""
        if self.rank % 2:
            self.rank += 1

        return (
            self.rank
            // 2
        )
'''


def test_declarations_refusals_words_and_layout_compute_nothing() -> None:
    assert computing(DECLARED, ()) == computing(PLAIN, ())


@pytest.mark.parametrize(
    ("old", "new"), [("setting(8", "setting(9"), ("% 2", "% 3"), ("check(self)", "self.rank += 1")]
)
def test_what_computes_counts(old: str, new: str) -> None:
    assert computing(DECLARED.replace(old, new), ()) != computing(DECLARED, ())


def test_a_statement_that_leaves_its_block_counts() -> None:
    inside, outside = "if x:\n    y = 1\n    z = 2\n", "if x:\n    y = 1\nz = 2\n"
    assert computing(inside, ()) != computing(outside, ())


USED = """
FACTOR = 2
def scale(x):
    return FACTOR * x
def double(x):
    return scale(x)
def triple(x):
    return 3 * x
"""


def test_of_a_module_that_is_imported_from_the_names_and_what_they_use_count() -> None:
    needed = computing(USED, (), {"double"})
    assert "defscale" in needed and "FACTOR" in needed and "triple" not in needed
    assert computing(USED, (), {"unknown"}) == computing(USED, (), None)
    assert "defdouble" not in computing(USED, (), {"scale"})


def test_imports_within_the_own_packages_are_left_out_and_others_count() -> None:
    assert computing("from toy.a import b\nfrom .c import d\nx = 1\n", ("toy",)) == "0|x=1"
    assert "numpy" in computing("import numpy as np\n", ("toy",))
