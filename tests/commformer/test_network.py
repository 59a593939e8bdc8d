"""The network: who can influence whom, one pass against one agent after another, limits, and the released numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gated.commformer import CommFormer, graph_from_indices, sample_graph, stored_gate

F64 = torch.float64
DECODERS = ("strict", "mat", "parallel")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(decoder="strict", agents=5, *, seed=0, **options) -> CommFormer:
    """With all weights of order one: at their starting values heads and messages hardly say anything."""
    net = CommFormer(agents, 7, 4, width=8, decoder=decoder, seed=seed, **options).double()
    draw = generator(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name != "edges":
                p += 0.5 * torch.randn(p.shape, generator=draw, dtype=F64)
    return net


def observations(*batch: int, agents: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(*batch, agents, 7, generator=generator(seed), dtype=F64)


def some_graph(agents: int = 5, k: int = 2, seed: int = 0, **options) -> torch.Tensor:
    edges = torch.randn(agents, agents, generator=generator(seed), dtype=F64)
    return sample_graph(edges, k, generator=None, **options)


def test_parameters_are_the_released_ones_less_two_that_are_never_used():
    net = CommFormer(5, 12, 5, width=64, decoder="mat")
    state_encoder = 2 * 37 + 37 * 64 + 64  # of a global state of 37 numbers that is always zero
    second_observation_encoder = 2 * 12 + 12 * 64 + 64  # in the decoder
    assert sum(p.numel() for p in net.parameters()) + state_encoder + second_observation_encoder == 125_229
    strict = CommFormer(5, 12, 5, width=64)
    assert sum(p.numel() for p in strict.parameters()) == sum(p.numel() for p in net.parameters())


def test_starting_values_follow_the_seed_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a, b, c = CommFormer(3, 7, 4, seed=5), CommFormer(3, 7, 4, seed=5), CommFormer(3, 7, 4, seed=6)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, p in a.state_dict().items():
        assert torch.equal(p, b.state_dict()[name])
    assert not torch.equal(a.edges, c.edges) and not torch.equal(a.embed[1].weight, c.embed[1].weight)
    hidden = a.heads.hidden.detach()
    assert torch.allclose(hidden @ hidden.mT, 2 * torch.eye(64).expand(3, -1, -1), atol=1e-5)  # orthogonal, root of 2
    assert a.listen.query.weight.std().item() == pytest.approx(0.02, rel=0.1)


# One after another ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_choosing_is_teacher_forcing(decoder, batch):
    net, o, graph = network(decoder), observations(*batch), some_graph()
    noise = torch.randn(*batch, 5, 4, generator=generator(1), dtype=F64)
    chosen = net(o, graph, noise=noise)
    forced = net(o, graph, chosen.action)
    again = net(o, graph, noise=noise, cached=False)
    assert torch.equal(chosen.action, (forced.logits + noise).argmax(-1))
    for other in (forced, again):
        assert torch.equal(chosen.action, other.action)
        assert torch.allclose(chosen.logits, other.logits, atol=1e-12)
        assert torch.equal(chosen.value, other.value)


def test_the_cache_holds_with_a_graph_for_each_input_and_with_a_gate():
    net, o = network("strict", receive_gate="straight_through"), observations(6)
    graph = sample_graph(torch.randn(6, 5, 5, generator=generator(), dtype=F64), 2, generator=None)
    with torch.no_grad():
        net.gate.decide.weight.mul_(100)
    chosen = net.act(o, graph, generator(3))
    assert 0 < chosen.receive.mean() < 1
    forced = net(o, graph, chosen.action, chosen.receive)
    assert torch.allclose(chosen.logits, forced.logits, atol=1e-12)
    assert torch.equal(chosen.receive, forced.receive)


@pytest.mark.parametrize("quirks", [False, True])
def test_the_released_decoder_chooses_as_it_is_trained(quirks):
    net, o = network("mat", paper_quirks=quirks), observations(4)
    graph = some_graph(self_edges=quirks)
    chosen = net.act(o, graph, generator(2))
    assert torch.allclose(chosen.logits, net(o, graph, chosen.action).logits, atol=1e-12)


def test_actions_are_drawn_by_their_probability():
    net, draws = network("parallel", agents=2), 40_000
    with torch.no_grad():
        net.heads.last.mul_(0.3)
    o = observations(1, agents=2).expand(draws, -1, -1)
    decision = net.act(o, graph_from_indices([[1], [0]]).double(), generator(4))
    p = decision.logits[0].softmax(-1)
    share = F.one_hot(decision.action, 4).double().mean(0)
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / draws).sqrt() + 1e-9).all()
    assert torch.allclose(decision.log_prob[0], p.log().gather(-1, decision.action[0, :, None]).squeeze(-1))
    assert torch.allclose(decision.entropy[0], -(p * p.log()).sum(-1))
    greedy = net.act(o[:1], graph_from_indices([[1], [0]]).double())
    assert torch.equal(greedy.action[0], p.argmax(-1))


# Who can influence whom ----------------------------------------------------------------------------------------------


def observation_reach(net: CommFormer, graph: torch.Tensor, of: str) -> torch.Tensor:
    """[i, j]: whether what agent i puts out depends on what agent j sees."""
    o = observations()
    action = torch.zeros(5, dtype=torch.long)
    jacobian = torch.autograd.functional.jacobian(lambda x: getattr(net(x, graph, action), of).reshape(5, -1), o)
    return (jacobian != 0).any(-1).any(1)


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_an_observation_crosses_edges_and_nothing_else(seed, k):
    graph = some_graph(k=k, seed=seed)
    expected = (graph + torch.eye(5)) > 0
    net = network("strict")
    assert torch.equal(observation_reach(net, graph, "value"), expected)
    assert torch.equal(observation_reach(net, graph, "logits"), expected)


def test_one_edge_reaches_one_agent():
    graph = graph_from_indices([[3], [], [], [], []]).double()
    reach = observation_reach(network("parallel"), graph, "logits")
    assert torch.equal(reach, (graph + torch.eye(5)) > 0)


def test_an_agent_that_does_not_listen_hears_nobody():
    graph, net = some_graph(k=3), network("strict")
    z = torch.tensor([1.0, 0, 1, 0, 1], dtype=F64)
    o, action = observations(), torch.zeros(5, dtype=torch.long)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, graph, action, z).value[:, None], o)
    assert torch.equal((jacobian != 0).any(-1).any(1), (graph * z[:, None] + torch.eye(5)) > 0)


def action_reach(net: CommFormer, graph: torch.Tensor) -> torch.Tensor:
    """[i, j]: whether the logits of agent i change with the action of agent j."""
    o, action = observations(), torch.zeros(5, dtype=torch.long)
    base = net(o, graph, action).logits
    reach = torch.zeros(5, 5, dtype=torch.bool)
    for j in range(5):
        other = action.clone()
        other[j] = 2
        reach[:, j] = (net(o, graph, other).logits != base).any(-1)
    return reach


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_strict_actions_cross_edges_from_earlier_agents(seed, k):
    graph = some_graph(k=k, seed=seed)
    assert torch.equal(action_reach(network("strict"), graph), graph.tril(-1) > 0)
    assert not action_reach(network("parallel"), graph).any()


@pytest.mark.parametrize("quirks", [False, True])
def test_mat_leaks_the_action_of_the_agent_before(quirks):
    net = network("mat", paper_quirks=quirks)
    nobody = torch.zeros(5, 5, dtype=F64)
    assert torch.equal(action_reach(net, nobody), torch.ones(5, 5).tril(-1).triu(-1) > 0)
    one = nobody.clone()
    one[4, 2] = 1  # 4 hears 2, so it hears token 2, which carries the action of 1
    expected = torch.ones(5, 5).tril(-1).triu(-1) > 0
    expected[4, 1] = True
    assert torch.equal(action_reach(net, one), expected)


def test_without_edges_a_strict_team_is_agents_that_act_alone():
    net, o = network("strict"), observations(4)
    nobody = torch.zeros(5, 5, dtype=F64)
    together = net.act(o, nobody)
    for i in range(5):
        others = observations(4, seed=9)
        others[:, i] = o[:, i]
        alone = net.act(others, nobody)
        assert torch.equal(alone.logits[:, i], together.logits[:, i])
        assert torch.equal(alone.value[:, i], together.value[:, i])


# Limits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["strict", "parallel"])
def test_shut_gates_are_no_graph_bit_for_bit(decoder):
    net, o, graph = network(decoder), observations(3), some_graph(k=4)
    action = torch.randint(4, (3, 5), generator=generator(1))
    shut = net(o, graph, action, torch.zeros(3, 5, dtype=F64))
    none = net(o, torch.zeros(5, 5, dtype=F64), action)
    assert torch.equal(shut.logits, none.logits) and torch.equal(shut.value, none.value)


@pytest.mark.parametrize("estimator", ["straight_through", "score"])
def test_open_gates_are_the_network_without_gates_bit_for_bit(estimator):
    with_gate = network("strict", receive_gate=estimator)
    without = network("strict")
    without.load_state_dict({n: p for n, p in with_gate.state_dict().items() if not n.startswith("gate.")})
    o, graph = observations(3), some_graph()
    action = torch.randint(4, (3, 5), generator=generator(1))
    open_, plain = with_gate(o, graph, action, torch.ones(3, 5, dtype=F64)), without(o, graph, action)
    assert torch.equal(open_.logits, plain.logits) and torch.equal(open_.value, plain.value)
    assert (plain.receive == 1).all() and (plain.gate_logit == torch.inf).all()


def test_all_edges_and_silent_kinds_are_a_plain_transformer():
    net, o = network("parallel"), observations(3)
    with torch.no_grad():
        for p in (net.listen.relation.weight, net.listen.relation.bias):
            p.zero_()
    x = net.embed(o)
    heard = net.listen.out(F.scaled_dot_product_attention(net.listen.query(x), net.listen.key(x), net.listen.value(x)))
    x = net.norms[0](x + heard)
    expected = net.norms[1](x + net.feed(x))
    assert torch.allclose(net.encode(o, 1 - torch.eye(5, dtype=F64)), expected, atol=1e-13)


def test_relabelled_agents_do_the_same():
    net, o, graph = network("parallel"), observations(4), some_graph()
    order = torch.tensor([3, 0, 4, 2, 1])
    relabelled = network("parallel")
    with torch.no_grad():
        for name in ("hidden", "hidden_bias", "last", "last_bias"):
            p = getattr(relabelled.heads, name)
            p.copy_(p[order])
        for name in ("scale", "shift"):
            p = getattr(relabelled.heads, name)
            p.copy_(p[:, order])
    ours, theirs = net(o, graph), relabelled(o[:, order], graph[order][:, order])
    assert torch.allclose(ours.logits[:, order], theirs.logits, atol=1e-13)
    assert torch.allclose(ours.value[:, order], theirs.value, atol=1e-13)
    assert torch.equal(ours.action[:, order], theirs.action)


def test_layer_norm_hides_an_offset_common_to_all_inputs():
    net, o, graph = network(), observations(3), some_graph()
    assert torch.allclose(net(o, graph).logits, net(o + 5, graph).logits, atol=1e-9)


# The receive gate ----------------------------------------------------------------------------------------------------


def test_the_gate_opens_by_its_own_observation_with_its_probability():
    net = network("strict", receive_gate="straight_through")
    with torch.no_grad():
        net.gate.decide.weight.mul_(3)
        net.gate.decide.bias[0] = 0.0
    o = observations().expand(20_000, -1, -1)
    decision = net.act(o, some_graph(), generator(6))
    p = decision.gate_logit[0].sigmoid()
    assert p.min() < 0.45 and p.max() > 0.55
    assert ((decision.receive.mean(0) - p).abs() < 4.5 * (p * (1 - p) / len(o)).sqrt()).all()
    assert torch.equal(net(o[:1], some_graph()).receive[0], (p > 0.5).double())
    other = o[:1].clone()
    other[:, 1:] += 1
    assert torch.equal(net.gate(other)[0][:, 0], net.gate(o[:1])[0][:, 0])


def test_it_starts_open():
    logit, baseline = CommFormer(5, 7, 4, receive_gate="score").gate(torch.randn(100, 5, 7, generator=generator()))
    assert (logit - 2).abs().max() < 0.2 and baseline.abs().max() < 0.2


def test_a_stored_sample_keeps_its_value_and_takes_the_slope():
    logit = torch.tensor([-1.0, 0.3, 2.0], dtype=F64, requires_grad=True)
    stored = torch.tensor([1.0, 0.0, 1.0], dtype=F64)
    z = stored_gate(logit, stored, temperature=0.5)
    assert torch.equal(z.detach(), stored)
    p = (logit.detach() / 0.5).sigmoid()
    assert torch.allclose(torch.autograd.grad(z.sum(), logit)[0], p * (1 - p) / 0.5)


@pytest.mark.parametrize(("estimator", "credited"), [("masked", False), ("normalised", True)])
def test_whether_a_shut_gate_learns_what_it_misses(estimator, credited):
    net = network("parallel", receive_gate="straight_through", estimator=estimator)
    o, shut = observations(2), torch.zeros(2, 5, dtype=F64)
    net(o, some_graph(), receive=shut).value.sum().backward()
    slope = net.gate.decide.weight.grad[0].abs().sum().item()
    assert (slope > 1e-6) == credited


def test_with_the_score_estimator_no_slope_goes_through_the_sample():
    net = network("parallel", receive_gate="score", estimator="normalised")
    decision = net(observations(2), some_graph(), receive=torch.ones(2, 5, dtype=F64))
    slopes = torch.autograd.grad(decision.value.sum(), net.gate.decide.weight, allow_unused=True)
    assert slopes[0] is None or (slopes[0] == 0).all()


# As released: written again from the equations -----------------------------------------------------------------------


def norm(x, layer):
    mean = x.mean()
    return (x - mean) / (((x - mean) ** 2).mean() + layer.eps).sqrt() * layer.weight + layer.bias


def affine(x, layer):
    return layer.weight @ x + (0 if layer.bias is None else layer.bias)


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attend(layer, queries, keys, kinds, graph, causal):
    """Receiver i, sender j; the relation of a pair is made for that pair alone."""
    out, width = [], len(queries[0])
    for i in range(5):
        scores, factors, values = [], [], []
        for j in range(i + 1 if causal else 5):
            factor = graph[i, j] + (i == j)
            if factor == 0:
                continue
            relation = affine(kinds[int(graph[j, i])], layer.relation)
            q = affine(queries[i], layer.query) + relation[:width]
            k = affine(keys[j], layer.key) + relation[width:]
            scores.append(q @ k / math.sqrt(width) / math.sqrt(width))
            factors.append(factor)
            values.append(affine(keys[j], layer.value))
        p = torch.stack(scores).exp()
        p = p / p.sum()
        out.append(affine(sum(p[n] * factors[n] * values[n] for n in range(len(values))), layer.out))
    return out


def released(net, o, graph, action):
    x = [norm(gelu(affine(norm(o[i], net.embed[0]), net.embed[1])), net.embed[3]) for i in range(5)]
    heard = attend(net.listen, x, x, net.kinds, graph, causal=False)
    x = [norm(a + b, net.norms[0]) for a, b in zip(x, heard, strict=True)]
    rep = [norm(a + affine(affine(a, net.feed[0]).clamp(min=0), net.feed[2]), net.norms[1]) for a in x]
    value = [affine(norm(gelu(affine(r, net.critic[0])), net.critic[2]), net.critic[3])[0] for r in rep]
    told = [net.actions, *action[:-1].tolist()]
    x = [norm(gelu(net.token[0].weight[:, t]), net.token[2]) for t in told]
    for layer, query, n in ((net.recall, None, 0), (net.consult, rep, 1)):
        heard = attend(layer, query or x, x, net.kinds, graph, causal=True)
        x = [norm(a + b, net.decoder_norms[n]) for a, b in zip(query or x, heard, strict=True)]
    f = net.decoder_feed
    x = [norm(a + affine(gelu(affine(a, f[0])), f[2]), net.decoder_norms[2]) for a in x]
    logits = []
    for i, a in enumerate(x):
        h = net.heads
        for n, (w, b) in enumerate(((h.hidden[i], h.hidden_bias[i]), (h.last[i], h.last_bias[i]))):
            a = (a - a.mean()) / (((a - a.mean()) ** 2).mean() + 1e-5).sqrt() * h.scale[n, i] + h.shift[n, i]
            a = a @ w + b
            a = gelu(a) if n == 0 else a
        logits.append(a)
    return torch.stack(logits), torch.stack(value)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_released_network_is_its_equations(k):
    net, o = network("mat", paper_quirks=True), observations(3)
    graph = some_graph(k=k, seed=2, self_edges=True)
    assert graph.diagonal().sum() > 0
    action = torch.randint(4, (3, 5), generator=generator(3))
    ours = net(o, graph, action)
    for b in range(3):
        logits, value = released(net, o[b], graph, action[b])
        assert torch.allclose(ours.logits[b], logits, atol=1e-12)
        assert torch.allclose(ours.value[b], value, atol=1e-12)
    plain = network("mat")
    assert (plain(o, graph, action).logits - ours.logits).abs().max() > 1e-3
