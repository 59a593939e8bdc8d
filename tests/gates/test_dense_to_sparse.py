import pytest
import torch

from gated.gates import DenseToSparseGate, add_gumbel_noise, dense_to_sparse_gate, linear_schedule


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


LOGITS = torch.randn(60, 8, generator=generator(), dtype=torch.float64)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.9])
def test_by_a_loop(threshold):
    weights = dense_to_sparse_gate(LOGITS, threshold, 1.5, generator=generator(1))
    p = torch.softmax(add_gumbel_noise(LOGITS, generator(1)) / 1.5, -1)
    for row, found in zip(p.tolist(), weights.tolist(), strict=True):
        assert found == pytest.approx([w if w > threshold or w == max(row) else 0 for w in row], abs=1e-15)


def test_cooling_shuts_gates_from_all_to_one():
    number_open = [
        (dense_to_sparse_gate(LOGITS, 0.02, temperature, generator=generator(1)) != 0)
        .sum(-1)
        .double()
        .mean()
        .item()
        for temperature in (50.0, 2.0, 1.0, 0.3, 0.01)
    ]
    assert number_open[0] == 8
    assert number_open == sorted(number_open, reverse=True)
    assert number_open[-1] == pytest.approx(1, abs=0.1)


def test_the_largest_stays_if_all_are_under_the_threshold():
    assert dense_to_sparse_gate(torch.zeros(3), 0.5, generator=None).tolist() == pytest.approx([1 / 3, 0, 0])


def test_a_weight_at_the_threshold_goes():
    assert dense_to_sparse_gate(torch.zeros(2), 0.5, generator=None).tolist() == [0.5, 0]
    assert dense_to_sparse_gate(torch.zeros(2), 0.49, generator=None).tolist() == [0.5, 0.5]


def test_module_follows_its_schedule_and_resumes():
    gate = DenseToSparseGate(linear_schedule(2.0, 0.5, 3), 0.05)
    seen = []
    for _ in range(5):
        seen.append(gate.temperature)
        found = gate(LOGITS, generator(2))
        assert torch.equal(found, dense_to_sparse_gate(LOGITS, 0.05, seen[-1], generator=generator(2)))
        gate.advance()
    assert gate.step.dtype == torch.long
    assert seen == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.5])
    resumed = DenseToSparseGate(linear_schedule(2.0, 0.5, 3), 0.05)
    resumed.load_state_dict(gate.state_dict())
    assert int(resumed.step) == 5
    assert torch.equal(gate.eval()(LOGITS), dense_to_sparse_gate(LOGITS, 0.05, 0.5, generator=None))
    assert torch.equal(
        gate(LOGITS, generator(3)), gate(LOGITS)
    )  # evaluation is without noise, whatever comes
