"""The study: its data against their law, its measurements by hand, and equal numbers however it is cut and run."""

import functools
import os
import random
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from gated.gaussian_moe import measures, study
from gated.gaussian_moe.distances import total_variation
from gated.gaussian_moe.model import Gate, GaussianMoE
from gated.gaussian_moe.truths import DENSE, SPARSE, SYMMETRIC, TEMPERATURE
from gated.gaussian_moe.voronoi import cells, fix_gauge
from gated.lab import shards

ALL = list(study.REGIMES)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", study.LAWS)
def test_data_follow_their_law(law):
    truth, (low, high) = study.LAWS[law]
    x, y, expert = study.data(law, 5000, 3)
    pi, mean, deviation = truth.log_gate(x).exp(), truth.means(x), truth.variance.sqrt()
    position = (pi * torch.special.ndtr((y[:, None] - mean) / deviation)).sum(1)  # uniform if y | x is as it should be
    assert stats.kstest(position, "uniform").pvalue > 1e-3
    assert stats.kstest((x[:, 0] - low) / (high - low), "uniform").pvalue > 1e-3
    given_x = np.corrcoef(position, x[:, 0])[0, 1] * 5000**0.5
    assert abs(given_x) < 4
    residual = (y - mean.gather(1, expert[:, None])[:, 0]) / deviation[expert]
    assert stats.kstest(residual, "norm").pvalue > 1e-3
    seen = torch.nn.functional.one_hot(expert, truth.num_experts).double()
    surprise = (seen - pi).sum(0) / (pi * (1 - pi)).sum(0).sqrt().clamp(min=1)
    assert surprise.abs().max() < 4 and not seen[pi == 0].any()


def test_data_sets_are_the_same_each_time_and_all_different():
    one, again = study.data("dense", 60, 0), study.data("dense", 60, 0)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    first = {
        study.data(law, n, replicate).x[0].item()
        for law in study.LAWS
        for n in study.FULL["sizes"][:4]
        for replicate in range(study.FULL["replicates"])
    }
    assert len(first) == len(study.LAWS) * 4 * study.FULL["replicates"]


@pytest.mark.parametrize("regime", [name for name in ALL if name != "labels"])
def test_starts_do_not_shrink_with_n(regime):
    """A start near the truth whose noise falls with n would show a rate that no data have."""
    this = study.REGIMES[regime]
    truth = study.LAWS[this.law].truth
    spread = []
    for n in (100, 100_000):
        of = [this.start(truth, this.gate or truth.gate, study._generator(this.law, n, r, "start")) for r in range(60)]
        spread.append(torch.stack([models[-1].a[0] - truth.a[cells(models[-1], truth)[0]] for models in of]).std())
        assert all(len(models) == 1 + (this.max_bias == study.MAX_BIAS) for models in of)
    assert 0.7 < spread[1] / spread[0] < 1.4
    tau = torch.stack([models[0].tau[0] for models in of])
    assert (tau.log().std() > 0.2) == this.free_tau


# Measurements ---------------------------------------------------------------------------------------------------------


def by_hand(fitted, truth):
    """`measures.errors` of one model, with loops, for tau and cells as they come."""
    fitted = fix_gauge(fitted, truth)
    theta = [torch.cat([m.beta1, m.a, m.b[:, None], m.variance[:, None]], 1).tolist() for m in (fitted, truth)]
    distance = [[sum((p - q) ** 2 for p, q in zip(f, t, strict=True)) for f in theta[0]] for t in theta[1]]
    k, true = len(theta[0]), len(theta[1])
    out = {name: [] for name in ("beta0", "beta1", "a", "b", "variance", "ratio0", "ratio1")}
    for j in range(true):
        mine = [i for i in range(k) if min(range(true), key=lambda t, i=i: distance[t][i]) == j]
        mine = mine or [min(range(k), key=lambda i: distance[j][i])]
        weight = [np.exp(float(fitted.beta0[i] / fitted.tau)) for i in mine]
        ratio = np.log(sum(weight))
        out["ratio0"].append(abs(ratio - float(truth.beta0[j] / truth.tau)))
        out["beta0"].append(abs(float(fitted.tau) * ratio - float(truth.beta0[j])))
        pairs = {name: (getattr(fitted, name), getattr(truth, name)) for name in ("beta1", "a", "b", "variance")}
        pairs["ratio1"] = fitted.beta1 / fitted.tau, truth.beta1 / truth.tau
        for name, (f, t) in pairs.items():
            squares = sum(w * float(f[i].squeeze() - t[j].squeeze()) ** 2 for w, i in zip(weight, mine, strict=True))
            out[name].append((squares / sum(weight)) ** 0.5)
    return out


@pytest.mark.parametrize("truth", [DENSE, SPARSE, TEMPERATURE])
@pytest.mark.parametrize("experts", [2, 3, 5])
def test_errors_by_hand(truth, experts):
    generator = torch.Generator().manual_seed(experts)
    fitted = study.near(truth, 8, 1.0, generator, ray=0.5)
    index = torch.randint(truth.num_experts, (experts,), generator=generator)  # cells of all sizes, empty ones too
    fitted = study._stack([fitted]).with_gate(Gate())
    fitted = GaussianMoE(
        **{name: t if name == "tau" else t[:, index] for name, t in fitted.tensors().items()}, gate=Gate()
    )
    found = measures.errors(fitted, truth)
    for i in range(8):
        for name, expected in by_hand(fitted[i], truth).items():
            assert found[name][i].tolist() == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert torch.allclose(found["tau"][:, 0], (fitted.tau - truth.tau).abs())


def test_errors_vanish_at_the_truth_in_any_order_and_gauge():
    order = torch.tensor([2, 0, 1])
    moved = SPARSE.map(lambda t: t[order] if t.dim() else t)
    moved = GaussianMoE(**moved.tensors() | {"beta0": moved.beta0 + 3, "beta1": moved.beta1 - 7}, gate=SPARSE.gate)
    for name, error in measures.errors(moved.expand(2), SPARSE).items():
        assert error.abs().max() < 1e-12, name


def test_the_oracle_is_least_squares():
    found = study.shard("labels", 80, 2, 4)
    for replicate in (2, 3):
        x, y, expert = study.data("dense", 80, replicate)
        for i in range(2):
            a, b = np.polyfit(x[expert == i, 0], y[expert == i], 1)
            variance = np.mean((y[expert == i] - a * x[expert == i, 0] - b).numpy() ** 2)
            for name, value, true in (("a", a, DENSE.a[i, 0]), ("b", b, DENSE.b[i]), ("variance", variance, 0)):
                error = value - (DENSE.variance[i] if name == "variance" else true)
                assert found[f"{name}_{i + 1}"][replicate - 2] == pytest.approx(abs(float(error)), rel=1e-8)


@pytest.mark.parametrize("regime", ["sparse", "dense", "tanh"])
def test_distances_are_those_of_the_fit_on_the_laws_interval(regime):
    found, this = study.shard(regime, 150, 1, 2), study.REGIMES[regime]
    truth, (low, high) = study.LAWS[this.law]
    fitted = study._outcome(this, 150, [1], [study.data(this.law, 150, 1)]).fit.model[0]
    x = low + (high - low) * (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    y = torch.linspace(-40, 40, 16001, dtype=torch.float64)
    hellinger = variation = 0.0
    for at in x:  # at each x all of y
        p, q = (m.log_density(at.expand(len(y), 1), y).exp() for m in (fitted, truth))
        hellinger += float((p.sqrt() - q.sqrt()).square().sum() / 2 * 80 / 16000 / 400)
        variation += float((p - q).abs().sum() / 2 * 80 / 16000 / 400)
    assert found["squared_hellinger"][0] == pytest.approx(hellinger, rel=5e-3)
    assert found["total_variation"][0] == pytest.approx(variation, rel=5e-3)


@pytest.mark.parametrize(
    ("regime", "parameters"),
    [("dense", 8), ("sparse", 13), ("fixed", 8), ("identity", 8), ("relu", 8), ("tanh_fixed", 8), ("tanh", 9)],
)
def test_likelihood_ratios_are_chi_square(regime, parameters):
    """The scale of an identity or ReLU gate is no parameter: 8 of the 9 count."""
    ratio = torch.tensor(study.shard(regime, 1000, 0, 40)["likelihood_ratio"])
    assert abs(ratio.mean() - parameters) < 1.5 and ratio.min() > 0


def test_the_three_parametrisations_of_a_linear_gate_are_one_density():
    fixed, ratio, free = (study.shard(name, 300, 0, 5) for name in ("fixed", "ratio", "identity"))
    for name in ("likelihood_ratio", "total_variation", "squared_hellinger", "ratio1_1", "a_1", "variance_2"):
        assert ratio[name] == pytest.approx(fixed[name], rel=1e-3)
        assert free[name] == pytest.approx(fixed[name], rel=1e-2)
    assert min(free["tau"]) > 1e-3  # its error is the start's


def light_by_hand(fitted, truth, interval):
    """light_bias, light_work, light_distance of one model, with loops."""
    fitted = fix_gauge(fitted, truth)
    cell = cells(fitted, truth).tolist()
    fuller = max((0, 1), key=cell.count)
    mine = [i for i in range(len(cell)) if cell[i] == fuller]
    logit = lambda i, x: float(fitted.beta0[i] + fitted.beta1[i, 0] * x)  # noqa: E731
    work = dict.fromkeys(mine, 0.0)
    for x in np.linspace(*interval, 4001):
        total = sum(np.exp(logit(i, x)) for i in range(len(cell)))
        for i in mine:
            work[i] += np.exp(logit(i, x)) / total
    bias = [np.exp(logit(i, 0)) for i in mine]
    light = min(mine, key=work.get)
    away = abs(float(fitted.b[light] - truth.b[fuller])) / float(truth.variance[fuller]) ** 0.5
    return min(bias) / sum(bias), work[light] / sum(work.values()), away


def test_the_lighter_experts_share_by_hand():
    found, this = study.shard("over", 200, 0, 5), study.REGIMES["over"]
    fits = study._outcome(this, 200, range(5), [study.data("dense", 200, r) for r in range(5)]).fit.model
    names = "light_bias", "light_work", "light_distance"
    for i in range(5):
        expected = light_by_hand(fits[i], DENSE, study.LAWS["dense"].interval)
        assert [found[name][i] for name in names] == pytest.approx(expected, rel=2e-3)
    assert min(found["light_work"]) > 0 and max(found["light_work"]) <= 0.5


@pytest.mark.parametrize("regime", ["over", "kbar2", "kbar3", "kbar4"])
def test_fits_with_surplus_experts_have_bounded_parameters(regime):
    this = study.REGIMES[regime]
    fits = study._outcome(this, 100, range(12), [study.data(this.law, 100, r) for r in range(12)]).fit
    assert fits.model.beta0.abs().max() <= study.MAX_BIAS and fits.model.beta1.abs().max() <= study.MAX_SLOPE
    truth = study.LAWS[this.law].truth
    assert truth.beta0.abs().max() < study.MAX_BIAS and truth.beta1.abs().max() < study.MAX_SLOPE


@pytest.mark.parametrize(("name", "share"), [("beta1", 0.96), ("beta1", 0.94), ("beta0", -0.96), ("beta0", -0.94)])
def test_a_slope_or_bias_close_to_its_bound_counts(name, share):
    this, drawn = study.REGIMES["over"], [study.data("dense", 100, 0)]
    outcome = study._outcome(this, 100, [0], drawn)
    bound = {"beta0": outcome.max_bias, "beta1": outcome.max_slope}[name]
    assert bound == {"beta0": 12, "beta1": 200}[name]
    model = study.near(DENSE, 1, 0.0, torch.Generator())
    getattr(model, name)[0, 0] = share * bound
    fit = outcome.fit._replace(model=model, at_bound=torch.tensor([False]))
    assert measures.density(outcome._replace(fit=fit))["at_bound"].tolist() == [abs(share) > 0.95]


def test_em_leaves_a_top1_gate_alone_and_the_scan_finds_the_boundary():
    found = study.shard("top1", 2000, 0, 6)
    assert set(found["gate_moved"]) == {0.0}
    assert max(found["boundary"]) < 5 / 2000 < min(found["initial_boundary"]) * 50
    x, y, _ = study.data("top1", 2000, 0)
    x, y = x[:, 0].numpy(), y.numpy()
    inputs, best = np.sort(x), (np.inf, 0.0)
    for cut in (inputs[500:800] + inputs[501:801]) / 2:
        total = 0.0
        for side in (x < cut, x > cut):
            residual = y[side] - np.polyval(np.polyfit(x[side], y[side], 1), x[side])
            total += side.sum() * np.log(np.mean(residual**2))
        best = min(best, (total, cut))
    assert found["boundary"][0] == pytest.approx(abs(best[1] - 8 / 25), abs=1e-12)


def test_two_starts_and_the_better_one_counts():
    this = study.REGIMES["over"]
    drawn = [study.data(this.law, 200, r) for r in range(6)]
    both = study._outcome(this, 200, range(6), drawn)
    values = []
    for attempt in (0, 1):
        one = replace(this, start=lambda *given, attempt=attempt: this.start(*given)[attempt : attempt + 1])
        values.append(study._outcome(one, 200, range(6), drawn))
    higher = torch.maximum(values[0].fit.log_likelihood, values[1].fit.log_likelihood)
    assert torch.equal(both.fit.log_likelihood, higher)
    for i in range(6):
        from_ = values[int(values[1].fit.log_likelihood[i] > values[0].fit.log_likelihood[i])]
        assert torch.equal(both.fit.model.b[i], from_.fit.model.b[i]) and torch.equal(both.start.b[i], from_.start.b[i])
    assert both.fit.model.num_experts == 3 and both.fit.model.gate == Gate()
    number = torch.nn.functional.one_hot(cells(values[0].start, DENSE), 2).sum(1)
    assert sorted(set(number[:, 0].tolist())) == [1, 2]  # either expert may be the doubled one


def test_two_kept_experts_of_four_can_be_exact_without_any_being_idle():
    """Why `kbar2` converges: each copy of the middle expert serves one side, where its partner is another."""
    fitted = GaussianMoE.of(
        [0.5, -0.5, 0, 0], [3.01, -3.01, 0.01, -0.01], [2, 2, 0.5, 0.5], [2, -2, 0, 0], [0.16, 0.16, 0.25, 0.25],
        gate=Gate(2, "slope"),
    )  # fmt: skip
    assert total_variation(fitted, SPARSE, SYMMETRIC) < 1e-12
    x = torch.linspace(-1, 1, 100, dtype=torch.float64)[:, None]
    assert fitted.selected(x).any(0).all()


# The whole ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", ALL)
def test_grouping_replicates_changes_no_bit(regime, monkeypatch):
    this = study.REGIMES[regime]
    monkeypatch.setitem(study.REGIMES, regime, replace(this, max_iterations=min(40, this.max_iterations)))
    whole = study.shard(regime, 100, 0, 4)
    parts = [study.shard(regime, 100, first, last) for first, last in ((0, 1), (1, 4))]
    assert whole == {name: [x for part in parts for x in part[name]] for name in whole}
    assert all(len(values) == 4 and np.isfinite(values).all() for values in whole.values())


def test_a_sweep_is_the_same_in_any_order_and_cut(monkeypatch):
    def shuffled(function, jobs):
        names = list(jobs)
        random.Random(0).shuffle(names)
        return {name: function(**jobs[name]) for name in names}

    regimes, sizes = ["top1", "identity"], [120, 60]
    whole = study.sweep(regimes, sizes, 5)
    monkeypatch.setattr(study, "SHARD", 240)
    assert len(study.jobs(regimes, sizes, 5)) == 2 * (3 + 2)
    assert study.sweep(regimes, sizes, 5, run=shuffled) == whole
    fewer = study.unpack(study.sweep(regimes, sizes[:1], 3))
    found = study.unpack(whole)
    assert list(found) == regimes
    for regime in regimes:
        exact = [study.shard(regime, n, 0, 5) for n in sizes]
        for name, values in found[regime].items():
            assert values.shape == (2, 5)
            assert values.tolist() == [pytest.approx(row[name], rel=6e-4) for row in exact]
            assert torch.equal(fewer[regime][name], values[:1, :3])


@pytest.mark.parametrize(("regimes", "limit"), [("TOPK_THEORY", 10), ("TEMPERATURE_THEORY", 10)])
def test_the_full_study_is_cut_into_shards_that_cover_it_once(regimes, limit):
    work = study.jobs(getattr(study, regimes), **study.FULL)
    covered = [(j["regime"], j["n"], r) for j in work.values() for r in range(j["first"], j["last"])]
    assert len(covered) == len(set(covered)) == len(getattr(study, regimes)) * len(study.FULL["sizes"]) * 40
    assert max(j["n"] * (j["last"] - j["first"]) for j in work.values()) <= study.SHARD
    assert set(study.LIVE["sizes"]) <= set(study.FULL["sizes"])  # live replicates are the first of the stored ones


@pytest.mark.processes
def test_a_killed_worker_and_a_resumed_sweep_give_the_numbers_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SHARD", 400)
    given = {"regimes": ["dense", "over", "tanh"], "sizes": [200, 100], "replicates": 4}
    alone = study.sweep(**given)
    done = []

    def half(function, jobs):  # a driver that comes as far as every second shard
        some = dict(list(jobs.items())[::2])
        done.extend(some)
        return shards.run(function, some, tmp_path, version=study.VERSION)

    with pytest.raises(KeyError):
        study.sweep(**given, run=half)
    times = {name: (tmp_path / f"{name}.json").stat().st_mtime_ns for name in done}
    assert 0 < len(done) < len(study.jobs(**given))
    with shards.local_client(2) as client:
        victim = next(iter(client.run(os.getpid).values()))
        thread = threading.Thread(target=lambda: (time.sleep(0.3), os.kill(victim, signal.SIGKILL)))
        thread.start()
        run = functools.partial(shards.run, folder=tmp_path, client=client, version=study.VERSION)
        assert study.sweep(**given, run=run) == alone
        thread.join()
        assert victim not in client.run(os.getpid).values()
    assert {name: (tmp_path / f"{name}.json").stat().st_mtime_ns for name in done} == times
