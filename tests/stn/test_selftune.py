"""Any module made self-tuning, what is left, and regularisers with a strength for each example."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from gated.stn import (
    Hyperparameter,
    Hyperparameters,
    Left,
    StnConv1d,
    StnConv2d,
    StnLinear,
    StnLSTMCell,
    cutout,
    dropout,
    input_noise,
    scale_noise,
    selftune,
)

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def hyper(n: int = 2) -> Hyperparameters:
    names = ["rate", "other", "third"][:n]
    return Hyperparameters([Hyperparameter(name, 0, 0.9, 0.3) for name in names], dtype=F64)


class Mixed(nn.Module):
    """Of everything something; the second linear layer stands at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, 4)
        self.line = nn.Conv1d(4, 3, 3, stride=2)
        self.cell = nn.LSTMCell(7, 5)
        self.first = nn.Linear(5, 6)
        self.twice = nn.Linear(6, 6, bias=False)
        self.again = nn.Sequential(nn.ReLU(), self.twice, nn.Dropout(0.2))
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(6))
        self.memory = nn.GRU(6, 6, batch_first=True)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, x):
        x = self.norm(self.grouped(self.conv(x))).flatten(2)
        x = self.line(x)
        state = None
        for step in range(3):
            state = self.cell(x[:, step], state)
        x = self.drop(self.first(state[0]))
        x = self.again(self.twice(x)) * self.scale
        return self.frozen(self.memory(x[:, None])[0][:, 0])


def mixed() -> Mixed:
    torch.manual_seed(0)
    return Mixed().double()


def test_replaces_what_can_respond_and_tells_what_it_left():
    net = mixed()
    before = copy.deepcopy(net.state_dict())
    model = selftune(net, hyper(), rates={"drop": "rate"}, generator=generator())
    assert model.replaced == ["conv", "line", "cell", "first", "twice"]
    assert model.left == [
        Left("", "Mixed", "no response for its scale"),
        Left("grouped", "Conv2d", "has groups or a padding that is not zeros"),
        Left("norm", "GroupNorm", "no response for its weight, bias"),
        Left("again.2", "Dropout", "not in rates, so its rate stays 0.2"),
        Left("memory", "GRU", "its weights are the same for a whole batch; use LSTMCell"),
        Left("frozen", "Linear", "its weights are frozen"),
    ]
    assert model.net.twice is model.net.again[1]
    kinds = {"conv": StnConv2d, "line": StnConv1d, "cell": StnLSTMCell, "first": StnLinear, "twice": StnLinear}
    assert {k: type(model.net.get_submodule(k)) for k in kinds} == kinds
    assert type(net.conv) is nn.Conv2d and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_at_the_centre_it_answers_as_the_module_did():
    net, x = mixed().eval(), randn(4, 1, 4, 4)
    model = selftune(net, hyper(), centred=True, gate_std=0.5).eval()
    assert torch.allclose(model(x), net(x), rtol=0, atol=1e-12)
    far = model.hyperparameters.raw + 1
    assert not torch.allclose(model(x, far), net(x), atol=1e-3)
    plain = selftune(net, hyper(), gate_std=0).eval()
    assert torch.allclose(plain(x, randn(4, 2)), net(x), rtol=0, atol=1e-12)


def test_each_example_gets_the_answer_of_its_own_setting():
    model = selftune(mixed(), hyper(), gate_std=0.5).eval()
    x, raw = randn(4, 1, 4, 4), randn(4, 2, seed=2)
    alone = torch.cat([model(x[i : i + 1], raw[i]) for i in range(4)])
    assert torch.allclose(model(x, raw), alone, rtol=0, atol=1e-12)


def test_moving_the_hyperparameters_moves_the_weights_unless_they_are_centred():
    x = randn(3, 1, 4, 4)
    for centred in (False, True):
        model = selftune(mixed(), hyper(), centred=centred, gate_std=0.5, generator=generator()).eval()
        before = model(x)
        slope = torch.autograd.grad(model(x).sum(), model.hyperparameters.raw)[0]
        with torch.no_grad():
            model.hyperparameters.raw.add_(0.5)
        assert torch.equal(model(x), before) == centred
        assert slope.abs().min() > 0  # centred too: the gradient goes through raw, not through the centre


def test_in_evaluation_mode_the_answer_depends_on_raw_through_the_gates_alone():
    model = selftune(mixed(), hyper(), rates={"drop": "rate", "again.2": "other"}, gate_std=0)
    x, raw = randn(3, 1, 4, 4), randn(3, 2, seed=2).requires_grad_()
    model.eval()
    assert torch.equal(model(x, raw), model(x, -raw))
    model.train()
    assert not torch.equal(model(x, raw, generator(1)), model(x, raw, generator(2)))
    assert torch.equal(model(x, raw, generator(1)), model(x, raw, generator(1)))
    assert torch.autograd.grad(model(x, raw, generator(1)).sum(), raw)[0].abs().max() == 0  # rates are detached


def test_dropout_layers_take_each_examples_rate_and_channels_where_the_module_did():
    net = nn.Sequential(nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(8, 2))
    model = selftune(net.double(), hyper(1), rates={"0": "rate"}).train()
    raw = torch.tensor([[-40.0]] * 3 + [[40.0]] * 500, dtype=F64)
    model.net[1], model.net[2] = nn.Identity(), nn.Identity()
    y = model(torch.ones(503, 2, 2, 2, dtype=F64), raw, generator())
    assert (y[:3] == 1).all()
    flat = y[3:].flatten(2)
    assert (flat == flat[..., :1]).all() and flat.unique().tolist() == pytest.approx([0, 10])
    assert (flat == 0).double().mean().item() == pytest.approx(0.9, abs=0.03)


def test_without_response_only_dropouts_are_replaced():
    model = selftune(mixed(), hyper(), rates={"drop": "rate"}, respond=False)
    assert model.replaced == [] and [m.name for m in model.left] == ["again.2"]
    assert type(model.net.conv) is nn.Conv2d
    with_norm = selftune(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), hyper(), respond=False)
    assert with_norm(torch.zeros(2, 3)).shape == (2, 3)


def test_squared_norm_counts_every_linear_map_once():
    model = selftune(mixed(), hyper(), gate_std=0.5)
    raw, net = randn(4, 2, seed=2), model.net
    wanted = []
    for r in raw:
        layers = [net.conv, net.line, net.cell.input, net.cell.hidden, net.first, net.twice]
        total = sum(layer.collapsed(r)[0].square().sum() for layer in layers)
        wanted.append(total + net.grouped.weight.square().sum() + net.frozen.weight.square().sum())
    assert torch.allclose(model.squared_norm(raw), torch.stack(wanted), rtol=1e-12)
    plain = selftune(mixed(), hyper(), respond=False)
    m = plain.net
    weights = [m.conv.weight, m.line.weight, m.cell.weight_ih, m.cell.weight_hh, m.first.weight, m.twice.weight]
    weights += [m.grouped.weight, m.frozen.weight]
    assert plain.squared_norm().item() == pytest.approx(sum(w.square().sum().item() for w in weights))
    assert torch.allclose(plain.squared_norm(raw), plain.squared_norm().expand(4))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3)).double()


def test_linearised_is_the_first_order_in_the_response():
    model = selftune(mlp(), hyper(), centred=True, gate_std=0.5, generator=generator()).eval()
    x, u = randn(4, 5), randn(4, 2, seed=2)
    centre = model.hyperparameters.raw.detach()
    step = 1e-6
    difference = (model(x, centre + step * u) - model(x, centre - step * u)) / (2 * step)
    wanted = model(x, centre.expand(4, 2)) + difference
    assert torch.allclose(model.linearised(x, centre + u), wanted, rtol=0, atol=1e-8)
    # J (Theta u) over the weights, made one by one
    names = [k for k in dict(model.net.named_parameters()) if k.endswith(("weight", "bias"))]
    params = dict(model.net.named_parameters())
    plain = mlp().eval()
    centre_weights = {k: params[k][0] for k in names}
    for i in range(4):
        change = {}
        for k in names:
            layer = model.net.get_submodule(k.rsplit(".")[0])
            moved = layer.collapsed(u[i])[int(k.endswith("bias"))]
            change[k] = moved - centre_weights[k]
        out, tangent = torch.func.jvp(lambda w, i=i: functional_call(plain, w, (x[i],)), (centre_weights,), (change,))
        assert torch.allclose(model.linearised(x, centre + u)[i], out + tangent, rtol=0, atol=1e-12)


def test_linearised_has_right_gradients_and_goes_through_vmap():
    models = [selftune(mlp(), hyper(), centred=True, gate_std=0.5, generator=generator(s)).eval() for s in range(2)]
    x, raw = randn(3, 5), randn(2, 3, 2, seed=2)
    params, _ = stack_module_state(models)

    class Call(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x, raw):
            return self.model.linearised(x, raw)

    call = Call(models[0])
    named = {f"model.{k}": v for k, v in params.items()}
    slopes = vmap(grad(lambda p, r: functional_call(call, p, (x, r)).square().sum()))(named, raw)
    for run, model in enumerate(models):
        loss = model.linearised(x, raw[run]).square().sum()
        phi = {k: p for k, p in model.named_parameters() if "hyper" not in k}
        for k, g in zip(phi, torch.autograd.grad(loss, list(phi.values())), strict=True):
            assert torch.allclose(slopes[f"model.{k}"][run], g, rtol=0, atol=1e-10)
    weight = models[0].net[0].gate

    def loss_of(v):
        return functional_call(call, {"model.net.0.gate": v}, (x, raw[0])).square().sum()

    assert torch.autograd.gradcheck(loss_of, weight.detach().clone().requires_grad_())


def test_saved_loaded_and_copied():
    model = selftune(mixed(), hyper(), rates={"drop": "rate"}, gate_std=0.5)
    other = selftune(mixed(), hyper(), rates={"drop": "rate"})
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    x, raw = randn(3, 1, 4, 4), randn(3, 2)
    for twin in (other, copy.deepcopy(model)):
        for net in (twin.train().net, model.train().net):
            net.again[2].p = 0.0  # draws from no generator
        assert torch.equal(twin(x, raw, generator()), model(x, raw, generator()))
        assert torch.equal(twin.eval()(x, raw), model.eval()(x, raw))


def test_users_own_response_layers_and_shared_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = StnLinear(4, 4, 2, dtype=F64)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.block = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)

        def forward(self, x):
            x = self.b(self.a(self.inner(x)))
            return self.block(self.attention(x, x, x)[0])

    model = selftune(Tied().double(), hyper()).eval()
    assert model.replaced == ["inner"]
    reasons = {m.name: m.reason for m in model.left}
    assert "shares a weight" in reasons["a"] and "shares a weight" in reasons["b"]
    assert "TransformerEncoderLayer reads" in reasons["block.linear1"] and "subclass" in reasons["attention.out_proj"]
    with torch.no_grad():
        assert model(randn(2, 3, 4), randn(2, 2)).shape == (2, 3, 4)


# Regularisers -----------------------------------------------------------------------------------------------------


def test_dropout_keeps_the_mean_and_has_each_examples_rate():
    rate = torch.tensor([0.0, 0.3, 0.9], dtype=F64)
    x = torch.ones(3, 20000, dtype=F64)
    y = dropout(x, rate, generator())
    assert torch.equal(y[0], x[0])
    for row, p in zip(y, rate.tolist(), strict=True):
        assert row.mean().item() == pytest.approx(1, abs=0.07)
        assert (row == 0).double().mean().item() == pytest.approx(p, abs=0.02)
        assert set(row.unique().tolist()) <= {0.0, 1 / (1 - p)}
    assert torch.equal(dropout(x, 0.3, generator()), dropout(x, torch.full((3,), 0.3, dtype=F64), generator()))


def test_noise_has_each_examples_strength():
    strength, x = torch.tensor([0.0, 0.1, 2.0], dtype=F64), torch.ones(3, 20000, dtype=F64)
    assert (input_noise(x, strength, generator()) - x).std(1).tolist() == pytest.approx([0, 0.1, 2], abs=0.03)
    s = torch.full((20000,), 0.3, dtype=F64)
    factor = scale_noise(torch.ones(20000, 2, dtype=F64), s, generator())
    assert torch.equal(factor[:, 0], factor[:, 1])
    assert [factor.min().item(), factor.max().item()] == pytest.approx([1 / 1.3, 1.3], abs=1e-3)
    assert factor.mean().item() == pytest.approx((1 / 1.3 + 1.3) / 2, abs=5e-3)
    assert torch.equal(scale_noise(x, 0, generator()), x)


@pytest.mark.parametrize("axes", [1, 2])
def test_cutout_is_the_holes_drawn_one_by_one(axes):
    shape, most = ((12,) if axes == 1 else (9, 12)), 4
    x = torch.ones(60, 2, *shape)
    holes = torch.arange(60).remainder(5).float()
    length = torch.arange(60).div(5, rounding_mode="floor").float()
    y = cutout(x, holes, length, generator(), axes=axes, most=most)
    again, centres = generator(), []
    for size in shape:
        centres.append((torch.rand(60, most, 1, generator=again) * size).floor()[..., 0].long())
    for i in range(60):
        wanted = torch.ones(shape)
        for hole in range(int(holes[i])):
            first = [int(c[i, hole]) - int(length[i]) // 2 for c in centres]
            wanted[tuple(slice(max(a, 0), max(a + int(length[i]), 0)) for a in first)] = 0
        assert torch.equal(y[i], wanted.expand(2, *shape))
    assert torch.equal(cutout(x, 0, 5, generator(), axes=axes), x) and torch.equal(cutout(x, 4, 0, generator()), x)


def test_regularisers_draw_differently_for_each_run_of_an_ensemble():
    x, rate = torch.ones(3, 4, 50), torch.full((3, 4), 0.5)
    for call in (dropout, input_noise, scale_noise):
        y = vmap(lambda a, r, call=call: call(a, r, generator()), randomness="different")(x, rate)
        assert not torch.equal(y[0], y[1])
    y = vmap(lambda a, r: cutout(a, 2, 10 * r, generator()), randomness="different")(x, rate)
    assert not torch.equal(y[0], y[1]) and set(y.unique().tolist()) == {0.0, 1.0}
