"""Claims on Z-code M3 in their smallest form."""

import pytest
import torch

from intarsia.claims import mix6, zcode_m3
from intarsia.mixtures.zcode_m3 import mixtures_in
from intarsia.routers import TopK


def quiet(_):
    pass


@pytest.fixture
def few(monkeypatch, digits):
    monkeypatch.setattr(zcode_m3, "OTHERS", 2)


def test_a_batch_is_met_task_by_task():
    met = []

    class Net(torch.nn.Module):
        def forward(self, x):
            met.append(x[:, 0].tolist())
            return 2 * x

    x = torch.tensor([[1.0, 2], [2.0, 0], [3.0, 1], [4.0, 0]])
    assert torch.equal(zcode_m3.ByTask(Net())(x), 2 * x[:, :1])
    assert met == [[2, 4, 3, 1]]


def test_which_tasks_are_last_goes_round():
    places = [zcode_m3.placed("test", seed).tensors[0][:, -1] for seed in range(len(mix6.TASKS))]
    assert all(p.unique().tolist() == list(range(len(mix6.TASKS))) for p in places)
    assert sorted(int(p[0]) for p in places) == list(range(len(mix6.TASKS)))


def test_late_merging_and_pruning(few):
    late = zcode_m3.late((0,), quiet, steps=1)
    merge = zcode_m3.merging((0,), quiet, steps=3)
    prune = zcode_m3.pruning((0,), quiet, steps=3)
    assert all(0.2 < result.got < 5 for result in (late, merge, prune))
    assert len(merge.table) == 3


def test_the_largest_scores_stay():
    net = mix6.of_experts(TopK(4, 1, "prob"), seed=0, layers=[2])
    old = mixtures_in(net)["blocks.2.mlp"].experts.up.detach()
    small = zcode_m3.kept(net, {"blocks.2.mlp.router": torch.tensor([1.0, 5, 0, 3])}, 2)
    new = mixtures_in(small)["blocks.2.mlp"]
    assert torch.equal(new.experts.up, old[[1, 3]])
    assert new.router.weight.shape[0] == 2
