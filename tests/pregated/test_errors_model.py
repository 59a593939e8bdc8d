import pytest
import torch

from gated.pregated.model import PreGatedDecoder, rewire

SIZES = {"vocab": 5, "dim": 8, "hidden": 8, "blocks": 3, "num_experts": 2, "heads": 2, "context": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[({name: 0}, f"{name} must be an integer of at least 1; got 0") for name in SIZES],
        ({"k": 0}, "k must be an integer of at least 1"),
        ({"k": 3}, "k must be at most num_experts = 2, got 3"),
        ({"between": -1}, "between must be an integer of at least 0"),
        ({"heads": 3}, "dim must be a multiple of heads = 3, got 8"),
        ({"router": "oracle"}, "router must be"),
        ({"look_ahead": 3}, r"look_ahead must lie in 0..2 for 3 blocks, got 3"),
        ({"look_ahead": -1}, "look_ahead must be an integer of at least 0"),
        ({"look_ahead": 1, "router": "hash"}, "look_ahead must be 0 for router 'hash'"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        PreGatedDecoder(**(SIZES | change))


def test_rewiring_what_cannot_be():
    conventional = PreGatedDecoder(**SIZES, look_ahead=0)
    with pytest.raises(ValueError, match=r"look_ahead must lie in 0\.\.2"):
        rewire(conventional, 3)
    with pytest.raises(ValueError, match="init must be"):
        rewire(conventional, 1, "copy")
    with pytest.raises(ValueError, match=r"model must be conventional: .* got 1"):
        rewire(rewire(conventional, 1), 2)
    with pytest.raises(ValueError, match=r"model must be conventional: .* 'hash'"):
        rewire(PreGatedDecoder(**SIZES, look_ahead=0, router="hash"), 1)


def test_a_full_context():
    model = PreGatedDecoder(**SIZES)
    with pytest.raises(ValueError, match="at most context = 4 positions, got 5"):
        model(torch.zeros(1, 5, dtype=torch.int64))
    state = model.start(1)
    for _ in range(4):
        model.embed(torch.zeros(1, dtype=torch.int64), state)
    with pytest.raises(ValueError, match="context = 4, which is reached"):
        model.embed(torch.zeros(1, dtype=torch.int64), state)


def test_guesses_that_no_gate_can_make():
    conventional = PreGatedDecoder(**SIZES, look_ahead=0)
    h = torch.zeros(1, 8)
    for model, b in ((conventional, 2), (rewire(conventional, 1), 0)):
        with pytest.raises(ValueError, match=f"gate of its own, got {b}"):
            model.hint(b, h)
    with pytest.raises(ValueError, match="whose gate has run"):
        conventional.known(1, conventional.start(1))
