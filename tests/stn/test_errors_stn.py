"""What the self-tuning networks say about arguments that do not fit."""

import pytest
import torch
from torch import nn

from gated.kernels.topk_gate import topk_gate
from gated.stn import (
    Hyperparameter,
    Hyperparameters,
    StnConv1d,
    StnConv2d,
    StnLinear,
    StnLSTMCell,
    Trainer,
    cutout,
    dropout,
    input_noise,
    scale_noise,
    selftune,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 0.9, 1.0), r"rate must lie in \[0, 0.9\]"),
        ((0, 0.9, -0.1), r"rate must lie in"),
        ((0, 0.9, NAN), r"rate must lie in"),
        ((0, None, -1.0), r"rate must lie in"),
        ((0, 0.9, 0), "not at an end"),
        ((0, 0.9, 0.9), "not at an end"),
        ((0, None, INF), "not at an end"),
        ((1, 1, 1), "low < high"),
        ((2, 1, 1.5), "low < high"),
        ((NAN, 1, 0.5), "low and high must be finite"),
        ((0, INF, 0.5), "low and high must be finite"),
        ((-INF, 1, 0.5), "low and high must be finite"),
        ((0, 4, 4, "discrete"), r"must lie in \[0, 4\]"),
        ((0, 4.5, 4, "discrete"), "whole ends"),
        ((0, 4, 1, "integer"), "kind must be one of"),
        ((0, 1, 0.5, "continuous", True, "log"), "low must be positive"),
        ((-1, None, 0.5, "continuous", True, "log"), "low must be positive"),
        ((0, 1, 0.5, "continuous", True, "ln"), "scale must be one of"),
    ],
)
def test_ranges_and_starts(arguments, words):
    with pytest.raises(ValueError, match=words):
        Hyperparameter("rate", *arguments)


RATE = Hyperparameter("rate", 0, 0.9, 0.1)
WIDE = Hyperparameter("wide", 0, None, 0.1)


def hyper(*given, **kwargs):
    return Hyperparameters(list(given or (RATE, WIDE)), **kwargs)


@pytest.mark.parametrize("scale", [0, -1, NAN, INF, [1.0], [1.0, 0.0]])
def test_scale(scale):
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        hyper(scale=scale)


def test_hyperparameters():
    for given in ([], [RATE, RATE]):
        with pytest.raises(ValueError, match="different names"):
            Hyperparameters(given)
    with pytest.raises(ValueError, match="batch must"):
        hyper().perturb(0)
    for shape in ((3,), (4, 1), ()):
        with pytest.raises(ValueError, match=r"raw must have shape \[..., 2\]"):
            hyper().values(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"values must be of \['rate', 'wide'\], got \['rat'\]"):
        hyper().raw_of({"rat": 0.1})
    with pytest.raises(ValueError, match="rate must lie in"):
        hyper().raw_of({"rate": 0.95})
    with pytest.raises(ValueError, match="rate must lie in"):
        RATE.inverse(torch.tensor([0.1, 1.0]))


LAYERS = {
    "linear": (lambda: StnLinear(3, 2, 2), (4, 3)),
    "conv1d": (lambda: StnConv1d(3, 2, 1, 2), (4, 3, 5)),
    "conv2d": (lambda: StnConv2d(3, 2, 1, 2), (4, 3, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(3,), (4, 3), (3, 2), (1, 2), (4, 1, 2), ()])
def test_raw_of_another_shape(name, shape):
    make, x = LAYERS[name]
    with pytest.raises(ValueError, match=r"raw must have shape \[2\] or, .* \[4, 2\]"):
        make()(torch.zeros(x), torch.zeros(shape))
    with pytest.raises(ValueError, match="raw must be a floating-point tensor"):
        make()(torch.zeros(x), torch.zeros(2).long())
    with pytest.raises(ValueError, match="raw must be given"):
        make()(torch.zeros(x))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("linear", (4, 2)), ("linear", (3,)), ("conv1d", (4, 2, 5)), ("conv1d", (3, 5)), ("conv2d", (4, 3, 5))],
)
def test_x_of_another_shape(name, shape):
    with pytest.raises(ValueError, match="x must have"):
        LAYERS[name][0]()(torch.zeros(shape), torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StnLinear(0, 2, 2), "in_features"),
        (lambda: StnLinear(2, 0, 2), "out_features"),
        (lambda: StnLinear(2, 2, 0), "num_hyper"),
        (lambda: StnLinear(2, 2, 2, gate_std=-1), "gate_std"),
        (lambda: StnLinear(2, 2, 2, gate_std=INF), "gate_std"),
        (lambda: StnConv2d(2, 0, 3, 2), "out_channels"),
        (lambda: StnConv2d(2, 2, (3,), 2), "kernel_size"),
        (lambda: StnConv1d(2, 2, 0, 2), "kernel_size"),
        (lambda: StnLSTMCell(2, 0, 2), "hidden_size"),
    ],
)
def test_sizes(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def net(drop: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Dropout(drop), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.SyncBatchNorm(4), nn.LazyBatchNorm1d()])
def test_batch_norm(norm):
    with pytest.raises(ValueError, match=r"must not have batch norm, got '1\.0'.*LayerNorm or GroupNorm"):
        selftune(nn.Sequential(nn.Linear(3, 4), nn.Sequential(norm)), hyper())


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"1": "rate"}, r"rates must name dropouts of module, \['0'\]; got '1'"),
        ({"drop": "rate"}, "rates must name dropouts"),
        ({"0": "dropout"}, "rates must map to hyperparameters"),
        ({"0": "wide"}, r"'wide' in rates must have a range within \[0, 0.95\]"),
    ],
)
def test_rates(rates, words):
    with pytest.raises(ValueError, match=words):
        selftune(net(), hyper(), rates=rates)
    over = hyper(Hyperparameter("wide", 0, 1, 0.1))
    with pytest.raises(ValueError, match="range within"):
        selftune(net(), over, rates={"0": "wide"})


def test_nothing_to_replace_says_what_was_found():
    with pytest.raises(ValueError, match=r"must have a layer that can respond.*1 \(GRU\): its weights"):
        selftune(nn.Sequential(nn.ReLU(), nn.GRU(2, 2)), hyper())
    with pytest.raises(ValueError, match="no layers"):
        selftune(nn.ReLU(), hyper())
    with pytest.raises(ValueError, match="num_hyper=2, got 3"):
        selftune(nn.Sequential(StnLinear(2, 2, 3)), hyper())


def test_the_call():
    model = selftune(net(), hyper(), rates={"0": "rate"})
    for shape in ((3,), (4, 2), (5, 3)):
        with pytest.raises(ValueError, match=r"raw must have shape \[2\] or, .* \[5, 2\]"):
            model(torch.zeros(5, 3), torch.zeros(shape))
    with pytest.raises(ValueError, match="x must come through SelfTuned"):
        model.net(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="x must have shape"):
        model(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="raw must be given"):
        model.net[1](torch.zeros(5, 3))  # nothing is left behind by a call that failed


class Routed(nn.Module):
    """Scores, of which an operator without forward mode keeps the softmax of two."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(3, 4)

    def forward(self, x):
        return topk_gate(self.scores(x), 2).weights


def test_linearised_says_what_has_no_forward_mode():
    model = selftune(Routed(), hyper(), centred=True)
    x, raw = torch.ones(5, 3), torch.ones(5, 2)
    assert model(x, raw).shape == (5, 2)
    with pytest.raises(NotImplementedError, match=r"^topk_gate has no forward-mode derivative"):
        model.linearised(x, raw)


@pytest.mark.parametrize("bad", [-0.1, NAN, INF])
def test_strengths(bad):
    x = torch.zeros(2, 5)
    for given in (bad, torch.tensor([0.1, bad])):
        for call, name in ((dropout, "rate"), (input_noise, "std"), (scale_noise, "strength")):
            with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
                call(x, given)
        with pytest.raises(ValueError, match="holes must be finite"):
            cutout(x, given, 1)
        with pytest.raises(ValueError, match="length must be finite"):
            cutout(x, 1, given)


def test_strengths_that_do_not_fit():
    x = torch.zeros(2, 5)
    for rate in (1, 1.5, torch.tensor([0.5, 1.0])):
        with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\)"):
            dropout(x, rate)
    for std in (torch.zeros(3), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match=r"std must be one number or \[2\]"):
            input_noise(x, std)
    with pytest.raises(ValueError, match="at most most=4"):
        cutout(x, 5, 1)
    with pytest.raises(ValueError, match="axes must leave"):
        cutout(x, 1, 1, axes=2)
    with pytest.raises(ValueError, match="most must"):
        cutout(x, 1, 1, most=0)


X, Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(8, dtype=torch.long)
DATA, HELD = (X, Y), (X + 1, Y)


def tuned(**kwargs):
    return selftune(net(), hyper(), **kwargs)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": 9}, "the train batch must have between 1 and all 8"),
        ({"batch": 0}, "batch must"),
        ({"valid_batch": 9}, "the valid batch must"),
        ({"train_steps": 0}, "train_steps must"),
        ({"valid_steps": 0}, "valid_steps must"),
        ({"warmup": -1}, "warmup must be an integer of at least 0"),
        ({"entropy": -1e-3}, r"entropy must be a number in \[0, inf\)"),
        ({"entropy": NAN}, r"entropy must be a number in \[0, inf\)"),
        ({"linearised": True}, "linearised needs"),
        ({"seed": [0, 1]}, "a seed each"),
        ({"schedule": torch.zeros(4, 2)}, "valid must be None with a schedule"),
        ({"valid": None, "schedule": torch.zeros(4, 3)}, r"schedule must have shape \[steps, 2\]"),
        ({"valid": None, "schedule": torch.zeros(1, 4, 2)}, "schedule must have shape"),
        ({"valid": None, "schedule": torch.full((4, 2), NAN)}, "schedule must be finite"),
        ({"valid": (X, Y[:7])}, "valid must hold x and y of equal length"),
        ({"valid": (X[:0], Y[:0])}, "valid must hold x and y of equal length, at least 1"),
        ({"train": (X[:0], Y[:0])}, "train must hold"),
    ],
)
def test_trainer(settings, words):
    arguments = {"train": DATA, "valid": HELD, "batch": 4} | settings
    with pytest.raises(ValueError, match=words):
        Trainer(tuned(), **arguments)


def test_ensembles():
    with pytest.raises(ValueError, match="at least one"):
        Trainer([], DATA, seed=[])
    with pytest.raises(ValueError, match="a seed each; got 2 and 1"):
        Trainer([tuned(), tuned()], DATA)
    both = hyper()
    with pytest.raises(ValueError, match="hyperparameters of its own for each run"):
        Trainer([selftune(net(), both), selftune(net(), both)], DATA, seed=[0, 1])
    with pytest.raises(ValueError, match="must have 2 runs"):
        Trainer([tuned(), tuned()], DATA, schedule=torch.zeros(3, 4, 2), seed=[0, 1])


def run(**kwargs) -> Trainer:
    return Trainer(tuned(), **{"train": DATA, "valid": HELD, "batch": 4} | kwargs)


def test_running():
    with pytest.raises(ValueError, match="steps must"):
        run().run(0)
    with pytest.raises(ValueError, match="run must come first"):
        print(run().schedule)
    with pytest.raises(ValueError, match="valid must be given"):
        run(valid=None).valid_step()
    short = run(valid=None, schedule=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="it ends after 2"):
        short.run(3)
    with pytest.raises(ValueError, match="data must hold at least one example"):
        run().evaluate((X[:0], Y[:0]))
    with pytest.raises(ValueError, match="loss must return a value for each of 4 examples"):
        run(loss=nn.functional.cross_entropy).train_step()


@pytest.mark.parametrize("ensemble", [False, True])
def test_a_loss_that_is_not_finite_changes_nothing(ensemble):
    models = [tuned(), tuned()] if ensemble else tuned()
    seeds = [0, 1] if ensemble else 0
    for data, held, step in (((X * NAN, Y), HELD, "train_step"), (DATA, (X * INF, Y), "valid_step")):
        trainer = Trainer(models, data, held, batch=4, seed=seeds)
        before = {k: v.clone() for k, v in trainer.state_dict()["tensors"].items()}
        with pytest.raises(ValueError, match="loss must be finite"):
            getattr(trainer, step)()
        assert all(torch.equal(v, before[k]) for k, v in trainer.state_dict()["tensors"].items())
        assert trainer.steps == 0


def test_a_state_of_another_run():
    state = run().state_dict()
    wider = Trainer(selftune(nn.Linear(3, 2), hyper()), DATA, HELD, batch=4)
    with pytest.raises(ValueError, match="same weights"):
        wider.load_state_dict(state)
    with pytest.raises(ValueError, match=r"same data; different: \['train'\]"):
        run(train=(X[:6] + 3, Y[:6])).load_state_dict(state)
