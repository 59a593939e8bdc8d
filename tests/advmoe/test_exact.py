"""The exact margin against a linear program, a grid and closed forms."""

from itertools import pairwise

import torch
from scipy.optimize import linprog

from gated.advmoe import LinearMoE, exact_margin


def draw(generator, dim, batch=1):
    def r(*s):
        return torch.randn(s, generator=generator, dtype=torch.float64)

    y = torch.where(r(batch) > 0, 1, -1)
    return r(batch, dim), y, r().abs().item(), (r(dim), r()), (r(2, dim), r(2))


def test_equals_a_linear_program_in_300_random_cases():
    generator = torch.Generator().manual_seed(0)
    unreachable = flips = 0
    for case in range(300):
        x, y, eps, (a, c), (w, b) = draw(generator, 1 + case % 7)
        if case % 10 == 9:  # exact zeros, where ratios are 0 / 0
            a[0] = w[0, -1] = 0.0
        got = exact_margin(x, y, eps, (a, c), (w, b))
        for e, side in ((0, -1.0), (1, 1.0)):
            best = linprog(
                (y * w[e]).numpy(),
                A_ub=[(-side * a).numpy()],
                b_ub=[(side * (x[0] @ a + c)).item()],
                bounds=[(-eps, eps)] * x.shape[1],
            )
            assert best.status in (0, 2)
            if best.status == 2:
                unreachable += 1
                assert got.by_expert[0, e] == torch.inf and got.worst[0, e].isnan().all()
                continue
            want = best.fun + (y * (x[0] @ w[e] + b[e])).item()
            assert abs(got.by_expert[0, e].item() - want) < 1e-8
            point = got.worst[0, e]
            assert (point - x[0]).abs().max() <= eps + 1e-9
            assert side * (point @ a + c) >= -1e-9
            assert abs((y * (point @ w[e] + b[e])).item() - want) < 1e-8
        assert got.margin == got.by_expert.amin(1)
        flips += int(got.only_by_flip)
    assert unreachable > 30 and flips > 10  # both branches were seen


def test_agrees_with_a_fine_grid_in_the_plane():
    generator = torch.Generator().manual_seed(1)
    line = torch.linspace(-1, 1, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    for _ in range(20):
        x, y, eps, (a, c), (w, b) = draw(generator, 2)
        points = x + eps * grid
        route = (points @ a + c >= 0).long()
        values = y * (points @ w.T + b).gather(1, route[:, None])[:, 0]
        margin = exact_margin(x, y, eps, (a, c), (w, b)).margin.item()
        step = eps / 200 * (w.abs().sum(1).max() + a.abs().sum() / a.abs().max() * w.abs().max() * 2)
        assert margin <= values.min().item() + 1e-9 and values.min().item() <= margin + step.item()


def test_closed_forms_where_the_router_cannot_or_need_not_flip():
    generator = torch.Generator().manual_seed(2)
    x, y, _, (a, c), (w, b) = draw(generator, 5, batch=200)
    eps = 0.2
    got = exact_margin(x, y, eps, (a, c), (w, b))
    score = x @ a + c
    flippable = score.abs() <= eps * a.abs().sum()
    assert 20 < int(flippable.sum()) < 180
    assert torch.equal(got.by_expert.isinf().any(1), ~flippable)
    torch.testing.assert_close(got.margin[~flippable], got.frozen[~flippable])
    same = exact_margin(x, y, eps, (a, c), (w[:1].expand(2, -1), b[:1].expand(2)))
    torch.testing.assert_close(same.margin, y * (x @ w[0] + b[0]) - eps * w[0].abs().sum())  # equal experts
    own = got.by_expert.gather(1, got.route[:, None])[:, 0]
    assert (got.margin <= own).all() and (got.frozen <= own + 1e-12).all()
    torch.testing.assert_close(exact_margin(x, y, 0, (a, c), (w, b)).margin, got.clean)
    wider = [exact_margin(x, y, e, (a, c), (w, b)).margin for e in (0, 0.1, 0.3, 1.0)]
    assert all((big <= small + 1e-12).all() for small, big in pairwise(wider))


def test_the_frozen_margin_is_no_bound_of_the_exact_one():
    """Expert 1 errs only where expert 0 answers, and expert 0 is right there."""
    router = (torch.tensor([1.0]), torch.tensor(0.0))
    experts = (torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, 0.1]))
    got = exact_margin(torch.tensor([[0.5]]), torch.tensor([1]), 1.0, router, experts)
    torch.testing.assert_close(got.frozen, torch.tensor([-0.4]))
    torch.testing.assert_close(got.margin, torch.tensor([0.1]))


def test_verdicts():
    """On the line: safe, beaten on its own path, beaten only by a flip."""
    router = (torch.tensor([1.0]), torch.tensor(0.0))
    experts = (torch.tensor([[0.0], [0.0]]), torch.tensor([-1.0, 1.0]))
    x = torch.tensor([[2.0], [0.5], [-0.5]])
    got = exact_margin(x, torch.tensor([1, 1, 1]), 1.0, router, experts)
    assert (got.margin > 0).tolist() == [True, False, False]
    assert got.own_path.tolist() == [False, False, True]
    assert got.only_by_flip.tolist() == [False, True, False]


def test_the_network_is_the_mixture():
    generator = torch.Generator().manual_seed(3)
    x, y, _, router, experts = draw(generator, 4, batch=50)
    model = LinearMoE(router, experts)
    got = exact_margin(x, y, 0, router, experts)
    trace = model.trace(x)
    assert torch.equal(trace.routes[0], got.route)
    torch.testing.assert_close((trace.logits[:, 1] - trace.logits[:, 0]) * y, got.clean)
    other = model.trace(x, routes=1 - trace.routes)
    torch.testing.assert_close(
        other.logits.diff(dim=1)[:, 0], (x @ experts[0].T + experts[1]).gather(1, 1 - got.route[:, None])[:, 0]
    )
    torch.testing.assert_close(model.trace(x, temperature=1e-6).logits, trace.logits)
    psi, phi = model.expert_parameters(), model.router_parameters()
    assert len(psi) == 2 and len(phi) == 2 and not {id(p) for p in psi} & {id(p) for p in phi}
