"""gated.moe.theory against brute force, closed forms and scikit-learn."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score
from torch.nn import functional as F

from gated.moe import theory


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chen(seeds=2, n=60, **options) -> theory.Patches:
    return theory.stack([theory.chen_data(n, seeded(seed), **options) for seed in range(seeds)])


# Chen's data ----------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 100), clusters=st.integers(2, 5), sigma=st.sampled_from([0.0, 1.0, 2.0]))
def test_every_image_has_its_four_patches(seed, clusters, sigma):
    data = theory.chen_data(40, seeded(seed), sigma=sigma, clusters=clusters)
    torch.testing.assert_close(data.basis @ data.basis.T, torch.eye(2 * clusters), atol=1e-5, rtol=0)
    along = data.x @ data.basis.T / 10  # [n, patches, vectors]
    for n in range(40):
        k = int(data.cluster[n])
        strongest = along[n].abs().amax(0)
        if sigma:
            assert strongest[k] > 0.4
            continue
        label, centre = along[n, :, k], along[n, :, clusters + k]
        assert 0.499 < float(label.sum() * data.y[n]) < 2.001
        assert 0.999 < float(centre.sum()) < 2.001
        others = [j for j in range(clusters) if j != k and strongest[j] > 0.01]
        assert len(others) == 1 and 0.499 < strongest[others[0]] < 3.001
        used = [int(along[n, :, j].abs().argmax()) for j in (k, clusters + k, others[0])]
        assert len(set(used)) == 3  # three patches, and the fourth is empty without noise
        assert data.x[n].norm(dim=-1).min() < 1e-4
        assert strongest.count_nonzero() >= 3 and (strongest > 0.01).sum() == 3


def test_the_sizes_of_the_noise_and_the_moments_of_the_draws():
    data = theory.chen_data(20_000, seeded(), sigma=2.0)
    along = data.x @ data.basis.T / 10
    outside = data.x - 10 * along @ data.basis  # what is orthogonal to all eight is noise, in one patch of four
    assert float(outside.square().sum((1, 2)).mean()) == pytest.approx(100 * 4 * 42 / 50, rel=0.02)
    centre = along.sum(1).gather(1, 4 + data.cluster[:, None])
    assert float(centre.mean()) == pytest.approx(1.5, abs=0.02)
    assert abs(float(data.y.mean())) < 0.03
    assert torch.bincount(data.cluster).double().div(20_000).tolist() == pytest.approx([0.25] * 4, abs=0.015)
    label = along.sum(1).gather(1, data.cluster[:, None])[:, 0] * data.y
    assert float(label.mean()) == pytest.approx(1.25, abs=0.02)
    place = along.abs().sum(-1).argmin(1)  # the patches are shuffled
    assert torch.bincount(place).double().div(20_000).tolist() == pytest.approx([0.25] * 4, abs=0.02)


def test_one_basis_can_serve_train_and_test():
    first = theory.chen_data(3, seeded())
    assert torch.equal(theory.chen_data(5, seeded(1), basis=first.basis).basis, first.basis)
    assert not torch.equal(theory.chen_data(5, seeded(1)).basis, first.basis)


def test_no_sum_over_patches_does_better_than_seven_eighths():
    """All integer tables f(+-v_1), f(+-v_2), f(c_1), f(c_2) on the eight images of two clusters (unit strengths)."""
    best = 0
    for plus1, minus1, plus2, minus2, c1, c2 in product(range(-2, 3), repeat=6):
        right = 0
        for s1, s2 in product((1, -1), repeat=2):
            total = (plus1 if s1 > 0 else minus1) + (plus2 if s2 > 0 else minus2)
            right += (s1 * (total + c1) > 0) + (s2 * (total + c2) > 0)
        best = max(best, right)
    assert best == 7


# The experts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 3])
def test_an_experts_output_by_hand(power):
    data = chen(n=7)
    model = theory.PatchExperts(2, 3, 4, 50, seeded(), power=power, std=0.1).requires_grad_(False)
    model.router.copy_(torch.randn(2, 3, 50, generator=seeded(1)))
    score, expert = model(data.x)
    for s in range(2):
        for n in range(7):
            h = [sum(float(model.router[s, m] @ patch) for patch in data.x[s, n]) for m in range(3)]
            m = max(range(3), key=h.__getitem__)
            assert int(expert[s, n]) == m
            f = 0.0
            for j, sign in enumerate((1, 1, -1, -1)):
                f += sign * sum(float(model.filters[s, m, j] @ patch) ** power for patch in data.x[s, n])
            weight = math.exp(h[m] - max(h)) / sum(math.exp(v - max(h)) for v in h)
            assert float(score[s, n]) == pytest.approx(weight * f, rel=1e-3, abs=1e-4)


def test_a_given_route_has_the_weight_one_and_teaches_no_router():
    data = chen()
    model = theory.PatchExperts(2, 4, 4, 50, seeded(), std=0.1)
    score, expert = model(data.x, route=data.cluster)
    assert torch.equal(expert, data.cluster)
    torch.testing.assert_close(score, model.outputs(data.x, data.cluster))
    theory.fit_experts(model, data, seeded(), steps=2, rate=1e-3, route=data.cluster)
    assert (model.router == 0).all()


def test_with_a_router_of_zeros_the_noise_alone_chooses_and_only_then():
    data = chen(n=4000, seeds=1)
    model = theory.PatchExperts(1, 4, 2, 50, seeded())
    assert (model(data.x)[1] == 0).all()
    chosen = model(data.x, noise=1.0, generator=seeded(1))[1]
    assert torch.bincount(chosen[0]).double().div(4000).tolist() == pytest.approx([0.25] * 4, abs=0.03)


def test_noise_flips_the_choice_as_often_as_it_should():
    """With logits 0 and d in [0, 1], the first wins where U_1 - U_2 > d: with the probability (1 - d)^2 / 2."""
    model = theory.PatchExperts(1, 2, 2, 1, seeded())
    with torch.no_grad():
        model.router[0, 1] = 0.4
    chosen = model(torch.ones(1, 40_000, 1, 1), noise=1.0, generator=seeded(1))[1]
    assert float((chosen == 0).double().mean()) == pytest.approx(0.6**2 / 2, abs=0.01)


def test_one_step_is_a_normalised_step_of_each_expert_and_a_plain_one_of_the_router():
    """Against autograd on a model that computes every expert for every image."""
    data = chen(n=50)
    model = theory.PatchExperts(2, 3, 4, 50, seeded(), std=0.05)
    with torch.no_grad():
        model.router.copy_(0.01 * torch.randn(2, 3, 50, generator=seeded(2)))
    filters, router = (p.detach().clone().requires_grad_() for p in (model.filters, model.router))
    z = torch.einsum("snpd,smjd->snmpj", data.x, filters) ** 3
    f = (z * torch.tensor([1.0, 1, -1, -1])).sum((3, 4))
    h = torch.einsum("snpd,smd->snm", data.x, router)
    chosen = F.one_hot(h.argmax(-1), 3)
    loss = torch.log1p(torch.exp(-data.y * (torch.softmax(h, -1) * f * chosen).sum(-1))).mean(1)
    loss.sum().backward()
    losses = theory.fit_experts(model, data, seeded(), steps=1, rate=0.01, router_rate=0.3, noise=0)
    torch.testing.assert_close(losses[0], loss.detach())
    norm = filters.grad.flatten(2).norm(dim=-1)[..., None, None]
    assert (norm > 0).sum() == 5  # the sixth expert has no image, and stays where it is
    norm = torch.where(norm > 0, norm, 1.0)
    torch.testing.assert_close(model.filters.detach(), (filters - 0.01 * filters.grad / norm).detach())
    torch.testing.assert_close(model.router.detach(), (router - 0.3 * router.grad).detach())


def test_seeds_do_not_touch_each_other_and_rest_when_they_are_done():
    data = chen(n=200)
    both = theory.PatchExperts(2, 2, 4, 50, seeded())
    alone = theory.PatchExperts(1, 2, 4, 50, seeded())
    with torch.no_grad():
        alone.filters.copy_(both.filters[1:])
    options = {"steps": 20, "rate": 2e-3, "noise": 0}
    losses = theory.fit_experts(both, data, seeded(), **options)
    single = theory.fit_experts(alone, theory.Patches(*(part[1:] for part in data)), seeded(), **options)
    torch.testing.assert_close(losses[:, 1:], single)
    torch.testing.assert_close(both.filters[1:].detach(), alone.filters.detach())
    before = both.filters.detach().clone()
    level = float(losses[-1].sum()) / 2  # between the two seeds' losses
    first = int(losses[-1].argmin())
    theory.fit_experts(both, data, seeded(), **(options | {"steps": 1, "stop": level}))
    moved = [not torch.equal(before[s], both.filters[s].detach()) for s in range(2)]
    assert moved == [first != 0, first != 1]


def test_a_cubic_mixture_learns_chens_data_and_a_single_network_cannot():
    data = chen(n=1000)
    drawn = [theory.chen_data(1000, seeded(9 + s), basis=basis) for s, basis in enumerate(data.basis)]
    test = theory.stack(drawn)
    oracle = theory.PatchExperts(2, 4, 16, 50, seeded())
    theory.fit_experts(oracle, data, seeded(1), steps=250, rate=1e-3, route=data.cluster)
    assert theory.accuracy(oracle, test, route=test.cluster).min() > 0.97
    single = theory.PatchExperts(2, 1, 32, 50, seeded())
    theory.fit_experts(single, data, seeded(1), steps=120, rate=1e-3)
    assert theory.accuracy(single, test).max() < 0.8
    by_hand = (test.y * single.outputs(test.x, torch.zeros_like(test.cluster)) > 0).float().mean(1)
    torch.testing.assert_close(theory.accuracy(single, test), by_hand)


# Who went where -------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 60), clusters=st.integers(1, 5), experts=st.integers(1, 6), seed=st.integers(0, 1000))
def test_the_table_and_its_information(n, clusters, experts, seed):
    cluster = torch.randint(clusters, (n,), generator=seeded(seed))
    expert = torch.randint(experts, (n,), generator=seeded(seed + 1))
    table = theory.contingency(cluster, expert, clusters, experts)
    entropy = 0.0
    for m in range(experts):
        for k in range(clusters):
            both = int(((cluster == k) & (expert == m)).sum())
            assert float(table[k, m]) == pytest.approx(both / n)
            if both:
                entropy -= both / n * math.log(both / int((expert == m).sum()))
    assert float(theory.dispatch_entropy(table)) == pytest.approx(entropy, abs=1e-9)
    if len(cluster.unique()) > 1 and len(expert.unique()) > 1:  # scikit-learn calls two constants a perfect match
        known = normalized_mutual_info_score(cluster.numpy(), expert.numpy())
        assert float(theory.mutual_information(table)) == pytest.approx(known, abs=1e-9)
    else:
        assert float(theory.mutual_information(table)) == 0


def test_the_ends_of_the_scales():
    cluster = torch.arange(4).repeat(2, 50)
    own = theory.contingency(cluster, 3 - cluster, 4, 8)
    assert theory.dispatch_entropy(own).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert theory.mutual_information(own).tolist() == pytest.approx([1, 1])
    blind = theory.contingency(cluster, torch.zeros_like(cluster), 4, 8)
    assert theory.dispatch_entropy(blind).tolist() == pytest.approx([math.log(4)] * 2)


# Routed patches -------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 100), patches=st.integers(1, 9))
def test_one_patch_tells_the_label(seed, patches):
    data = theory.chowdhury_data(30, seeded(seed), patches=patches, sigma=0)
    along = data.x @ data.basis.T
    torch.testing.assert_close(along.amax(-1), torch.ones(30, patches), atol=1e-5, rtol=0)
    which = along.argmax(-1)
    for n in range(30):
        assert ((which[n] < 2).nonzero()[:, 0]).tolist() == [int(data.cluster[n])]
        assert int(which[n, data.cluster[n]]) == (0 if data.y[n] > 0 else 1)


def test_a_routers_output_by_hand():
    data = theory.stack([theory.chowdhury_data(5, seeded(s), patches=6) for s in range(2)])
    model = theory.PatchRouter(2, 3, 4, 64, 2, seeded(), std=0.5).requires_grad_(False)
    out = model(data.x)
    for s in range(2):
        for n in range(5):
            total = 0.0
            for m in range(3):
                score = data.x[s, n] @ model.router[s, m]
                kept = score.argsort(descending=True)[:2]
                weight = torch.softmax(score[kept], 0)
                for w, p in zip(weight, kept, strict=True):
                    z = [max(float(model.filters[s, m, j] @ data.x[s, n, p]), 0.0) for j in range(4)]
                    total += float(w) * (z[0] + z[1] - z[2] - z[3])
            assert float(out[s, n]) == pytest.approx(total, abs=1e-5)
    everything = torch.arange(6).expand(2, 5, 6)
    z = F.relu(torch.einsum("snpd,smjd->snpmj", data.x, model.filters))
    plain = (z * torch.tensor([1.0, 1, -1, -1])).sum((3, 4)).mean(2)
    torch.testing.assert_close(model(data.x, everything), plain)


def test_the_patch_router_learns_from_the_loss():
    data = theory.stack([theory.chowdhury_data(5, seeded(0), patches=6)])
    model = theory.PatchRouter(1, 2, 4, 64, 2, seeded())
    F.softplus(-data.y * model(data.x)).mean().backward()
    assert (model.router.grad.abs().sum(-1) > 0).all()


# Pieces of a function -------------------------------------------------------------------------------------------------


def test_the_best_line_of_each_piece_has_the_known_error():
    """The best line on a piece of length h misses x^2 by h^2 / (6 sqrt 5) in root mean square: sixth Legendre norm."""
    x = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    for experts in (1, 2, 4, 8, 16):
        fit = theory.best_experts(theory.piecewise(x, experts), x, x**2)
        error = (fit - x**2).square().mean().sqrt().item()
        assert error == pytest.approx(experts**-2 / (6 * math.sqrt(5)), rel=1e-3)
        constant = theory.best_experts(theory.piecewise(x, experts), x, x, order=0)
        assert (constant - x).square().mean().sqrt().item() == pytest.approx(1 / experts / math.sqrt(12), rel=1e-3)


def test_with_a_soft_gate_the_experts_are_still_the_best():
    x = torch.linspace(0, 1, 200, dtype=torch.float64)
    y = torch.sin(7 * x)
    gate = torch.softmax(torch.stack([0 * x, 5 * x - 2, 3 - 9 * x], 1), 1)
    fit = theory.best_experts(gate, x, y)
    features = torch.cat([gate, gate * x[:, None]], 1)
    assert (features.T @ (y - fit)).abs().max() < 1e-8  # the residual is orthogonal to all that the experts can add


def test_pieces_are_equal_and_cover_the_interval():
    gate = theory.piecewise((torch.arange(600) + 0.5) / 600, 6)
    assert gate.sum(0).tolist() == [100] * 6
    assert theory.piecewise(torch.tensor([0.0, 1.0]), 3).argmax(1).tolist() == [0, 2]
