"""Data sets of any sizes as blocks of equal length, none of which holds points of two data sets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Points(NamedTuple):
    """Inputs and outputs of many data sets. The first `count` points of a block are real; the rest are zeros.

    Args:
        segment, segments: the data set of each block, and how many data sets there are.

    Raises:
        ValueError: see `pack`.

    Example:
        >>> x, y = torch.randn(100, 2), torch.randn(100)
        >>> points = Points.pack(x, y, torch.tensor([0, 60, 100]), length=32)
        >>> points.count.tolist(), points.segment.tolist()
        ([32, 28, 32, 8], [0, 0, 1, 1])
    """

    x: Float[Tensor, "blocks dim length"]
    y: Float[Tensor, "blocks length"]
    count: Int[Tensor, " blocks"]  # type: ignore[assignment]  # tuples have a method of this name
    segment: Int[Tensor, " blocks"]  # which data set; ascending
    segments: int  # how many data sets; one without a block is empty

    @classmethod
    def pack(
        cls,
        x: Float[Tensor, "points dim"],
        y: Float[Tensor, " points"],
        offsets: Int[Tensor, " bounds"],
        *,
        length: int = 256,
    ) -> Points:
        """Cuts points that stand data set after data set.

        Args:
            x, y: finite.
            offsets: [segments + 1]; data set s is the points offsets[s] .. offsets[s + 1] - 1.
            length: points a block. A data set wastes half a block on average.

        Raises:
            ValueError: shapes that do not fit, offsets that do not ascend from 0 to the number of points, NaN or
                infinite points, length below 1.
        """
        if x.dim() != 2 or y.shape != x.shape[:1] or not x.shape[1] or x.dtype != y.dtype or not x.is_floating_point():
            raise ValueError(
                f"x and y must have shapes [points, dim], dim >= 1, and [points] and one floating dtype; got "
                f"{x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}"
            )
        if offsets.dim() != 1 or not len(offsets) or offsets.is_floating_point():
            raise ValueError(f"offsets must be integers [segments + 1]; got {offsets.dtype} {tuple(offsets.shape)}")
        offsets = offsets.to(x.device, torch.int64)
        if offsets[0] != 0 or offsets[-1] != len(x) or (offsets.diff() < 0).any():
            raise ValueError(f"offsets must ascend from 0 to the number of points, {len(x)}; got {offsets.tolist()}")
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"length must be an integer of at least 1; got {length!r}")
        for name, values in (("x", x), ("y", y)):
            if not values.isfinite().all():
                bad = (~values.isfinite()).sum().item()
                raise ValueError(f"{name} must be finite; got {bad} values that are NaN or infinite: leave them out")
        segments = len(offsets) - 1
        blocks = (offsets.diff() + length - 1).div(length, rounding_mode="floor")
        segment = torch.repeat_interleave(torch.arange(segments, device=x.device), blocks)
        within = torch.arange(len(segment), device=x.device) - (blocks.cumsum(0) - blocks)[segment]
        start = offsets[segment] + within * length
        count = (offsets[segment + 1] - start).clamp_max(length)
        place = torch.arange(length, device=x.device)
        real = place < count[:, None]
        index = torch.where(real, start[:, None] + place, 0)
        if not len(x):
            return cls(x.new_zeros(0, x.shape[1], length), y.new_zeros(0, length), count, segment, segments)
        blocked = torch.where(real[..., None], x[index], 0).mT.contiguous()
        return cls(blocked, torch.where(real, y[index], 0), count, segment, segments)

    def check(self) -> None:
        """Raise ValueError unless the fields fit together. Numbers of points and data sets are looked at on a CPU."""
        if not isinstance(self.segments, int) or isinstance(self.segments, bool) or self.segments < 0:
            raise ValueError(f"segments must be a number of data sets; got {self.segments!r}")
        blocks, _, length = (*self.x.shape, 0, 0, 0)[:3] if isinstance(self.x, Tensor) else (0, 0, 0)
        if not isinstance(self.x, Tensor) or self.x.ndim != 3 or not length or not self.x.is_floating_point():
            raise ValueError("x must be a floating tensor [blocks, dim, length], length >= 1")
        for name, shape in (("y", (blocks, length)), ("count", (blocks,)), ("segment", (blocks,))):
            field = getattr(self, name)
            if not isinstance(field, Tensor) or field.shape != shape or field.dtype == torch.bool:
                raise ValueError(f"{name} must be a tensor of numbers of shape {shape}, as x has blocks")
            if field.is_floating_point() != (name == "y"):
                raise ValueError(f"{name} must be {'floating point' if name == 'y' else 'integers'}; got {field.dtype}")
        if self.x.device.type != "cpu" or torch.compiler.is_compiling() or not blocks:
            return
        for name, numbers, most in (("count", self.count, length), ("segment", self.segment, self.segments - 1)):
            low, high = (int(end) for end in numbers.aminmax())
            if low < 0 or high > most:
                raise ValueError(f"{name} must lie in 0..{most}, by the length of x and segments={self.segments}")

    def select(self, index: Int[Tensor, " chosen"]) -> Points:
        """Only the data sets in `index` (each at most once would be usual, any order), renumbered 0, 1, ..."""
        bounds = torch.searchsorted(self.segment, torch.arange(self.segments + 1, device=self.segment.device))
        size = bounds.diff()[index]
        segment = torch.repeat_interleave(torch.arange(len(index), device=size.device), size)
        within = torch.arange(len(segment), device=size.device) - (size.cumsum(0) - size)[segment]
        block = bounds[index][segment] + within
        return Points(self.x[block], self.y[block], self.count[block], segment, len(index))

    def sizes(self) -> Int[Tensor, " segments"]:
        """How many real points each data set has."""
        return torch.zeros(self.segments, dtype=torch.int64, device=self.count.device).index_add_(
            0, self.segment, self.count.long()
        )
