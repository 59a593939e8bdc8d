"""Networks made of expert-selecting convolutions.

    trace = model.trace(x)              # logits, scores [routers, batch, N], routes [routers, batch]
    model.trace(x, routes=r)            # the pathway given: a plain CNN of width r
    model.trace(x, temperature=1.0)     # the smooth stand-in: all experts, softmax weights

`routing="layer"` gives each convolution a router of its own, which sees the mean of its input over time or pixels:
s = A mean(h) + a (this form of the router is ours). `routing="global"` asks one small CNN about the input, once, and
all layers follow: N pathways instead of N^layers (the authors' program).

Source: Zhang et al. 2023 (AdvMoE), arXiv 2308.10110.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gated.advmoe.conv import MoEConv, Ste, permute, top1
from gated.advmoe.routers import LayerRouter, image_router, small_router
from gated.gates._validation import check_choice, check_float, check_number, check_positive, check_sizes

Routing = Literal["layer", "global"]


class Trace(NamedTuple):
    """What a network answered, and how it got there. A global router is one row of scores and routes."""

    logits: Float[Tensor, "batch classes"]
    scores: Float[Tensor, "routers batch experts"]
    routes: Int[Tensor, "routers batch"]


class _Way:
    """One call's way through the network: decides at each convolution, and remembers scores and routes."""

    def __init__(self, scores: Tensor | None, routes: Tensor | None, temperature: float | int | None):
        self.given_scores, self.given_routes, self.temperature = scores, routes, temperature
        self.scores: list[Tensor] = []
        self.routes: list[Tensor] = []

    def __call__(self, conv: MoEConv, norm: nn.Module, x: Tensor) -> Tensor:
        """norm(conv(x)) along the way."""
        if self.given_scores is not None:
            scores, forced = self.given_scores, None if self.given_routes is None else self.given_routes[0]
        else:
            scores = x.new_zeros(len(x), conv.num_experts) if conv.router is None else conv.router(x)
            forced = None if self.given_routes is None else self.given_routes[len(self.routes)]
        routes = top1(scores) if forced is None else forced
        self.scores.append(scores)
        self.routes.append(routes)
        if self.temperature is not None:
            return norm(conv.mixed(x, scores, self.temperature))
        return norm(conv(x, scores) if forced is None else conv.chosen(x, forced))


class RoutedNetwork(nn.Module):
    """A network whose convolutions choose. Subclasses write `body(x, way)`, where `way(conv, norm, x)` runs a layer.

    Attributes:
        router: the global router, or None where each `MoEConv` has its own (or there is one expert only).
        num_experts, num_routers, in_channels, dims: N, the rows of a trace, and the shape of the input.

    Raises:
        ValueError: an input of another shape or dtype; a temperature that is not positive, or beside given routes;
            routes of another shape, or to an expert that does not exist.
    """

    router: nn.Module | None
    num_experts: int
    num_routers: int
    in_channels: int
    dims: int

    @abstractmethod
    def body(self, x: Tensor, way: _Way) -> Tensor: ...

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch classes"]:
        """The logits. Raises ValueError as `trace`."""
        return self.trace(x).logits

    def trace(
        self,
        x: Float[Tensor, "batch channels *space"],
        *,
        routes: Int[Tensor, "routers batch"] | None = None,
        temperature: float | int | None = None,
    ) -> Trace:
        """Logits, scores and routes.

        Args:
            routes: the pathway to take; the routers' scores are computed all the same, along that pathway.
            temperature: T > 0 mixes all experts with weights softmax(s / T) instead of choosing one; the routes
                returned are still argmax s.

        Raises:
            ValueError: an input of another shape, routes of another shape or beyond the experts, both arguments at
                once, T <= 0, scores that are not finite.
        """
        check_float("x", x)
        fits = x.ndim == self.dims + 2 and x.shape[1] == self.in_channels and 0 not in x.shape[2:]
        if not fits:
            space = ("length",) if self.dims == 1 else ("height", "width")
            want = f"[batch, {self.in_channels}, {', '.join(space)}]"
            raise ValueError(f"x must be floating point, {want}; got {x.dtype} {tuple(x.shape)}")
        if routes is not None and temperature is not None:
            raise ValueError("temperature must be None where routes are given; got both")
        if temperature is not None:
            check_positive("temperature", temperature)
        if routes is not None:
            if routes.shape != (self.num_routers, len(x)):
                raise ValueError(f"routes must be {(self.num_routers, len(x))}; got shape {tuple(routes.shape)}")
            if routes.numel() and not 0 <= int(routes.min()) <= int(routes.max()) < self.num_experts:
                raise ValueError(f"routes must lie in 0..{self.num_experts - 1}; got another expert")
        if self.router is None:
            way = _Way(None, routes, temperature)
            logits = self.body(x, way)
            return Trace(logits, torch.stack(way.scores), torch.stack(way.routes))
        scores = self.router(x)
        taken = top1(scores) if routes is None else routes[0]
        if temperature is not None:
            return Trace(self.body(x, _Way(scores, None, temperature)), scores[None], taken[None])
        # One decision for all layers: the batch is sorted once, and every convolution only slices.
        order = taken.argsort(stable=True)
        back = order.argsort()
        way = _Way(permute(scores, order, back), None if routes is None else taken[order][None], None)
        return Trace(permute(self.body(permute(x, order, back), way), back, order), scores[None], taken[None])

    def router_parameters(self) -> list[nn.Parameter]:
        """phi: the parameters of all routers."""
        routers = [self.router, *(m.router for m in self.modules() if isinstance(m, MoEConv))]
        return [p for router in routers if router is not None for p in router.parameters()]

    def expert_parameters(self) -> list[nn.Parameter]:
        """psi: all others (experts, stem, norms, classifier). Together with phi each parameter exactly once."""
        phi = {id(p) for p in self.router_parameters()}
        return [p for p in self.parameters() if id(p) not in phi]


class MoECNN(RoutedNetwork):
    """Stem, expert convolutions with norm and ReLU, mean over time or pixels, linear classifier.

    Args:
        in_channels, num_classes: of input and answer.
        num_experts: N; 1 has no router and is the plain network of width `ratio`.
        ratio: r, scales the width of every layer but the stem; rounded to whole channels.
        widths, strides: of the stem and of each expert convolution, at r = 1.
        kernel_size, dims: padding is kernel_size // 2; dims 1 for signals, 2 for images.
        routing: "layer" or "global".
        ste: see `MoEConv`.
        router: the global router, [batch, in_channels, *space] -> [batch, N]; `small_router` unless given.

    With N r = 1 all experts of a layer together have its full number of channels, and half (1 / N) of its weights. The
    batch norm behind a layer is one for all of its experts: its running statistics are right only while the loads stay
    what they were in training.

    Raises:
        ValueError: sizes that do not fit, unknown choices, a router with routing "layer".

    Example:
        >>> model = MoECNN(in_channels=1, num_classes=10)
        >>> answer = model.trace(torch.randn(5, 1, 40))
        >>> answer.logits.shape, answer.routes.shape  # three layers choose
        (torch.Size([5, 10]), torch.Size([3, 5]))
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        num_experts: int = 2,
        ratio: float | int = 0.5,
        widths: Sequence[int] = (32, 32, 64, 64),
        strides: Sequence[int] = (1, 2, 2, 1),
        kernel_size: int = 5,
        dims: int = 1,
        routing: Routing = "layer",
        ste: Ste = "selected",
        router: nn.Module | None = None,
    ):
        super().__init__()
        check_sizes(in_channels=in_channels, num_classes=num_classes, num_experts=num_experts, kernel_size=kernel_size)
        if len(widths) < 2 or len(widths) != len(strides):
            raise ValueError(
                f"widths must hold the stem and at least one expert layer, and strides must be as many; "
                f"got {tuple(widths)} and {tuple(strides)}"
            )
        check_sizes(dims=dims)
        if dims not in (1, 2):
            raise ValueError(f"dims must be 1 (signals) or 2 (images); got {dims!r}")
        check_choices(ratio, routing, router, num_experts)
        self.in_channels, self.dims, self.num_experts = in_channels, dims, num_experts
        conv, plain = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[dims - 1]
        first = conv(in_channels, widths[0], kernel_size, strides[0], kernel_size // 2, bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
        self.stem = nn.Sequential(first, plain(widths[0]), nn.ReLU())
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        before = widths[0]
        for full, stride in zip(widths[1:], strides[1:], strict=True):
            width = max(1, round(ratio * full))
            layered = routing == "layer" and num_experts > 1
            own = LayerRouter(before, num_experts) if layered else None
            self.convs.append(
                MoEConv(
                    before, width, kernel_size, num_experts=num_experts, stride=stride, dims=dims, ste=ste, router=own
                )
            )
            self.norms.append(plain(width))
            before = width
        self.head = nn.Linear(before, num_classes)
        self.router = None
        if routing == "global" and num_experts > 1:
            self.router = small_router(num_experts, in_channels, dims=dims) if router is None else router
        self.num_routers = 1 if self.router is not None else len(self.convs)

    def layers(self) -> Iterator[tuple[Any, Any]]:
        """Each expert convolution with the norm behind it."""
        return zip(self.convs, self.norms, strict=True)

    def body(self, x: Tensor, way: _Way) -> Tensor:
        x = self.stem(x)
        for conv, norm in self.layers():
            x = F.relu(way(conv, norm, x))
        return self.head(x.flatten(2).mean(-1))


class MoEResNet18(RoutedNetwork):
    """ResNet-18 for 32 x 32 images whose 16 3x3 convolutions choose; stem, 1x1 shortcuts and classifier do not.

    The stem keeps its 64 channels and all behind it is scaled by r, so the first block has a 1x1 shortcut too.
    5,565,450 parameters without router for N = 2, r = 1/2 and 10 classes.

    Args:
        num_experts, ratio, routing, ste, router: as in `MoECNN`; the global router is `image_router` unless given.

    Source: He et al. 2016, arXiv 1512.03385; Zhang et al. 2023, arXiv 2308.10110, with widths as in the authors'
    program.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        num_experts: int = 2,
        ratio: float | int = 0.5,
        in_channels: int = 3,
        routing: Routing = "global",
        ste: Ste = "selected",
        router: nn.Module | None = None,
    ):
        super().__init__()
        check_sizes(num_classes=num_classes, num_experts=num_experts, in_channels=in_channels)
        check_choices(ratio, routing, router, num_experts)
        self.in_channels, self.dims, self.num_experts = in_channels, 2, num_experts
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.blocks = nn.ModuleList()
        own = partial(LayerRouter, num_experts=num_experts)
        each = own if routing == "layer" and num_experts > 1 else None
        before = 64
        for full, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
            width = max(1, round(ratio * full))
            for stride in (first, 1):
                self.blocks.append(_Block(before, width, stride, num_experts, own=each, ste=ste))
                before = width
        self.head = nn.Linear(before, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        self.router = None
        if routing == "global" and num_experts > 1:
            self.router = image_router(num_experts, in_channels) if router is None else router
        self.num_routers = 1 if self.router is not None else 2 * len(self.blocks)

    def body(self, x: Tensor, way: _Way) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, way)
        return self.head(x.flatten(2).mean(-1))


class _Block(nn.Module):
    def __init__(
        self,
        before: int,
        width: int,
        stride: int,
        num_experts: int,
        *,
        own: Callable[[int], LayerRouter] | None,
        ste: Ste,
    ):
        super().__init__()
        routers = [None if own is None else own(channels) for channels in (before, width)]
        self.conv1 = MoEConv(before, width, 3, num_experts=num_experts, stride=stride, ste=ste, router=routers[0])
        self.conv2 = MoEConv(width, width, 3, num_experts=num_experts, ste=ste, router=routers[1])
        self.norm1, self.norm2 = (nn.BatchNorm2d(width) for _ in range(2))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor, way: _Way) -> Tensor:
        y = F.relu(way(self.conv1, self.norm1, x))
        return F.relu(way(self.conv2, self.norm2, y) + self.shortcut(x))


def check_choices(ratio: float | int, routing: str, router: nn.Module | None, num_experts: int) -> None:
    check_number("ratio", ratio, "(0, 1]")
    check_choice("routing", routing, get_args(Routing))
    if router is not None and (routing == "layer" or num_experts == 1):
        raise ValueError("router must be None unless routing is 'global' with several experts; got a module")
