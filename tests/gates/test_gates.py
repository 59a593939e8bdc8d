"""What every gate promises, whichever gate it is: one row per gate, no randomness here."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated import gates as g

BIAS = torch.tensor([0.3, -0.2, 0.0, 0.1, -0.4], dtype=torch.float64)
SUM_ONE = {
    "softmax": lambda x: g.softmax_gate(x),
    "softmax, T = 0.3": lambda x: g.softmax_gate(x, 0.3),
    "entmax 1.2": lambda x: g.entmax_gate(x, 1.2),
    "entmax 1.5": lambda x: g.entmax_gate(x, 1.5, 0.7),
    "sparsemax": lambda x: g.sparsemax_gate(x),
    "top-k": lambda x: g.topk_gate(x, 2),
    "softmax, top-k, renormalised": lambda x: g.softmax_topk_gate(x, 2, renormalise=True),
    "noisy top-k without noise": lambda x: g.noisy_topk_gate(x, 1.0, 2, generator=None),
    "gumbel softmax without noise": lambda x: g.gumbel_softmax_gate(x, 0.5, generator=None),
    "probit": lambda x: g.probit_gate(x, 0.8),
}
SUM_AT_MOST_ONE = {
    "softmax, top-k": lambda x: g.softmax_topk_gate(x, 2),
    "dense to sparse": lambda x: g.dense_to_sparse_gate(x, 0.0731, 0.9, generator=None),
    "top-p": lambda x: g.top_p_gate(x, 0.4317),
}
SHIFT_INVARIANT = (
    SUM_ONE
    | SUM_AT_MOST_ONE
    | {
        "gumbel top-k without noise": lambda x: g.gumbel_topk_gate(x, 2, generator=None),
    }
)
ROW_GATES = SHIFT_INVARIANT | {
    "biased sigmoid": lambda x: g.biased_sigmoid_gate(x, torch.zeros(x.shape[-1]), 2)
}
BINARY_GATES = {
    "binary": lambda x: g.binary_gate(x),
    "gumbel sigmoid without noise": lambda x: g.gumbel_sigmoid_gate(x, 0.5, generator=None),
    "hard concrete mode": lambda x: g.hard_concrete_mode(x),
    "hard concrete probability": lambda x: g.hard_concrete_open_probability(x),
}


def by_name(gates):
    return pytest.mark.parametrize("gate", list(gates.values()), ids=list(gates))


@st.composite
def rows(draw, distinct=True, low=-160, high=160):
    """One row of 2 to 6 logits on a grid of 1/8, where adding an integer is exact."""
    grid = st.lists(st.integers(low, high), min_size=2, max_size=6, unique=distinct)
    return torch.tensor(draw(grid), dtype=torch.float64) / 8


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@by_name(SUM_ONE)
@given(row=rows(distinct=False))
def test_rows_are_points_of_the_simplex(gate, row):
    weights = gate(row)
    assert (weights >= 0).all()
    assert abs(weights.sum().item() - 1) < 1e-12


@by_name(SUM_AT_MOST_ONE)
@given(row=rows(distinct=False))
def test_unscaled_rows_sum_to_at_most_one(gate, row):
    weights = gate(row)
    assert (weights >= 0).all()
    assert 0 < weights.sum().item() < 1 + 1e-12


@by_name(ROW_GATES)
@given(row=rows(low=-60, high=60), data=st.data())
def test_permutation_equivariance(gate, row, data):
    order = torch.tensor(data.draw(st.permutations(range(len(row)))))
    torch.testing.assert_close(gate(row[order]), gate(row)[order], rtol=0, atol=1e-13)


@by_name(SHIFT_INVARIANT)
@given(row=rows(), shift=st.integers(-1000, 1000))
def test_shift_invariance(gate, row, shift):
    torch.testing.assert_close(gate(row + shift), gate(row), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "gate",
    [g.softmax_gate, g.sparsemax_gate, lambda x, t: g.entmax_gate(x, 1.5, t)],
    ids=["softmax", "sparse", "ent"],
)
@given(row=rows())
def test_temperature_limits(gate, row):
    one_hot = torch.nn.functional.one_hot(row.argmax(), len(row)).to(row)
    torch.testing.assert_close(gate(row, 1e-8), one_hot, rtol=0, atol=1e-12)
    torch.testing.assert_close(gate(row, 1e8), torch.full_like(row, 1 / len(row)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-305, 1e300, torch.tensor(1e-305, dtype=torch.float64)])
def test_extreme_temperatures_stay_finite(temperature):
    row = torch.tensor([1e4, -1e4, 0.0], dtype=torch.float64)
    for gate in (g.softmax_gate, g.sparsemax_gate):
        assert abs(gate(row, temperature).sum().item() - 1) < 1e-12


@by_name({"top-k": g.topk_gate, "softmax, top-k": g.softmax_topk_gate})
@given(row=rows(distinct=False))
def test_k_equal_to_the_number_of_gates_is_dense(gate, row):
    torch.testing.assert_close(gate(row, len(row), 0.6), g.softmax_gate(row, 0.6), rtol=0, atol=0)


@given(row=rows(distinct=False, low=-2, high=2), data=st.data())
def test_ties_keep_exactly_k_lower_index_first(row, data):
    k = data.draw(st.integers(1, len(row)))
    kept = sorted(range(len(row)), key=lambda i: (-row[i].item(), i))[:k]
    mask = g.topk_mask(row, k)
    assert mask.nonzero().flatten().tolist() == sorted(kept)
    for weights in (
        g.topk_gate(row, k),
        g.softmax_topk_gate(row, k),
        g.gumbel_topk_gate(row, k, generator=None),
    ):
        assert torch.equal(weights != 0, mask)


@by_name(ROW_GATES | BINARY_GATES)
def test_batch_dimensions_are_free(gate):
    x = normal(2, 3, 4, 5)
    expected = torch.stack([gate(row) for row in x.reshape(-1, 5)]).reshape(x.shape)
    torch.testing.assert_close(gate(x), expected, rtol=0, atol=1e-15)
    assert gate(x[:0]).shape == (0, 3, 4, 5)


@by_name(ROW_GATES | BINARY_GATES)
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # log_ndtr's, under vmap
def test_vmap_and_jacobians_equal_the_loop(gate):
    x = normal(6, 5)
    torch.testing.assert_close(torch.func.vmap(gate)(x), gate(x), rtol=0, atol=1e-15)
    jacobians = torch.stack([torch.autograd.functional.jacobian(gate, row) for row in x])
    torch.testing.assert_close(torch.func.vmap(torch.func.jacrev(gate))(x), jacobians, rtol=0, atol=1e-14)


# Hard gates' gradients are the soft ones' by design: test_binary.py and test_gumbel.py hold those.
SMOOTH = {
    name: gate
    for name, gate in (ROW_GATES | BINARY_GATES).items()
    if name not in ("binary", "gumbel top-k without noise")
}


@by_name(SMOOTH)
def test_gradients_against_finite_differences(gate):
    for seed in range(3):
        assert torch.autograd.gradcheck(gate, normal(3, 5, seed=seed).requires_grad_())
    assert torch.autograd.gradgradcheck(gate, normal(2, 5, seed=3).requires_grad_())


@by_name(ROW_GATES)
@given(data=st.data())
def test_extreme_logits_and_shut_gates_stay_finite(gate, data):
    values = st.sampled_from([1e4, -1e4, 0.0, 1.0, float("-inf")])
    row = data.draw(st.lists(values, min_size=2, max_size=6).filter(lambda v: max(v) > float("-inf")))
    logits = torch.tensor(row, dtype=torch.float64, requires_grad=True)
    weights = gate(logits)
    assert weights.isfinite().all()
    assert (weights[logits.isneginf()] == 0).all()
    (weights * torch.arange(1.0, len(row) + 1)).sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[logits.isneginf()] == 0).all()


@by_name(BINARY_GATES | {"binary, identity slope": lambda x: g.binary_gate(x, slope="identity")})
def test_extreme_binary_logits_stay_finite(gate):
    logits = torch.tensor([float("-inf"), -1e4, 1e4, float("inf")], dtype=torch.float64, requires_grad=True)
    weights = gate(logits)
    torch.testing.assert_close(weights.detach(), torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    weights.sum().backward()
    assert logits.grad.isfinite().all()


@by_name(ROW_GATES | BINARY_GATES)
def test_nan_is_not_hidden(gate):
    assert gate(torch.tensor([0.5, float("nan"), 2.0, -1.0], dtype=torch.float64)).isnan().any()


@by_name(ROW_GATES | BINARY_GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_follows_the_input(gate, dtype):
    x = normal(4, 5).to(dtype)
    assert gate(x).dtype == dtype
    torch.testing.assert_close(gate(x).double(), gate(x.double()), rtol=0, atol=5 * torch.finfo(dtype).eps)


SAMPLED = {
    "gaussian": lambda x, r: g.add_gaussian_noise(x, 1.0, generator=r),
    "gumbel": lambda x, r: g.add_gumbel_noise(x, r),
    "noisy top-k": lambda x, r: g.noisy_topk_gate(x, 1.0, 2, generator=r),
    "gumbel softmax": lambda x, r: g.gumbel_softmax_gate(x, generator=r),
    "gumbel top-k": lambda x, r: g.gumbel_topk_gate(x, 2, generator=r),
    "gumbel top-k sample": lambda x, r: g.gumbel_topk_sample(x, 2, generator=r),
    "dense to sparse": lambda x, r: g.dense_to_sparse_gate(x, 0.1, generator=r),
    "bernoulli": lambda x, r: g.binary_gate(x, generator=r),
    "gumbel sigmoid": lambda x, r: g.gumbel_sigmoid_gate(x, generator=r),
    "hard concrete": lambda x, r: g.hard_concrete_gate(x, generator=r),
}


@by_name(SAMPLED)
def test_noise_comes_from_the_generator_alone(gate):
    x, global_state = normal(50, 5), torch.get_rng_state()
    first = gate(x, torch.Generator().manual_seed(7))
    assert torch.equal(first, gate(x, torch.Generator().manual_seed(7)))
    assert not torch.equal(first, gate(x, torch.Generator().manual_seed(8)))
    assert torch.equal(torch.get_rng_state(), global_state)


@by_name(SAMPLED)
def test_sampled_gates_are_finite_with_gates_shut(gate):
    x = torch.tensor([[1e4, float("-inf"), -1e4, 0.0]], dtype=torch.float64, requires_grad=True)
    weights = gate(x.expand(200, 4), torch.Generator().manual_seed(0))
    if weights.is_floating_point():
        assert weights.isfinite().logical_or(x.isneginf()).all()
        weights.nan_to_num(neginf=0).sum().backward()
        assert x.grad.isfinite().all()
    else:
        assert (weights != 1).all()


def test_the_table_and_all_name_every_public_function():
    for name in g.__all__:
        assert f"`{name}`" in g.__doc__
        assert getattr(g, name).__doc__
