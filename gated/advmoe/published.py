"""What the published architectures cost, by the shapes of their layers; nothing is built or run.

    cost = costs("ResNet-18")
    cost.dense.macs, cost.half.macs, cost.active.macs, cost.executed.macs

Multiply-adds of one image of 3 x 32 x 32 with ten classes, in convolutions and linear maps. `active` is the pathway
and the image router; `executed` is what a program spends that runs all experts and then drops all but one. DenseNet-BC
has no routed form in the authors' program (its constructor fails), so `active` is the plain net of width r and the
router, and there is no `executed`.

Sources: He et al. 2016 (arXiv 1512.03385); Zagoruyko & Komodakis 2016 (arXiv 1605.07146); Simonyan & Zisserman 2015
(arXiv 1409.1556); Huang et al. 2017 (arXiv 1608.06993); the variants and the widths of the routed nets as in the
authors' program of Zhang et al. 2023 (arXiv 2308.10110).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from gated.gates._validation import check_choice, check_number, check_sizes

CLASSES = 10


class Layer(NamedTuple):
    """A convolution of `size` x `size` outputs, or a linear map (size 1): c_in -> c_out, `kernel` x `kernel`."""

    c_in: int
    c_out: int
    kernel: int
    size: int
    routed: bool = False
    bias: bool = False

    @property
    def macs(self) -> int:
        return self.c_in * self.c_out * self.kernel**2 * self.size**2

    @property
    def params(self) -> int:
        return self.c_in * self.c_out * self.kernel**2 + self.c_out * self.bias


class Net(NamedTuple):
    """The layers of a network, one expert each where routed, and the channels of its batch norms."""

    layers: list[Layer]
    normed: int

    def cost(self, num_experts: int = 1, *, all_run: bool = False) -> Cost:
        """Multiply-adds and parameters with N experts in each routed layer; `all_run` counts all of them as run."""
        macs = sum(m.macs * (num_experts if m.routed and all_run else 1) for m in self.layers)
        params = sum(m.params * (num_experts if m.routed else 1) for m in self.layers)
        return Cost(macs, params + 2 * self.normed)


class Cost(NamedTuple):
    macs: int
    params: int


class Costs(NamedTuple):
    """The dense net, the plain net of width r, and the routed one: the pathway taken, and all experts. With router."""

    dense: Cost
    half: Cost
    active: Cost
    executed: Cost | None
    router: Cost

    @property
    def saving(self) -> float:
        """1 - active / dense, in multiply-adds."""
        return 1 - self.active.macs / self.dense.macs

    @property
    def executed_saving(self) -> float | None:
        """1 - executed / dense, in multiply-adds."""
        return None if self.executed is None else 1 - self.executed.macs / self.dense.macs


def costs(name: str, *, num_experts: int = 2, ratio: float = 0.5) -> Costs:
    """Costs of one of `ARCHITECTURES` with N experts of width r and the image router.

    Args:
        ratio: r, the width of an expert over that of the plain network.

    Raises:
        ValueError: an unknown name, N below 1, r outside (0, 1].
    """
    check_choice("name", name, ARCHITECTURES)
    check_sizes(num_experts=num_experts)
    check_number("ratio", ratio, "(0, 1]")
    build = ARCHITECTURES[name]
    router, dense, half = _resnet20(num_experts).cost(), build(1.0, False).cost(), build(ratio, False).cost()
    net = build(ratio, True)
    one = net.cost(num_experts)
    active = Cost(one.macs + router.macs, one.params + router.params)
    if not any(layer.routed for layer in net.layers):
        return Costs(dense, half, active, None, router)
    every = Cost(net.cost(num_experts, all_run=True).macs + router.macs, active.params)
    return Costs(dense, half, active, every, router)


def _resnet18(ratio: float, moe: bool) -> Net:
    stem = 64 if moe else int(64 * ratio)  # the routed net leaves the stem as it is
    layers, normed, before, size = [Layer(3, stem, 3, 32)], stem, stem, 32
    for full, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        width, size = int(full * ratio), size // stride
        layers += [Layer(before, width, 3, size, moe), Layer(width, width, 3, size, moe)]
        normed += 2 * width
        if stride > 1 or before != width:
            layers.append(Layer(before, width, 1, size))
            normed += width
        before = width
    return Net([*layers, Layer(before, CLASSES, 1, 1, bias=True)], normed)


def _wrn28_10(ratio: float, moe: bool) -> Net:
    before, size = int(16 * ratio), 32
    layers, normed = [Layer(3, before, 3, 32)], 0
    for full, stage_stride in ((160, 1), (320, 2), (640, 2)):
        width = int(full * ratio)
        for stride in (stage_stride, 1, 1, 1):
            size //= stride
            layers += [Layer(before, width, 3, size, moe), Layer(width, width, 3, size, moe)]
            normed += before + width  # norms stand before the convolutions
            if before != width:
                layers.append(Layer(before, width, 1, size, moe))
            before = width
    return Net([*layers, Layer(before, CLASSES, 1, 1, bias=True)], normed + before)


def _vgg16(ratio: float, moe: bool) -> Net:
    """Thirteen convolutions, four poolings (a map of 2 x 2 is left), linear maps of 256, 256 and 10."""
    layers, normed, before, size = [], 0, 3, 32
    for stage, (full, number) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        size //= 2 if stage else 1
        width = int(full * ratio)
        for _ in range(number):
            layers.append(Layer(before, width, 3, size, moe and before > 3))
            normed, before = normed + width, width
    ends = (4 * before, 256, 256, CLASSES)
    layers += [Layer(a, b, 1, 1, bias=True) for a, b in pairwise(ends)]
    return Net(layers, normed)


def _densenet_bc40(ratio: float, moe: bool) -> Net:
    """Three dense blocks of six bottlenecks (1x1 to 4 g channels, 3x3 to g), halved in between; g = 12 r."""
    growth = int(12 * ratio)
    before, size = 2 * growth, 32
    layers, normed = [Layer(3, before, 3, 32)], 0
    for block in range(3):
        for _ in range(6):
            layers += [Layer(before, 4 * growth, 1, size), Layer(4 * growth, growth, 3, size)]
            normed += before + 4 * growth
            before += growth
        normed += before
        if block < 2:
            layers.append(Layer(before, before // 2, 1, size))
            before, size = before // 2, size // 2
    return Net([*layers, Layer(before, CLASSES, 1, 1, bias=True)], normed)


def _resnet20(outputs: int) -> Net:
    layers, normed, before, size = [Layer(3, 16, 3, 32)], 16, 16, 32
    for stage, width in enumerate((16, 32, 64)):
        size //= 2 if stage else 1
        for _ in range(3):
            layers += [Layer(before, width, 3, size), Layer(width, width, 3, size)]
            normed, before = normed + 2 * width, width
    return Net([*layers, Layer(before, outputs, 1, 1, bias=True)], normed)


ARCHITECTURES: dict[str, Callable[[float, bool], Net]] = {
    "ResNet-18": _resnet18,
    "WRN-28-10": _wrn28_10,
    "VGG-16-BN": _vgg16,
    "DenseNet-BC-40": _densenet_bc40,
}
