"""The wiring of look-ahead gates, against a mixture written out by hand, and against what must not change."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from gated.pregated.model import PreGatedDecoder, balance_loss, rewire, router_z_loss

DEPTHS = [0, 1, 2, 3]


def build(seed=0, **changes):
    sizes = {"vocab": 13, "dim": 8, "hidden": 12, "blocks": 4, "num_experts": 4, "look_ahead": 0, "heads": 2}
    return PreGatedDecoder(**(sizes | {"context": 9} | changes), generator=torch.Generator().manual_seed(seed))


def text(seed=1, batch=3, time=7, vocab=13):
    return torch.randint(vocab, (batch, time), generator=torch.Generator().manual_seed(seed))


def by_hand(model, tokens, look_ahead=0):
    """The model's docstring, a token and an expert at a time; conventional for look_ahead 0."""
    x = model.tokens.weight[tokens] + model.positions.weight[: tokens.shape[1]]
    signals = []
    for b, layer in enumerate(model.layers):
        x = x + attention_by_hand(layer.attention, layer.attention_norm(x))
        h = layer.norm(x)
        signals.append(h)
        if look_ahead == 0 or b < look_ahead:
            p = (h @ layer.own.weight.T).softmax(-1)
        else:
            p = (signals[b - look_ahead] @ model.layers[b - look_ahead].ahead.weight.T).softmax(-1)
        y = torch.zeros_like(x)
        for n, t in itertools.product(*map(range, tokens.shape)):
            for i in p[n, t].topk(model.k).indices.tolist():
                hidden = F.relu(h[n, t] @ layer.experts.w_in[i])
                y[n, t] += p[n, t, i] * (hidden @ layer.experts.w_out[i])
        x = x + y
        for dense in layer.between:
            x = x + attention_by_hand(dense.attention, dense.attention_norm(x))
            x = x + F.relu(dense.norm(x) @ dense.w_in.weight.T) @ dense.w_out.weight.T
    return model.norm(x) @ model.head.weight.T


def attention_by_hand(attention, x):
    q, k, v = (y.unflatten(-1, (attention.heads, -1)) for y in (x @ attention.qkv.weight.T).chunk(3, -1))
    scores = torch.einsum("nthd,nshd->nhts", q, k) / q.shape[-1] ** 0.5
    future = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("nhts,nshd->nthd", weights, v).flatten(2) @ attention.out.weight.T


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("look_ahead", DEPTHS)
def test_the_model_is_its_equations(look_ahead, k):
    model = build(k=k, look_ahead=look_ahead, between=1).double()
    tokens = text()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, by_hand(model, tokens, look_ahead))


@pytest.mark.parametrize("look_ahead", DEPTHS)
def test_every_gate_learns_and_their_number_stays(look_ahead):
    model = rewire(build(), look_ahead)
    output = model(text())
    (output.logits.logsumexp(-1).mean() + 0.01 * balance_loss(output.routes)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    gates = {name: p for name, p in model.named_parameters() if ".own." in name or ".ahead." in name}
    assert all(p.grad.abs().max() > 0 for p in gates.values())
    assert len(gates) == 4
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in build().parameters())
    own = [j for j, layer in enumerate(model.layers) if layer.own is not None]
    ahead = [j for j, layer in enumerate(model.layers) if layer.ahead is not None]
    assert own == list(range(look_ahead or 4))
    assert ahead == (list(range(4 - look_ahead)) if look_ahead else [])


def test_first_layer_has_two_gates_and_the_last_none():
    model = rewire(build(), 1)
    assert model.layers[0].own is not None and model.layers[0].ahead is not None
    assert model.layers[3].own is None and model.layers[3].ahead is None


def test_rewiring_takes_the_weights_and_shares_no_memory():
    old = build()
    for look_ahead, init in itertools.product(DEPTHS, ("serve", "old", "random")):
        before = copy.deepcopy(old.state_dict())
        new = rewire(old, look_ahead, init, generator=torch.Generator().manual_seed(3))
        for name, weight in new.named_parameters():
            if ".own." not in name and ".ahead." not in name:
                torch.testing.assert_close(weight, before[name], rtol=0, atol=0)
        for b in range(4):
            weight = new.gate_of(b).weight
            serve, lives_in = before[f"layers.{b}.own.weight"], before[f"layers.{max(b - look_ahead, 0)}.own.weight"]
            if b < look_ahead or look_ahead == 0 or init == "serve":
                assert torch.equal(weight, serve)
            elif init == "old":
                assert torch.equal(weight, lives_in)
            else:
                assert not torch.equal(weight, serve) and not torch.equal(weight, lives_in)
        with torch.no_grad():
            for weight in new.parameters():
                weight.add_(1.0)
        assert all(torch.equal(weight, before[name]) for name, weight in old.state_dict().items())
        pointers = [p.data_ptr() for p in new.parameters()]
        assert len(set(pointers)) == len(pointers)


def test_one_expert_makes_all_depths_the_same_dense_model():
    model = build(num_experts=1)
    outputs = [rewire(model, look_ahead)(text()).logits for look_ahead in DEPTHS]
    for output in outputs[1:]:
        assert torch.equal(output, outputs[0])
    assert torch.equal(by_hand(model, text()).argmax(-1), outputs[0].argmax(-1))


def test_constant_gates_fix_the_routing():
    model = rewire(build(), 2)
    with torch.no_grad():
        for b in range(4):
            model.gate_of(b).weight.fill_(0.3)
    one, two = model(text(1)), model(text(2))
    for a, b in zip(one.routes, two.routes, strict=True):
        assert torch.equal(a.experts, b.experts) and (a.experts == 0).all()
        torch.testing.assert_close(a.weights, torch.full_like(a.weights, 0.25))


@pytest.mark.parametrize("look_ahead", [1, 2, 3])
def test_equal_signals_make_the_moved_gate_the_conventional_one(look_ahead):
    """Nothing is added before the last layer, so every h_b is the same and P_{b-N} = R_b chooses as R_b does."""
    model = build()
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.out.weight.zero_()
        for layer in model.layers[:-1]:
            layer.experts.w_out.zero_()
    conventional, moved = model(text()), rewire(model, look_ahead)(text())
    assert torch.equal(conventional.logits, moved.logits)
    for a, b in zip(conventional.routes, moved.routes, strict=True):
        assert torch.equal(a.experts, b.experts) and torch.equal(a.weights, b.weights)
    other = rewire(model, look_ahead, "old")(text())
    assert not torch.equal(conventional.logits, other.logits)


@pytest.mark.parametrize("look_ahead", [0, 1])
def test_gradients_reach_the_early_gate_through_the_scale(look_ahead):
    model = build(blocks=2, dim=4, hidden=3, num_experts=3, vocab=5, look_ahead=look_ahead, k=1).double()
    tokens = text(vocab=5, batch=1, time=3)
    names = [name for name, _ in model.named_parameters()]

    def loss(*weights):
        output = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (tokens,))
        return output.logits.log_softmax(-1)[..., 0].sum() + balance_loss(output.routes)

    weights = [p.detach().clone().requires_grad_() for p in model.parameters()]
    # a choice that flips within the step would break the finite difference: the logits must stand apart
    gaps = [(r.logits.topk(2).values @ torch.tensor([1.0, -1.0]).double()).min() for r in model(tokens).routes]
    assert min(gaps) > 1e-3
    assert torch.autograd.gradcheck(loss, weights, eps=1e-6, atol=1e-7)
    if look_ahead:
        (gradient,) = torch.autograd.grad(loss(*weights), weights[names.index("layers.0.ahead.weight")])
        assert gradient.abs().max() > 1e-4


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("look_ahead", DEPTHS)
def test_without_the_scale_no_gradient_reaches_a_gate(look_ahead, k):
    """p detached where layer b is weighed: dL/dP for its gate is 0, wherever it lives, and for no other gate."""
    for b in range(4):
        model = rewire(build(k=k), look_ahead)

        def detach(_, arguments):
            h, route = arguments
            return h, route._replace(weights=route.weights.detach())

        hook = model.layers[b].experts.register_forward_pre_hook(detach)
        model(text()).logits.log_softmax(-1)[..., 0].sum().backward()
        hook.remove()
        gradients = [model.gate_of(i).weight.grad for i in range(4)]
        assert gradients[b] is None or not gradients[b].any()
        assert all(gradients[i].abs().max() > 0 for i in range(4) if i != b)


@pytest.mark.parametrize("look_ahead", DEPTHS)
def test_the_future_does_not_change_the_past(look_ahead):
    model, tokens = build(look_ahead=look_ahead, k=2, between=1), text()
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 13
    before, after = model(tokens).logits, model(changed).logits
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax() > 1e-3


@pytest.mark.parametrize("router", ["gate", "hash"])
@pytest.mark.parametrize("look_ahead", DEPTHS)
def test_a_token_at_a_time_equals_all_at_once(look_ahead, router):
    if router == "hash" and look_ahead:
        look_ahead = 0
    model, tokens = build(look_ahead=look_ahead, k=2, between=2, router=router), text()
    whole = model(tokens)
    state, steps = model.start(3), []
    with torch.no_grad():
        for t in range(tokens.shape[1]):
            x = model.embed(tokens[:, t], state)
            for b, layer in enumerate(model.layers):
                early = model.known(b, state) if look_ahead and b >= look_ahead else None
                x, h = model.attend(b, x, state)
                route = model.route(b, h, state)
                assert early is None or early == route.distinct()
                assert sorted(set(route.experts.flatten().tolist())) == route.distinct()
                experts = {i: (layer.experts.w_in[i], layer.experts.w_out[i]) for i in route.distinct()}
                x = model.leave(b, x + model.mix(h, route, experts), state)
            steps.append(model.read(x))
            assert not state.scores
    torch.testing.assert_close(torch.stack(steps, 1), whole.logits)


def test_hint_is_the_next_gate_on_this_signal():
    model, state = build(k=2), build().start(3)
    with torch.no_grad():
        _, h = model.attend(0, model.embed(text()[:, 0], state), state)
        wanted = (h @ model.layers[1].own.weight.T).topk(2).indices
        assert model.hint(0, h) == sorted(set(wanted.flatten().tolist()))


def test_losses_look_at_the_gate_that_routed():
    model = rewire(build(k=1), 1)
    routes = model(text()).routes
    by_layer = []
    for route in routes:
        p = route.logits.softmax(-1)
        share = torch.stack([(p.argmax(-1) == i).double().mean() for i in range(4)])
        by_layer.append(4 * (share * p.mean(0)).sum())
    torch.testing.assert_close(balance_loss(routes), torch.stack(by_layer).mean().float())
    squares = torch.cat([route.logits.logsumexp(-1).square() for route in routes])
    torch.testing.assert_close(router_z_loss(routes), squares.mean())
    balance_loss(routes).backward()
    assert all(model.gate_of(b).weight.grad.abs().max() > 0 for b in range(4))


def test_controls_have_no_gate_and_take_what_the_lot_says():
    tokens = torch.tensor([[5, 1, 5, 5]])
    fixed = build(router="hash", k=2)
    routes = fixed(tokens).routes
    assert not [name for name, _ in fixed.named_parameters() if ".own." in name or ".ahead." in name]
    for b, route in enumerate(routes):
        wanted = fixed.lots[b, tokens[0]].topk(2).indices
        assert torch.equal(route.experts, wanted) and (route.weights == 0.5).all()
        assert torch.equal(route.experts[0], route.experts[2])
    random = build(router="random", context=9, num_experts=2)
    generator = torch.Generator().manual_seed(0)
    many = text(batch=200, time=9)
    drawn = torch.stack([route.experts for route in random(many, generator=generator).routes]).double()
    assert abs(drawn.mean() - 0.5) < 4 * 0.5 / drawn.numel() ** 0.5
    again = random(many, generator=torch.Generator().manual_seed(0)).routes[0].experts
    assert torch.equal(again.double(), drawn[0])


def test_weights_come_from_the_generator():
    one, same, other = build(0), build(0), build(1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)
