"""Every router: what all promise, and each against `gated.gates`, a closed form or a loop."""

import math

import pytest
import torch

from gated import gates as g
from gated.moe import gates as m

D, N = 6, 5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def linear(zero=False):
    return m.LinearScore(D, N, zero=zero)


SCORES = {
    "linear": linear,
    "cosine": lambda: m.CosineScore(D, N, projection=4),
    "cosine, perturbed": lambda: m.CosineScore(D, N, perturbation=(0.3, 0.2)),
    "gaussian, spherical": lambda: m.GaussianScore(D, N, covariance="spherical"),
    "gaussian, diagonal": lambda: m.GaussianScore(D, N),
    "gaussian, full": lambda: m.GaussianScore(D, N, covariance="full"),
    "student": lambda: m.StudentTScore(D, N, 2.5, covariance="full"),
    "laplace": lambda: m.LaplaceScore(D, N, 0.5),
}
LEARNED = {
    "top-k": lambda: m.TopKGate(linear(), 2),
    "top-k, all": lambda: m.TopKGate(linear(), N),
    "softmax, top-1": lambda: m.SoftmaxTopKGate(linear(), 1),
    "softmax, top-k, noise": lambda: m.SoftmaxTopKGate(linear(), 2, renormalise=True, noise_std=1 / N),
    "noisy top-k": lambda: m.NoisyTopKGate(D, N, 2),
    "probit": lambda: m.ProbitGate(linear(), noise_std=0.7),
    "top-p": lambda: m.TopPGate(linear(), 0.4),
    "dense to sparse": lambda: m.DenseToSparseGate(linear(), g.linear_schedule(2.0, 0.3, 10), 0.12),
    "biased sigmoid": lambda: m.BiasedSigmoidGate(linear(), 2, scale=2.5),
    "expert choice": lambda: m.ExpertChoiceGate(linear(), capacity_factor=1.5),
} | {f"soft, {name}": lambda score=score: m.SoftGate(score(), temperature=0.8) for name, score in SCORES.items()}
FIXED = {
    "hash": lambda: m.HashGate(N, 2, seed=3),
    "random": lambda: m.RandomGate(N, 2),
    "oracle": lambda: m.OracleGate(N),
}
SUM_ONE = ["top-k", "top-k, all", "softmax, top-k, noise", "noisy top-k", "probit", "hash", "random", "oracle"]
SUM_ONE += [name for name in LEARNED if name.startswith("soft, ")]


def build(make, dtype=torch.float64):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return make().to(dtype)


def signal(name, tokens=11, dtype=torch.float64):
    ids = torch.randint(0, N, (tokens,), generator=rng(4))
    return ids if name in ("hash", "oracle") else normal(tokens, D, seed=1, dtype=dtype)


def by_name(gates):
    return pytest.mark.parametrize("name", gates)


ALL = LEARNED | FIXED


@by_name(ALL)
def test_a_routing_is_valid(name):
    routing = build(ALL[name])(signal(name), generator=rng())
    weights, experts = routing.weights, routing.experts
    assert weights.shape == experts.shape
    assert experts.dtype == torch.int64
    assert routing.num_experts == N
    assert experts.min() >= -1
    assert experts.max() < N
    assert (weights[experts < 0] == 0).all()
    assert (weights >= 0).all()
    for row in experts.tolist():
        taken = [e for e in row if e >= 0]
        assert len(set(taken)) == len(taken)
    if name in SUM_ONE:
        torch.testing.assert_close(weights.sum(-1).double(), torch.ones(11).double())
    assert routing.probability.shape == (11, N)
    if name in LEARNED:
        assert routing.logits.shape == (11, N)


@by_name(ALL)
def test_a_mask_is_obeyed(name):
    mask = torch.rand(11, N, generator=rng(2)) < 0.5
    mask[torch.arange(11), signal("oracle")] = True
    dense = build(ALL[name])(signal(name), mask, rng()).dense()
    assert (dense[~mask] == 0).all()
    assert (dense != 0).any(-1).sum() >= (1 if name == "expert choice" else 11)
    free = build(ALL[name])(signal(name), torch.ones_like(mask), rng()).dense()
    assert torch.equal(free, build(ALL[name])(signal(name), None, rng()).dense())


@by_name(ALL)
def test_a_mask_that_leaves_one_expert_decides(name):
    only = torch.arange(11) % N
    x = only if name in ("hash", "oracle") else signal(name)
    routing = build(ALL[name])(x, torch.nn.functional.one_hot(only, N).bool(), rng())
    dense = routing.dense()
    if name != "expert choice":  # there a token may be left out
        assert torch.equal(dense.argmax(-1), only)
    scale = 2.5 if name == "biased sigmoid" else 1
    assert ((dense == 0) | (dense - scale).abs().lt(1e-6)).all()


@by_name(ALL)
def test_no_tokens(name):
    routing = build(ALL[name])(signal(name)[:0], generator=rng())
    assert routing.weights.shape[0] == 0
    assert routing.dense().shape == (0, N)


@by_name(LEARNED)
def test_noise_is_for_training_and_from_the_generator(name):
    gate, x, state = build(LEARNED[name]), signal(name, 300), torch.get_rng_state()
    quiet = gate(x).dense()
    noisy = [gate(x, generator=rng(seed)).dense() for seed in (0, 0, 1)]
    assert torch.equal(noisy[0], noisy[1])
    assert torch.equal(noisy[0], quiet) == (name not in ("softmax, top-k, noise", "noisy top-k", "dense to sparse"))
    assert torch.equal(noisy[0], noisy[2]) == torch.equal(noisy[0], quiet)
    assert torch.equal(gate.eval()(x, generator=rng()).dense(), quiet)
    assert torch.equal(torch.get_rng_state(), state)


@by_name(LEARNED)
def test_the_router_stays_in_single_precision_under_autocast(name):
    gate, x = build(LEARNED[name], torch.float32), signal(name, dtype=torch.float32)
    plain = gate(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = gate(x)
    assert cast.logits.dtype == torch.float32
    assert torch.equal(cast.logits, plain.logits)
    assert torch.equal(cast.dense(), plain.dense())
    half = gate.bfloat16()(x.bfloat16())
    assert half.logits.dtype == torch.float32
    assert half.weights.dtype == torch.bfloat16


@by_name([name for name in LEARNED if name not in ("top-k, all",)])
def test_every_parameter_learns(name):
    gate = build(LEARNED[name])
    routing = gate(signal(name, 40), generator=rng())
    (routing.dense() * normal(40, N, seed=3)).sum().backward()
    for path, parameter in gate.named_parameters():
        if parameter.numel() and "lower" not in path:
            assert (parameter.grad != 0).any(), path


@by_name(SCORES)
def test_every_score_with_every_selection_of_k(name):
    for gate in (m.TopKGate(build(SCORES[name]), 2), m.SoftmaxTopKGate(build(SCORES[name]), 2, renormalise=True)):
        torch.testing.assert_close(gate(signal(name)).weights.sum(-1), torch.ones(11).double())
        assert gate(signal(name)).weights.shape == (11, 2)


def test_top_1_after_the_softmax_learns_and_before_it_does_not():
    x, target = signal(""), normal(11, N, seed=9)
    for make, learns in ((m.TopKGate, False), (m.SoftmaxTopKGate, True)):
        gate = make(build(linear), 1)
        routing = gate(x)
        (routing.dense() * target).sum().backward()
        grad = gate.score.weight.grad
        assert (grad is not None and bool((grad.abs() > 1e-12).any())) == learns
        assert torch.equal(routing.weights, torch.ones(11, 1).double()) != learns


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_temperature_divides_the_logits_of_top_k(temperature):
    x, score = signal(""), build(linear)
    logits = x @ score.weight.T
    for gate, expected in (
        (m.TopKGate(score, 2, temperature=temperature), g.topk_gate(logits, 2, temperature)),
        (m.SoftmaxTopKGate(score, 2, temperature=temperature), g.softmax_topk_gate(logits, 2, temperature)),
    ):
        torch.testing.assert_close(gate(x).dense(), expected)
        torch.testing.assert_close(gate(x).probability, (logits / temperature).softmax(-1))


def test_renormalised_g1b_is_g1a_and_k_n_is_dense():
    x, score = signal(""), build(linear)
    a, b = m.TopKGate(score, 2)(x), m.SoftmaxTopKGate(score, 2, renormalise=True)(x)
    torch.testing.assert_close(a.dense(), b.dense())
    torch.testing.assert_close(m.TopKGate(score, N)(x).dense(), (x @ score.weight.T).softmax(-1))
    cold = m.SoftGate(score, temperature=1e-6)(x).dense()
    torch.testing.assert_close(cold, torch.nn.functional.one_hot((x @ score.weight.T).argmax(-1), N).double())
    hot = m.SoftGate(score, temperature=1e9)(x).dense()
    torch.testing.assert_close(hot, torch.full_like(hot, 1 / N))


def test_selections_are_those_of_gated_gates():
    x, score = signal(""), build(linear)
    logits = x @ score.weight.T
    for gate, expected in {
        m.TopPGate(score, 0.4): g.top_p_gate(logits, 0.4),
        m.ProbitGate(score, noise_std=0.5): g.probit_gate(logits, 0.5),
        m.ExpertChoiceGate(score, capacity_factor=1.2): g.expert_choice_gate(logits, math.ceil(1.2 * 11 / N)),
        m.BiasedSigmoidGate(score, 2): g.biased_sigmoid_gate(logits, torch.zeros(N).double(), 2),
    }.items():
        torch.testing.assert_close(gate.double()(x).dense(), expected)
        torch.testing.assert_close(gate(x).logits, logits)


def test_expert_choice_loads_are_equal():
    assert m.ExpertChoiceGate(build(linear), capacity_factor=1.0)(signal("", 40)).load().tolist() == [8] * N
    assert m.ExpertChoiceGate(build(linear), capacity_factor=9.0)(signal("", 4)).load().tolist() == [4] * N


def test_noisy_gate_is_that_of_gated_gates():
    ours, theirs = build(lambda: m.NoisyTopKGate(D, N, 2)), g.NoisyTopKGate(D, N, 2).double()
    x = signal("")
    for mine, other in ((ours.score.weight, theirs.gate_weight), (ours.noise.weight, theirs.noise_weight)):
        torch.nn.init.normal_(mine, generator=rng(5))
        other.data = mine.data.T.clone()
    routing = ours(x, generator=rng(6))
    weights, probability = theirs(x, rng(6))
    torch.testing.assert_close(routing.dense(), weights)
    torch.testing.assert_close(routing.probability, probability)
    torch.testing.assert_close(ours.eval()(x).dense(), theirs.eval()(x)[0])


def test_cosine_score_ignores_length_clamps_its_scale_and_learns_below_the_clamp():
    score, x = build(lambda: m.CosineScore(D, N, projection=4)), signal("")
    torch.testing.assert_close(score(10 * x), score(x), rtol=1e-12, atol=1e-12)
    score.log_scale.data.fill_(math.log(1000))
    assert score(x).abs().max() <= 100
    unit = score(x) / 100
    score.log_scale.data.fill_(math.log(50))
    torch.testing.assert_close(score(x), 50 * unit)
    perturbed = build(SCORES["cosine, perturbed"])
    assert not torch.allclose(perturbed(10 * x), perturbed(x))


def test_gaussian_score_is_a_density():
    for name in ("gaussian, spherical", "gaussian, diagonal", "gaussian, full", "student"):
        score, x = build(SCORES[name]), signal("")
        if score.lower is not None:
            torch.nn.init.normal_(score.lower, generator=rng(1))
        scale, prior = score.scale(), score.prior.log_softmax(0)
        if name == "student":
            expected = g.student_t_logits(x, score.mean, scale, 2.5, prior)
        else:
            expected = g.gaussian_logits(x, score.mean, scale, prior)
        torch.testing.assert_close(score(x), expected)
        score.log_std.data.fill_(-50)
        assert score(x).isfinite().all()


def test_prediction_error_gate_is_a_gaussian_posterior():
    truth, guesses = normal(7, 3), normal(7, N, 3, seed=1)
    squares = (guesses - truth[:, None]).square().sum(-1)
    weights = m.SoftGate(m.PredictionErrorScore(N, 0.6))(squares).dense()
    density = torch.distributions.Normal(guesses, 0.6).log_prob(truth[:, None]).sum(-1)
    torch.testing.assert_close(weights, density.softmax(-1))


def test_dense_to_sparse_cools():
    gate, x = build(LEARNED["dense to sparse"]).eval(), signal("", 200)
    before = int(gate(x).load().sum())
    for _ in range(10):
        gate.advance()
    assert int(gate(x).load().sum()) < before
    expected = g.dense_to_sparse_gate(x @ gate.score.weight.T, 0.12, 0.3, generator=None)
    torch.testing.assert_close(gate(x).dense(), expected)


def test_bias_update_balances_and_equal_scores_take_turns():
    gate, x = m.BiasedSigmoidGate(build(linear), 1, rate=2e-3), normal(400, D, seed=3)
    x[:, 0], gate.score.weight.data[1, 0] = 1, 2.0  # expert 1 is everybody's favourite
    start = g.coefficient_of_variation(gate(x).load().double())
    assert start > 1
    for _ in range(400):
        gate.update(gate(x).load())
    assert g.coefficient_of_variation(gate(x).load().double()) < 0.1
    constant = m.BiasedSigmoidGate(m.LinearScore(1, 2, zero=True), 1)
    chosen = []
    for _ in range(6):
        load = constant(torch.ones(10, 1)).load()
        chosen.append(int(load.argmax()))
        constant.update(load)
    assert chosen == [0, 1, 0, 1, 0, 1]
    assert not [name for name, _ in gate.named_parameters() if "bias" in name]


def test_group_limited_selection_by_a_loop():
    gate = m.BiasedSigmoidGate(m.LinearScore(D, 8), 3, groups=4, keep_groups=2).double()
    gate.selection.bias.copy_(normal(8, seed=2) * 0.3)
    x = normal(30, D)
    dense = gate(x).dense()
    score = (x @ gate.score.weight.T).sigmoid()
    for t in range(30):
        biased = (score[t] + gate.selection.bias).tolist()
        groups = sorted(range(4), key=lambda j: -sum(biased[2 * j : 2 * j + 2]))[:2]
        allowed = [i for j in groups for i in (2 * j, 2 * j + 1)]
        kept = sorted(allowed, key=lambda i: -biased[i])[:3]
        expected = torch.zeros(8).double()
        expected[kept] = score[t, kept] / score[t, kept].sum()
        torch.testing.assert_close(dense[t], expected)
    masked = gate(x, torch.tensor([[True, False, False, False, True, True, False, False]]).expand(30, 8)).dense()
    assert ((masked != 0).sum(-1) == 3).all()


def test_soft_moe_slots():
    gate = m.SoftMoEGate(D, 3, slots=2).double()
    x = normal(7, D)
    slots = gate(x)
    assert slots.dispatch.shape == slots.combine.shape == (7, 3, 2)
    torch.testing.assert_close(slots.dispatch.sum(0), torch.ones(3, 2).double())
    torch.testing.assert_close(slots.combine.sum((1, 2)), torch.ones(7).double())
    unit = torch.nn.functional.normalize
    logits = gate.scale * unit(x, dim=-1) @ unit(gate.phi, dim=-1).T
    torch.testing.assert_close(slots.dispatch, logits.softmax(0).reshape(7, 3, 2))
    torch.testing.assert_close(slots.combine, logits.softmax(1).reshape(7, 3, 2))
    order = torch.randperm(7, generator=rng())
    torch.testing.assert_close(gate(x[order]).dispatch, slots.dispatch[order])
    mask = torch.tensor([[True, False, True]]).expand(7, 3)
    masked = gate(x, mask)
    assert (masked.dispatch[:, 1] == 0).all()
    assert (masked.combine[:, 1] == 0).all()
    torch.testing.assert_close(masked.combine.sum((1, 2)), torch.ones(7).double())
    with torch.autocast("cpu", torch.bfloat16):
        assert gate.float()(x.float()).dispatch.dtype == torch.float32
    assert gate(x.float()[:0]).dispatch.shape == (0, 3, 2)


def test_state_dicts_round_trip():
    for name, make in LEARNED.items():
        gate, other = build(make), make().double()
        other.load_state_dict(gate.state_dict())
        assert torch.equal(gate(signal(name)).dense(), other(signal(name)).dense())


def test_the_table_names_every_gate():
    for name, thing in vars(m).items():
        if isinstance(thing, type) and issubclass(thing, torch.nn.Module) and thing.__module__.startswith("gated.moe"):
            assert f"`{name}" in m.__doc__, name
            assert thing.__doc__
