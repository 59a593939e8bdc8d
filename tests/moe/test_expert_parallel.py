"""Expert parallelism on two and three processes, against all experts and all tokens in one.

This file is also what the ranks run: `launch` starts it once a rank with the name of a function below.
"""

import copy
import os
import sys
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gated.lab.ranks import joined, launch
from gated.moe.attention import MixtureOfHeads
from gated.moe.expert_parallel import ExpertParallel, synchronise_gradients
from gated.moe.experts import FFNExperts
from gated.moe.gates import SoftmaxTopKGate, TopPGate
from gated.moe.layer import MoE
from gated.moe.routing import Routing
from gated.moe.scores import LinearScore

pytestmark = pytest.mark.clock

DIM, HIDDEN = 6, 10


class NoExperts(nn.Module):
    """What a rank without experts has: results of the right width, for no rows."""

    num_experts = 0

    def __init__(self, dim_out):
        super().__init__()
        self.dim_out = dim_out

    def forward(self, rows, offsets):
        assert len(rows) == 0 and offsets.tolist() == [0]
        return rows.new_zeros(0, self.dim_out)


def layer(num_experts, own, dispatch, dim_out=DIM, dynamic=False):
    """A mixture of SwiGLU experts with biases of which only `own` are kept; the same numbers whatever that is."""
    torch.manual_seed(num_experts + dim_out)
    score = LinearScore(DIM, num_experts)
    gate = TopPGate(score, 0.6) if dynamic else SoftmaxTopKGate(score, 2)  # any number of experts a token, or two
    experts = FFNExperts(num_experts, DIM, HIDDEN, activation="silu", gated=True, bias=True, dim_out=dim_out)
    for name, value in list(experts.named_parameters()):
        setattr(experts, name, nn.Parameter(value.detach()[own.start : own.stop].clone()))
    experts.num_experts = len(own)
    made = MoE(gate, experts if len(own) else NoExperts(dim_out), dispatch)
    made.unused = nn.Parameter(torch.ones(3))  # type: ignore[assignment]
    return made.double()


def loop_over_all(x, routing, experts):
    """One token and one expert at a time."""
    y, each = [], experts.each()
    for t, row in enumerate(routing.experts.tolist()):
        taken = [(slot, i) for slot, i in enumerate(row) if i >= 0]
        y.append(sum(routing.weights[t, slot] * each[i](x[t : t + 1]) for slot, i in taken))
    return torch.cat(y) if y else experts(x, torch.zeros(experts.num_experts + 1, dtype=torch.int64))


class Two(nn.Module):
    """Two layers and a residual path: exchanges of different layers must not be mixed up."""

    def __init__(self, num_experts, own, dispatch, allowed=None, dynamic=False):
        super().__init__()
        self.first = layer(num_experts, own, dispatch, dynamic=dynamic)
        self.second, self.allowed = layer(num_experts, own, dispatch, DIM + 1, dynamic), allowed

    def forward(self, x):
        mask = None if self.allowed is None else self.allowed.expand(len(x), -1)
        return self.second(x + self.first(x, mask=mask)[0], mask=mask)[0]


def train(model, x, scale, weights, after=lambda model: None):
    """One step of Adam; the output, the gradients and the parameters afterwards."""
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    y = model(x)
    (scale * (y * weights).sum()).backward()
    after(model)
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    optimiser.step()
    return y.detach(), grads, {name: p.detach() for name, p in model.named_parameters()}


def synchronise(model):
    synchronise_gradients(model)
    assert all(one.unused.grad is not None for one in (model.first, model.second))


def compare(num_experts, tokens, sizes=None, grads_of_x=None, **options):
    """This rank's part of a step, against the same step in one process."""
    rank = dist.get_rank()
    x = torch.randn(sum(tokens), DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = torch.randn(len(x), DIM + 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parallel = ExpertParallel(timeout=20, sizes=sizes)
    own = parallel.own(num_experts)
    assert len(own) == parallel.blocks(num_experts)[rank]

    whole = x.clone().requires_grad_()
    scale = 1 / max(1, len(x))
    want = train(Two(num_experts, range(num_experts), loop_over_all, **options), whole, scale, weights)
    mine = slice(sum(tokens[:rank]), sum(tokens[: rank + 1]))
    part = x[mine].clone().requires_grad_(grads_of_x is None or rank in grads_of_x)
    got = train(Two(num_experts, own, parallel, **options), part, scale, weights[mine], synchronise)

    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(got[0], want[0][mine], **close)
    if part.requires_grad:
        torch.testing.assert_close(part.grad, whole.grad[mine], **close)
    for values, expected in zip(got[1:], want[1:], strict=True):
        for name, value in values.items():
            if ".experts." in name:
                torch.testing.assert_close(value, expected[name][own.start : own.stop], **close)
            else:
                torch.testing.assert_close(value, expected[name], **close)


def ranks_equal_one_process():
    """Run by each of two or three ranks: every case in one start."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    few = [5, 3, 4][:ranks]
    compare(2 * ranks, few)
    compare(5, few)  # 3 + 2, or 2 + 2 + 1
    compare(5, few, sizes=[1, 3, 1] if ranks == 3 else [1, 4])
    compare(5, few, sizes=[5, 0, 0][:ranks])  # a rank without experts
    compare(5, few, sizes=[0, 2, 3] if ranks == 3 else [0, 5])
    compare(5, [0, 4, 3][:ranks])  # without tokens
    compare(5, [4, 0, 0][:ranks], sizes=[0, 2, 3] if ranks == 3 else [0, 5])  # nothing in common
    compare(5, [0] * ranks)  # nothing at all
    compare(5, few, allowed=torch.arange(5) >= 3)  # all tokens to the last rank's experts
    compare(5, few, dynamic=True)  # empty slots
    compare(5, few, grads_of_x=[0])  # a leaf on one rank alone
    compare(5, few, grads_of_x=[])

    parallel = ExpertParallel(dist.device_mesh.init_device_mesh("cpu", (ranks,)))
    assert parallel.blocks(5) == ([3, 2] if ranks == 2 else [2, 2, 1])  # the first take one more
    own = parallel.own(4)
    mine, x = layer(4, own, parallel), torch.randn(7, DIM, dtype=torch.float64)
    with torch.no_grad():
        y, _ = mine(x)
    assert not y.requires_grad
    half = copy.deepcopy(mine.experts).bfloat16()
    routing = Routing(torch.ones(7, 1).bfloat16(), torch.arange(7)[:, None] % 4, 4)
    got = parallel(x.bfloat16(), routing, half)
    exact = parallel(x, Routing(routing.weights.double(), routing.experts, 4), mine.experts)
    torch.testing.assert_close(got.double(), exact, rtol=0.05, atol=0.1)

    for bad in (
        lambda: parallel(x, routing, FFNExperts(len(own) + 1, DIM, HIDDEN)),
        lambda: ExpertParallel(sizes=[1] * (ranks + 1)),
        lambda: ExpertParallel(sizes=[-1] + [3] * (ranks - 1)),
        lambda: ExpertParallel(sizes=[7] * ranks).own(4),
        lambda: ExpertParallel(timeout=0),
        lambda: MixtureOfHeads(None, 4, DIM, 2, dispatch=parallel),
    ):
        with pytest.raises(ValueError, match=r"^(dispatch|experts|sizes|timeout) must"):
            bad()
    print(f"rank {rank} agrees")


def a_rank_that_ends():
    """Rank 1 leaves in the middle of training; the other learns of it at once, in forward and in backward."""
    rank = dist.get_rank()
    parallel = ExpertParallel(timeout=30)
    mine, x = layer(4, parallel.own(4), parallel), torch.randn(5, DIM, dtype=torch.float64)
    y, _ = mine(x)
    if rank == 1:
        sys.stdout.flush()
        os._exit(0)  # as if killed: nothing is cleaned up
    for what, call in (
        ("gradients of the results", lambda: y.sum().backward()),
        ("counts", lambda: mine(x)),
        ("all-reduce of gradients", lambda: synchronise_gradients(mine)),
    ):
        start = time.monotonic()
        with pytest.raises(RuntimeError, match=rf"{what}.* failed on rank 0 of 2: another rank has ended"):
            call()
        assert time.monotonic() - start < 10
    print("told")


def a_rank_that_is_late():
    """Rank 1 sleeps longer than the limit; the other does not wait for it, and can end."""
    parallel = ExpertParallel(timeout=5)
    mine, x = layer(4, parallel.own(4), parallel), torch.randn(5, DIM, dtype=torch.float64)
    mine(x)
    start = time.monotonic()
    if dist.get_rank() == 1:
        time.sleep(15)
        return
    with pytest.raises(RuntimeError, match=r"^the all-to-all of counts failed on rank 0 of 2: .*later than the time"):
        mine(x)
    assert 4 < time.monotonic() - start < 12
    print("told")


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_equal_one_process(ranks):
    """Outputs, all gradients and the parameters after a step."""
    said = launch([__file__, "ranks_equal_one_process"], ranks)
    assert said == [f"rank {rank} agrees\n" for rank in range(ranks)]


@pytest.mark.parametrize("what", [a_rank_that_ends, a_rank_that_is_late])
def test_survivors_are_told(what):
    assert launch([__file__, what.__name__], 2, seconds=60)[0] == "told\n"


def test_without_a_process_group():
    assert not dist.is_initialized()
    for call in (ExpertParallel, lambda: synchronise_gradients(nn.Linear(2, 2))):
        with pytest.raises(RuntimeError, match=r"init_process_group, or start with torchrun"):
            call()


if __name__ == "__main__":
    with joined():
        globals()[sys.argv[1]]()
