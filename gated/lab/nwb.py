"""Recordings as the benchmark stores them: NWB files, read with h5py alone, at bins of 1 ms or longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gated.lab.hdf5 import within

Arrays = dict[str, np.ndarray]
SPLITS = ("train", "val", "test", "none")


@dataclass(frozen=True)
class Recording:
    """Spikes in bins, with what was recorded beside them.

    - `spikes` [bins, units]: counts, NaN where the unit was not observed; `heldout` [units]: hidden from a model.
    - `series`: by name, [bins, channels], NaN where nothing was recorded.
    - `trials`: the trials' table by column, event times in seconds; a missing event is NaN.
    """

    spikes: np.ndarray
    heldout: np.ndarray
    series: Arrays
    trials: Arrays
    bin_ms: int = 1

    def resampled(self, bin_ms: int) -> Recording:
        """In wider bins: spikes are added up, series pass an FIR low-pass and are thinned.

        Raises `ValueError` where `bin_ms` is no multiple of the present bin.
        """
        if bin_ms < 1 or bin_ms % self.bin_ms:
            raise ValueError(f"bin_ms must be a multiple of the recording's {self.bin_ms} ms, got {bin_ms}")
        factor = bin_ms // self.bin_ms
        if factor == 1:
            return self
        series = {name: _thinned(values, factor) for name, values in self.series.items()}
        return replace(self, spikes=summed(self.spikes, factor), series=series, bin_ms=bin_ms)


def read_nwb(path: str | Path, series: Sequence[str] = ()) -> Recording:
    """An NWB file in bins of 1 ms.

    A spike at t seconds lies in bin floor(1000 t), rounded at the sixth digit first, so that one on an edge opens its
    bin. Bins outside a unit's `obs_intervals` are NaN. `series` names time series (`hand_vel`, or `container_name`);
    values are taken as they are stored, without the file's `conversion`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not HDF5, lacks a table, a table contradicts itself, or what is asked lies in another file;
            says which and how.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {path}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"path {path.name!r} is no HDF5 file, or was cut short ({error})") from None
    with file:
        try:
            return _recording(file, series)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None
        except (OSError, RuntimeError, KeyError) as error:  # what HDF5 says of damaged blocks
            raise ValueError(f"{path.name}: the file is damaged ({error})") from None


def _recording(file: Any, names: Sequence[str]) -> Recording:
    units, trials = _group(file, "units"), _trials(_group(file, "intervals/trials"))
    count = len(_data(units, "id"))
    times = _ragged(units, "spike_times", count)
    observed = _ragged(units, "obs_intervals", count) if within(units, "obs_intervals") else []
    ends = [float(part[-1, -1]) for part in observed if len(part)] or [float(np.nanmax(trials["stop_time"]))]
    bins = round(max(*ends, float(trials["stop_time"][-1])) * 1000)
    spikes = np.zeros((bins, count), np.float32)
    for unit, t in enumerate(times):
        if not np.isfinite(t).all() or (t < 0).any():
            raise ValueError(f"units/spike_times of unit {unit} must be finite and not negative")
        place = (t * 1000).round(6).astype(int)
        if len(place) and place.max() >= bins:
            raise ValueError(f"units/spike_times of unit {unit} goes on to {t.max():.3f} s, the recording ends before")
        np.add.at(spikes[:, unit], place, 1)
    for unit, part in enumerate(observed):
        outside = np.ones(bins, bool)
        for start, stop in part.reshape(-1, 2):
            outside[int(np.ceil(round(start * 1000, 6))) : int(np.floor(round(stop * 1000, 6)))] = False
        spikes[outside, unit] = np.nan
    heldout = _data(units, "heldout").astype(bool) if within(units, "heldout") else np.zeros(count, bool)
    if len(heldout) != count:
        raise ValueError(f"units/heldout has {len(heldout)} entries for {count} units")
    return Recording(spikes, heldout, _series(file, names, bins), trials)


def _group(file: Any, name: str) -> Any:
    group = within(file, name)
    if not hasattr(group, "keys"):
        raise ValueError(f"has no /{name}; is it an NWB file with spikes and trials?")
    return group


def _data(group: Any, name: str) -> np.ndarray:
    column = within(group, name)
    if not hasattr(column, "shape"):
        raise ValueError(f"{group.name.strip('/')} has no column {name!r}, only {sorted(group)}")
    return column[()]


def _ragged(group: Any, name: str, rows: int) -> list[np.ndarray]:
    """Rows of different lengths: the index holds where each ends."""
    data, ends = _data(group, name), _data(group, f"{name}_index").astype(np.int64)
    where = f"{group.name.strip('/')}/{name}_index"
    if len(ends) != rows:
        raise ValueError(f"{where} has {len(ends)} entries for {rows} rows")
    if rows and ((np.diff(ends, prepend=0) < 0).any() or ends[-1] != len(data)):
        raise ValueError(f"{where} must rise to {len(data)}, the length of the data; got {ends.tolist()[:8]}")
    return np.split(data, ends[:-1]) if rows else []


def _trials(table: Any) -> Arrays:
    rows = len(_data(table, "id"))
    for name in ("start_time", "stop_time"):
        _data(table, name)
    if not rows:
        raise ValueError("intervals/trials is empty")
    found = {}
    for name in table:
        column = within(table, name)
        if f"{name}_index" in set(table) or name.endswith("_index") or not hasattr(column, "shape"):
            continue  # rows of different lengths: nothing that cuts a trial
        values = column[()]
        if len(values) != rows:
            raise ValueError(f"intervals/trials/{name} has {len(values)} entries for {rows} trials")
        if values.dtype.kind in "OS":
            values = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values])
        found[name] = values
    if "split" in found and (wrong := sorted(set(found["split"].tolist()) - set(SPLITS))):
        raise ValueError(f"intervals/trials/split must be one of {SPLITS}, got {wrong}")
    if not (found["stop_time"] > found["start_time"]).all():
        raise ValueError("intervals/trials: each stop_time must come after its start_time")
    return found


def _series(file: Any, names: Sequence[str], bins: int) -> Arrays:
    there: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:
        parts = name.split("/")
        if hasattr(item, "keys") and "data" in set(item) and parts[0] in ("processing", "acquisition"):
            own = parts[-2:] if len(parts) - (parts[0] == "processing") > 2 else parts[-1:]
            there["_".join(own)] = item

    file.visititems(note)  # goes along hard links only
    found = {}
    for name in names:
        if name not in there:
            raise ValueError(f"has no time series {name!r}, only {sorted(there)}")
        stored, stamps, start = (within(there[name], part) for part in ("data", "timestamps", "starting_time"))
        if stored is None:
            raise ValueError(f"series {name!r} has no data: its link leads nowhere")
        data = np.asarray(stored[()], float).reshape(len(stored), -1)
        if stamps:
            t = stamps[()]
        elif start and "rate" in start.attrs:
            t = np.arange(len(data)) / start.attrs["rate"] + start[()]
        else:
            raise ValueError(f"series {name!r} has neither timestamps nor a starting_time with a rate")
        if len(t) != len(data):
            raise ValueError(f"series {name!r} has {len(data)} values for {len(t)} timestamps")
        place = (t * 1000).round().astype(int)
        if np.abs(t * 1000 - place).max(initial=0) > 1e-3 or (place < 0).any() or (place >= bins).any():
            raise ValueError(f"series {name!r} must lie on the bins of 1 ms, from 0 to {bins / 1000} s")
        found[name] = np.full((bins, data.shape[1]), np.nan)
        found[name][place] = data
    return found


def summed(spikes: np.ndarray, factor: int) -> np.ndarray:
    """Sums of `factor` bins; a sum is NaN where its first bin is."""
    gap = -len(spikes) % factor
    whole = np.pad(np.nan_to_num(spikes), ((0, gap), (0, 0))).reshape(-1, factor, spikes.shape[1]).sum(1)
    whole[np.isnan(spikes[::factor])] = np.nan
    return whole


def _thinned(values: np.ndarray, factor: int) -> np.ndarray:
    from scipy.signal import decimate

    filled = values.copy()
    for channel in filled.T:
        known = ~np.isnan(channel)
        if known.any():
            channel[~known] = np.interp(np.flatnonzero(~known), np.flatnonzero(known), channel[known])
    thin = decimate(filled, factor, axis=0, n=500, ftype="fir")
    thin[np.isnan(values[::factor])] = np.nan
    return thin
