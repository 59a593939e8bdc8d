"""Routers that learn nothing: by a hash, at random, and as an oracle says."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.moe import baselines
from gated.moe import gates as m

N = 5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64).to(dtype)


@given(seed=st.integers(0, 10_000), k=st.integers(1, N))
def test_hash_depends_on_the_id_alone(seed, k):
    gate = m.HashGate(N, k, seed=seed)
    ids = torch.randint(-(2**40), 2**40, (20,), generator=rng(seed))
    order = torch.randperm(20, generator=rng(seed))
    assert torch.equal(gate(ids[order]).dense(), gate(ids).dense()[order])
    assert torch.equal(gate(ids).dense(), gate(ids.clone()).dense())
    assert (gate(ids).dense() != 0).sum(-1).tolist() == [k] * 20


def test_hash_and_random_are_even_and_change_with_the_seed():
    ids, x = torch.arange(20_000), torch.zeros(20_000, 1)
    for gate, other, signal in (
        (m.HashGate(8), m.HashGate(8, seed=1), ids),
        (m.RandomGate(8), m.RandomGate(8, seed=1), x),
    ):
        load = gate(signal).load()
        chi_square = ((load - 2500).square() / 2500.0).sum()
        assert chi_square < 24.3  # 99.9 % of chi^2 with 7 degrees
        same = (gate(signal).experts == other(signal).experts).double().mean()
        assert abs(same - 1 / 8) < 0.01
    # neighbouring ids are independent: pairs are even too
    experts = m.HashGate(8)(ids).experts[:, 0]
    pairs = torch.bincount(8 * experts[:-1] + experts[1:], minlength=64)
    assert ((pairs - 19_999 / 64).square() / (19_999 / 64)).sum() < 103.4  # 99.9 % of chi^2 with 63


def test_the_hash_is_splitmix64s_finaliser():
    whole = (1 << 64) - 1
    for x in (0, 1, -1, 12345, -(2**63), 2**63 - 1):
        z = x & whole
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & whole
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & whole
        assert baselines._mix(torch.tensor(x)).item() & whole == z ^ (z >> 31)


def test_random_uses_the_generator_given():
    gate, x = m.RandomGate(N, 2), torch.zeros(50, 1)
    assert torch.equal(gate(x).dense(), gate(x).dense())
    assert not torch.equal(gate(x, generator=rng(1)).dense(), gate(x, generator=rng(2)).dense())


def test_oracle_says_what_it_was_told():
    ids = torch.tensor([3, 0, 0, 4])
    routing = m.OracleGate(N)(ids)
    assert routing.experts.tolist() == [[3], [0], [0], [4]]
    mask = torch.ones(4, N, dtype=torch.bool)
    mask[1, 0] = False
    assert m.OracleGate(N)(ids, mask).experts.tolist() == [[3], [-1], [0], [4]]
