"""Bad input is a ValueError that names the argument. Run without jaxtyping's hook, which would answer
first."""

import pytest
import torch

from gated import gates as g

ROW = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, 3.0]])
MEAN = torch.ones(4, 3)
INTEGERS, EMPTY, SCALAR = torch.tensor([[1, 2]]), torch.zeros(3, 0), torch.tensor(1.0)
NAN, POSITIVE, SHUT = (
    torch.tensor([[0.0, value], [1.0, value]]) for value in (float("nan"), float("inf"), -float("inf"))
)
SHUT[0, 0] = -float("inf")


def rng():
    return torch.Generator().manual_seed(0)


ROW_GATES = {
    "softmax": lambda x, **c: g.softmax_gate(x, **c),
    "entmax": lambda x, **c: g.entmax_gate(x, 1.5, **c),
    "entmax 1": lambda x, **c: g.entmax_gate(x, 1, **c),
    "sparsemax": lambda x, **c: g.sparsemax_gate(x, **c),
    "topk": lambda x, **c: g.topk_gate(x, 1, **c),
    "softmax topk": lambda x, **c: g.softmax_topk_gate(x, 1, **c),
    "sigmoid": lambda x, **c: g.biased_sigmoid_gate(x, torch.zeros(x.shape[-1:]), 1, **c),
    "dense to sparse": lambda x, **c: g.dense_to_sparse_gate(x, 0.1, generator=None, **c),
    "gumbel softmax": lambda x, **c: g.gumbel_softmax_gate(x, generator=rng(), **c),
    "gumbel topk": lambda x, **c: g.gumbel_topk_gate(x, 1, generator=rng(), **c),
    "gumbel sample": lambda x, **c: g.gumbel_topk_sample(x, 1, generator=rng(), **c),
    "top-p": lambda x, **c: g.top_p_gate(x, 0.5, **c),
    "expert choice": lambda x, **c: g.expert_choice_gate(x, 1, **c),
    "probit": lambda x, **c: g.probit_gate(x, **c),
    "soft moe": lambda x, **c: g.soft_moe_gate(x, **c),
    "z loss": lambda x, **c: g.z_loss(x, **c),
}
BINARY_GATES = {
    "binary": lambda x, **c: g.binary_gate(x, **c),
    "gumbel sigmoid": lambda x, **c: g.gumbel_sigmoid_gate(x, generator=rng(), **c),
    "hard concrete": lambda x, **c: g.hard_concrete_gate(x, generator=rng(), **c),
    "hard concrete mode": lambda x, **c: g.hard_concrete_mode(x, **c),
    "hard concrete probability": lambda x, **c: g.hard_concrete_open_probability(x, **c),
}


@pytest.mark.parametrize("gate", ROW_GATES.values(), ids=ROW_GATES)
def test_logits_of_row_gates(gate):
    for bad in (INTEGERS, INTEGERS > 1, EMPTY, SCALAR):
        with pytest.raises(ValueError, match=r"^logits must"):
            gate(bad)
    for bad in (NAN, POSITIVE, SHUT):
        with pytest.raises(ValueError, match=r"^logits must"):
            gate(bad, check_finite=True)
        gate(bad)  # unchecked unless asked for
    gate(torch.tensor([[0.0, -float("inf")]]), check_finite=True)


@pytest.mark.parametrize("gate", BINARY_GATES.values(), ids=BINARY_GATES)
def test_logits_of_binary_gates(gate):
    for bad in (INTEGERS, 0.5):
        with pytest.raises(ValueError, match=r"^log(its|_alpha) must be a floating-point tensor"):
            gate(bad)
    with pytest.raises(ValueError, match=r"^log(its|_alpha) must hold no NaN"):
        gate(NAN, check_finite=True)
    gate(NAN)  # unchecked unless asked for
    gate(POSITIVE, check_finite=True)
    gate(SHUT, check_finite=True)


BAD_TEMPERATURES = [0, -1.0, float("nan"), float("inf"), True, "1"]
BAD_TEMPERATURES += [torch.tensor(0.0), torch.tensor(1), torch.tensor([1.0, -1.0])]
BAD_TEMPERATURES += [torch.ones(3), torch.ones(2, 1)]


@pytest.mark.parametrize("temperature", BAD_TEMPERATURES)
def test_temperature(temperature):
    for gate in (
        g.softmax_gate,
        lambda x, t: g.entmax_gate(x, 1.5, t),
        g.sparsemax_gate,
        lambda x, t: g.topk_gate(x, 2, t),
        lambda x, t: g.softmax_topk_gate(x, 2, t),
        lambda x, t: g.top_p_gate(x, 0.5, t),
        lambda x, t: g.dense_to_sparse_gate(x, 0.1, t, generator=None),
        lambda x, t: g.gumbel_softmax_gate(x, t, generator=None),
        lambda x, t: g.gumbel_topk_gate(x, 2, t, generator=None),
        lambda x, t: g.gumbel_sigmoid_gate(x, t, generator=None),
    ):
        with pytest.raises(ValueError, match=r"^temperature must"):
            gate(ROW, temperature)


@pytest.mark.parametrize("k", [0, 4, -1, 1.5, True, None])
def test_k(k):
    for gate in (
        g.topk_mask,
        g.topk_gate,
        g.softmax_topk_gate,
        lambda x, k: g.noisy_topk_gate(x, 1.0, k, generator=rng()),
        lambda x, k: g.selection_probability(x, x, 1.0, k),
        lambda x, k: g.biased_sigmoid_gate(x, torch.zeros(3), k),
        lambda x, k: g.gumbel_topk_gate(x, k, generator=rng()),
        lambda x, k: g.gumbel_topk_sample(x, k, generator=rng()),
        lambda x, k: g.NoisyTopKGate(4, 3, k),
        lambda x, k: g.SelectionBias(3, k),
    ):
        with pytest.raises(ValueError, match=r"^k must be .*got " + str(k).replace(".", r"\.")):
            gate(ROW, k)


CASES = {
    "alpha": [lambda a=a: g.entmax_gate(ROW, a) for a in (0.9, 2.1, float("nan"), True, "2")],
    "scores": [lambda x=x: g.topk_mask(x, 1) for x in (INTEGERS, EMPTY)],
    "ranking": [
        lambda: g.topk_gate(ROW, 1, ranking=torch.zeros(3)),
        lambda: g.topk_gate(ROW, 1, ranking=torch.zeros(2, 3, dtype=torch.long)),
    ],
    "noise_std": [
        lambda s=s, f=f: f(ROW, s)
        for s in (0, -1.0, torch.zeros(2, 3), torch.ones(3), torch.ones(2, 3, dtype=torch.long), float("nan"))
        for f in (
            lambda x, s: g.add_gaussian_noise(x, s, generator=rng()),
            lambda x, s: g.noisy_topk_gate(x, s, 1, generator=rng()),
            lambda x, s: g.selection_probability(x, x, s, 1),
        )
    ]
    + [lambda s=s: g.probit_gate(ROW, s) for s in (0, float("inf"), True)],
    "noisy_logits": [lambda: g.selection_probability(ROW, ROW[0], 1.0, 1)],
    "features": [lambda: g.NoisyTopKGate(0, 3, 1), lambda: g.NoisyTopKGate(1.5, 3, 1)],
    "gates": [lambda: g.NoisyTopKGate(4, 0, 1), lambda: g.SelectionBias(0, 1), lambda: g.HardConcrete(0)],
    "min_noise_std": [lambda: g.NoisyTopKGate(4, 3, 1, min_noise_std=0.0)],
    "x": [
        lambda f=f, x=x: f(x, MEAN)
        for f in (g.cosine_logits, g.laplace_logits, lambda x, m: g.gaussian_logits(x, m, torch.ones(4)))
        for x in (ROW[:, :2], ROW.long(), SCALAR)
    ]
    + [lambda x=x: g.NoisyTopKGate(4, 3, 1)(x, rng()) for x in (ROW, SCALAR)]
    + [lambda: g.NoisyTopKGate(3, 3, 1)(ROW.long(), rng())],
    "prototypes": [lambda e=e: g.cosine_logits(ROW, e) for e in (ROW[0], EMPTY, MEAN.long())],
    "perturbation": [lambda t=t: g.cosine_logits(ROW, MEAN, perturbation=(0.1, t)) for t in (-0.1, float("inf"))],
    "centres": [lambda: g.laplace_logits(ROW, ROW[0])],
    "mean": [lambda: g.gaussian_logits(ROW, ROW[0], torch.ones(3))],
    "log_prior": [
        lambda b=b: g.gaussian_logits(ROW, MEAN, torch.ones(4), b) for b in (torch.zeros(3), torch.zeros(4).long())
    ],
    "freedom": [
        lambda v=v: g.student_t_logits(ROW, MEAN, torch.ones(4), v)
        for v in (0, -1.0, torch.zeros(4), torch.ones(3), torch.ones(4).long())
    ],
    "capacity": [lambda c=c: g.expert_choice_gate(ROW, c) for c in (0, 3, 1.5, True)],
    "logits": [lambda: g.expert_choice_gate(ROW[0], 1), lambda: g.soft_moe_gate(ROW[0])],
    "generator": [
        lambda: g.NoisyTopKGate(3, 3, 1)(ROW),
        lambda: g.HardConcrete(3)(),
        lambda: g.DenseToSparseGate(g.constant_schedule(1.0), 0.1)(ROW),
    ],
    "bias": [
        lambda: g.biased_sigmoid_gate(ROW, torch.zeros(2), 1),
        lambda: g.biased_sigmoid_gate(ROW, torch.zeros(2, 3), 1),
    ],
    "scale": [
        lambda: g.biased_sigmoid_gate(ROW, torch.zeros(3), 1, scale=0.0),
        lambda: g.SelectionBias(3, 1, scale=-1.0),
    ]
    + [
        lambda s=s: g.gaussian_logits(ROW, MEAN, s)
        for s in (torch.ones(3), torch.ones(4, 2), torch.zeros(4), torch.zeros(4, 3, 3), torch.ones(4).long())
    ],
    "rate": [lambda: g.SelectionBias(3, 1, rate=0.0)],
    "load": [
        lambda: g.SelectionBias(3, 1).update(torch.zeros(2)),
        lambda: g.SelectionBias(3, 1).update(torch.zeros(3).long()),
    ],
    "threshold": [lambda c=c: g.binary_gate(ROW, c) for c in (0.0, 1.0, -0.5)]
    + [lambda c=c: g.dense_to_sparse_gate(ROW, c, generator=None) for c in (-0.1, 1.0, float("nan"))]
    + [lambda: g.DenseToSparseGate(g.constant_schedule(1.0), 1.0)]
    + [lambda c=c: g.top_p_gate(ROW, c) for c in (-0.1, 1.1, float("nan"))],
    "slope": [lambda: g.binary_gate(ROW, slope="relu")],
    "soft": [lambda: g.straight_through(ROW, ROW[0])],
    "low": [lambda: g.hard_concrete_gate(ROW, low=0.0, generator=rng()), lambda: g.HardConcrete(3, low=0.1)],
    "high": [
        lambda: g.hard_concrete_open_probability(ROW, high=1.0),
        lambda: g.hard_concrete_mode(ROW, high=float("inf")),
    ],
    "temperature": [
        lambda: g.hard_concrete_gate(ROW, 0.0, generator=rng()),
        lambda: g.HardConcrete(3, temperature=-1.0),
        lambda: g.laplace_logits(ROW, MEAN, 0.0),
        *[lambda t=t: g.laplace_logits(ROW, MEAN, torch.tensor(t)) for t in (-1.0, 0.0, float("inf"))],
    ],
    "log_alpha": [lambda: g.HardConcrete(3, log_alpha=float("nan"))],
    "order": [
        lambda o=o: g.plackett_luce_log_prob(ROW, o)
        for o in (
            torch.zeros(2, 1),
            torch.zeros(1, 1).long(),
            torch.zeros(2, 4).long(),
            torch.zeros(2, 0).long(),
        )
    ],
    "value": [lambda: g.constant_schedule(0.0)],
    "start": [
        lambda f=f: f(0.0, 1.0, 3) for f in (g.linear_schedule, g.exponential_schedule, g.cosine_schedule)
    ],
    "end": [
        lambda f=f: f(1.0, -1.0, 3) for f in (g.linear_schedule, g.exponential_schedule, g.cosine_schedule)
    ],
    "steps": [lambda n=n: g.linear_schedule(1.0, 0.5, n) for n in (0, 2.5, True)],
    "step": [lambda: g.linear_schedule(1.0, 0.5, 3)(-1)],
    "weights": [
        lambda x=x, f=f: f(x)
        for x in (INTEGERS, EMPTY, SCALAR)
        for f in (g.load, g.importance, g.entropy, g.effective_gates, g.importance_loss)
    ],
    "values": [lambda x=x: g.coefficient_of_variation(x) for x in (INTEGERS, EMPTY)],
    "probability": [lambda: g.load_loss(INTEGERS), lambda: g.switch_loss(INTEGERS, INTEGERS)],
    "selected": [lambda: g.switch_loss(ROW, ROW[:1])],
}


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, calls in CASES.items() for call in calls])
def test_every_other_argument(name, call):
    with pytest.raises(ValueError, match=rf"^{name} must"):
        call()


def test_messages_say_what_came():
    with pytest.raises(ValueError, match=r"k must be at most the number of gates, 3; got 7"):
        g.topk_gate(ROW, 7)
    with pytest.raises(ValueError, match=r"temperature must be a positive finite number; got -2"):
        g.softmax_gate(ROW, -2)
    with pytest.raises(ValueError, match=r"logits must be a floating-point tensor; got torch.int64"):
        g.softmax_gate(INTEGERS)


def test_one_graph_under_compilation():
    def step(x, temperature):
        w = g.topk_gate(x, 2, temperature)
        return (
            g.switch_loss(g.softmax_gate(x), w)
            + g.entropy(w).mean()
            + g.entmax_gate(x, check_finite=True).square().sum()
        )

    temperature = torch.tensor(0.7)
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ROW, temperature), step(ROW, temperature))


def test_a_device_out_of_memory_is_not_taken_for_a_value_that_cannot_be_read(monkeypatch):
    def no_room(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch.Tensor, "any", no_room)
    with pytest.raises(torch.OutOfMemoryError):
        g.softmax_gate(ROW, torch.tensor(1.0))
