"""What a broken file or impossible numbers are answered with."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest

from gated.lab import nlb
from gated.lab.hdf5 import within


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
        series["data"], series["timestamps"] = np.ones((4000, 2)), np.arange(4000) / 1000
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


# A recording that names other files: they are not opened, whichever way it names them -------------------------------

GROUPS = ["units", "intervals", "intervals/trials"]
TEXTS = ["intervals/trials/split"]  # of any length, which HDF5 cannot keep in another file
NUMBERS = [
    "units/id", "units/spike_times", "units/spike_times_index", "units/obs_intervals", "units/heldout",
    "intervals/trials/id", "intervals/trials/start_time", "intervals/trials/stop_time",
    "processing/behavior/hand_vel/data", "processing/behavior/hand_vel/timestamps",
]  # fmt: skip


def link(file, name, other):
    del file[name]
    file[name] = h5py.ExternalLink(other, name)


def soft_link(file, name, other):
    """To a link that leads out."""
    file["elsewhere"] = h5py.ExternalLink(other, name)
    del file[name]
    file[name] = h5py.SoftLink("/elsewhere")


def virtual(file, name, other):
    values = file[name][()]
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[...] = h5py.VirtualSource(other, name, values.shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def external(file, name, other):
    values = file[name][()]
    del file[name]
    file.create_dataset(name, values.shape, values.dtype, external=[(other, 0, values.nbytes)])


WAYS = [(way, place) for way in (link, soft_link, virtual, external) for place in NUMBERS] + [
    (way, place) for way in (link, soft_link) for place in GROUPS + TEXTS
]


@pytest.mark.parametrize(("way", "place"), WAYS)
def test_a_recording_that_leads_out_of_its_file_is_refused(way, place, path, tmp_path):
    other = shutil.copy(path, tmp_path / "other.nwb")
    with h5py.File(path, "a") as file:
        way(file, place, str(other))
    with pytest.raises(ValueError, match=r"^a\.nwb: /.*(in other files|link to another file).*; (store|copy) the"):
        nlb.read_nwb(path, ["hand_vel"])


PREPARED = ["train_spikes_heldin", "mc_maze_20/psth"]
PREPARED_WAYS = [(way, place) for way in (link, soft_link, virtual, external) for place in PREPARED] + [
    (way, "mc_maze_20") for way in (link, soft_link)
]


@pytest.mark.parametrize(("way", "place"), PREPARED_WAYS)
def test_a_prepared_file_that_leads_out_is_refused(way, place, tmp_path):
    arrays = {"train_spikes_heldin": np.zeros((2, 3, 4)), "psth": np.zeros((1, 3, 4))}
    for name in ("a.h5", "other.h5"):
        nlb.save_prepared(tmp_path / name, arrays, "mc_maze")
    assert nlb.load_prepared(tmp_path / "a.h5", "mc_maze").keys() == arrays.keys()
    with h5py.File(tmp_path / "a.h5", "a") as file:
        way(file, place, str(tmp_path / "other.h5"))
    with pytest.raises(ValueError, match=r"^a\.h5: /.*(in other files|link to another file)"):
        nlb.load_prepared(tmp_path / "a.h5", "mc_maze")


def test_a_file_that_does_not_exist_is_not_looked_for(path, tmp_path):
    with h5py.File(path, "a") as file:
        link(file, "units/heldout", str(tmp_path / "nowhere.nwb"))
    with pytest.raises(ValueError, match="link to another file"):
        nlb.read_nwb(path)


def test_soft_links_in_the_file_are_followed_and_circles_are_not(path):
    whole = nlb.read_nwb(path, ["hand_vel"])
    with h5py.File(path, "a") as file:
        file.move("units", "kept")
        file["also"] = h5py.SoftLink("kept")
        file["units"] = h5py.SoftLink("/also")
        file.move("processing/behavior/hand_vel/timestamps", "processing/behavior/clock")
        file["processing/behavior/hand_vel/timestamps"] = h5py.SoftLink("/processing/behavior/clock")
        file["intervals/trials"].move("stop_time", "end")
        file["intervals/trials/stop_time"] = h5py.SoftLink("./end")
        assert within(file, "nothing") is within(file, "kept/id/below") is None
        file["nowhere"] = h5py.SoftLink("/nothing")
        assert within(file, "nowhere") is None
    linked = nlb.read_nwb(path, ["hand_vel"])
    np.testing.assert_array_equal(linked.spikes, whole.spikes)
    np.testing.assert_array_equal(linked.series["hand_vel"], whole.series["hand_vel"])
    np.testing.assert_array_equal(linked.trials["stop_time"], whole.trials["stop_time"])
    with h5py.File(path, "a") as file:
        del file["also"]
        file["also"] = h5py.SoftLink("/units")
    with pytest.raises(ValueError, match="soft links run in a circle"):
        nlb.read_nwb(path)


@pytest.mark.parametrize(
    "filters",
    [{}, {"compression": "gzip", "shuffle": True}, {"compression": "lzf"}, {"scaleoffset": 3}, {"fletcher32": True}],
)
def test_filters_of_hdf5_are_read_and_plug_ins_are_not_loaded(filters, tmp_path):
    values = np.arange(12.0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("own", data=values, chunks=(4,), **filters)
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((4,))
        made.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((12,))
        h5py.h5d.create(file.id, b"foreign", h5py.h5t.NATIVE_DOUBLE, space, made)
        np.testing.assert_allclose(within(file, "own")[()], values)
        with pytest.raises(ValueError, match="foreign is stored with filter 32015, which HDF5 would load as a plug-in"):
            within(file, "foreign")
