"""The benchmark's loader and metrics against the benchmark's own package, on files that are written here."""

from __future__ import annotations

import importlib
import itertools
import sys
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pynwb
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gated.lab import nlb
from gated.langevinflow import poisson_nll

pytestmark = pytest.mark.filterwarnings("ignore:::nlb_tools")  # pandas, on what will change
ROOT = Path(__file__).resolve().parents[2]
UNITS, TRIALS, SECONDS = 7, 14, 30.0
HELD = np.array([False, True, False, False, True, False, False])


class Copying:
    """numpy, but `nan_to_num` copies: nlb_tools writes into what pandas hands out, which pandas 3 forbids."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def nan_to_num(x, copy=True):
        return np.nan_to_num(x)


@pytest.fixture(scope="module")
def oracle():
    """Modules of nlb_tools by name. It lies in a folder of its own, at the end of the path."""
    folder = str(ROOT / ".venv" / "oracles")
    sys.path.append(folder)

    def module(name):
        found = importlib.import_module(f"nlb_tools.{name}")
        if name == "nwb_interface":
            found.np = Copying()
        return found

    yield module
    sys.path.remove(folder)


def recorded(seed: int = 0):
    """Trials of two seconds, spikes in the observed stretch, and hand and finger velocities every millisecond."""
    rng = np.random.default_rng(seed)
    start = 0.5 + 2.05 * np.arange(TRIALS)
    onset = start + 0.6 + rng.uniform(0, 0.2, TRIALS)
    onset[3] = np.nan
    table = {
        "start_time": start,
        "stop_time": start + 2,
        "move_onset_time": onset.round(4),
        "set_time": (onset - rng.uniform(0.3, 0.5, TRIALS)).round(4),
        "go_time": onset.round(4),
        "split": np.array(["train"] * 3 + ["none"] + ["train"] * 3 + ["val"] * 5 + ["test", "none"]),
        "trial_type": np.arange(TRIALS) % 2,
        "trial_version": np.zeros(TRIALS, int),
        "cond_dir": 90.0 * (np.arange(TRIALS) % 2),
        "ctr_hold_bump": np.arange(TRIALS) // 2 % 2,
    }
    spikes = [np.sort(rng.uniform(0.2, SECONDS - 0.2, n)).round(5) for n in rng.integers(150, 700, UNITS)]
    spikes[2] = np.array([])  # a silent unit
    spikes[0] = np.sort(np.concatenate([spikes[0], np.arange(1000, 20000, 500) / 1000]))  # spikes on the edges
    time = np.arange(round(SECONDS * 1000)) / 1000
    velocity = np.stack([np.sin(2 * np.pi * time), np.cos(3 * time)], 1) + rng.normal(0, 0.1, (len(time), 2))
    velocity[:450] = np.nan
    return table, spikes, time, velocity


def write_h5py(path: Path, seed: int = 0, rate: bool = False) -> Path:
    table, spikes, time, velocity = recorded(seed)
    with h5py.File(path, "w") as file:
        units = file.create_group("units")
        units["id"], units["heldout"] = np.arange(UNITS), HELD
        units["spike_times"], units["spike_times_index"] = np.concatenate(spikes), np.cumsum([len(s) for s in spikes])
        units["obs_intervals"] = np.array([[0.1, 12.6], [12.78, SECONDS]] * UNITS)
        units["obs_intervals_index"] = 2 * np.arange(1, UNITS + 1)
        trials = file.create_group("intervals/trials")
        trials["id"] = np.arange(TRIALS)
        for name, column in table.items():
            trials[name] = column.astype(object) if column.dtype.kind == "U" else column
        for name in ("hand_vel", "finger_vel"):
            series = file.create_group(f"processing/behavior/{name}")
            series["data"] = velocity
            if rate:
                series["starting_time"] = 0.0
                series["starting_time"].attrs["rate"] = 1000.0
            else:
                series["timestamps"] = time
    return path


def write_pynwb(path: Path, seed: int = 0) -> Path:
    table, spikes, time, velocity = recorded(seed)
    file = pynwb.NWBFile("a test", "none", datetime(2020, 1, 1, tzinfo=UTC))
    file.add_unit_column("heldout", "hidden from models")
    for times, held in zip(spikes, HELD, strict=True):
        file.add_unit(spike_times=times, heldout=bool(held), obs_intervals=[[0.1, 12.6], [12.78, SECONDS]])
    for name in table:
        if name not in ("start_time", "stop_time"):
            file.add_trial_column(name, "of the test")
    for row in range(TRIALS):
        file.add_trial(**{name: column[row].item() for name, column in table.items()})
    module = file.create_processing_module("behavior", "of the test")
    for name in ("hand_vel", "finger_vel"):
        module.add(pynwb.TimeSeries(name=name, data=velocity, unit="m/s", timestamps=time))
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nwb")
    return write_h5py(folder / "a.nwb"), write_pynwb(folder / "b.nwb")


@pytest.fixture(scope="module")
def recording(files):
    return nlb.read_nwb(files[0], ["hand_vel", "finger_vel"])


def test_a_file_is_the_same_through_either_writer(files, recording, tmp_path):
    other = nlb.read_nwb(files[1], ["hand_vel", "finger_vel"])
    np.testing.assert_array_equal(recording.spikes, other.spikes)
    np.testing.assert_array_equal(recording.heldout, HELD)
    for name, values in recording.series.items():
        np.testing.assert_array_equal(values, other.series[name])
    assert set(recording.trials) == set(other.trials)
    for name, column in recording.trials.items():
        np.testing.assert_array_equal(column, other.trials[name])
    by_rate = nlb.read_nwb(write_h5py(tmp_path / "rate.nwb", rate=True), ["hand_vel"])
    np.testing.assert_array_equal(by_rate.series["hand_vel"], recording.series["hand_vel"])


def test_a_spike_on_an_edge_opens_its_bin(recording):
    _, spikes, _, _ = recorded()
    for unit, times in enumerate(spikes):
        inside = ((times >= 0.1) & (times < 12.6)) | (times >= 12.78)
        assert np.nansum(recording.spikes[:, unit]) == inside.sum()
    assert all(recording.spikes[edge, 0] >= 1 for edge in range(1000, 12500, 500))
    assert np.isnan(recording.spikes[:100]).all() and np.isnan(recording.spikes[12600:12780]).all()
    assert np.nansum(recording.spikes[:, 2]) == 0


def test_wider_bins_keep_every_spike(recording):
    coarse = recording.resampled(20)
    assert coarse.spikes.shape == (1500, UNITS) and coarse.bin_ms == 20
    assert np.nansum(coarse.spikes) == np.nansum(recording.spikes)  # the gaps start on a bin
    assert recording.resampled(1) is recording


@pytest.mark.parametrize("bin_ms", [5, 20])
def test_reading_and_resampling_are_the_benchmarks(oracle, files, recording, bin_ms):
    theirs = oracle("nwb_interface").NWBDataset(str(files[1]))
    theirs.resample(bin_ms)
    ours = recording.resampled(bin_ms)
    for name, mask in (("spikes", ~HELD), ("heldout_spikes", HELD)):
        np.testing.assert_array_equal(ours.spikes[:, mask], theirs.data[name].to_numpy())
    np.testing.assert_allclose(ours.series["hand_vel"], theirs.data["hand_vel"].to_numpy(), atol=1e-9)


# At 20 ms the benchmark averages maze trials by the time since the onset's bin, but cuts them 250 ms before the onset,
# which is no multiple: some of its trials then lie a bin off the others. At 5 ms there is no difference.
@pytest.mark.parametrize(("task", "bin_ms"), [("mc_maze", 5), ("area2_bump", 20), ("mc_rtt", 20)])
def test_tensors_are_the_benchmarks(oracle, files, recording, monkeypatch, task, bin_ms):
    interface, make = oracle("nwb_interface"), oracle("make_tensors")
    monkeypatch.setattr(interface, "_poolmap", lambda f, x, *_: [f(a) for a in x])
    theirs = interface.NWBDataset(str(files[1]))
    theirs.resample(bin_ms)
    seen = make.make_train_input_tensors(
        theirs, task, "train", save_file=False, include_behavior=True, include_forward_pred=True
    )
    asked = make.make_eval_target_tensors(theirs, task, "train", "val", save_file=False, include_psth=task != "mc_rtt")
    asked = asked[task if bin_ms == 5 else f"{task}_{bin_ms}"]
    ours = nlb.tensors(recording, task, bin_ms=bin_ms)
    assert ours["train_spikes_heldin"].shape[0] == 6 and ours["eval_behavior"].shape[0] == 5
    for name, values in {**seen, **asked}.items():
        if name in ("eval_cond_idx", "train_cond_idx"):
            continue
        np.testing.assert_allclose(ours[name].astype(float), np.asarray(values, float), atol=1e-9, err_msg=name)
    if "psth" in asked:
        assert len(ours["eval_cond_idx"]) == len(asked["eval_cond_idx"])
        for a, b in zip(ours["eval_cond_idx"], asked["eval_cond_idx"], strict=True):
            np.testing.assert_array_equal(a, b)


def predictions(arrays, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name.replace("spikes", "rates"): rng.uniform(0.05, 1, values.shape)
        for name, values in arrays.items()
        if "_spikes_" in name
    }


@pytest.mark.parametrize("task", ["mc_maze", "area2_bump", "mc_rtt"])
def test_all_scores_are_the_benchmarks(oracle, recording, task):
    arrays = nlb.tensors(recording, task)
    rates = predictions(arrays)
    want = oracle("evaluation").evaluate(
        {f"{task}_20": {k: np.array(v) for k, v in arrays.items()}},
        {f"{task}_20": {k: v.copy() for k, v in rates.items()}},
    )[0][f"{task}_20_split"]
    got = nlb.evaluate(arrays, rates, task)
    assert set(got) == set(want)
    for name in want:
        assert got[name] == pytest.approx(want[name], abs=1e-9), name


def timing(seed=0):
    """A recording of the timing task: intervals of half a second to 1.4 s before "go", with produced times."""
    rng = np.random.default_rng(seed)
    n = 24
    go = 2 + 2.5 * np.arange(n)
    first = np.arange(n) % 2
    trials = {
        "start_time": go - 1.9, "stop_time": go + 0.5, "go_time": go, "set_time": go - rng.uniform(0.9, 1.1, n),
        "split": np.array(["train", "train", "val", "val"] * (n // 4)), "is_eye": first, "theta": 180.0 * first,
        "is_short": np.zeros(n), "ts": np.full(n, 800.0), "tp": rng.uniform(500, 1400, n),
        "is_outlier": (np.arange(n) == 5).astype(int),
    }  # fmt: skip
    trials["set_time"][10] = go[10] - 0.5  # too short for its PSTH
    counts = rng.poisson(0.03, (62_000, UNITS)).astype(np.float32)
    return nlb.Recording(counts, HELD, {}, trials)


def test_the_timing_task(oracle):
    recording = timing()
    arrays = nlb.tensors(recording, "dmfc_rsg")
    held = arrays["eval_spikes_heldout"]
    since = recording.trials["go_time"] - recording.trials["set_time"]
    rows = recording.trials["split"] == "val"
    np.testing.assert_array_equal((~np.isnan(held[..., 0])).sum(1), np.floor((since[rows] * 50).round(6)))
    assert np.isnan(arrays["train_behavior"][3]).all() and arrays["train_behavior"].shape == (12, 5)
    members = np.concatenate(list(arrays["eval_cond_idx"]))
    short = int(np.flatnonzero(np.flatnonzero(rows) == 10)[0])
    assert short not in members and len(members) == 11
    rates = predictions(arrays)
    want = oracle("evaluation").evaluate({"dmfc_rsg_20": dict(arrays)}, {"dmfc_rsg_20": dict(rates)})[0]
    got = nlb.evaluate(arrays, rates, "dmfc_rsg")
    for name, value in want["dmfc_rsg_20_split"].items():
        assert got[name] == pytest.approx(value, abs=1e-9), name
    assert set(got) == {"co-bps", "tp corr", "psth R2", "fp-bps"}


def test_the_prepared_form_goes_there_and_back(tmp_path, recording):
    arrays = nlb.tensors(recording, "mc_maze")
    nlb.save_prepared(tmp_path / "maze.h5", arrays, "mc_maze")
    again = nlb.load_prepared(tmp_path / "maze.h5", "mc_maze")
    assert set(again) == set(arrays)
    for name, values in arrays.items():
        for a, b in zip(again[name], values, strict=True):
            np.testing.assert_array_equal(a, b)
    with h5py.File(tmp_path / "maze.h5") as file:
        assert {"train_spikes_heldin", "train_spikes_heldout_forward", "train_behavior", "mc_maze_20"} <= set(file)
    nlb.save_prepared(tmp_path / "fine.h5", nlb.tensors(recording, "mc_maze", bin_ms=5), "mc_maze", 5)
    assert nlb.load_prepared(tmp_path / "fine.h5", "mc_maze", 5)["eval_spikes_heldout"].shape[1] == 140


def test_a_trial_without_its_event_is_left_out(recording):
    every = nlb.tensors(recording, "mc_maze", train=["train", "none"])
    assert every["train_spikes_heldin"].shape[0] == 7
    assert nlb.tensors(recording, "mc_rtt", train=["train", "none"])["train_spikes_heldin"].shape[0] == 8


def test_a_test_file_without_held_out_units(tmp_path):
    path = write_h5py(tmp_path / "test.nwb")
    with h5py.File(path, "a") as file:
        del file["units/heldout"], file["units/obs_intervals"], file["units/obs_intervals_index"]
        file["intervals/trials/stop_time"][-1] = SECONDS
    found = nlb.read_nwb(path)
    assert not found.heldout.any() and not np.isnan(found.spikes).any()
    held_in = nlb.tensors(found, nlb.NlbTask("", "go_time", (-100, 100), ("trial_type",)), evaluate="test")
    assert held_in["eval_spikes_heldin"].shape == (1, 10, UNITS)
    assert held_in["eval_spikes_heldout"].shape == (1, 10, 0)


def test_windows_by_hand():
    values = np.arange(20.0)[:, None]
    cut, kept = nlb.windows(values, np.array([0.05, np.nan, 0.1, 0.19, 0.0501]), (-20, 20), 10)
    np.testing.assert_array_equal(kept, [0, 2, 4])  # no event; the window leaves the recording
    np.testing.assert_array_equal(cut[:, 0, 0], [3, 8, 4])


# Metrics --------------------------------------------------------------------------------------------------------------


def test_bits_per_spike_of_the_worked_example(oracle):
    rates = np.array([[[0.5, 1], [2, 0.25], [1, 0.75]]])
    spikes = np.array([[[0.0, 1], [3, 0], [1, 2]]])
    assert nlb.bits_per_spike(rates, spikes) == pytest.approx(0.381974, abs=1e-6)
    nll = poisson_nll(torch.tensor(rates).log(), torch.tensor(spikes), full=True)
    assert float(nll.sum()) == pytest.approx(6.480829, abs=1e-6)
    assert float(nll.sum()) == pytest.approx(oracle("evaluation").neg_log_likelihood(rates, spikes), abs=1e-12)
    assert nlb.bits_per_spike(rates, spikes) == pytest.approx(oracle("evaluation").bits_per_spike(rates, spikes))


@given(st.integers(0, 10_000), st.booleans())
def test_bits_per_spike_is_the_benchmarks(seed, gaps):
    sys.path.append(str(ROOT / ".venv" / "oracles"))
    try:
        from nlb_tools.evaluation import bits_per_spike
    finally:
        sys.path.pop()
    rng = np.random.default_rng(seed)
    rates, spikes = rng.uniform(0, 2, (4, 6, 3)), rng.poisson(0.7, (4, 6, 3)).astype(float)
    rates[rng.random(rates.shape) < 0.1] = 0
    if gaps:
        spikes[rng.random((4, 6)) < 0.2] = np.nan
    spikes[0, 0] = 1
    before = rates.copy()
    ours = nlb.bits_per_spike(rates, spikes)
    np.testing.assert_array_equal(rates, before)  # theirs writes 1e-9 into the caller's array
    assert ours == pytest.approx(bits_per_spike(rates.copy(), spikes), abs=1e-9)
    order, trials = rng.permutation(3), rng.permutation(4)
    assert ours == pytest.approx(nlb.bits_per_spike(rates[trials][..., order], spikes[trials][..., order]), abs=1e-12)
    # log y! drops out of the difference
    seen = ~np.isnan(spikes)
    null = np.broadcast_to(np.nanmean(spikes, (0, 1)), spikes.shape)[seen]
    r, y = np.where(rates == 0, 1e-9, rates)[seen], spikes[seen]
    terms = np.where(y > 0, y * np.log2(r / np.where(null > 0, null, 1)), 0) - (r - null) / np.log(2)
    assert ours == pytest.approx(terms.sum() / y.sum(), abs=1e-12)


def test_the_mean_scores_zero_and_the_training_mean_below():
    rng = np.random.default_rng(0)
    train, test = rng.poisson(0.3, (2, 50, 20, 8)).astype(float)
    mean = lambda x: np.broadcast_to(x.mean((0, 1)), x.shape)  # noqa: E731
    assert nlb.bits_per_spike(mean(test), test) == pytest.approx(0, abs=1e-12)
    assert -0.02 < nlb.bits_per_spike(mean(train), test) < 0


def test_a_good_decoder_and_its_masks(oracle):
    rng = np.random.default_rng(1)
    rates = rng.normal(size=(30, 12, 5))
    behaviour = rates @ rng.normal(size=(5, 2)) + rng.normal(0, 0.1, (30, 12, 2))
    behaviour[4, 3] = np.nan
    kinds = np.arange(30)[:, None] % 2 == np.arange(2)
    args = rates[:20], behaviour[:20], rates[20:], behaviour[20:]
    assert nlb.velocity_r2(*args) > 0.98
    theirs = oracle("evaluation").velocity_decoding(args[0], args[1], kinds[:20], args[2], args[3], kinds[20:])
    assert nlb.velocity_r2(*args, kinds[:20], kinds[20:]) == pytest.approx(theirs, abs=1e-9)


def test_psth_r2_of_the_psth_itself_is_one():
    rng = np.random.default_rng(2)
    psth = rng.uniform(size=(3, 8, 4))
    psth[1, :2] = np.nan
    rows = [np.array([0, 3]), np.array([1]), np.array([], int)]
    rates = np.nan_to_num(psth[[0, 1, 2, 0]])
    assert nlb.psth_r2(psth, rates, rows) == pytest.approx(1)


def test_the_published_windows():
    sizes = {name: (t.window_ms[1] - t.window_ms[0]) // 20 for name, t in itertools.islice(nlb.TASKS.items(), 4)}
    assert sizes == {"mc_maze": 35, "mc_rtt": 30, "area2_bump": 30, "dmfc_rsg": 75}
    assert nlb.TASKS["mc_maze_small"].dandi == "000140"
