"""Known times give known ratios, known laws give known exponents, rows follow the schema."""

import itertools
import time

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

        def case(self, name, *ms):
            times = itertools.cycle(ms)

            def run():
                self.now += next(times) / 1e3
                self.turns += name

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
