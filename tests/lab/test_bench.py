"""Known times give known ratios, known laws give known exponents, rows follow the schema."""

import contextlib
import itertools
import time
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from gated.lab import bench


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the cases move: clock.case(name, ms) makes one that takes `ms` and notes its turn."""

    class Clock:
        now, turns = 0.0, ""

        def case(self, name, *ms, result=None):
            """`ms` may be functions of nothing."""
            times = itertools.cycle(ms)

            def run():
                taken = next(times)
                self.now += (taken() if callable(taken) else taken) / 1e3
                self.turns += name
                return result

            return run

    fake = Clock()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: fake.now)
    return fake


def test_cases_take_turns_and_the_ratio_is_theirs(clock):
    result = bench.race({"ours": clock.case("a", 3), "peer": clock.case("b", 9)}, rounds=8, warmup=1)
    assert clock.turns == "ab" + "ab" + "ab" * 8  # warm-up, calibration, rounds
    assert result.ratio("peer") == pytest.approx((3, 3, 3))
    assert result.median("ours") == pytest.approx(3)
    assert (result.device, result.threads) == ("cpu", 1)
    with pytest.raises(ValueError, match="case must be one of"):
        result.median("theirs")


def test_warming_up_ends_when_two_calls_take_the_same_time(clock):
    result = bench.race({"ours": clock.case("a", 900, 300, 30, 5, 5.5, *[5] * 8)}, rounds=8, warmup=1)
    assert clock.turns == "a" * (5 + 8) and result.ms["ours"].tolist() == pytest.approx([5] * 8)
    clock.turns = ""
    bench.race({"ours": clock.case("a", 5, 9)}, rounds=6, warmup=1)
    assert clock.turns == "a" * (bench.WARM_CALLS + 6)
    clock.turns = ""
    bench.race({"ours": clock.case("a", 1500, 1100)}, rounds=6, warmup=1)  # nobody waits for long
    assert clock.turns == "a" * (2 + 6)
    clock.turns = ""
    bench.race({"ours": clock.case("a", 5)}, rounds=6, warmup=4)
    assert clock.turns == "a" * (5 + 6)


def test_what_compiles_is_not_timed(clock, monkeypatch):
    left = iter("cc")  # two calls in a row that compile and take the same time

    @contextlib.contextmanager
    def nothing():
        if next(left, None):
            raise RuntimeError("recompiled")
        yield

    monkeypatch.setattr(bench, "_compiling_nothing", nothing)
    result = bench.race({"ours": clock.case("a", 700, 700, 700, *[2] * 8)}, rounds=6, warmup=1)
    assert result.ms["ours"].tolist() == pytest.approx([2] * 6)


def test_a_slow_phase_of_the_machine_does_not_move_the_ratio(clock):
    phases = [1, 5, 1, 7, 1, 1, 9, 2, 1, 1]
    ours, peer = (clock.case(name, *(ms * f for f in phases)) for name, ms in (("a", 4), ("b", 6)))
    result = bench.race({"ours": ours, "peer": peer}, rounds=8, warmup=1)
    assert result.ratio("peer") == pytest.approx((1.5, 1.5, 1.5))


def test_short_cases_are_called_many_times(clock):
    result = bench.race({"ours": clock.case("a", 0.01)}, rounds=6, warmup=1, min_ms=1.0)
    assert len(clock.turns) == 1 + 1 + 6 * 100
    assert result.median("ours") == pytest.approx(0.01)


def test_a_real_clock_measures_milliseconds():
    assert 5 <= bench.race({"ours": lambda: time.sleep(0.005)}, rounds=6).median("ours") < 100


def test_threads_are_set_and_put_back():
    before, seen = torch.get_num_threads(), []
    cases = {"ours": lambda: seen.append(torch.get_num_threads())}
    bench.race(cases, rounds=6, threads=before + 1, min_ms=0.0)
    assert set(seen) == {before + 1}
    with pytest.raises(RuntimeError), bench.use_threads(before + 1):
        raise RuntimeError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("n", "level"), [(6, 0.95), (15, 0.95), (20, 0.9), (40, 0.99)])
def test_median_interval_is_the_narrowest_that_covers(n, level):
    x = np.random.default_rng(n).permutation(n).astype(float)
    value, low, high = bench.median_interval(x, level)
    assert value == np.median(x)
    below = int(low)  # values 0..n-1: this many lie below the interval
    assert high == n - 1 - below
    # P(the median falls outside) = 2 P(Binomial(n, 1/2) <= below)
    assert 2 * stats.binom.cdf(below, n, 0.5) <= 1 - level < 2 * stats.binom.cdf(below + 1, n, 0.5)


def test_exponents_of_known_laws():
    sizes = [1024, 2048, 4096, 8192]
    assert bench.fit_exponent(sizes, [3e-6 * n**1.5 for n in sizes]) == pytest.approx((1.5, 1.5, 1.5))
    noise = np.random.default_rng(0).normal(scale=0.05, size=(500, 4))
    fits = [bench.fit_exponent(sizes, np.array(sizes) * np.exp(e)) for e in noise]
    assert np.mean([f.low <= 1 <= f.high for f in fits]) == pytest.approx(0.95, abs=0.03)


def test_sgemm_rate_counts_two_flops_a_product(monkeypatch):
    assert bench.sgemm_rate(size=64) > 1e6
    times = iter([4.0, 2.0, 3.0])
    monkeypatch.setattr(bench, "_cpu_ms", lambda fn, calls: next(times))
    assert bench.sgemm_rate(size=100, rounds=3) == pytest.approx(2 * 100**3 / 2e-3)


def given(x):
    return lambda: (x, {"more": np.arange(3)})


def test_results_are_compared_before_the_clock_runs():
    x = torch.linspace(0, 2, 5, dtype=torch.float64)
    race = partial(bench.race, rounds=6, min_ms=0)
    found = race({"ours": given(x), "near": given(x + 1e-8), "single": given(x.float() + 1e-4)}, uncompared={})
    assert found.apart == pytest.approx({"near": 0.5e-8, "single": 0.5e-4}, rel=0.01)
    for wrong in (x + 1e-7, (x + 1e-2).float(), x[:4], x * torch.nan):
        cases = {"ours": given(x), "wrong": given(wrong)}
        with pytest.raises(AssertionError, match="wrong and ours differ by"):
            race(cases, uncompared={})
        assert race(cases, uncompared={"wrong": "another function"}).apart == {}
        assert race(cases).uncompared == {}
    assert race({"ours": given(x), "near": given(x + 1e-2)}, uncompared={}, tolerance=0.01).apart["near"] > 0


def test_any_case_of_a_race_can_be_ours():
    ms = {name: np.full(9, float(i)) for i, name in enumerate("abcd", 1)}
    race = bench.Race(ms, 1, "cpu", apart={"b": 0.1, "c": 0.2}, uncompared={"d": "less"}, unsteady=frozenset("d"))
    found = race.among("b", "a", "c", "d")
    assert (found.ratio("a").value, found.ratio("d").value) == (0.5, 2)
    assert found.apart == pytest.approx({"a": 0.1, "c": 0.3}) and found.uncompared == {"d": "less"}
    assert found.steady("c") and not found.steady("d")
    assert race.among("d", "a").uncompared == {"a": "less"} and not race.among("d", "a").apart
    assert bench.Race(ms, 1, "cpu").among("b", "a").uncompared == {}


def test_noisy_races_are_run_again_and_then_marked(clock):
    noise = {"seconds": 3 * 8}  # rounds of the peer that are noisy: those of the first three races

    def peer():
        noise["seconds"] -= 1
        return 9 if noise["seconds"] % 2 or noise["seconds"] < 0 else 30

    def measured(tries, noisy):
        noise["seconds"] = noisy
        report = bench.Report("gla", tries=tries)
        (found,) = report.run({"ours": clock.case("a", 3), "peer": clock.case("b", peer)}, rounds=8, warmup=1)
        report.race("forward", {"T": 1}, found)
        return report.rows[0]

    assert "unsteady" not in measured(1, 0)
    assert measured(1, 99)["unsteady"] is True
    assert measured(3, 999)["unsteady"] is True
    before = len(clock.turns)
    assert "unsteady" not in measured(3, 30)  # the race that is thrown away and the next
    assert 3 * 2 * 10 <= len(clock.turns) - before < 4 * 2 * 10


def test_the_first_race_of_a_report_is_run_for_nothing(clock):
    report = bench.Report("gla", tries=3)
    for length in (2, 1):
        clock.turns = ""
        report.run({"ours": clock.case("a", 3)}, rounds=6, warmup=1)
        assert clock.turns == "a" * (2 + 6) * length


def test_two_threads_that_do_too_much_are_not_believed(clock):
    def cold():
        return 9 if torch.get_num_threads() == 1 else 3

    report = bench.Report("gla", tries=2)
    cases = {name: clock.case(name, *ms) for name, ms in {"a": [4], "b": [5], "c": [cold]}.items()}
    for found in report.run(cases, (1, 2), rounds=6, warmup=1):
        report.race("forward", {"T": 1}, found)
    assert [("unsteady" in row, row["peer"], row["threads"]) for row in report.rows] == [
        (False, "b", 1), (True, "c", 1), (False, "b", 2), (True, "c", 2)
    ]  # fmt: skip


@pytest.mark.parametrize("tries", [1, 3])
def test_those_that_learn_are_compared_once(tries):
    steps = {"a": 0, "b": 0}

    def learn(name, power):
        def step():
            steps[name] += 1
            return torch.tensor(float(steps[name] ** power))  # alike at the first step alone

        return step

    report = bench.Report("gla", tries=tries)
    one, two = report.run({"a": learn("a", 1), "b": learn("b", 2)}, (1, 2), rounds=6, min_ms=0, uncompared={})
    assert one.apart == two.apart == {"b": 0.0} and steps["b"] > 12


def test_growth_is_fitted_where_it_has_settled(tool):
    report, sizes = bench.Report("gla"), [100 * 2**i for i in range(6)]
    bent = [5000 + n if n < 800 else 10 * n for n in sizes]
    assert report.scaling("linear", sizes, bent, settled=True) == pytest.approx((1, 1, 1))
    assert report.scaling("linear", sizes, bent).value < 0.8
    curved = report.scaling("neither", sizes, [100 + n**2 / 1000 for n in sizes], settled=True)
    assert curved.high - curved.low > bench.NARROW
    assert ["exponent" in row for row in report.rows] == [True, True, False]
    assert "exponent 1 [1, 1]" in str(report)
    tool("results").check("bench", {"rows": report.rows})


def test_what_is_stored_was_compared_and_timed_once(tool):
    report = bench.Report("gla")
    ms = {"ours": np.full(9, 2.0), "peer": np.full(9, 3.0), "other": np.full(9, 5.0)}
    race = bench.Race(ms, 1, "cpu", apart={"peer": 0.0}, uncompared={"other": "less"})
    report.race("forward", {"T": 1}, race)
    report.race("forward", {"T": 1}, race.among("peer", "ours"))
    tool("bench").honest(report.rows)
    again = bench.Race(ms | {"peer": np.full(9, 3.1)}, 1, "cpu", uncompared={"peer": "less", "other": "less"})
    report.race("forward", {"T": 1}, again)
    with pytest.raises(SystemExit, match=r"peer takes 3\.0 ms and 3\.1 ms"):
        tool("bench").honest(report.rows)
    report.rows[2:] = []
    del report.rows[1]["uncompared"]
    with pytest.raises(SystemExit, match="result of other"):
        tool("bench").honest(report.rows)


def test_rows_follow_the_schema(tool):
    report = bench.Report("gla")
    result = bench.Race({"ours": np.full(9, 2.0), "peer": np.full(9, 3.0)}, threads=2, device="cpu")
    report.race("forward", {"T": 2048}, result)
    assert report.scaling("forward", [1, 2, 4], [1.0, 2.0, 4.0]).value == pytest.approx(1)
    assert report.rows[0] == {
        "chapter": "gla",
        "case": "forward",
        "sizes": {"T": 2048},
        "threads": 2,
        "device": "cpu",
        "ours": "ours",
        "ours_ms": 2.0,
        "peer": "peer",
        "peer_ms": 3.0,
        "ratio": 1.5,
        "ratio_interval": [1.5, 1.5],
    }
    assert "1.5 [1.5, 1.5]" in str(result)
    bundle = report._repr_mimebundle_()
    assert "exponent 1 [1, 1]" in bundle["text/plain"]
    assert bundle[bench.MIME] == {"rows": report.rows}
    tool("results").check("bench", bundle[bench.MIME])
