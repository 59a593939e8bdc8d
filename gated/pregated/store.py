"""The slow tier: experts in a safetensors file, read one by one into memory that somebody else holds.

A safetensors file is the length of its header (8 bytes, little-endian), the header (JSON: name -> dtype, shape,
data_offsets), and the data; the offsets count from the end of the header. `write_experts` puts W1 and W2 of each expert
side by side, and `ExpertStore.read_into` copies them out with one read call each. Nothing is mapped into memory: a
mapped tensor is only fetched when it is first touched, which would be inside the matrix product that the fetching
is meant to run beside.

Faults are told, not survived. A file that is not what it should be when it is opened is a `ValueError`; whatever
happens to it later is a `StoreError`, raised by the read that met it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import mmap
import os
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from gated.gates._validation import is_number
from gated.pregated.layers import Experts

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAME = re.compile(r"layers\.(\d+)\.experts\.(\d+)\.(w_in|w_out)")


class StoreError(OSError):
    """The slow tier failed while it was in use: what was read must not be used."""


class Span(NamedTuple):
    """Where a tensor lies in the file: its dtype and shape, and its bytes `start` to `stop`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def write_experts(layers: Sequence[Experts], path: str | Path) -> None:
    """Writes the experts of each layer as `layers.{b}.experts.{i}.w_in` [dim, hidden] and `.w_out` [hidden, dim].

    The file appears under its name when it is complete and on the disk.
    """
    path = Path(path)
    codes = {dtype: code for code, dtype in _DTYPES.items()}
    tensors = {
        f"layers.{b}.experts.{i}.{name}": getattr(layer, name)[i].detach().cpu().contiguous()
        for b, layer in enumerate(layers)
        for i in range(len(layer.w_in))
        for name in ("w_in", "w_out")
    }
    entries, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * ((56 - len(header)) % 64)  # spaces are allowed behind the JSON; the data then starts at 64 n
    part = Path(f"{path}.part")
    with part.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors.values():
            file.write(_memory(tensor))
        file.flush()
        os.fsync(file.fileno())  # pages that are not on the disk yet cannot be dropped from the page cache
    part.replace(path)


def read_header(descriptor: int) -> dict[str, Span]:
    """The tensors of an open safetensors file, with their offsets from the start of the file.

    Raises:
        ValueError: no header, a header that does not describe the data, a file that is shorter or longer than it says.
    """
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"path must hold a header of {length} bytes, but the file is truncated at {size}")
    try:
        entries = json.loads(os.pread(descriptor, length, 8))
        entries.pop("__metadata__", None)
        found = {
            name: Span(entry["dtype"], tuple(entry["shape"]), *(8 + length + int(x) for x in entry["data_offsets"]))
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"path must be a safetensors file; its header cannot be read: {error}") from error
    end = max((span.stop for span in found.values()), default=8 + length)
    if end != size:
        state = "truncated" if size < end else "longer than its header says"
        raise ValueError(f"path must hold {end} bytes as its header says, but the file is {state}: {size}")
    if any(not 8 + length <= span.start <= span.stop for span in found.values()):
        raise ValueError("path must have data_offsets that lie behind the header and do not fall")
    return found


class ExpertStore:
    """Experts in a file, to be read by layer and number.

    Args:
        path: a file as of `write_experts`; every layer holds the same number of experts, all of one shape and dtype.
        bytes_per_second: makes reads take at least as long as a link of this speed would, by sleeping.
        cold: drops an expert from the operating system's page cache before it is read, so that the disk is read.

    Raises:
        ValueError: what `read_header` raises; tensors that are missing, of different shapes or of a wrong dtype.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        bytes_per_second: float | int | None = None,
        cold: bool = False,
    ) -> None:
        if bytes_per_second is not None and not (is_number(bytes_per_second) and bytes_per_second > 0):
            raise ValueError(f"bytes_per_second must be above 0, or None for no limit; got {bytes_per_second}")
        if cold and not hasattr(os, "posix_fadvise"):
            raise ValueError("cold must be False here: this system cannot drop pages from its cache")
        self.path, self.cold, self.bytes_per_second = Path(path), cold, bytes_per_second
        self._whole: dict[bool, Tensor] = {}
        self._descriptor = os.open(path, os.O_RDONLY)
        try:
            self._opened = _identity(os.fstat(self._descriptor))
            self._spans = _experts(read_header(self._descriptor))
        except BaseException:
            self.close()
            raise
        self.blocks, self.num_experts = 1 + max(b for b, _ in self._spans), 1 + max(i for _, i in self._spans)
        first = self._spans[0, 0][0]
        self.dtype, (self.dim, self.hidden) = _DTYPES[first.dtype], first.shape
        self.expert_bytes = 2 * (first.stop - first.start)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
        self._whole.clear()

    def __enter__(self) -> ExpertStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def buffer(self) -> UInt8[Tensor, " bytes"]:
        """Memory for one expert."""
        return torch.empty(self.expert_bytes, dtype=torch.uint8)

    def view(self, buffer: UInt8[Tensor, " bytes"]) -> tuple[Tensor, Tensor]:
        """W1 [dim, hidden] and W2 [hidden, dim] in a buffer that `read_into` filled; no copy."""
        w_in, w_out = buffer.view(self.dtype).chunk(2)
        return w_in.view(self.dim, self.hidden), w_out.view(self.hidden, self.dim)

    def read_into(self, layer: int, expert: int, buffer: UInt8[Tensor, " bytes"]) -> None:
        """Copies W1 and W2 of an expert into `buffer`. The interpreter's lock is free meanwhile.

        Raises:
            ValueError: an expert that is not there, a buffer that does not fit.
            StoreError: the read failed, came short, or the file is no longer the one that was opened.
        """
        if (layer, expert) not in self._spans:
            raise ValueError(
                f"layer and expert must lie below {self.blocks} and {self.num_experts}, got {layer}, {expert}"
            )
        if buffer.dtype != torch.uint8 or buffer.shape != (self.expert_bytes,) or not buffer.is_contiguous():
            raise ValueError(
                f"buffer must be {self.expert_bytes} contiguous uint8, got {buffer.dtype} {tuple(buffer.shape)}"
            )
        start = time.monotonic()
        target, at = _memory(buffer), 0
        for span in self._spans[layer, expert]:
            self._fill(target[at : at + span.stop - span.start], span.start, f"expert {expert} of layer {layer}")
            at += span.stop - span.start
        self.check_same_file()
        if self.bytes_per_second is not None:
            time.sleep(max(0.0, start + self.expert_bytes / self.bytes_per_second - time.monotonic()))

    def _fill(self, target: memoryview, offset: int, what: str) -> None:
        if self.cold:
            self._drop(offset, offset + len(target))
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._descriptor, [target[done:]], offset + done)
            except OSError as error:
                raise StoreError(f"{what} could not be read from {self.path}: {error}") from error
            if count == 0:
                raise StoreError(f"{what} ends after {done} of {len(target)} bytes: {self.path} was truncated")
            done += count  # a read may be short and go on

    def _drop(self, start: int, stop: int) -> None:
        # a page that is only in part named would stay
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        length = -(-stop // mmap.PAGESIZE) * mmap.PAGESIZE - first
        os.posix_fadvise(self._descriptor, first, length, os.POSIX_FADV_DONTNEED)

    def whole(self, *, pinned: bool = False) -> UInt8[Tensor, "blocks num_experts bytes"]:
        """All experts, read once and kept until `close`: not to be written to. `pinned` memory can be copied from
        while a GPU computes.

        Raises:
            StoreError: as in `read_into`.
        """
        if pinned not in self._whole:
            shape = self.blocks, self.num_experts, self.expert_bytes
            buffers = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
            for layer, expert in self._spans:
                self.read_into(layer, expert, buffers[layer, expert])
            self._whole[pinned] = buffers
        return self._whole[pinned]

    def check_same_file(self) -> None:
        """Whether the file under the path is the one that was opened, unchanged since.

        Raises:
            StoreError: it is gone, replaced (the path leads elsewhere) or changed. Times tell changes some milliseconds
                apart.
        """
        try:
            now = _identity(os.stat(self.path)), _identity(os.fstat(self._descriptor))
        except OSError as error:
            raise StoreError(f"{self.path} is gone since it was opened: {error}") from error
        if now != (self._opened, self._opened):
            raise StoreError(f"{self.path} was replaced or changed since it was opened; open it again")

    def is_cached(self, layer: int, expert: int) -> bool | None:
        """Whether the page cache holds the middle of an expert's W1; None where the system does not tell.

        The question may itself make the system read ahead: it must not stand between a drop and a read that is to be
        cold.
        """
        if not hasattr(os, "RWF_NOWAIT"):
            return None
        span = self._spans[layer, expert][0]
        try:
            os.preadv(self._descriptor, [bytearray(1)], (span.start + span.stop) // 2, os.RWF_NOWAIT)
        except OSError as error:
            return False if error.errno == errno.EAGAIN else None
        return True

    def measure_read(self, repeats: int = 5) -> ReadSpeed:
        """Reads experts from the disk and again from the page cache, without the throttle.

        Raises:
            ValueError: repeats < 1; a system that cannot drop pages from its cache.
        """
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}")
        buffer, dropped = self.buffer(), []
        seconds: dict[bool, list[float]] = {True: [], False: []}
        with ExpertStore(self.path, cold=True) as disk, ExpertStore(self.path) as memory:
            for n in range(repeats):
                key = divmod(n % len(self._spans), self.num_experts)
                for store in (disk, memory):
                    start = time.perf_counter()
                    store.read_into(*key, buffer)
                    seconds[store.cold].append(time.perf_counter() - start)
            # apart from the reads, and from the back: to ask may bring these pages back, and some behind them
            for key in sorted(list(self._spans)[:repeats], key=lambda key: -self._spans[key][0].start):
                for span in self._spans[key]:
                    disk._drop(span.start, span.stop)
                dropped.append(disk.is_cached(*key))
        cold, warm = (self.expert_bytes / statistics.median(seconds[cold]) for cold in (True, False))
        return ReadSpeed(cold, warm, dropped=not any(dropped) if None not in dropped else None)


@dataclass(frozen=True)
class ReadSpeed:
    """Bytes per second from the disk and from the page cache.

    `dropped` says whether the pages really left the cache before they were read "from the disk", None that the system
    does not tell. Some file systems, those of containers among them, ignore the wish; `cold` then measures memory too.
    """

    cold: float
    warm: float
    dropped: bool | None

    def __str__(self) -> str:
        note = {True: "", False: " (the page cache kept it)", None: " (if the page cache let go of it)"}[self.dropped]
        return f"from the disk {self.cold / 1e6:.0f} MB/s{note}, from the page cache {self.warm / 1e6:.0f} MB/s"


def _experts(found: dict[str, Span]) -> dict[tuple[int, int], tuple[Span, Span]]:
    """W1 and W2 of each (layer, expert), all checked against the first."""
    named = {name: match for name in found if (match := _NAME.fullmatch(name))}
    if not named:
        raise ValueError("path must hold tensors named layers.<b>.experts.<i>.w_in and .w_out, found none")
    blocks = 1 + max(int(match[1]) for match in named.values())
    num_experts = 1 + max(int(match[2]) for match in named.values())
    first = next(found[name] for name in named)
    shape = first.shape if next(iter(named.values()))[3] == "w_in" else first.shape[::-1]
    spans = {}
    for b in range(blocks):
        for i in range(num_experts):
            pair = []
            for part, wanted in (("w_in", shape), ("w_out", shape[::-1])):
                name = f"layers.{b}.experts.{i}.{part}"
                span = found.get(name)
                if span is None:
                    raise ValueError(f"path must hold {name} ({blocks} layers of {num_experts} experts), it is missing")
                if span.dtype not in _DTYPES or span.dtype != first.dtype:
                    allowed = f"one of {', '.join(_DTYPES)}, the same for all ({first.dtype})"
                    raise ValueError(f"{name} must have a dtype of {allowed}; got {span.dtype}")
                size, given = math.prod(wanted) * _DTYPES[span.dtype].itemsize, span.stop - span.start
                if len(wanted) != 2 or span.shape != wanted or given != size:
                    raise ValueError(f"{name} must have shape {wanted} in {size} bytes; got {span.shape} in {given}")
                pair.append(span)
            spans[b, i] = (pair[0], pair[1])
    return spans


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _memory(tensor: Tensor) -> memoryview:
    """A CPU tensor's bytes, writable. The caller keeps the tensor alive. (NumPy, which could do this, is optional.)"""
    return memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
