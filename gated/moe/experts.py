"""Experts: N functions of one shape, called on rows that stand in the order of their experts.

    experts(rows, offsets)    expert i's rows are rows[offsets[i] : offsets[i + 1]]; the results, in the same order
    experts.each()            N functions of rows, one an expert
    experts.num_experts       N

Every dispatch calls experts so (`gated.moe.dispatch`). `FFNExperts`, `LinearExperts` and `ResidualExperts` keep their
matrices stacked, [experts, in, out], and run as grouped matrix products; `ModuleExperts` takes any modules.

| survey | here                                    | expert i                                                    |
|--------|-----------------------------------------|-------------------------------------------------------------|
| II-B.1 | `FFNExperts(N, d, hidden)`              | act(x W_i + b_i) V_i + c_i, or (act(x W_i) * x U_i) V_i     |
| II-B.2 | `gated.moe.attention.MixtureOfHeads`    | an attention head with its own queries and outputs          |
| II-B.3 | `conv_experts(N, channels, outputs)`    | two convolutions and a mean over the signal                 |
|        | `LinearExperts(N, d, d_out)`            | x W_i + b_i                                                 |
| II-D.3 | `ResidualExperts(core, N)`              | a frozen feed-forward layer plus learned R_i                |
|        | `ModuleExperts([...])`                  | any module of rows                                          |

A shared expert beside the routed ones is `gated.moe.SharedExpert`; whole experts are dropped in training by
`gated.moe.ExpertDropout`, which stands in front of the gate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gated.gates._validation import check_axes, check_choice, check_floats, check_int, check_sizes
from gated.kernels.grouped_gemm import grouped_gemm

__all__ = ["FFNExperts", "LinearExperts", "ModuleExperts", "ResidualExperts", "conv_experts"]

Activation = Literal["relu", "gelu", "silu", "tanh"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class FFNExperts(nn.Module):
    """E_i(x) = act(x W_i + b_i) V_i + c_i; with `gated=True` E_i(x) = (act(x W_i) * (x U_i)) V_i (SwiGLU for "silu").

    Args:
        num_experts, dim, hidden: N, d and the width between the two matrices.
        activation: "relu", "gelu" (exact), "silu" or "tanh".
        gated: the second form, with three matrices; W and U are the halves of `up`.
        bias: b and c; of U too in the gated form.
        dim_out: width of the result; d unless given.

    State: `up` [N, d, hidden] ([N, d, 2 hidden], W then U, if gated), `down` [N, hidden, dim_out], `up_bias`,
    `down_bias`. Entries start uniform in +-1 / sqrt(rows of the matrix), as in `nn.Linear`.

    Raises:
        ValueError: sizes below 1, an unknown activation.

    Source: Shazeer et al. 2017 (arXiv 1701.06538); Shazeer 2020 (arXiv 2002.05202) for the gated form.

    Example:
        >>> experts = FFNExperts(2, 8, 16)
        >>> experts(torch.randn(5, 8), torch.tensor([0, 2, 5])).shape  # 2 rows for the first, 3 for the second
        torch.Size([5, 8])
    """

    def __init__(
        self,
        num_experts: int,
        dim: int,
        hidden: int,
        *,
        activation: Activation = "relu",
        gated: bool = False,
        bias: bool = False,
        dim_out: int | None = None,
    ):
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        check_sizes(num_experts=num_experts, dim=dim, hidden=hidden, dim_out=dim_out)
        check_choice("activation", activation, get_args(Activation))
        self.num_experts, self.activation, self.gated = num_experts, activation, gated
        width = 2 * hidden if gated else hidden
        self.up, self.up_bias = _matrices(num_experts, dim, width, bias)
        self.down, self.down_bias = _matrices(num_experts, hidden, dim_out, bias)

    def extra_repr(self) -> str:
        n, dim, _ = self.up.shape
        widths = f"{dim} -> {self.down.shape[1]} -> {self.down.shape[2]}"
        return f"{n} experts, {widths}, {self.activation}, gated={self.gated}"

    def middle(self, h: Float[Tensor, "rows width"]) -> Float[Tensor, "rows hidden"]:
        """What happens between the matrices."""
        act = _ACTIVATIONS[self.activation]
        if not self.gated:
            return act(h)
        gate, value = h.chunk(2, -1)
        return act(gate) * value

    def forward(
        self, rows: Float[Tensor, "rows dim"], offsets: Int[Tensor, " bounds"]
    ) -> Float[Tensor, "rows dim_out"]:
        _check_rows(rows, self.up.shape[1])
        h = self.middle(_grouped(rows, self.up, self.up_bias, offsets))
        return _grouped(h, self.down, self.down_bias, offsets)

    def each(self) -> Sequence[Callable[[Tensor], Tensor]]:
        ups, downs = _unbound(self.up, self.up_bias), _unbound(self.down, self.down_bias)
        return [partial(self._one, up, down) for up, down in zip(ups, downs, strict=True)]

    def _one(self, up: tuple[Tensor, Tensor | None], down: tuple[Tensor, Tensor | None], rows: Tensor) -> Tensor:
        return _affine(self.middle(_affine(rows, *up)), *down)


class LinearExperts(nn.Module):
    """E_i(x) = x W_i + b_i. State: `weight` [N, dim, dim_out], `bias` [N, dim_out]; starts as in `nn.Linear`.

    Example:
        >>> LinearExperts(2, 8, 3)(torch.randn(5, 8), torch.tensor([0, 2, 5])).shape
        torch.Size([5, 3])
    """

    def __init__(self, num_experts: int, dim: int, dim_out: int, *, bias: bool = True):
        super().__init__()
        check_sizes(num_experts=num_experts, dim=dim, dim_out=dim_out)
        self.num_experts = num_experts
        self.weight, self.bias = _matrices(num_experts, dim, dim_out, bias)

    def forward(
        self, rows: Float[Tensor, "rows dim"], offsets: Int[Tensor, " bounds"]
    ) -> Float[Tensor, "rows dim_out"]:
        _check_rows(rows, self.weight.shape[1])
        return _grouped(rows, self.weight, self.bias, offsets)

    def each(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return [partial(_affine, weight=weight, bias=bias) for weight, bias in _unbound(self.weight, self.bias)]


class ModuleExperts(nn.Module):
    """Experts from any modules, each called on its own rows (one that has none is called on zero rows, so that every
    parameter gets a gradient, if only zeros).

    Raises:
        ValueError: no module.

    Example:
        >>> experts = ModuleExperts([torch.nn.Identity(), torch.nn.ReLU()])
        >>> experts(-torch.ones(2, 1), torch.tensor([0, 1, 2])).flatten().abs().tolist()
        [1.0, 0.0]
    """

    def __init__(self, modules: Iterable[nn.Module]):
        super().__init__()
        self.experts = nn.ModuleList(modules)
        if not len(self.experts):
            raise ValueError("modules must hold at least one expert; got none")
        self.num_experts = len(self.experts)

    def forward(
        self, rows: Float[Tensor, "rows dim"], offsets: Int[Tensor, " bounds"]
    ) -> Float[Tensor, "rows dim_out"]:
        _check_rows(rows, "dim")
        check_int("offsets", offsets)
        check_axes(f"{self.num_experts + 1}", offsets=offsets)
        sizes = offsets.diff().tolist()
        if not torch.compiler.is_compiling() and (min(sizes) < 0 or sum(sizes) != len(rows)):
            raise ValueError(f"offsets must rise from 0 to the number of rows, {len(rows)}; got {offsets.tolist()}")
        parts = rows.split(sizes)
        return torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])

    def each(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return list(self.experts)


class ResidualExperts(nn.Module):
    """E_i = a feed-forward layer with the matrices W + R_i, V + S_i; the core W, V is frozen, R_i and S_i are learned.

    R and S start at zero, so that every expert starts as the core: train that as a dense layer first (stage one), then
    the residuals and the gate (stage two).

    Args:
        core: an `FFNExperts` of one expert; it is copied.
        num_experts: N.
        rank: R_i = A_i B_i with so many columns in A_i (as in LoRA); a full matrix unless given.

    Raises:
        ValueError: a core of several experts, sizes below 1.

    Source: survey, II-D (RMoE: Wu et al. 2022, arXiv 2204.09636); Hu et al. 2021 (arXiv 2106.09685) for low rank.

    Example:
        >>> core = FFNExperts(1, 8, 16)
        >>> experts, x = ResidualExperts(core, num_experts=3), torch.randn(2, 8)
        >>> torch.equal(experts(x, torch.tensor([0, 0, 1, 2])), core(x, torch.tensor([0, 2])))
        True
    """

    def __init__(self, core: FFNExperts, num_experts: int, *, rank: int | None = None):
        super().__init__()
        if core.num_experts != 1:
            raise ValueError(f"core must be one expert; got {core.num_experts}")
        check_sizes(num_experts=num_experts, rank=1 if rank is None else rank)
        self.num_experts = num_experts
        self.core = copy.deepcopy(core).requires_grad_(False)
        (dim, width), (hidden, dim_out) = core.up.shape[1:], core.down.shape[1:]
        self.up, self.down = _Residual(num_experts, dim, width, rank), _Residual(num_experts, hidden, dim_out, rank)
        self.to(core.up)

    def forward(
        self, rows: Float[Tensor, "rows dim"], offsets: Int[Tensor, " bounds"]
    ) -> Float[Tensor, "rows dim_out"]:
        _check_rows(rows, self.core.up.shape[1])
        return self._run(rows, partial(self.up, offsets=offsets), partial(self.down, offsets=offsets))

    def each(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return [partial(self._run, up=up, down=down) for up, down in zip(self.up.each(), self.down.each(), strict=True)]

    def _run(self, rows: Tensor, up: Callable[[Tensor], Tensor], down: Callable[[Tensor], Tensor]) -> Tensor:
        core = self.core
        h = core.middle(_affine(rows, *_unbound(core.up, core.up_bias)[0]) + up(rows))
        return _affine(h, *_unbound(core.down, core.down_bias)[0]) + down(h)


class _Residual(nn.Module):
    """x R_i or x A_i B_i, zero at the start."""

    def __init__(self, num_experts: int, inner: int, outer: int, rank: int | None):
        super().__init__()
        self.first = None if rank is None else LinearExperts(num_experts, inner, rank, bias=False)
        self.last = LinearExperts(num_experts, inner if rank is None else rank, outer, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        return self.last(rows if self.first is None else self.first(rows, offsets), offsets)

    def each(self) -> Sequence[Callable[[Tensor], Tensor]]:
        if self.first is None:
            return self.last.each()
        pairs = zip(self.first.each(), self.last.each(), strict=True)
        return [partial(_then, first, last) for first, last in pairs]


def conv_experts(num_experts: int, channels: int, dim_out: int, *, width: int = 16, kernel: int = 5) -> ModuleExperts:
    """Experts on signals, rows [channels * length]: E_i = linear(mean over time(relu(conv(relu(conv(x)))))).

    Both convolutions have stride 2 and `width` channels. A signal of MNIST-1D is one channel of length 40.

    Args:
        dim_out, kernel: width of the result, taps of both convolutions.

    Example:
        >>> conv_experts(2, channels=1, dim_out=10)(torch.randn(4, 40), torch.tensor([0, 1, 4])).shape
        torch.Size([4, 10])
    """
    check_sizes(num_experts=num_experts, channels=channels, dim_out=dim_out, width=width, kernel=kernel)

    def expert() -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (channels, -1)),
            nn.Conv1d(channels, width, kernel, stride=2, padding=kernel // 2),
            nn.ReLU(),
            nn.Conv1d(width, width, kernel, stride=2, padding=kernel // 2),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(width, dim_out),
        )

    return ModuleExperts(expert() for _ in range(num_experts))


def _check_rows(rows: Tensor, width: int | str) -> None:
    check_floats(f"rows {width}", **{"rows of x": rows})  # who calls a layer or a dispatch knows them as x


def _then(first: Callable[[Tensor], Tensor], last: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return last(first(rows))


def _matrices(num_experts: int, inner: int, outer: int, bias: bool) -> tuple[nn.Parameter, nn.Parameter | None]:
    def uniform(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(shape).uniform_(-(inner**-0.5), inner**-0.5))

    return uniform(num_experts, inner, outer), uniform(num_experts, outer) if bias else None


def _grouped(rows: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    kind = rows.device.type
    if torch.is_autocast_enabled(kind):  # which does not know the operator
        rows, weight = (t.to(torch.get_autocast_dtype(kind)) for t in (rows, weight))
    y = grouped_gemm(rows, weight, offsets)
    return y if bias is None else y + bias.repeat_interleave(offsets.diff(), 0, output_size=len(rows))


def _unbound(weight: Tensor, bias: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    # Taken apart once: indexing in a loop would make a gradient of the whole stack for each expert.
    biases: Sequence[Tensor | None] = [None] * len(weight) if bias is None else bias.unbind()
    return list(zip(weight.unbind(), biases, strict=True))


def _affine(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if rows.shape[-1] != weight.shape[0]:
        raise ValueError(f"x must be {weight.shape[0]} wide, as the experts are; got shape {tuple(rows.shape)}")
    return rows @ weight if bias is None else torch.addmm(bias, rows, weight)
