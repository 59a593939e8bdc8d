"""Attacks against exact answers: the linear mixture, brute force over a box, the union, and the refusals."""

import itertools

import pytest
import torch
from torch import nn

from gated.advmoe import (
    AttackError,
    LinearMoE,
    MoECNN,
    attack_panel,
    exact_margin,
    frozen_path_attack,
    path_attack,
    pathways,
    pgd,
    random_search,
    released_attack,
    route_attack,
    score_gap,
    search_attack,
    ste_attack,
    surrogate_attack,
)

ALL = ("ste", "surrogate", "path", "search")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(dim=6, batch=200, seed=0):
    g = gen(seed)

    def r(*s):
        return torch.randn(s, generator=g, dtype=torch.float64)

    router, experts = (r(dim), 0.3 * r()), (r(2, dim), 0.3 * r(2))
    x = r(batch, dim)
    y = torch.where(LinearMoE(router, experts)(x).argmax(1) == 1, 1, -1)
    y[::9] *= -1  # some are wrong as they stand
    return LinearMoE(router, experts), x, y, router, experts


def net(seed=0, **options):
    torch.manual_seed(seed)
    return MoECNN(2, 4, **({"widths": (6, 8, 8), "strides": (1, 2, 1), "kernel_size": 3} | options)).eval()


def signals(size=24):
    x = torch.randn(size, 2, 12, generator=gen(5))
    return x, torch.randint(4, (size,), generator=gen(6))


@pytest.mark.parametrize("eps", [0.05, 0.15, 0.4])
def test_on_the_linear_mixture_nothing_beats_the_exact_margin_and_the_union_comes_close(eps):
    model, x, y, router, experts = linear()
    exact = exact_margin(x, y, eps, router, experts)
    labels = (y + 1) // 2
    panel = attack_panel(model, x, labels, eps, generator=gen(), queries=100)
    beaten = exact.margin <= 1e-9
    for member in ALL:
        assert not (panel.found[member].broken & ~beaten).any()  # RA of any attack >= the exact one
        assert panel.accuracy() <= panel.accuracy(member) <= panel.accuracy("clean")
    assert panel.union.sum() >= 0.95 * beaten.sum()
    assert panel.found["path"].broken.sum() >= panel.found["ste"].broken.sum()  # flips are found by aiming at them
    frozen = frozen_path_attack(model, x, labels, eps, generator=gen())
    settled = exact.frozen.abs() > 1e-9
    assert torch.equal(frozen.broken[settled], (exact.frozen <= 0)[settled])  # one sign step solves it
    kept = model.trace(frozen.x_adv).routes[0] == exact.route
    assert (model(frozen.x_adv).argmax(1) != labels)[frozen.broken & kept].all()  # a failure of the mixture, too
    flipped = route_attack(model, x, eps, generator=gen())
    score = x @ router[0] + router[1]
    assert torch.equal(flipped.broken, score.abs() <= eps * router[0].abs().sum())


def test_aiming_at_pathways_finds_what_the_straight_through_gradient_hides():
    """Expert 1 is right by a margin that grows the wrong way: its slope leads away from the line to expert 0."""
    router = (torch.tensor([1.0, 0.0]), torch.tensor(0.0))
    experts = (torch.tensor([[0.0, 0.0], [-0.5, 0.0]]), torch.tensor([-1.0, 1.0]))
    model = LinearMoE(router, experts)
    model.a.requires_grad_(False)
    x = torch.tensor([[0.3, 0.0]] * 8)
    y = torch.ones(8, dtype=torch.int64)
    assert (exact_margin(x, 2 * y - 1, 0.4, router, experts).only_by_flip).all()
    ste = ste_attack(model, x, y, 0.4, restarts=1, steps=10, generator=gen())
    path = path_attack(model, x, y, 0.4, steps=10, generator=gen())
    assert path.broken.all() and ste.broken.sum() < 8


@pytest.mark.parametrize("options", [{}, {"routing": "global"}, {"num_experts": 1}, {"dims": 2, "num_experts": 3}])
def test_the_panel_on_networks(options):
    model = net(**options)
    model.train()
    x, _ = signals()
    eps = 0.6
    if options.get("dims") == 2:
        x = x.reshape(-1, 2, 3, 4)
    y = model.eval()(x).argmax(1)
    y[:3] = (y[:3] + 1) % 4
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    panel = attack_panel(model, x, y, eps, steps=6, restarts=2, queries=30, search_examples=16, generator=gen())
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    model.eval()
    assert panel.clean.tolist() == [True] * 3 + [False] * 21
    assert torch.equal(panel.union, torch.stack([f.broken for f in panel.found.values()]).any(0))
    assert panel.accuracy() <= min(panel.accuracy(m) for m in ALL) <= panel.accuracy("clean") == 21 / 24
    assert not panel.found["search"].broken[16:].any()
    assert panel.accuracy() < panel.accuracy("clean")
    for member in ALL:
        found = panel.found[member]
        assert panel.blind(member) == 0
        assert ((found.x_adv - x).abs() <= eps + 1e-6).all()
        assert torch.equal(found.x_adv[panel.clean], x[panel.clean])
        assert (model(found.x_adv).argmax(1) != y)[found.broken].all()
        survived = ~found.broken & (torch.arange(24) < (16 if member == "search" else 24))
        assert ((found.x_adv - x)[survived].abs().flatten(1).amax(1) > 0.9 * eps).double().mean() > 0.5
    assert (model(panel.x_adv).argmax(1) != y)[panel.union].all()


def test_radius_zero_is_the_clean_accuracy_and_accuracy_falls_with_the_radius():
    model = net()
    x, _ = signals()
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 4
    none = attack_panel(model, x, y, 0, steps=2, queries=2, generator=gen())
    assert all(none.accuracy(m) == none.accuracy("clean") == none.accuracy() for m in ALL)
    assert torch.equal(none.x_adv, x)
    exact = [exact_margin(*linear()[1:3], eps, *linear()[3:]).margin > 0 for eps in (0, 0.1, 0.2, 0.4)]
    ours = []
    for eps in (0, 0.1, 0.2, 0.4):
        m, x, y, *_ = linear()
        ours.append(attack_panel(m, x, (y + 1) // 2, eps, generator=gen(), queries=50).accuracy())
    assert all(a >= b for a, b in itertools.pairwise(ours))
    assert all(ra >= safe.double().mean() - 1e-9 for ra, safe in zip(ours, exact, strict=True))


def test_random_search_finds_the_corner_of_a_linear_margin():
    """min over the box of w . x is reached at a corner; with small boxes in few dimensions the search must see it."""
    w = torch.randn(5, generator=gen(), dtype=torch.float64)
    x = torch.randn(60, 5, generator=gen(1), dtype=torch.float64)
    found = random_search(lambda z, i: z @ w, x, 0.3, queries=300, generator=gen())
    want = x @ w - 0.3 * w.abs().sum() <= 0
    clear = (x @ w - 0.3 * w.abs().sum()).abs() > 1e-6
    assert torch.equal(found.broken[clear], want[clear])
    assert 5 < want.sum() < 55


def test_random_search_needs_no_gradients_and_keeps_bounds():
    class Steps(nn.Module):
        def forward(self, x):
            s = torch.round(4 * x.flatten(1)).sum(1)
            return torch.stack([s, -s], 1).detach()

    x = torch.rand(20, 2, 4, 4, generator=gen())
    y = Steps()(x).argmax(1)
    found = search_attack(Steps(), x, y, 0.5, bounds=(0, 1), generator=gen())
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1
    with pytest.raises(RuntimeError):
        ste_attack(Steps(), x, y, 0.5, bounds=(0, 1), generator=gen())


def test_search_counts_a_tie_as_argmax_does():
    class Tied(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 2) + 0 * x.sum()

    x = torch.randn(4, 3, generator=gen())
    found = search_attack(Tied(), x, torch.tensor([0, 0, 1, 1]), 0.1, queries=3, generator=gen())
    assert found.broken.tolist() == [False, False, True, True]


def test_gaps_and_pathways():
    scores = torch.tensor([[[3.0, 1.0, 2.0], [0.0, 5.0, 5.0]]])
    routes = torch.tensor([[0, 2]])
    assert score_gap(scores, routes).tolist() == [[1.0, 0.0]]
    assert score_gap(scores[..., :1], torch.zeros(1, 2, dtype=torch.int64)).isinf().all()
    model = net()  # two routers, two experts
    x, _ = signals(40)
    assert pathways(model, x).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    taken = model.trace(x).routes.T.tolist()
    most = max(taken, key=taken.count)
    assert pathways(model, x, 1).tolist() == [most]


def test_routes_flip_only_where_argmax_says_so():
    model = net(routing="global")
    x, _ = signals()
    found = route_attack(model, x, 0.5, steps=8, generator=gen())
    assert torch.equal(model.trace(found.x_adv).routes[0] != model.trace(x).routes[0], found.broken)
    assert not route_attack(net(num_experts=1), x, 0.5).broken.any()


def test_the_released_attack_is_a_column_of_its_own():
    model = net(routing="global")
    x, _ = signals()
    y = model(x).argmax(1)
    found = released_attack(model, x, y, 0.2, steps=5, generator=gen())
    assert (model(found.x_adv).argmax(1) != y)[found.broken].all()
    alone = released_attack(model, x, y, 0.2, steps=5, weight=0.0, generator=gen())
    ste = ste_attack(model, x, y, 0.2, steps=5, restarts=1, generator=gen())
    assert torch.equal(alone.broken, ste.broken)


def test_a_smooth_model_meets_the_closed_form_of_one_step():
    """For a linear margin one large sign step is exact."""
    w = torch.randn(3, 7, generator=gen())
    x = torch.randn(50, 7, generator=gen(1))
    found = pgd(lambda z, i: -(z @ w[0]), lambda z, i: z @ w[0] <= 0, x, 0.2, steps=1, alpha=0.4, generator=gen())
    margin = x @ w[0] - 0.2 * w[0].abs().sum()
    assert torch.equal(found.broken[margin.abs() > 1e-5], (margin <= 0)[margin.abs() > 1e-5])


# Refusals ------------------------------------------------------------------------------------------------------------


def test_vanishing_and_broken_gradients_are_no_robustness():
    model = net()
    x, _ = signals()
    y = model(x).argmax(1)
    gap = model(x).topk(2).values.diff().abs()[:, 0]
    for p in model.head.parameters():
        p.data *= 150 / gap.kthvalue(18).values  # beyond about 104 the cross-entropy's slope underflows to exact 0
    gap = model(x).topk(2).values.diff().abs()[:, 0]
    assert (gap > 120).sum() >= 4
    with pytest.raises(AttackError, match="was 0 in every step"):
        ste_attack(model, x[gap > 120], y[gap > 120], 1e-3, generator=gen())
    mixed = ste_attack(model, x, y, 1e-3, generator=gen())
    assert mixed.blind[gap > 120].all() and not (mixed.blind & mixed.broken).any() and not mixed.blind[gap < 90].any()
    panel = attack_panel(model, x, y, 1e-3, members=["ste"], generator=gen())
    assert panel.blind("ste") == mixed.blind.sum()
    model.head.weight.data[0, 0] = torch.nan
    with pytest.raises(AttackError, match="not finite"):
        ste_attack(model, x, torch.zeros_like(y), 0.1, generator=gen())


def test_a_margin_that_is_not_finite_is_no_robustness():
    with pytest.raises(AttackError, match="margin"):
        random_search(lambda z, i: z.sum(1) * 0 + torch.where(z[:, 0] == 0, 1.0, torch.nan), torch.zeros(3, 2), 0.1)


def test_an_attack_that_walks_in_circles_is_noticed():
    x = torch.zeros(10, 3)

    def home(z, i):  # pulls every point back to its start
        return -(z**2).sum(1)

    with pytest.raises(AttackError, match="did not use its ball"):
        pgd(home, lambda z, i: torch.zeros(len(z), dtype=torch.bool), x, 0.4, steps=40, alpha=0.011, generator=gen())


def test_seeds_repeat_and_members_match_the_single_attacks():
    model = net()
    x, y = signals()
    one, two = (attack_panel(model, x, y, 0.2, steps=3, queries=10, generator=gen(4)) for _ in range(2))
    assert torch.equal(one.x_adv, two.x_adv)
    alone = surrogate_attack(model, x, y, 0.2, steps=3, generator=gen(4))
    panel = attack_panel(model, x, y, 0.2, members=["surrogate"], steps=3, generator=gen(4))
    assert torch.equal(alone.x_adv, panel.found["surrogate"].x_adv)
