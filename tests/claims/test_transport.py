"""Claims on sparse transport in their smallest form, and the plan that is shown beside them."""

import math

import pytest
import torch

from intarsia.claims import transport


def quiet(_):
    pass


def test_every_claim_judges_the_same_runs(digits):
    results = [claim.run.func for claim in transport.CLAIMS]
    assert set(results) == {transport.judged}
    assert transport.ARMS[transport.EVEN].balance > 0 == transport.ARMS[transport.FREE].balance
    unbalanced, pairs = (
        transport.judged(
            (0,), quiet, of=lambda arms, n=name, f=figure: getattr(arms[n], f), over=max, steps=10
        )
        for name, figure in ((transport.FREE, "load"), (transport.PLAN, "pairs"))
    )
    assert unbalanced.table == pairs.table
    assert len(pairs.table) == len(transport.ARMS)
    assert pairs.got <= 1 < unbalanced.got


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_sinkhorn_then_top_c_fills_every_column(tokens):
    router = transport.Sinkhorn(4, capacity=1.0).build(8, generator=torch.Generator())
    p = torch.rand(tokens, 4).softmax(-1)
    plan = router.plan(p)
    assert ((plan > 0).sum(0) == math.ceil(tokens / 4)).all()


def test_the_largest_column_is_of_all_batches():
    seen, router = transport.Loads(), transport.top_1(0.0).build(4, generator=torch.Generator())
    router.register_forward_hook(seen)
    with torch.no_grad():
        router.weight[0] = 1.0
    router(torch.ones(16, 4))  # all to the first: 16 tokens over 2
    router(torch.cat([torch.ones(8, 4), -torch.ones(8, 4)]))
    assert seen.most == 8
