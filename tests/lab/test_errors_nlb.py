"""What a broken file or impossible numbers are answered with."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from gated.lab import nlb


@pytest.fixture
def path(tmp_path):
    """Three units and four trials, whole."""
    with h5py.File(tmp_path / "a.nwb", "w") as file:
        units = file.create_group("units")
        units["id"], units["heldout"] = np.arange(3), np.array([False, False, True])
        units["spike_times"], units["spike_times_index"] = np.linspace(0.1, 3.9, 30), np.array([10, 20, 30])
        units["obs_intervals"], units["obs_intervals_index"] = np.array([[0.0, 4.0]] * 3), np.arange(1, 4)
        trials = file.create_group("intervals/trials")
        trials["id"], trials["start_time"], trials["stop_time"] = np.arange(4), np.arange(4.0), np.arange(4) + 0.9
        trials["split"] = np.array(["train", "train", "val", "none"], object)
        series = file.create_group("processing/behavior/hand_vel")
        series["data"], series["timestamps"] = np.zeros((4000, 2)), np.arange(4000) / 1000
    return tmp_path / "a.nwb"


def put(path, name, values):
    with h5py.File(path, "a") as file:
        del file[name]
        if values is not None:
            file[name] = values


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("units", None, "has no /units"),
        ("intervals/trials", None, "has no /intervals/trials"),
        ("units/spike_times", None, "no column 'spike_times'"),
        ("units/spike_times_index", None, "no column 'spike_times_index'"),
        ("units/spike_times_index", [10, 5, 30], "must rise to 30"),
        ("units/spike_times_index", [10, 20, 29], "must rise to 30"),
        ("units/spike_times_index", [10, 30], "2 entries for 3 rows"),
        ("units/spike_times", np.full(30, np.nan), "finite and not negative"),
        ("units/spike_times", np.full(30, -1.0), "finite and not negative"),
        ("units/spike_times", np.full(30, 9.0), "the recording ends before"),
        ("units/heldout", [True], "1 entries for 3 units"),
        ("intervals/trials/id", np.zeros(0, int), "is empty"),
        ("intervals/trials/start_time", None, "no column 'start_time'"),
        ("intervals/trials/start_time", np.arange(3.0), "3 entries for 4 trials"),
        ("intervals/trials/stop_time", np.zeros(4), "must come after"),
        ("intervals/trials/split", np.array(["train", "dev", "val", "none"], object), "got \\['dev'\\]"),
        ("processing/behavior/hand_vel/timestamps", None, "neither timestamps nor"),
        ("processing/behavior/hand_vel/timestamps", np.arange(3999) / 1000, "4000 values for 3999"),
        ("processing/behavior/hand_vel/timestamps", np.arange(4000) / 1000 + 0.0004, "on the bins of 1 ms"),
        ("processing/behavior/hand_vel/timestamps", np.arange(4000) / 1000 + 1, "on the bins of 1 ms"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(path, name, values, message):
    nlb.read_nwb(path, ["hand_vel"])
    put(path, name, values)
    with pytest.raises(ValueError, match=message) as error:
        nlb.read_nwb(path, ["hand_vel"])
    assert "a.nwb" in str(error.value)


def test_a_file_that_is_none(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        nlb.read_nwb(tmp_path / "b.nwb")
    (tmp_path / "text.nwb").write_text("spikes")
    with pytest.raises(ValueError, match="no HDF5 file"):
        nlb.read_nwb(tmp_path / "text.nwb")
    whole = path.read_bytes()
    (tmp_path / "cut.nwb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        nlb.read_nwb(tmp_path / "cut.nwb")
    with pytest.raises(ValueError, match=r"no time series 'eye', only \['hand_vel'\]"):
        nlb.read_nwb(path, ["eye"])


def test_cutting(path):
    recording = nlb.read_nwb(path)
    with pytest.raises(ValueError, match="task must be one of"):
        nlb.tensors(recording, "mc_maize")
    with pytest.raises(ValueError, match=r"needs the trials' columns \['move_onset_time'"):
        nlb.tensors(recording, "mc_maze")
    with pytest.raises(ValueError, match="needs the series 'finger_vel'"):
        nlb.tensors(recording, "mc_rtt")
    task = nlb.NlbTask("", "start_time", (0, 200), ("start_time",))
    assert nlb.tensors(recording, task)["eval_spikes_heldout"].shape == (1, 10, 1)
    with pytest.raises(ValueError, match="no usable trial is in the split 'test'"):
        nlb.tensors(recording, task, evaluate="test")
    with pytest.raises(ValueError, match="whole number of bins"):
        nlb.windows(np.zeros((9, 1)), np.zeros(1), (0, 30), 20)
    for bin_ms in (0, 30):
        with pytest.raises(ValueError, match="multiple of the recording's 20 ms"):
            recording.resampled(20).resampled(bin_ms)


def test_the_prepared_form(tmp_path):
    with pytest.raises(FileNotFoundError):
        nlb.load_prepared(tmp_path / "a.h5", "mc_maze")
    (tmp_path / "a.h5").write_text("spikes")
    with pytest.raises(ValueError, match="no HDF5 file"):
        nlb.load_prepared(tmp_path / "a.h5", "mc_maze")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["eval_spikes_heldin"] = np.zeros((2, 3, 4))
    with pytest.raises(ValueError, match="no train_spikes_heldin"):
        nlb.load_prepared(tmp_path / "b.h5", "mc_maze")
    with h5py.File(tmp_path / "b.h5", "a") as file:
        file["train_spikes_heldin"], file["train_spikes_heldout"] = np.zeros((2, 3, 4)), np.zeros((3, 3, 4))
    with pytest.raises(ValueError, match="as many trials"):
        nlb.load_prepared(tmp_path / "b.h5", "mc_maze")


def test_decoding():
    x, y = np.zeros((4, 5, 3)), np.zeros((4, 5, 2))
    with pytest.raises(ValueError, match="as many bins"):
        nlb.velocity_r2(x, y[:, 1:], x, y)
    with pytest.raises(ValueError, match="rates must be finite"):
        nlb.velocity_r2(x * np.nan, y, x, y)
    with pytest.raises(ValueError, match="each of the 4 PSTHs"):
        nlb.psth_r2(x, x, [[0]])
    with pytest.raises(ValueError, match="at least one trial"):
        nlb.psth_r2(x, x, [[]] * 4)
