"""The convolution that picks one group of output channels for each input, and computes no other.

    y_b = conv(x_b, W[e_b]),    e_b = argmax_j s_bj

The batch is sorted by expert, each expert convolves its own slice, and the results go back to their places. The cost
is that of one expert for each input, whatever their number.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gated.gates import softmax_gate, straight_through
from gated.gates._validation import check_axes, check_choice, check_count, check_float, check_int, check_sizes

Ste = Literal["selected", "full", "softmax"]


def top1(scores: Float[Tensor, "batch experts"]) -> Int[Tensor, " batch"]:
    """e_b = argmax_j s_bj, the lower index of equal scores.

    Raises:
        ValueError: scores of another shape, or not finite. argmax of a row of NaN is 0, so a router that has diverged
            would look like one that always picks the same expert.

    Example:
        >>> top1(torch.tensor([[0.0, 2.0], [1.0, 1.0]])).tolist()
        [1, 0]
    """
    check_float("scores", scores)
    check_axes("batch experts", scores=scores)
    if not scores.shape[1]:
        raise ValueError(f"scores must have an expert to choose; got shape {tuple(scores.shape)}")
    if not torch.isfinite(scores).all():
        raise ValueError("scores must be finite (a router that diverged, or x?); got NaN or an infinite score")
    return scores.argmax(-1)


def expert_conv(
    x: Float[Tensor, "batch channels *space"],
    weight: Float[Tensor, "experts width channels *kernel"],
    routes: Int[Tensor, " batch"],
    *,
    stride: int = 1,
    padding: int = 0,
) -> Float[Tensor, "batch width *space_out"]:
    """y_b = conv(x_b, weight[routes_b]), without bias: one convolution for each expert that somebody chose.

    Inputs that are sorted by expert already are only sliced, otherwise they are gathered and scattered once.
    B r^2 C_in C_out k H W multiply-adds for experts of r C_in -> r C_out channels, k kernel entries and H W pixels.

    Args:
        x: signals [batch, channels, length] or images [batch, channels, height, width].
        weight: one kernel for each expert.
        routes: each input's expert, in 0..experts - 1.
        stride, padding: of the convolution, the same along all axes.

    Raises:
        ValueError: sizes that do not fit, an expert that does not exist, a kernel wider than the padded input, a
            stride below 1, a padding below 0.

    Example:
        >>> x, weight = torch.ones(2, 1, 4), torch.stack([torch.zeros(1, 1, 1), torch.ones(1, 1, 1)])
        >>> expert_conv(x, weight, torch.tensor([1, 0])).sum((1, 2)).tolist()
        [4.0, 0.0]
    """
    check_sizes(stride=stride)
    check_count("padding", padding, least=0)
    check_int("routes", routes)
    _check(x, weight, padding)
    if routes.shape != x.shape[:1]:
        raise ValueError(f"routes must hold one expert for each of {len(x)} inputs; got shape {tuple(routes.shape)}")
    if routes.numel() and not 0 <= int(routes.min()) <= int(routes.max()) < len(weight):
        raise ValueError(f"routes must lie in 0..{len(weight) - 1}; got {int(routes.min())}..{int(routes.max())}")
    counts = torch.bincount(routes, minlength=len(weight)).tolist()
    if max(counts) == len(x):  # everybody takes the same expert, or nobody is there
        return _conv(x, weight[counts.index(max(counts))], stride, padding)
    if bool((routes[1:] >= routes[:-1]).all()):
        ends = list(accumulate(counts))
        places: list[Any] = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    else:
        places = list(routes.argsort(stable=True).split(counts))
    taken = [(e, place) for e, place in enumerate(places) if counts[e]]
    return _ExpertConv.apply(x, weight, taken, stride, padding)


class _ExpertConv(torch.autograd.Function):
    """Each expert's inputs are gathered, convolved and put in their place, one expert after the other.

    Written out, because autograd would keep and copy the whole batch once more on either way. First derivatives only.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, taken: list[tuple[int, Any]], stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.taken, ctx.stride, ctx.padding = taken, stride, padding
        y: Tensor | None = None
        for e, place in taken:
            part = _conv(_take(x, place), weight[e], stride, padding)
            y = part.new_empty(len(x), *part.shape[1:]) if y is None else y
            _put(y, place, part)
        assert y is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (x, weight), grad = ctx.saved_tensors, grads[0]
        wanted = ctx.needs_input_grad[:2]
        dims = x.ndim - 2
        dx = torch.empty_like(x) if wanted[0] else None
        dw = torch.zeros_like(weight) if wanted[1] else None
        for e, place in ctx.taken:
            # under autocast the forward pass ran in the gradient's type, not in that of x
            part_dx, part_dw, _ = torch.ops.aten.convolution_backward(
                _take(grad, place), _take(x, place).to(grad.dtype), weight[e].to(grad.dtype), None, [ctx.stride] * dims,
                [ctx.padding] * dims, [1] * dims, False, [0] * dims, 1, [*wanted, False],
            )  # fmt: skip
            if dx is not None:
                _put(dx, place, part_dx.to(dx.dtype))
            if dw is not None:
                dw[e] = part_dw
        return dx, dw, None, None, None


def _take(x: Tensor, place: Any) -> Tensor:
    return x[place] if isinstance(place, slice) else x.index_select(0, place)


def _put(y: Tensor, place: Any, part: Tensor) -> None:
    if isinstance(place, slice):
        y[place] = part
    else:
        y.index_copy_(0, place, part)


def permute(x: Tensor, order: Int[Tensor, " batch"], back: Int[Tensor, " batch"]) -> Tensor:
    """x[order]; `back` is the inverse of `order`, which makes the backward pass a plain gather too."""
    return _Permute.apply(x, order, back)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        order, back = ctx.saved_tensors
        return _Permute.apply(grads[0], back, order), None, None


def _conv(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    return (F.conv1d if x.ndim == 3 else F.conv2d)(x, weight, stride=stride, padding=padding)


class MoEConv(nn.Module):
    """N experts, each a convolution of `in_channels` -> `out_channels`, no bias; each input passes one of them.

    For a layer of C_in -> C_out channels at scale r, in_channels = r C_in and out_channels = r C_out: the layer holds
    N r^2 of the dense layer's weights and spends r^2 of its multiply-adds.

    The gate's value is exactly 1, so the scores have no true gradient: it is 0 wherever no route flips. `ste` says
    what takes its place, with g_j = <dL/dy, y_j> for expert j's own output y_j and e the chosen one:

        "selected"   dL/ds_j = g_e if j = e, else 0        what the authors' program does; says nothing of the others
        "softmax"    dL/ds_j = g_e p_e (1[j = e] - p_j)    p = softmax(s); no further cost
        "full"       dL/ds_j = g_j                         runs all experts: N times the cost

    Args:
        in_channels, out_channels: of one expert.
        kernel_size, stride: padding is kernel_size // 2.
        num_experts: N >= 1.
        dims: 1 for signals, 2 for images.
        router: a module from the layer's input to scores [batch, N], kept as `router`; without one the scores come
            from outside.

    State: `weight` [N, out_channels, in_channels, *kernel]; expert e owns weight[e]. It starts at He's normal values
    (fan out of one expert).

    Raises:
        ValueError: sizes below 1, an unknown `ste` or `dims`.

    Source: Zhang et al. 2023 (AdvMoE), arXiv 2308.10110; the gradient as in the authors' program.

    Example:
        >>> layer = MoEConv(4, 8, 3, num_experts=2)
        >>> scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> layer(torch.randn(2, 4, 16, 16), scores).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        num_experts: int,
        stride: int = 1,
        dims: int = 2,
        ste: Ste = "selected",
        router: nn.Module | None = None,
    ):
        super().__init__()
        check_sizes(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            num_experts=num_experts,
            stride=stride,
        )
        check_sizes(dims=dims)
        if dims not in (1, 2):
            raise ValueError(f"dims must be 1 (signals) or 2 (images); got {dims!r}")
        check_choice("ste", ste, get_args(Ste))
        self.num_experts, self.stride, self.padding, self.ste, self.router = (
            num_experts, stride, kernel_size // 2, ste, router,
        )  # fmt: skip
        self.weight = nn.Parameter(torch.empty(num_experts, out_channels, in_channels, *[kernel_size] * dims))
        for expert in self.weight.detach():
            nn.init.kaiming_normal_(expert, mode="fan_out", nonlinearity="relu")

    def extra_repr(self) -> str:
        n, out, into, k = self.weight.shape[:4]
        return f"{n} experts, {into} -> {out}, kernel {k}, stride {self.stride}, ste={self.ste!r}"

    def forward(
        self, x: Float[Tensor, "batch channels *space"], scores: Float[Tensor, "batch experts"]
    ) -> Float[Tensor, "batch width *space_out"]:
        """y_b = conv(x_b, W[argmax s_b]), with the gradient to the scores that `ste` names.

        Raises:
            ValueError: scores of another shape or not finite, and as `expert_conv`.
        """
        if scores.shape != (len(x), self.num_experts):
            raise ValueError(f"scores must be {(len(x), self.num_experts)}; got shape {tuple(scores.shape)}")
        routes = top1(scores)
        if not (torch.is_grad_enabled() and scores.requires_grad):
            return self.chosen(x, routes)
        onehot = F.one_hot(routes, self.num_experts).to(scores.dtype)
        gate = straight_through(onehot, softmax_gate(scores) if self.ste == "softmax" else scores)
        if self.ste == "full":
            return self._weighted(x, gate)
        y = self.chosen(x, routes)
        return y * gate.gather(1, routes[:, None]).view(-1, *[1] * (x.ndim - 1)).to(y.dtype)

    def chosen(
        self, x: Float[Tensor, "batch channels *space"], routes: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch width *space_out"]:
        """y_b = conv(x_b, W[routes_b]): routes given, no scores."""
        return expert_conv(x, self.weight, routes, stride=self.stride, padding=self.padding)

    def mixed(
        self,
        x: Float[Tensor, "batch channels *space"],
        scores: Float[Tensor, "batch experts"],
        temperature: float | int = 1.0,
    ) -> Float[Tensor, "batch width *space_out"]:
        """y_b = sum_j softmax(s_b / T)_j conv(x_b, W_j): the smooth stand-in that an attack may follow. All experts."""
        return self._weighted(x, softmax_gate(scores, temperature))

    def _weighted(self, x: Tensor, gate: Tensor) -> Tensor:
        _check(x, self.weight, self.padding)
        y = _conv(x, self.weight.flatten(0, 1), self.stride, self.padding).unflatten(1, (self.num_experts, -1))
        return (y * gate.view(*gate.shape, *[1] * (x.ndim - 1)).to(y.dtype)).sum(1)


def _check(x: Tensor, weight: Tensor, padding: int) -> None:
    check_float("x", x)
    check_float("weight", weight)
    if weight.ndim not in (4, 5) or 0 in weight.shape:
        raise ValueError(
            f"weight must be [experts, width, channels, *kernel], not empty; got shape {tuple(weight.shape)}"
        )
    if x.ndim != weight.ndim - 1 or x.shape[1] != weight.shape[2]:
        space = ("length",) if weight.ndim == 4 else ("height", "width")
        want = f"[batch, {weight.shape[2]}, {', '.join(space)}]"
        raise ValueError(f"x must be {want} for this weight; got shape {tuple(x.shape)}")
    for size, k in zip(x.shape[2:], weight.shape[3:], strict=True):
        if size + 2 * padding < k:
            raise ValueError(f"x must be at least {k - 2 * padding} wide for a kernel of {k}; got {tuple(x.shape[2:])}")
