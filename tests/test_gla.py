"""gated.gla against closed forms, against itself in its other form, and against the past it must not see."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from gated.gla import (
    GatedLinearAttention,
    GLAState,
    GLATransformer,
    KVCache,
    SoftmaxAttention,
    fixed_log_decay,
    rotate,
)

DECAYS = ("vector", "scalar", "fixed", "none")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(dim: int = 16, heads: int = 2, dtype=torch.float64, **options) -> GatedLinearAttention:
    torch.manual_seed(0)
    return GatedLinearAttention(dim, heads, **options).to(dtype)


def model(vocab: int = 11, dim: int = 16, layers: int = 2, dtype=torch.float64, **options) -> GLATransformer:
    torch.manual_seed(0)
    return GLATransformer(vocab, dim, layers, heads=2, **options).to(dtype).eval()


def by_hand(layer: GatedLinearAttention, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The layer's output when head h weighs step i at step t by weights[h, t, i], from explicit scores."""
    H = layer.heads
    q, k, v, r = (
        F.linear(x, p.weight).unflatten(-1, (H, -1)).transpose(1, 2)
        for p in (layer.q_proj, layer.k_proj, layer.v_proj, layer.r_proj)
    )
    o = (q @ k.mT / math.sqrt(q.shape[-1]) * weights) @ v
    o = o / (o.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm.weight
    return (F.silu(r) * o).transpose(1, 2).flatten(2) @ layer.o_proj.weight.T


@given(
    decay=st.sampled_from(DECAYS),
    conv_size=st.sampled_from([0, 1, 4]),
    temperature=st.sampled_from([0.05, 1.0, 16.0]),
    time=st.integers(1, 80),
    cut=st.floats(0.05, 0.95),
)
def test_recurrent_equals_parallel_and_a_cut_changes_nothing(decay, conv_size, temperature, time, cut):
    gla = layer(decay=decay, conv_size=conv_size, temperature=temperature)
    x = torch.randn(2, time, 16, generator=seeded(time), dtype=torch.float64)
    y, state = gla(x)
    torch.testing.assert_close(gla(x, mode="recurrent")[0], y, atol=1e-10, rtol=1e-10)
    at = int(cut * time)
    if 0 < at < time:
        first, middle = gla(x[:, :at])
        second, end = gla(x[:, at:], middle, mode="recurrent")
        torch.testing.assert_close(torch.cat([first, second], 1), y, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(tuple(end), tuple(state), atol=1e-10, rtol=1e-10)


def test_no_decay_is_causal_linear_attention():
    gla = layer(decay="none")
    x = torch.randn(2, 50, 16, generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(gla(x)[0], by_hand(gla, x, torch.ones(2, 50, 50).double().tril()))


def test_fixed_decay_is_the_matrix_of_retnet():
    gla = layer(decay="fixed", heads=2)
    x = torch.randn(1, 70, 16, generator=seeded(2), dtype=torch.float64)
    gamma = torch.tensor([1 - 2**-5, 1 - 2**-6])
    torch.testing.assert_close(fixed_log_decay(2).exp(), gamma)
    lag = torch.arange(70)[:, None] - torch.arange(70)
    # The layer keeps its constants in float32, so float64 agreement ends near 1e-7 x lag.
    weights = (lag.clamp(min=0) * fixed_log_decay(2).double()[:, None, None]).exp().tril()
    torch.testing.assert_close(gla(x)[0], by_hand(gla, x, weights))


def test_the_scalar_gate_is_the_vector_gate_with_equal_channels():
    scalar, vector = layer(decay="scalar"), layer(decay="vector")
    weights = {n: p.repeat_interleave(4, 0) if "gate.1" in n else p for n, p in scalar.state_dict().items()}
    vector.load_state_dict(weights)
    x = torch.randn(1, 40, 16, generator=seeded(3), dtype=torch.float64)
    torch.testing.assert_close(scalar(x)[0], vector(x)[0])


@pytest.mark.parametrize("temperature", [1.0, 4.0, 16.0])
def test_at_logit_zero_the_half_life_is_the_temperature(temperature):
    g = layer(temperature=temperature).log_decay(torch.zeros(1, 1, 16, dtype=torch.float64))
    torch.testing.assert_close((temperature * g).exp(), torch.full_like(g, 0.5))


def test_log_decay_is_the_low_rank_logsigmoid_in_float32_or_better():
    gla = layer(gate_bias=3.0)
    x = torch.randn(2, 5, 16, generator=seeded(4), dtype=torch.float64)
    z = x @ gla.gate[0].weight.T @ gla.gate[1].weight.T + gla.gate[1].bias
    torch.testing.assert_close(gla.log_decay(x).flatten(2), torch.log(torch.sigmoid(z)) / 16)
    assert (gla.gate[1].bias == 3).all()
    half = layer(dtype=torch.bfloat16)
    assert half.log_decay(x.bfloat16()).dtype == torch.float32
    y, state = half(x.bfloat16())
    assert (y.dtype, state.memory.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    "options",
    [*({"decay": d, "conv_size": 4} for d in DECAYS), {"mixer": SoftmaxAttention, "conv_size": 4}],
    ids=str,
)
@pytest.mark.parametrize("t", [0, 17, 38])
def test_no_gradient_reaches_the_future(options, t):
    lm = model(**options)
    x = torch.randn(1, 40, 16, generator=seeded(5), dtype=torch.float64, requires_grad=True)
    lm.blocks[0](x)[0][:, t].sum().backward()
    assert (x.grad[:, t + 1 :] == 0).all()
    assert (x.grad[:, : t + 1] != 0).any(-1).all()


def test_packed_sequences_do_not_see_each_other():
    gla = layer()
    x = torch.randn(1, 60, 16, generator=seeded(6), dtype=torch.float64)
    borders = torch.tensor([0, 7, 40, 60])
    packed, state = gla(x, cu_seqlens=borders)
    for n, (start, end) in enumerate([(0, 7), (7, 40), (40, 60)]):
        alone, memory = gla(x[:, start:end])
        torch.testing.assert_close(packed[:, start:end], alone)
        torch.testing.assert_close(state.memory[n : n + 1], memory.memory)
    again, _ = gla(x, GLAState(state.memory, state.window), cu_seqlens=borders)
    torch.testing.assert_close(again[:, 7:40], gla(x[:, 7:40], GLAState(state.memory[1:2], state.window))[0])


def test_parameter_counts_of_the_paper():
    d = 1024
    gla = GatedLinearAttention(d, heads=4)
    without_norm = sum(p.numel() for name, p in gla.named_parameters() if "norm" not in name)
    assert without_norm == 4 * d**2 + 24 * d + d // 2 == 4_219_392
    assert sum(p.numel() for p in SoftmaxAttention(d, heads=8).parameters()) == 4 * d**2
    _, state = GatedLinearAttention(64, heads=4)(torch.zeros(1, 3, 64))
    assert state.memory.numel() == 64**2 // (2 * 4)  # the cache of d / (4 H) = 4 tokens of 2 d numbers
    assert state.window.numel() == 0


def test_the_decays_share_all_parameters_but_the_gate():
    names = {decay: {n for n, _ in layer(decay=decay).named_parameters()} for decay in DECAYS}
    gate = {"gate.0.weight", "gate.1.weight", "gate.1.bias"}
    assert names["vector"] == names["scalar"] == names["fixed"] | gate
    assert names["fixed"] == names["none"]
    assert not names["none"] & gate


def test_the_convolution_is_causal_and_depthwise():
    gla = layer(conv_size=3)
    x = torch.randn(1, 12, 16, generator=seeded(7), dtype=torch.float64)
    q = F.pad(gla.q_proj(x).mT, (2, 0))
    expected = F.silu(F.conv1d(q, gla.conv.weight[: gla.key_dim, None], groups=gla.key_dim)).mT
    seen = {}
    import gated.gla as module

    original = module.chunk_gla
    try:
        module.chunk_gla = lambda q, *args, **kwargs: (seen.update(q=q), original(q, *args, **kwargs))[1]
        gla(x)
    finally:
        module.chunk_gla = original
    torch.testing.assert_close(seen["q"].flatten(2), expected)


def test_rotary_scores_depend_on_the_distance_only():
    q, k = (torch.randn(1, 1, 1, 8, generator=seeded(s), dtype=torch.float64) for s in (8, 9))
    score = [(rotate(q, 5 + s) * rotate(k, s)).sum() for s in (0, 3, 1000)]
    torch.testing.assert_close(torch.stack(score), score[0].expand(3))
    torch.testing.assert_close(rotate(q).norm(), q.norm())
    assert not torch.allclose(score[0], (rotate(q, 6) * rotate(k, 0)).sum())


def test_softmax_attention_is_the_textbook_formula_with_and_without_a_cache():
    torch.manual_seed(0)
    attention = SoftmaxAttention(16, heads=2).double()
    x = torch.randn(2, 9, 16, generator=seeded(10), dtype=torch.float64)
    q, k, v = attention.qkv_proj(x).unflatten(-1, (3, 2, 8)).unbind(2)
    scores = torch.einsum("bihc,bjhc->bhij", rotate(q), rotate(k)) / math.sqrt(8)
    weights = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf).softmax(-1)
    expected = torch.einsum("bhij,bjhc->bihc", weights, v).flatten(2) @ attention.o_proj.weight.T
    y, cache = attention(x)
    torch.testing.assert_close(y, expected)
    first, past = attention(x[:, :4])
    second, whole = attention(x[:, 4:], past)
    torch.testing.assert_close(torch.cat([first, second], 1), expected)
    assert isinstance(whole, KVCache)
    assert whole.keys.shape == cache.keys.shape == (2, 9, 2, 8)


@pytest.mark.parametrize(
    "options",
    [{"decay": d} for d in DECAYS] + [{"conv_size": 4}, {"mixer": SoftmaxAttention, "conv_size": 2}],
    ids=str,
)
def test_greedy_generation_equals_teacher_forcing(options):
    lm = model(**options)
    prompt = torch.randint(11, (3, 6), generator=seeded(11))
    tokens = lm.generate(prompt, 40, top_k=1)
    assert torch.equal(tokens[:, :6], prompt)
    logits, _ = lm(tokens)
    assert torch.equal(tokens[:, 6:], logits.argmax(-1)[:, 5:-1])


def test_sampling_follows_the_generator_and_the_softmax():
    lm = model(dtype=torch.float32)
    prompt = torch.zeros(4000, 1, dtype=torch.int64)
    same = [lm.generate(prompt, 3, temperature=0.7, generator=seeded(s)) for s in (1, 1, 2)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])
    wanted = (lm(prompt[:1])[0][0, -1] / 0.7).softmax(-1)
    found = same[0][:, 1].bincount(minlength=11) / 4000
    assert (found - wanted).abs().max() < 5 * (wanted.max() / 4000).sqrt()
    with torch.no_grad():
        lm.norm.weight *= 15  # logits that differ enough to tell their softmax from a uniform choice
        best = lm(prompt[:1])[0][0, -1].topk(3)
    top = lm.generate(prompt, 1, top_k=3, generator=seeded(3))[:, 1].bincount(minlength=11) / 4000
    assert (top[best.indices] - best.values.softmax(-1)).abs().max() < 0.04
    assert best.values.softmax(-1).max() > 0.4


def test_segments_with_carried_state_equal_one_run():
    lm = model(layers=3, conv_size=4)
    tokens = torch.randint(11, (2, 90), generator=seeded(12))
    whole, _ = lm(tokens)
    state, parts = None, []
    for segment in tokens.split([13, 32, 1, 44], dim=1):
        logits, state = lm(segment, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_decoding_carries_a_state_of_constant_size():
    lm, softmax = model(), model(mixer=SoftmaxAttention)

    def numbers(lm, tokens):
        _, state = lm(torch.zeros(1, tokens, dtype=torch.int64))
        return sum(part.numel() for entry in state for part in entry)

    assert numbers(lm, 5) == numbers(lm, 500) == 2 * 16**2 // 4
    assert numbers(softmax, 500) == 100 * numbers(softmax, 5)


def test_gradients_of_the_whole_model_match_the_recurrent_form():
    tokens = torch.randint(11, (2, 40), generator=seeded(13))
    found = []
    for mode in ("chunk", "recurrent"):
        lm = model(temperature=1.0, conv_size=2)
        F.cross_entropy(lm(tokens, mode=mode)[0].flatten(0, 1), tokens.flatten()).backward()
        found.append({name: p.grad for name, p in lm.named_parameters()})
    assert all(g.abs().max() > 0 for g in found[0].values())
    torch.testing.assert_close(*found)


def test_widening_the_mlp_buys_back_the_gate():
    """How the chapter makes its arms equal: a hidden unit of the MLP costs 3 d parameters."""

    def count(mlp_dim: int, **options) -> int:
        lm = GLATransformer(62, 128, 2, heads=2, mlp_dim=mlp_dim, **options)
        return sum(p.numel() for p in lm.parameters())

    target = count(341)
    for options in ({"decay": "scalar"}, {"decay": "none"}, {"mixer": SoftmaxAttention}):
        widened = 341 + round((target - count(341, **options)) / (2 * 3 * 128))
        assert abs(count(widened, **options) / target - 1) < 1e-3


def test_a_learned_constant_decay_ignores_the_token_and_starts_spread():
    layer = GatedLinearAttention(32, heads=2, decay="constant")
    g = layer.log_decay(torch.randn(2, 5, 32))
    assert torch.equal(g, g[:1, :1].expand_as(g))
    half_life = (math.log(0.5) / g[0, 0]).sort(-1).values
    torch.testing.assert_close(half_life, torch.logspace(-2, 6, 8, base=2.0).expand(2, 8))
    layer(torch.randn(1, 9, 32))[0].sum().backward()
    assert layer.log_rate.grad is not None and layer.log_rate.grad.all()
