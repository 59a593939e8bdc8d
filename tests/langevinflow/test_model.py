"""The network: its published size, who sees what, what the ablations take away, and what the KL is."""

import math

import pytest
import torch
from torch import nn

from gated.langevinflow import (
    Decoder,
    Encoder,
    GRUTransformer,
    GRUVae,
    LangevinFlow,
    MaskedTransformer,
    PostNormLayer,
    gaussian_kl,
    girsanov_kl,
    match_parameters,
    predict,
    released_kl,
    simulate,
)

MODES = ["released", "corrected", "controlled"]
RIVALS = [GRUVae, MaskedTransformer, GRUTransformer]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counts(trials: int = 4, bins: int = 9, neurons: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.poisson(torch.full((trials, bins, neurons), 0.7), generator=gen(seed))


def flow(seed: int = 0, bins: int = 12, **kwargs) -> LangevinFlow:
    torch.manual_seed(seed)
    return LangevinFlow(6, 9, bins, **{"dim": 8, "hidden": 16, **kwargs}).eval()


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_size():
    with torch.device("meta"):
        encoder, decoder = Encoder(137, 280), Decoder(840, 182, hidden=512)
        layer = PostNormLayer(840, 2, 512)
        heads = 4 * size(nn.Linear(280, 280))
    assert (size(encoder), heads, size(layer), size(decoder.readout)) == (351_960, 314_720, 3_690_632, 153_062)
    model = LangevinFlow(137, 182, 45, dim=280, mode="released", hidden=512)
    assert size(model) == 4_510_422 and size(model.potential) == 48
    assert size(layer) / size(model) == pytest.approx(0.82, abs=5e-3)


@pytest.mark.parametrize("mode", MODES)
def test_shapes_and_randomness(mode):
    model, x = flow(mode=mode), counts()
    out = model(x, gen())
    assert out.log_rates.shape == (4, 12, 9) and out.kl.shape == (4,)
    assert out.z.shape == out.v.shape == out.h.shape == (4, 12, 8)
    again, other = model(x, gen()), model(x, gen(1))
    assert torch.equal(out.log_rates, again.log_rates) and not torch.equal(out.log_rates, other.log_rates)
    assert torch.equal(model(x).log_rates, model(x).log_rates)  # without noise


def test_encoder_is_the_cell_with_dropout_on_the_carried_state():
    torch.manual_seed(0)
    encoder, x = Encoder(6, 8, rate=0.4), counts()
    out = encoder(x, 12, gen())
    mask = (torch.rand(4, 12, 8, generator=gen()) >= 0.4) / 0.6
    h = torch.zeros(4, 8)
    for t in range(12):
        h = encoder.cell(x[:, min(t, 8)], h) * mask[:, t]
        assert torch.allclose(out[:, t], h, atol=1e-6)


def test_encoder_is_nn_gru_without_dropout():
    torch.manual_seed(0)
    encoder, gru, x = Encoder(6, 8), nn.GRU(6, 8, batch_first=True), counts()
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(gru, f"{name}_l0").data.copy_(getattr(encoder.cell, name))
    assert torch.allclose(encoder(x, 9), gru(x)[0], atol=1e-6)


def test_lagged_input_sees_bin_zero_twice_and_the_last_bin_only_afterwards():
    torch.manual_seed(0)
    encoder, x = Encoder(6, 8, source="lagged"), counts()
    order, h = [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8], torch.zeros(4, 8)
    out = encoder(x, 12)
    for t, source in enumerate(order):
        h = encoder.cell(x[:, source], h)
        assert torch.allclose(out[:, t], h, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_last_observed_bin_reaches_h_or_not(mode):
    x = counts()
    other = x.clone()
    other[:, -1] += 3
    current, lagged = flow(mode=mode), flow(mode=mode, encoder_input="lagged")
    assert not torch.equal(current(x).log_rates, current(other).log_rates)
    assert torch.equal(lagged(x).h[:, :9], lagged(other).h[:, :9])
    assert not torch.equal(lagged(x).h[:, 9:], lagged(other).h[:, 9:])
    only_observed = flow(mode=mode, encoder_input="lagged", bins=9)
    assert torch.equal(only_observed(x).log_rates, only_observed(other).log_rates)


@pytest.mark.parametrize("mode", MODES)
def test_the_particle_is_data_free_after_the_start_unless_it_is_controlled(mode):
    """h enters z and v at t = 0 only; with a control, later bins reach them, and never those before."""
    model, x = flow(mode=mode), counts()
    if mode == "controlled":
        nn.init.normal_(model.push[-1].weight)
    other = x.clone()
    other[:, 4] += 3
    a, b = model(x, gen()), model(other, gen())
    assert torch.equal(a.z[:, :4], b.z[:, :4]) and torch.equal(a.v[:, :4], b.v[:, :4])
    assert torch.equal(a.v, b.v) == (mode != "controlled")


def test_held_out_counts_are_never_read():
    """All models take the observed counts alone; what is held out has no way in."""
    everything = counts(neurons=9)
    other = everything.clone()
    other[:, :, 6:] += 5
    for model in (flow(), *(kind(6, 9, 12).eval() for kind in RIVALS)):
        assert torch.equal(
            predict(model, everything[:, :, :6], generator=gen()), predict(model, other[:, :, :6], generator=gen())
        )


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_decoder_is_equivariant_to_the_order_of_bins(depth):
    torch.manual_seed(0)
    decoder, x = Decoder(24, 9, depth=depth).double(), torch.randn(3, 7, 24, dtype=torch.double)
    order = torch.randperm(7, generator=gen())
    assert torch.allclose(decoder(x)[:, order], decoder(x[:, order]), atol=1e-12)


def test_depth_zero_is_causal_and_depth_one_is_not():
    torch.manual_seed(0)
    x = torch.randn(2, 7, 24)
    later = x.clone()
    later[:, 5:] += 1
    for depth, same in ((0, True), (1, False)):
        decoder = Decoder(24, 9, depth=depth)
        assert torch.equal(decoder(x)[:, :5], decoder(later)[:, :5]) == same


def test_positions_break_the_equivariance_of_the_masked_transformer():
    model, x = MaskedTransformer(6, 9, 9).eval(), counts()
    order = torch.randperm(9, generator=gen())
    assert not torch.allclose(model(x).log_rates[:, order], model(x[:, order]).log_rates, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_layer_is_pytorchs_post_norm_layer(training):
    torch.manual_seed(0)
    ours = PostNormLayer(24, 2, 16, rate=0.0)
    peer = nn.TransformerEncoderLayer(24, 2, 16, dropout=0.0, batch_first=True).train()
    pairs = {
        "self_attn.in_proj_": ours.qkv,
        "self_attn.out_proj.": ours.out,
        "linear1.": ours.up,
        "linear2.": ours.down,
        "norm1.": ours.attention_norm,
        "norm2.": ours.mlp_norm,
    }
    peer.load_state_dict({k + n: p for k, m in pairs.items() for n, p in m.state_dict().items()})
    x = torch.randn(3, 7, 24)
    assert torch.allclose(ours(x, gen() if training else None), peer(x), atol=2e-6)


def test_fixup_scales_three_matrices_only():
    def built(fixup: bool) -> PostNormLayer:
        torch.manual_seed(0)
        return PostNormLayer(24, 2, 16, fixup=fixup)

    plain, scaled = built(False), built(True)
    for name in ("qkv", "out", "up", "down"):
        factor = 1.0 if name == "qkv" else 0.5091
        ratio = getattr(scaled, name).weight / getattr(plain, name).weight
        assert torch.allclose(ratio, torch.full_like(ratio, factor), atol=5e-5)


# What the KL is -----------------------------------------------------------------------------------------------------


def start_kl(model: LangevinFlow, h: torch.Tensor) -> torch.Tensor:
    z, z_log, v, v_log = (model.start[name](h[:, 0]) for name in ("z", "z_log", "v", "v_log"))
    return gaussian_kl(z, z_log) + gaussian_kl(v, v_log)


@pytest.mark.parametrize("mode", ["released", "corrected"])
def test_without_a_push_the_kl_is_that_of_the_start(mode):
    model = flow(mode=mode)
    out = model(counts(), gen())
    assert torch.allclose(out.kl, start_kl(model, out.h))


def test_released_kl_reads_the_sampled_velocities():
    model = flow(mode="released", kl="released")
    out = model(counts(), gen())
    assert torch.allclose(out.kl, start_kl(model, out.h) + released_kl(out.v[:, 1:], 0.55))


def test_a_push_costs_what_girsanov_says_and_acts_in_the_observed_bins_only():
    model = flow(mode="controlled")
    nn.init.normal_(model.push[-1].weight)
    out = model(counts(), gen())
    push = model.push(out.h[:, 1:9])
    assert torch.allclose(out.kl, start_kl(model, out.h) + girsanov_kl(push, model.scale).sum(-1), rtol=1e-5)
    nn.init.zeros_(model.push[-1].weight)
    assert torch.equal(model(counts(), gen()).kl, start_kl(model, out.h))


def test_path_of_the_model_is_the_loop():
    for mode, scheme in (("released", "euler"), ("corrected", "baoab"), ("controlled", "baoab")):
        model = flow(mode=mode)
        out = model(counts(), gen())
        g = gen()
        first = torch.randn(2, 4, 8, generator=g)
        noise = torch.randn(4, 11, 8, generator=g)
        z, z_log, v, v_log = (model.start[name](out.h[:, 0]) for name in ("z", "z_log", "v", "v_log"))
        z, v = model.width() * (z + (z_log / 2).exp() * first[0]), v + (v_log / 2).exp() * first[1]
        control = None
        if mode == "controlled":
            control = torch.cat([model.push(out.h[:, 1:9]), torch.zeros(4, 3, 8)], 1)
        path = simulate(
            model.potential.gradient,
            z,
            v,
            noise,
            step=model.step,
            decay=model.decay,
            scale=model.scale,
            control=control,
            scheme=scheme,
        )
        assert torch.allclose(out.z[:, 1:] * model.width(), path[0], atol=1e-5)
        assert torch.allclose(out.v[:, 1:], path[1], atol=2e-6)


def test_learned_friction_starts_at_the_prior_and_its_kl_is_the_mean_log_ratio():
    model = flow(mode="controlled", learned_friction=True, bins=5, rate=0.0).double()
    nn.init.zeros_(model.gate.weight)
    x = counts(1, 5).double()
    out = model(x, gen())
    assert torch.allclose(out.kl, start_kl(model, out.h) + girsanov_kl(model.push(out.h[:, 1:]), model.scale).sum(-1))
    nn.init.normal_(model.gate.weight, std=0.5)
    nn.init.normal_(model.push[-1].weight, std=0.2)
    with torch.no_grad():
        many = model(x.expand(20_000, -1, -1), gen())
        start = start_kl(model, many.h)
        gamma = model.gate(many.h[:, 1:]).sigmoid()
        push, h, a, s = model.push(many.h[:, 1:]), model.step, 1 - gamma, (1 - (1 - gamma) ** 2).sqrt()
        z = many.z * model.width()
        met = many.v[:, :-1] - h / 2 * model.potential.gradient(z[:, :-1])
        after = many.v[:, 1:] + h / 2 * model.potential.gradient(z[:, 1:])
        q = torch.distributions.Normal(a * met + push, s)
        p = torch.distributions.Normal(model.decay * met, model.scale)
        ratio = (q.log_prob(after) - p.log_prob(after)).sum((1, 2))
        assert torch.allclose(many.kl - start, torch.distributions.kl_divergence(q, p).sum((1, 2)))
    difference = many.kl - start - ratio
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(20_000)
    assert float((many.kl - start).mean()) > 0.1


def test_prior_runs_free_and_settles():
    model = flow(bins=400, periods=(6, 20), friction=0.3)
    with torch.no_grad():
        z, v = model.prior(200, gen())
    assert z.shape == v.shape == (200, 400, 8)
    hessian = model.potential.hessian().detach()
    cloud = z[:, 100:].flatten(0, 1)
    units = model.width().detach()
    law = torch.linalg.inv(hessian) / torch.outer(units, units)
    assert torch.allclose(cloud.mT @ cloud / len(cloud), law, atol=0.1)
    assert float((z[:, 0] ** 2).mean()) == pytest.approx(1, abs=0.1)


# Ablations ----------------------------------------------------------------------------------------------------------


def test_ablations():
    model, x = flow(), counts()
    whole = model(x, gen())
    model.ablation = "zero"
    assert not model(x, gen()).z.any() and torch.equal(model(x, gen()).h, whole.h)
    model.ablation = "shuffle"
    shuffled = model(x, gen())
    by = next(k for k in range(1, 4) if torch.equal(whole.z.roll(k, 0), shuffled.z))
    pairs = [model(x[:2], gen(s)).z for s in range(20)]  # with two trials, always the other one
    model.ablation = None
    assert all(torch.equal(z, model(x[:2], gen(s)).z.flip(0)) for s, z in enumerate(pairs))
    assert torch.equal(whole.v.roll(by, 0), shuffled.v)
    model.ablation = "noise"
    fresh = torch.cat([model(x, gen(s)).z for s in range(200)])
    assert float(fresh.mean()) == pytest.approx(0, abs=0.02) and float(fresh.std()) == pytest.approx(1, abs=0.02)
    model.ablation = "frozen velocity"
    frozen = model(x, gen())
    assert bool((frozen.v == frozen.v[:, :1]).all())
    moved = (frozen.z[:, 5] - frozen.z[:, 4]) * model.width()
    assert torch.allclose(moved, frozen.v[:, 0], atol=1e-5)
    model.ablation = "no potential"
    free = model(x)
    assert torch.allclose(free.v[:, 1], 0.9 * free.v[:, 0], atol=1e-6)
    model.ablation = None
    assert torch.equal(model(x, gen()).log_rates, whole.log_rates)


# Rivals and prediction ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RIVALS)
def test_rivals_have_the_same_form_and_equal_size(kind):
    target = size(LangevinFlow(30, 40, 60))
    rival = match_parameters(lambda width: kind(30, 40, 60, dim=width), target)
    assert size(rival) == pytest.approx(target, rel=0.05)
    small = kind(6, 9, 12, dim=8).eval()
    out = small(counts(), gen())
    assert out.log_rates.shape == (4, 12, 9) and out.kl.shape == (4,)
    small.train()
    assert torch.equal(small(counts(), gen(3)).log_rates, small(counts(), gen(3)).log_rates)
    assert not torch.equal(small(counts(), gen(3)).log_rates, small(counts(), gen(4)).log_rates)


def test_matching_leaves_the_global_random_state_to_the_last_build():
    torch.manual_seed(0)
    alone = GRUVae(6, 9, 12, dim=20)
    torch.manual_seed(0)
    matched = match_parameters(lambda width: GRUVae(6, 9, 12, dim=width), size(alone))
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), matched.parameters(), strict=True))


def test_gru_vae_reads_both_ways_and_costs_its_code():
    torch.manual_seed(0)
    model = GRUVae(6, 9, 12).eval()
    seen = []
    model.back.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(counts())
    assert torch.equal(seen[0], counts().flip(1))
    for t in (0, 8):
        x = counts()
        other = x.clone()
        other[:, t] += 2
        assert not torch.equal(model(x).log_rates[:, 0], model(other).log_rates[:, 0])
    assert bool((model(counts()).kl > 0).all())


def test_geometric_mean_is_below_the_arithmetic_one():
    model, x = flow(), counts()
    arithmetic = predict(model, x, samples=5, generator=gen())
    geometric = predict(model, x, samples=5, generator=gen(), mean="geometric")
    assert bool((geometric <= arithmetic * (1 + 1e-6)).all()) and bool((geometric < arithmetic).any())
    one = [model(x, g).log_rates for g in [gen()] for _ in range(5)]
    assert torch.allclose(geometric, torch.stack(one).mean(0).exp(), atol=1e-6)
    assert torch.allclose(arithmetic, torch.stack(one).exp().mean(0), atol=1e-6)
    model.train()
    predict(model, x, generator=gen())
    assert model.training
