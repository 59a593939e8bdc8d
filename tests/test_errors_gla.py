"""gated.gla answers bad input with a ValueError that names the argument (run without the jaxtyping hook)."""

import pytest
import torch

from gated.gla import GatedLinearAttention, GLAState, GLATransformer, SoftmaxAttention


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("dim", {"dim": 0}),
        ("heads", {"heads": 0}),
        ("key_dim", {"heads": 3}),
        ("key_dim", {"key_dim": 6}),
        ("value_dim", {"value_dim": 18}),
        ("value_dim", {"value_dim": -4}),
        ("decay", {"decay": "diagonal"}),
        ("gate_rank", {"gate_rank": 0}),
        ("temperature", {"temperature": 0.0}),
        ("temperature", {"temperature": float("nan")}),
        ("conv_size", {"conv_size": -1}),
    ],
)
def test_layer_sizes(argument, options):
    with pytest.raises(ValueError, match=argument):
        GatedLinearAttention(**{"dim": 16, "heads": 4} | options)


@pytest.mark.parametrize("mixer", [GatedLinearAttention, SoftmaxAttention])
@pytest.mark.parametrize(
    "x", [torch.zeros(3, 16), torch.zeros(1, 0, 16), torch.zeros(1, 3, 8), torch.zeros(1, 3, 16).long()]
)
def test_layer_input(mixer, x):
    with pytest.raises(ValueError, match="x must be"):
        mixer(16, 2)(x)


def test_layer_mode_state_and_borders():
    x = torch.zeros(1, 4, 16)
    with pytest.raises(ValueError, match="mode"):
        GatedLinearAttention(16, 2)(x, mode="parallel")
    conv = GatedLinearAttention(16, 2, conv_size=4)
    with pytest.raises(ValueError, match=r"state\.window"):
        conv(x, GLAState(torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 32)))
    with pytest.raises(ValueError, match="initial_state"):
        GatedLinearAttention(16, 2)(x, GLAState(torch.zeros(1, 2, 8, 4), torch.zeros(1, 0, 32)))
    with pytest.raises(ValueError, match="cu_seqlens"):
        conv(x, cu_seqlens=torch.tensor([0, 2, 4]))
    with pytest.raises(ValueError, match="cu_seqlens"):
        GatedLinearAttention(16, 2)(x, cu_seqlens=torch.tensor([0, 2]))


def test_softmax_sizes():
    with pytest.raises(ValueError, match="dim"):
        SoftmaxAttention(12, heads=4)
    with pytest.raises(ValueError, match="heads"):
        SoftmaxAttention(16, heads=0)


def test_model():
    with pytest.raises(ValueError, match="vocab_size"):
        GLATransformer(1, 16, 1, heads=2)
    with pytest.raises(ValueError, match="layers"):
        GLATransformer(5, 16, 0, heads=2)
    lm = GLATransformer(5, 16, 2, heads=2)
    for tokens in (torch.zeros(4).long(), torch.zeros(1, 0).long(), torch.zeros(1, 4)):
        with pytest.raises(ValueError, match="tokens"):
            lm(tokens)
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    _, state = lm(tokens)
    with pytest.raises(ValueError, match="state"):
        lm(tokens, state[:1])
    with pytest.raises(ValueError, match="length"):
        lm.generate(tokens, -1)
    for top_k in (0, 6):
        with pytest.raises(ValueError, match="top_k"):
            lm.generate(tokens, 1, top_k=top_k)
    with pytest.raises(ValueError, match="temperature"):
        lm.generate(tokens, 1, temperature=0.0)
