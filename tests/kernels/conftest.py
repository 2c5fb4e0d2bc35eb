"""What the tests of all kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from intarsia.kernels import native


@pytest.fixture(params=["native", "avx2", "portable"])
def build(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compute with each build of the kernels in turn."""
    with native.using(request.param):
        if native.load() is None:
            pytest.skip(native.why())
        yield request.param
