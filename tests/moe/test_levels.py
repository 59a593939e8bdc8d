"""Routing levels against loops and counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.moe.levels import (
    TaskSignal,
    attribute_bits,
    modality_mask,
    per_token,
    pooled_context,
    vocabulary_mask,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(batch=st.integers(0, 4), time=st.integers(1, 5), seed=st.integers(0, 99))
def test_context_by_a_loop(batch, time, seed):
    x = normal(batch, time, 3, seed=seed)
    valid = torch.rand(batch, time, generator=torch.Generator().manual_seed(seed)) < 0.6
    valid[:, 0] = True
    rows = per_token(x)
    found, all_valid = pooled_context(x, valid), pooled_context(x)
    assert rows.shape == found.shape == (batch * time, 3)
    for b in range(batch):
        mean = torch.stack([x[b, t] for t in range(time) if valid[b, t]]).mean(0)
        for t in range(time):
            assert torch.equal(rows[b * time + t], x[b, t])
            torch.testing.assert_close(found[b * time + t], mean)
            torch.testing.assert_close(all_valid[b * time + t], x[b].mean(0))


def test_padding_does_not_matter_even_if_it_is_nan():
    x = normal(1, 3, 2)
    padded = torch.cat([x, torch.full((1, 2, 2), torch.nan).double()], 1)
    valid = torch.tensor([[True, True, True, False, False]])
    torch.testing.assert_close(pooled_context(padded, valid)[:3], pooled_context(x))


def test_task_rows_learn_only_where_the_task_is():
    signal = TaskSignal(4, 3)
    rows = signal(torch.tensor([2, 0, 2]))
    assert torch.equal(rows[0], rows[2])
    rows.sum().backward()
    assert (signal.weight.grad[:, 0]).tolist() == [1, 0, 2, 0]


def test_modality_mask_by_a_loop():
    modality, owner = torch.tensor([0, 1, 1, 2]), torch.tensor([1, -1, 0, 2, 1])
    found = modality_mask(modality, owner)
    for t in range(4):
        for i in range(5):
            assert found[t, i] == (owner[i] in (-1, modality[t]))


@given(code=st.lists(st.integers(0, 255), max_size=6))
def test_attribute_bits_are_binary_digits(code):
    bits = attribute_bits(torch.tensor(code, dtype=torch.int64))
    assert bits.shape == (len(code), 8)
    for row, value in zip(bits.tolist(), code, strict=True):
        assert "".join(str(int(b)) for b in reversed(row)) == f"{value:08b}"


def test_vocabulary_mask_counts_and_spread():
    counts = torch.tensor([5, 0, 10, 99] * 500)
    mask = vocabulary_mask(counts, 6, torch.Generator().manual_seed(0), rare_below=10, visible_frequent=4)
    assert (mask.sum(-1) == torch.where(counts < 10, 1, 4)).all()
    rare = mask[counts < 10].sum(0)
    assert ((rare - 1000 / 6).abs() < 5 * (1000 * 5 / 36) ** 0.5).all()  # no expert is favoured
    again = vocabulary_mask(counts, 6, torch.Generator().manual_seed(0), rare_below=10, visible_frequent=4)
    assert torch.equal(mask, again)
    everyone = vocabulary_mask(counts, 6, torch.Generator().manual_seed(0), rare_below=10)
    assert everyone[counts >= 10].all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
def test_any_integer_will_do(dtype):
    ids = torch.tensor([0, 1, 1], dtype=dtype)
    assert attribute_bits(ids)[1, 0] == 1
    assert TaskSignal(2, 3)(ids).shape == (3, 3)
    assert modality_mask(ids, torch.tensor([-1])).all()
