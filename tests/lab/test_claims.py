"""Verdicts against their definition, intervals against closed forms and coverage, results on disk."""

import json
import math
import platform

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gated.lab import claims, intervals
from gated.lab.claims import Ledger, Verdict, across_processes, agree, all_of, decide, holds_if, not_decidable

numbers = st.floats(-10, 10)


def row(ledger, id="C1", **changes):
    given = {
        "claim": "A < B",
        "refuted_if": "A >= B",
        "measured": -0.5,
        "interval": (-0.6, -0.4),
        "seeds": 5,
        "why": "B forgets.",
        "verdict": holds_if(True),
    }
    return ledger.claim(id, **(given | changes))


@given(numbers, numbers, numbers)
def test_decide_agrees_with_every_point_of_the_interval(a, b, than):
    low, high = sorted((a, b))
    points = (low, (low + high) / 2, high)
    for better, side in (("below", lambda x: x < than), ("above", lambda x: x > than)):
        verdict = decide((low, high), better=better, than=than)
        assert (verdict is Verdict.HOLDS) == all(map(side, points))
        # mirrored: what holds below fails above
        mirror = decide((-high, -low), better={"below": "above", "above": "below"}[better], than=-than)
        assert verdict is mirror
    assert (decide((low, high), better="below", than=than) is Verdict.FAILS) == (low > than)
    assert (decide((low, high), better="above", than=than) is Verdict.FAILS) == (high < than)


def test_decide_within_a_band():
    assert decide((0.1, 0.2), better="within", than=(0, 1)) is Verdict.HOLDS
    assert decide((0.9, 1.2), better="within", than=(0, 1)) is Verdict.UNDECIDED
    assert decide((1.1, 1.2), better="within", than=(0, 1)) is Verdict.FAILS
    assert decide((-3, -1), better="within", than=(0, 1)) is Verdict.FAILS
    assert decide((-math.inf, 3), better="below", than=4) is Verdict.HOLDS


def test_all_of_is_the_strong_conjunction():
    h, f, u = Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED
    assert all_of(h, h) is h
    assert all_of(h, u) is u
    assert all_of(u, f, h) is f
    assert not_decidable() is u
    assert holds_if(torch.tensor(0.1) > 1) is f
    assert [str(v) for v in (h, f, u)] == ["holds here", "fails here", "not decidable at this scale"]


def test_t_interval_is_scipys():
    x = [0.1, 0.4, 0.35, 0.2, 0.9]
    want = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    assert claims.t_interval(x, 0.9) == pytest.approx((want.low, want.high), abs=1e-12)
    want = stats.ttest_rel(x, x[::-1]).confidence_interval(0.95)
    assert claims.paired_interval(x, torch.tensor(x).flip(0)) == pytest.approx((want.low, want.high), abs=1e-6)


def test_bootstrap_of_a_proportion_is_the_binomial():
    # resampling n zeros and ones draws Binomial(n, p) / n, so the percentiles are known
    x = np.repeat([0.0, 1.0], [60, 140])
    low, high = claims.bootstrap_interval(x, 0.9, seed=1, resamples=20_000)
    want = stats.binom.ppf([0.05, 0.95], 200, 0.7) / 200
    assert (low, high) == pytest.approx(want, abs=0.0051)
    assert (low, high) == claims.bootstrap_interval(x, 0.9, seed=1, resamples=20_000)
    median = claims.bootstrap_interval(np.arange(101.0), statistic=np.median)
    assert median[0] < 50 < median[1]


def test_few_seeds_take_students_interval_because_the_bootstrap_is_too_narrow():
    assert claims.mean_interval([1.0, 2.0, 4.0]) == claims.t_interval([1.0, 2.0, 4.0])
    many = np.random.default_rng(0).normal(size=30)
    assert claims.mean_interval(many) == claims.bootstrap_interval(many)
    x = np.random.default_rng(1).normal(size=(400, 4))
    covered = np.mean([low <= 0 <= high for low, high in map(claims.t_interval, x)])
    assert covered == pytest.approx(0.95, abs=0.035)
    means = np.random.default_rng(2).integers(0, 4, (1000, 4))
    ends = np.quantile(x[:, means].mean(-1), [0.025, 0.975], axis=1)
    bootstrap = np.mean((ends[0] <= 0) & (ends[1] >= 0))
    assert bootstrap < 0.85


def test_prediction_interval_covers_the_next_run():
    x = np.random.default_rng(3).normal(size=(600, 5))
    low, high = zip(*(claims.prediction_interval(r[:4], level=0.9) for r in x), strict=True)
    assert np.mean((x[:, 4] >= low) & (x[:, 4] <= high)) == pytest.approx(0.9, abs=0.04)
    agree(0.3, (0.2, 0.4))
    with pytest.raises(AssertionError, match=r"0\.5.*\[0\.2, 0\.4\]"):
        agree(0.5, (0.2, 0.4))


def test_ledger_shows_the_same_rows_in_every_form(tool):
    ledger = Ledger("gla")
    assert row(ledger) is Verdict.HOLDS
    row(ledger, "C2", measured="exact", interval=None, verdict=not_decidable(), source="stored", seeds=1)
    bundle = ledger._repr_mimebundle_()
    assert bundle["text/plain"] == (
        "     Verdict                      Measured           Seeds           Claim\n"
        "C1.  holds here                   −0.5 [−0.6, −0.4]  5 seeds, live   A < B\n"
        "C2.  not decidable at this scale  exact              1 seed, stored  A < B"
    )
    assert "A &lt; B" in bundle["text/html"]
    assert "5 seeds, live" in bundle["text/html"]
    assert "1 seed, stored" in bundle["text/html"]
    assert ledger.verdicts() == {"C1": "holds here", "C2": "not decidable at this scale"}
    rows = bundle[claims.MIME]["rows"]
    assert json.loads(json.dumps(rows)) == rows
    assert {
        "chapter": "gla",
        "id": "C1",
        "claim": "A < B",
        "measured": -0.5,
        "interval": [-0.6, -0.4],
        "seeds": 5,
        "verdict": "holds here",
        "source": "live",
    }.items() <= rows[0].items()
    tool("results").check("claims", {"rows": rows})
    assert rows[1]["interval"] is None


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository and the package inside it, where results are stored."""
    package = tmp_path / "gated" / "lab"
    package.mkdir(parents=True)
    (tmp_path / "book").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(claims, "__file__", str(package / "claims.py"))
    monkeypatch.delenv("GATED_FULL", raising=False)
    return tmp_path


def experiment(seeds, scale=1.0):
    return {"loss": torch.tensor([scale * s for s in seeds]), "n": np.int64(len(seeds))}


def test_stored_makes_the_full_run_once_and_reads_it_back(checkout, monkeypatch):
    live, full = {"seeds": [0]}, {"seeds": [0, 1, 2], "scale": 2.0}
    with pytest.raises(ValueError, match="make results-gla"):
        claims.stored("gla", "recall", experiment, live, full)
    monkeypatch.setenv("GATED_FULL", "1")
    made = claims.stored("gla", "recall", experiment, live, full)
    claims.stored("gla", "other", experiment, live, live)
    monkeypatch.delenv("GATED_FULL")
    calls = []
    read = claims.stored("gla", "recall", lambda **k: calls.append(k) or experiment(**k), live, full)
    assert read == made == ({"loss": [0.0], "n": 1}, {"loss": [0.0, 2.0, 4.0], "n": 3})
    assert calls == [live]
    entry = json.loads((checkout / "book/_results/gla.json").read_text(encoding="utf-8"))["recall"]
    assert entry["command"] == "make results-gla"
    assert entry["seeds"] == [0, 1, 2]
    assert entry["versions"]["python"] == platform.python_version()
    # a wheel's name may or may not tell the build ("+cu130") that PyTorch tells
    assert entry["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "/" not in entry["machine"].replace("w/", "")
    line = str(claims.provenance("gla", "recall"))
    assert "make results-gla" in line
    assert entry["machine"] in line
    assert [p.name for p in (checkout / "book/_results").iterdir()] == ["gla.json"]
    with pytest.raises(ValueError, match="full differs"):
        claims.stored("gla", "recall", experiment, live, full | {"scale": 3.0})


def test_what_made_several_results_is_told_together(checkout, monkeypatch):
    monkeypatch.setenv("GATED_FULL", "1")
    for name, seeds in {"a": [0, 1], "b": [0, 1], "c": [0, 1, 2]}.items():
        claims.stored("gla", name, experiment, {"seeds": [0]}, {"seeds": seeds})
    path = checkout / "book/_results/gla.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    for name, seconds in {"a": 3.0, "b": 4.0, "c": 90.0}.items():
        entries[name]["duration_s"] = seconds
    path.write_text(json.dumps(entries), encoding="utf-8")
    assert "; seeds [0, 1]; 3 s on " in str(claims.provenance("gla", "a"))
    assert "; seeds [0, 1]; 7 s on " in str(claims.provenance("gla", "a", "b"))
    assert "; seeds [0, 1] and [0, 1, 2]; 97 s on " in str(claims.provenance("gla", "a", "b", "c"))
    entries["c"]["duration_s"] = 0.1  # it found finished runs
    path.write_text(json.dumps(entries), encoding="utf-8")
    assert "; seeds [0, 1, 2]; on " in str(claims.provenance("gla", "c"))
    assert claims.provenance("gla", "a", "c").arguments == {"a": {"seeds": [0, 1]}, "c": {"seeds": [0, 1, 2]}}
    entries["b"]["machine"] = "another"
    path.write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(ValueError, match="one command, machine and set of versions; 'b' differs"):
        claims.provenance("gla", "a", "b")


@pytest.mark.parametrize(
    ("version", "said"), [("0.1.0", "gated 0.1.0 (before its release), "), ("1.0.0", "gated 1.0.0, ")]
)
def test_a_stored_line_says_what_was_made_before_the_release(version, said):
    versions = {"gated": version, "torch": "0.4"}
    made = claims.Provenance({}, "make results-gla", 1.0, "one", [0], versions)
    assert str(made) == f"stored; make results-gla; seeds [0]; 1 s on one; {said}torch 0.4"


def test_stored_results_are_found_in_a_wheel_but_not_written_there(checkout, monkeypatch):
    monkeypatch.setenv("GATED_FULL", "1")
    claims.stored("gla", "recall", experiment, {"seeds": [0]}, {"seeds": [1]})
    (checkout / "book/_results").rename(checkout / "gated/lab/_results")
    (checkout / "pyproject.toml").unlink()
    with pytest.raises(ValueError, match="checkout"):
        claims.stored("gla", "recall", experiment, {"seeds": [0]}, {"seeds": [1]})
    monkeypatch.setenv("GATED_FULL", "0")
    assert claims.stored("gla", "recall", experiment, {"seeds": [0]}, {"seeds": [1]})[1]["loss"] == [1.0]


def test_an_interrupted_write_leaves_the_old_results(checkout, monkeypatch):
    monkeypatch.setenv("GATED_FULL", "1")
    claims.stored("gla", "a", experiment, {"seeds": [0]}, {"seeds": [1]})
    with pytest.raises(ValueError):
        claims.stored("gla", "b", lambda seeds: math.nan, {"seeds": [0]}, {"seeds": [1]})
    assert [p.name for p in (checkout / "book/_results").iterdir()] == ["gla.json"]
    monkeypatch.delenv("GATED_FULL")
    assert claims.stored("gla", "a", experiment, {"seeds": [0]}, {"seeds": [1]})[1]["n"] == 1


def test_a_ratio_of_times_is_known_to_a_tenth_across_processes(tool):
    assert across_processes(1.0, 1.2) == pytest.approx((1 / 1.1, 1.32))
    assert decide(across_processes(1.05, 1.09), better="above", than=1.0) is not Verdict.HOLDS
    assert intervals.PROCESSES == tool("scoreboard").PROCESSES
    for low, high in ((0.0, 1.0), (1.2, 1.0)):
        with pytest.raises(ValueError, match="low and high must be positive"):
            across_processes(low, high)
