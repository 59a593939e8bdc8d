"""Forward-mode derivatives of the operators are refused, which PyTorch would make 0; their definitions have them."""

import math

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import jacfwd, jvp, vmap

from gated.kernels._forward_mode import refuse_tangents
from gated.kernels.barrier_qp import barrier_qp, naive_barrier_qp
from gated.kernels.gla import chunk_gla, fused_recurrent_gla, naive_recurrent_gla
from gated.kernels.gmoe_em import Points, gmoe_em, naive_gmoe_em
from gated.kernels.grouped_gemm import grouped_gemm, naive_grouped_gemm
from gated.kernels.langevin_scan import langevin_scan, naive_langevin_scan
from gated.kernels.topk_gate import naive_topk_gate, topk_gate


def rand(*shape: int) -> torch.Tensor:
    """Numbers between 0.1 and 1.1 that are not drawn, which `vmap` and `jacfwd` forbid."""
    return (torch.arange(math.prod(shape)).double() * 0.618).remainder(1).view(shape) + 0.1


def attention(form):
    return lambda x: form(x, rand(1, 3, 1, 2), rand(1, 3, 1, 2), -rand(1, 3, 1, 2))[0]


def product(form):
    return lambda x: form(x, rand(2, 2, 4), torch.tensor([0, 1, 3]))


def program(form):
    return lambda x: form(torch.ones(3, 1, 2).double(), x, limit=1)[0]


def scan(form):
    return lambda x: form(x, x, rand(2, 3, 2), stiffness=rand(2), step=0.1, decay=0.9)[0]


PARAMETERS = [rand(1, 2, 2), rand(1, 2, 2), rand(1, 2), rand(1, 2), rand(1)]
POINTS = Points.pack(rand(30, 2), rand(30), torch.tensor([0, 30]))

CASES = {  # ours, what the message names, and an argument
    "chunk_gla": (attention(chunk_gla), attention(naive_recurrent_gla), "naive_recurrent_gla", rand(1, 3, 1, 2)),
    "fused_recurrent_gla": (
        attention(fused_recurrent_gla),
        attention(naive_recurrent_gla),
        "naive_recurrent_gla",
        rand(1, 3, 1, 2),
    ),
    "grouped_gemm": (product(grouped_gemm), product(naive_grouped_gemm), "naive_grouped_gemm", rand(3, 2)),
    "topk_gate": (
        lambda x: topk_gate(x, 2).weights,
        lambda x: naive_topk_gate(x, 2)[0],
        "naive_topk_gate",
        rand(3, 4),
    ),
    "barrier_qp": (program(barrier_qp), program(naive_barrier_qp), "naive_barrier_qp", rand(3, 1)),
    "langevin_scan": (scan(langevin_scan), scan(naive_langevin_scan), "naive_langevin_scan", rand(2, 2)),
    "gmoe_em": (
        lambda x: gmoe_em(POINTS, x, *PARAMETERS).moment,
        lambda x: naive_gmoe_em(rand(1, 30, 2), rand(1, 30), x, *PARAMETERS, 2, "logit", "identity")[0],
        "naive_gmoe_em",
        rand(1, 2),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_tangent_is_refused_and_the_definition_takes_it(name):
    ours, definition, instead, x = CASES[name]
    tangent = rand(*x.shape)
    named = pytest.raises(NotImplementedError, match=f"^{name} has no forward-mode derivative.*use {instead},")
    with named:
        jvp(ours, (x,), (tangent,))
    with named:
        jacfwd(ours)(x)
    with named, forward_ad.dual_level():
        ours(forward_ad.make_dual(x, tangent))
    with named:  # the inner derivative is by another input; x is one level further out
        jvp(lambda x: jvp(lambda y: ours(x) * y, (x.sum(),), (x.sum(),))[0], (x,), (tangent,))
    with forward_ad.dual_level():  # what has no tangent
        assert torch.equal(ours(x), ours(x.clone()))
    _, slope = jvp(definition, (x,), (tangent,))
    step = 1e-6 * tangent
    near = (definition(x + step) - definition(x - step)) / 2e-6
    torch.testing.assert_close(slope, near, rtol=1e-6, atol=1e-6)
    assert slope.any()


@pytest.mark.parametrize("name", ["barrier_qp", "langevin_scan"])
def test_over_runs(name):
    ours, *_, x = CASES[name]
    runs = torch.stack([x, x])
    with pytest.raises(NotImplementedError, match=f"^{name} has no forward-mode derivative"):
        jvp(vmap(ours), (runs,), (runs,))
    with forward_ad.dual_level():
        torch.testing.assert_close(vmap(ours)(runs), torch.stack([ours(x)] * 2))


def test_the_recurrence_that_records_nothing_has_the_derivative():
    """Then it is no operator of ours, and no NaN check stands in the way either."""
    ours, definition, _, x = CASES["fused_recurrent_gla"]
    with torch.no_grad():
        torch.testing.assert_close(jvp(ours, (x,), (x,)), jvp(definition, (x,), (x,)))


def test_other_arguments_are_no_matter():
    with forward_ad.dual_level():
        refuse_tangents("f", "g", None, 1.0, torch.tensor([1, 2]), torch.ones(2))
