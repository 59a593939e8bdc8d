"""Sequences of any length behind one another, as the GPU kernels read them."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def checked_bounds(cu_seqlens: Tensor | None, time: int) -> list[int]:
    """The checked bounds of the sequences as a list."""
    if cu_seqlens is None:
        return [0, time]
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != time:
        raise ValueError(f"cu_seqlens must run from 0 to T = {time}; got {bounds[0]} to {bounds[-1]}")
    if any(j <= i for i, j in pairwise(bounds)):
        raise ValueError(f"cu_seqlens must increase, so that no sequence is empty; got {bounds}")
    return bounds


def sequences(q: Tensor, cu_seqlens: Tensor | None) -> int:
    return q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


class Packing:
    """All sequences behind one another, each filled up with zeros to whole blocks: the layout of the GPU kernels."""

    def __init__(self, q: Tensor, cu_seqlens: Tensor | None, block: int):
        batch, time = q.shape[:2]
        self.shape, self.block = (batch, time), block
        self.index = None
        if cu_seqlens is None:
            blocks = -(-time // block)
            self.padding = blocks * block - time
            self.offsets = torch.arange(0, (batch + 1) * blocks, blocks, dtype=torch.int32, device=q.device)
        else:
            checked_bounds(cu_seqlens, time)
            filled = -(-cu_seqlens.diff() // block)
            self.offsets = torch.nn.functional.pad(filled.cumsum(0), (1, 0)).int()
            sequence = torch.repeat_interleave(cu_seqlens.diff(), output_size=time)
            self.index = torch.arange(time, device=q.device) + (self.offsets[:-1] * block - cu_seqlens[:-1])[sequence]
            self.length = int(self.offsets[-1]) * block

    def pack(self, y: Tensor) -> Tensor:
        """[B, T, H, d] to [L, H, d]."""
        if self.index is not None:
            return y.new_zeros(self.length, *y.shape[2:]).index_copy_(0, self.index, y[0])
        if self.padding:
            y = torch.nn.functional.pad(y, (0, 0, 0, 0, 0, self.padding))
        return y.flatten(0, 1).contiguous()

    def unpack(self, y: Tensor) -> Tensor:
        """[L, H, d] to [B, T, H, d]."""
        if self.index is not None:
            return y.index_select(0, self.index).unsqueeze(0)
        return y.unflatten(0, (self.shape[0], -1))[:, : self.shape[1]].contiguous()
