"""The Neural Latents Benchmark: its NWB files, the tensors that models are trained on, and its metrics.

    recording = read_nwb("sub-Jenkins_ses-full_desc-train_behavior+ecephys.nwb", series=["hand_vel"])
    arrays = tensors(recording, "mc_maze", bin_ms=20)               # train on "train", evaluate on "val"
    rates = my_model(arrays["train_spikes_heldin"], ...)
    evaluate(arrays, rates, "mc_maze")                              # {"co-bps": ..., "vel R2": ..., ...}

The files come from the DANDI archive (`TASKS[name].dandi` is the number). NWB is HDF5, so h5py alone reads them.
Everything that is computed here equals what the benchmark's own package `nlb_tools` computes; the tests compare them.
Rates are expected counts in a bin, never Hz. Source: Pei et al., Neural Latents Benchmark '21, and `nlb_tools` 0.0.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gated import langevinflow
from gated.lab.hdf5 import within
from gated.lab.nwb import Arrays, Recording, summed
from gated.lab.nwb import read_nwb as read_nwb


@dataclass(frozen=True)
class NlbTask:
    """How a data set is cut: a window around an event, what the animal did, and what makes two trials alike."""

    dandi: str
    align: str
    window_ms: tuple[int, int]
    behaviour: str | tuple[str, ...]  # a time series, or columns of the trials' table
    lag_ms: int = 0  # how much later than the spikes the behaviour is read
    conditions: tuple[str, ...] = ()
    kernel_ms: int = 0  # of the Gaussian that smooths the PSTHs
    decoders: str = ""  # a 0/1 column: trials of either kind get a decoder of their own
    since: str = ""  # evaluated bins lie between this event and the window's end
    valid: str = ""  # a 0/1 column: trials with 1 are left out of behaviour and PSTHs
    forward_ms: int = 200


_MAZE = NlbTask(
    "000128", "move_onset_time", (-250, 450), "hand_vel", 100, ("trial_type", "trial_version"), 70
)  # fmt: skip
TASKS: dict[str, NlbTask] = {
    "mc_maze": _MAZE,
    "mc_rtt": NlbTask("000129", "start_time", (0, 600), "finger_vel", 140),
    "area2_bump": NlbTask(
        "000127", "move_onset_time", (-100, 500), "hand_vel", -20, ("cond_dir", "ctr_hold_bump"), 40, "ctr_hold_bump"
    ),
    "dmfc_rsg": NlbTask(
        "000130", "go_time", (-1500, 0), ("is_eye", "theta", "is_short", "ts", "tp"), 0,
        ("is_eye", "theta", "is_short", "ts"), 70, since="set_time", valid="is_outlier",
    ),
    "mc_maze_large": replace(_MAZE, dandi="000138", lag_ms=120, kernel_ms=50),
    "mc_maze_medium": replace(_MAZE, dandi="000139", lag_ms=120, kernel_ms=50),
    "mc_maze_small": replace(_MAZE, dandi="000140", lag_ms=120, kernel_ms=50),
}  # fmt: skip


# Cutting ------------------------------------------------------------------------------------------------------------


def windows(
    values: np.ndarray, events_s: np.ndarray, window_ms: tuple[int, int], bin_ms: int
) -> tuple[np.ndarray, np.ndarray]:
    """Windows [trials, bins, channels] of `values` [time, channels] around events, and the numbers of these trials.

    The first bin is the first that starts at the event plus `window_ms[0]` or later. A trial whose event is NaN, or
    whose window leaves the recording, is left out.
    """
    length, rest = divmod(window_ms[1] - window_ms[0], bin_ms)
    if rest or length < 1:
        raise ValueError(f"window_ms must span a whole number of bins of {bin_ms} ms, got {window_ms}")
    known = np.flatnonzero(np.isfinite(events_s))
    first = np.ceil(((events_s[known] * 1000 + window_ms[0]) / bin_ms).round(6)).astype(int)
    inside = (first >= 0) & (first + length <= len(values))
    return values[first[inside, None] + np.arange(length)], known[inside]


def tensors(
    recording: Recording,
    task: str | NlbTask,
    *,
    bin_ms: int = 20,
    train: str | Sequence[str] = "train",
    evaluate: str | Sequence[str] = "val",
) -> Arrays:
    """What a model trains on and what it is asked, by the benchmark's names.

    `train_` and `eval_` with `spikes_heldin`, `spikes_heldout` [trials, bins, units], the same with `_forward` for the
    200 ms after the window, and `behavior` (a time series, read `lag_ms` later, or columns of the trials' table);
    `decode_mask` where a task has two kinds of trials; `psth` [conditions, bins, units] with `eval_cond_idx`, for each
    condition the numbers of its evaluated trials. Trials without their event, or too near the end of the recording
    for every window, are left out. Two things differ from the benchmark's own: the training windows
    of dmfc_rsg are not jittered, and PSTHs average bins by their place in the window, also where the window starts
    off the bins' grid (the maze at 20 ms).

    Raises `ValueError` for an unknown task, a missing column or series, or a split without trials.
    """
    name, task = (task, _task(task)) if isinstance(task, str) else ("the task", task)
    needs = [task.align, "split", *task.conditions, *filter(None, (task.decoders, task.since, task.valid))]
    needs += [] if isinstance(task.behaviour, str) else task.behaviour
    if missing := [column for column in needs if column not in recording.trials]:
        raise ValueError(f"recording: {name} needs the trials' columns {missing}, there are {sorted(recording.trials)}")
    if isinstance(task.behaviour, str) and task.behaviour not in recording.series:
        raise ValueError(f"recording: {name} needs the series {task.behaviour!r}; name it in read_nwb(series=...)")
    coarse, trials, held = recording.resampled(bin_ms), recording.trials, recording.heldout
    event, (begin, end) = trials[task.align], task.window_ms
    cut, kept = windows(coarse.spikes, event, (begin, end), bin_ms)
    later, kept_later = windows(coarse.spikes, event, (end, end + task.forward_ms), bin_ms)
    usable = np.intersect1d(kept, kept_later)
    moved = None
    if isinstance(task.behaviour, str):
        shifted = (begin + task.lag_ms, end + task.lag_ms)
        moved, kept_moved = windows(coarse.series[task.behaviour], event, shifted, bin_ms)
        usable = np.intersect1d(usable, kept_moved)
    found: Arrays = {}
    numbers = {}
    for part, splits in {"train": train, "eval": evaluate}.items():
        wanted = np.isin(trials["split"], [splits] if isinstance(splits, str) else list(splits))
        numbers[part] = rows = usable[wanted[usable]]
        if not len(rows):
            raise ValueError(f"{part}: no usable trial is in the split {splits!r}; there are {set(trials['split'])}")
        for suffix, block, index in (("", cut, kept), ("_forward", later, kept_later)):
            block = block[np.searchsorted(index, rows)]
            found[f"{part}_spikes_heldin{suffix}"] = block[..., ~held]
            found[f"{part}_spikes_heldout{suffix}"] = block[..., held]
        if moved is None:
            found[f"{part}_behavior"] = np.stack([trials[c][rows].astype(float) for c in task.behaviour], 1)
        else:
            found[f"{part}_behavior"] = moved[np.searchsorted(kept_moved, rows)]
        if task.valid:
            found[f"{part}_behavior"][trials[task.valid][rows] == 1] = np.nan
        if task.decoders:
            kind = trials[task.decoders][rows].astype(float)
            found[f"{part}_decode_mask"] = np.stack([kind == 0, kind == 1], 1)
    rows = numbers["eval"]
    if task.since:  # nothing before this event is asked
        found["eval_spikes_heldout"][~_after(trials, task, rows, bin_ms)] = np.nan
    if task.conditions:
        found |= _psths(recording, task, bin_ms, np.union1d(*numbers.values()), rows)
    return found


def _after(trials: Arrays, task: NlbTask, rows: np.ndarray, bin_ms: int) -> np.ndarray:
    """[trials, bins]: whether a bin of the window starts at the event `since` or later."""
    grid = lambda t: np.ceil((t * 1000 / bin_ms).round(6))  # noqa: E731
    length = (task.window_ms[1] - task.window_ms[0]) // bin_ms
    last = grid(trials[task.align][rows] + task.window_ms[1] / 1000)
    return last[:, None] - length + np.arange(length) >= grid(trials[task.since][rows])[:, None]


def _psths(recording: Recording, task: NlbTask, bin_ms: int, rows: np.ndarray, evaluated: np.ndarray) -> Arrays:
    """Mean smoothed spikes of each condition over `rows`, held-in units first, and its trials in `evaluated`."""
    order = np.argsort(recording.heldout, kind="stable")
    smooth = summed(_smoothed(recording.spikes[:, order], task.kernel_ms // recording.bin_ms), bin_ms)
    cut, kept = windows(smooth, recording.trials[task.align], task.window_ms, bin_ms)
    rows = np.intersect1d(rows, kept)
    if task.valid:
        rows = rows[recording.trials[task.valid][rows] != 1]
    cut = cut[np.searchsorted(kept, rows)]
    labels = np.stack([recording.trials[c][rows].astype(float) for c in task.conditions], 1)
    psth, members = [], []
    for label in np.unique(labels[~np.isnan(labels).any(1)], axis=0):
        here = (labels == label).all(1)
        block, numbers = cut[here], rows[here]
        if task.since:  # trials of different lengths, aligned at their ends: what all but the shortest have
            after = _after(recording.trials, task, numbers, bin_ms)
            long = after.sum(1) >= 0.8 * after.sum(1).mean()
            block, numbers, after = block[long], numbers[long], after[long]
            block = np.where(after.all(0)[:, None], block, np.nan)
        psth.append(block.mean(0))
        members.append(np.flatnonzero(np.isin(evaluated, numbers)))
    index = np.empty(len(members), object)
    index[:] = members
    return {"psth": np.stack(psth), "eval_cond_idx": index}


def _smoothed(spikes: np.ndarray, sd: int) -> np.ndarray:
    """A Gaussian of 6 standard deviations' length over each stretch without NaN."""
    from scipy.signal import convolve
    from scipy.signal.windows import gaussian

    window = gaussian(6 * sd, sd)[:, None] / gaussian(6 * sd, sd).sum()
    out = spikes.astype(float)
    for unit in range(spikes.shape[1]):
        gone = np.isnan(spikes[:, unit])
        for part in np.split(np.arange(len(spikes)), np.flatnonzero(np.diff(gone)) + 1):
            if not gone[part[0]]:
                # the same length as the stretch, or, as in the benchmark, as the window where that is longer
                got = convolve(out[part, unit, None], window, "same")
                out[part, unit] = np.clip(got[:, 0], 0, None) if gone.any() else got[:, 0]
    return out


def _task(name: str) -> NlbTask:
    if name not in TASKS:
        raise ValueError(f"task must be one of {list(TASKS)}, or a NlbTask; got {name!r}")
    return TASKS[name]


# The prepared form ----------------------------------------------------------------------------------------------------


def save_prepared(path: str | Path, arrays: Arrays, task: str, bin_ms: int = 20) -> None:
    """Writes `tensors`' arrays as the benchmark prepares them: what a model may see (`train_spikes_...`,
    `train_behavior`, `eval_spikes_heldin`) at the top, what it is asked in the group `mc_maze_20` (at 5 ms, `mc_maze`).
    """
    import h5py

    _task(task)
    with h5py.File(path, "w") as file:
        group = file.create_group(task if bin_ms == 5 else f"{task}_{bin_ms}")
        for name, values in arrays.items():
            seen = name.startswith("train_spikes") or name in ("train_behavior", "eval_spikes_heldin")
            options: dict[str, Any] = {"dtype": h5py.vlen_dtype(np.int32)} if values.dtype == object else {}
            for place in [file] * seen + [group] * (not seen or name == "train_behavior"):
                place.create_dataset(name, data=values, **options)


def load_prepared(path: str | Path, task: str, bin_ms: int = 20) -> Arrays:
    """The arrays of a prepared file: those at the top, and those of the task's group, if it is there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not HDF5, or holds no `train_spikes_heldin`, or arrays of different numbers of trials, or
            a part of it lies in another file.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {path}")
    _task(task)
    try:
        with h5py.File(path, "r") as file:
            group = within(file, task if bin_ms == 5 else f"{task}_{bin_ms}") or {}
            stored = {name: within(level, name) for level in (file, group) for name in level}
            found = {name: values[()] for name, values in stored.items() if isinstance(values, h5py.Dataset)}
    except OSError as error:
        raise ValueError(f"path {path.name!r} is no HDF5 file, or was cut short ({error})") from None
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    if "train_spikes_heldin" not in found:
        raise ValueError(f"{path.name} has no train_spikes_heldin for {task} at {bin_ms} ms, only {sorted(found)}")
    sizes = {n: len(v) for n, v in found.items() if n.startswith("train_spikes")}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{path.name}: all train_spikes must have as many trials, got {sizes}")
    return found


# Metrics --------------------------------------------------------------------------------------------------------------


def bits_per_spike(rates: Any, spikes: Any) -> float:
    """`gated.langevinflow.bits_per_spike` for arrays [trials, bins, neurons]: on held-out neurons co-bps, on later bins
    fp-bps."""
    rates, spikes = (torch.from_numpy(np.array(x, float)) for x in (rates, spikes))
    return langevinflow.bits_per_spike(rates, spikes)


def velocity_r2(
    train_rates: Any,
    train_behavior: Any,
    eval_rates: Any,
    eval_behavior: Any,
    train_mask: Any = None,
    eval_mask: Any = None,
) -> float:
    """R² of a ridge regression from rates [trials, bins, neurons] to behaviour [trials, bins, channels].

    The penalty is chosen by five-fold cross-validation among nine from 1e-4 to 1. With masks [trials, kinds] each kind
    of trial has its decoder, and the R² are averaged. Bins without behaviour are left out.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    def flat(rates: Any, behaviour: Any, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.asarray(rates, float)[rows], np.asarray(behaviour, float)[rows]
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        if len(x) != len(y):
            raise ValueError(f"rates and behaviour must have as many bins, got {len(x)} and {len(y)}")
        known = ~np.isnan(y[:, 0])
        if not np.isfinite(x[known]).all():
            raise ValueError("rates must be finite wherever there is behaviour")
        return x[known], y[known]

    masks = [np.ones((len(r), 1), bool) if m is None else np.asarray(m, bool)
             for r, m in ((train_rates, train_mask), (eval_rates, eval_mask))]  # fmt: skip
    scores = []
    for train_rows, eval_rows in zip(masks[0].T, masks[1].T, strict=True):
        decoder = GridSearchCV(Ridge(), {"alpha": np.logspace(-4, 0, 9)})
        decoder.fit(*flat(train_rates, train_behavior, train_rows))
        scores.append(decoder.score(*flat(eval_rates, eval_behavior, eval_rows)))
    return float(np.mean(scores))


def psth_r2(psth: Any, rates: Any, conditions: Any) -> float:
    """R², averaged over neurons, of the mean rates of each condition against `psth` [conditions, bins, neurons].

    `conditions[i]` are the numbers of the trials of `rates` [trials, bins, neurons] in condition i; those without a
    trial, and bins where `psth` is NaN, are left out.
    """
    from sklearn.metrics import r2_score

    psth, rates = np.asarray(psth, float), np.asarray(rates, float)
    if len(conditions) != len(psth):
        raise ValueError(f"conditions must have an entry for each of the {len(psth)} PSTHs, got {len(conditions)}")
    true, predicted = [], []
    for target, rows in zip(psth, conditions, strict=True):
        if len(rows):
            known = ~np.isnan(target[:, 0])
            true.append(target[known])
            predicted.append(rates[np.asarray(rows, int)].mean(0)[known])
    if not true:
        raise ValueError("conditions must name at least one trial")
    return float(r2_score(np.concatenate(true), np.concatenate(predicted)))


def speed_correlation(spikes: Any, rates: Any, behavior: Any) -> float:
    """Pearson's r between neural speed and the time that the animal produced; a good model's is negative.

    Speed is the mean distance between successive rates where `spikes` is not NaN. Trials of a condition (the first
    three columns of `behavior`) are correlated with its last column, and the r are averaged.
    """
    from scipy.stats import pearsonr

    spikes, rates, behavior = (np.asarray(x, float) for x in (spikes, rates, behavior))
    seen = ~np.isnan(spikes[..., 0])
    speed = np.array([
        np.linalg.norm(np.diff(r[m], axis=0), axis=1).mean() for r, m in zip(rates, seen, strict=True)
    ])  # fmt: skip
    kinds = np.unique(behavior[~np.isnan(behavior[:, :3]).any(1), :3], axis=0)
    rows = [(behavior[:, :3] == kind).all(1) for kind in kinds]
    return float(np.mean([pearsonr(speed[r], behavior[r, -1])[0] for r in rows]))


def evaluate(arrays: Mapping[str, Any], rates: Mapping[str, Any], task: str) -> dict[str, float]:
    """The benchmark's scores: `co-bps`, and what the arrays allow of `fp-bps`, `vel R2` or `tp corr`, `psth R2`.

    Args:
        arrays: from `tensors` or `load_prepared`.
        rates: `eval_rates_heldin` and `eval_rates_heldout`, and as wanted the same with `train_` and `_forward`.
        task: one of `TASKS`.
    """
    cut = _task(task)
    both = lambda part, after="": np.concatenate(  # noqa: E731
        [np.asarray(rates[f"{part}_rates_{h}{after}"], float) for h in ("heldin", "heldout")], -1
    )
    found = {"co-bps": bits_per_spike(rates["eval_rates_heldout"], arrays["eval_spikes_heldout"])}
    if cut.since:
        found["tp corr"] = speed_correlation(arrays["eval_spikes_heldout"], both("eval"), arrays["eval_behavior"])
    elif "train_rates_heldin" in rates:
        masks = [arrays.get(f"{part}_decode_mask") for part in ("train", "eval")]
        found["vel R2"] = velocity_r2(
            both("train"), arrays["train_behavior"], both("eval"), arrays["eval_behavior"], *masks
        )
    if "psth" in arrays:
        found["psth R2"] = psth_r2(arrays["psth"], both("eval"), arrays["eval_cond_idx"])
    if "eval_rates_heldin_forward" in rates:
        spikes = [arrays[f"eval_spikes_{h}_forward"] for h in ("heldin", "heldout")]
        found["fp-bps"] = bits_per_spike(both("eval", "_forward"), np.concatenate(spikes, -1))
    return found
