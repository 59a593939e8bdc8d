"""Layers whose weights are an affine function of the hyperparameters, one gate for each output unit.

    y_i = W_0 x_i + (V u_i) * (W_1 x_i) + b_0 + (C u_i) * b_1        * is element by element, over output units

W_0, b_0: the elementary weights; W_1, b_1: the response weights; V, C: the gates; u_i [n]: what the gates of example
i see (`raw`, the unconstrained hyperparameters, or for the centred form their distance from a centre). This equals a
plain layer with the weights W_0 + (V u_i) W_1 (row r times entry r), which are never made for each example.

Storage: `weight` [2, out, ...] is W_0, W_1; `bias` [2, out] is b_0, b_1; `gate` [2, out, n] is V, C. Stacked, because
then one product makes both pre-activations e and z, and backward one buffer [dy | (V u) dy] one product each for the
gradients of x and of both weights: twice a plain layer's products, and O(batch out n) for the gates.

Source: MacKay, Vicol, Lorraine, Duvenaud and Grosse 2019 (arXiv 1903.03088), section 3.2 (structured hypernetwork).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gated.gates._validation import check_axes, check_count, check_float, check_number, check_sizes


class Given:
    """What the layers of one network see, set for the time of a call (`SelfTuned`)."""

    raw: Tensor | None = None
    rates: Mapping[str, Tensor] | None = None
    generator: torch.Generator | None = None


class ResponseLayer(nn.Module):
    """What all layers share: parameters (see the module's text), their start, and the gates.

    Start: W_0, W_1, b_0, b_1 uniform within 1/sqrt(fan in), V and C normal with `gate_std`.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, ...],
        num_hyper: int,
        *,
        bias: bool,
        gate_std: float | int,
        generator: torch.Generator | None,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        check_sizes(num_hyper=num_hyper)
        check_number("gate_std", gate_std, "[0, inf)")
        self.num_hyper, self.source = num_hyper, Given()
        self.weight = nn.Parameter(torch.empty(2, *shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(2, shape[0], device=device, dtype=dtype)) if bias else None
        self.gate = nn.Parameter(torch.empty(2 if bias else 1, shape[0], num_hyper, device=device, dtype=dtype))
        bound = self.weight[0, 0].numel() ** -0.5
        with torch.no_grad():
            self.weight.uniform_(-bound, bound, generator=generator)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound, generator=generator)
            self.gate.normal_(0, gate_std, generator=generator) if gate_std else self.gate.zero_()

    def start_from(self, weight: Tensor, bias: Tensor | None) -> None:
        """W_0 and b_0 from a plain layer."""
        with torch.no_grad():
            self.weight[0].copy_(weight)
            if self.bias is not None and bias is not None:
                self.bias[0].copy_(bias)

    def collapsed(self, raw: Float[Tensor, " n"]) -> tuple[Tensor, Tensor | None]:
        """The plain layer's weights and bias at one setting: W_0 + (V u) W_1 and b_0 + (C u) b_1."""
        gate, bias = self._gates(raw)
        return torch.addcmul(self.weight[0], gate.view(-1, *[1] * (self.weight.ndim - 2)), self.weight[1]), bias

    def squared_norm(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """|W_0 + (V u_i) W_1|^2 for each example, without its weights, from three sums for each output unit.

        |W_0r|^2 + 2 g_ir <W_0r, W_1r> + g_ir^2 |W_1r|^2, summed over units r: O(weights) once and O(batch out). The
        bias does not count.
        """
        gate = raw @ self.gate[0].mT
        e, z = self.weight.flatten(2)
        return (e * e).sum() + 2 * gate @ (e * z).sum(1) + gate.square() @ (z * z).sum(1)

    def _gates(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """V u, and b_0 + (C u) b_1 (None without bias), each [*batch, out]."""
        # [n, out] in memory: the gradient of a wide matrix takes a fraction of a tall one's time
        v, *c = self.gate.mT.contiguous().unbind(0)
        if self.bias is None:
            return raw @ v, None
        b_0, b_1 = self.bias.unbind(0)
        return raw @ v, raw @ (c[0] * b_1) + b_0

    def _respond(self, out: Tensor, raw: Tensor, dim: int) -> Tensor:
        """e_i + (V u_i) z_i + b_0 + (C u_i) b_1 for out = [e | z] along the axis of the units."""
        e, z = out.chunk(2, dim)  # their gradients become one buffer
        gate, bias = self._gates(raw)
        ones = [1] * (out.ndim - 2)
        shape = (len(out), -1, *ones) if dim == 1 else (len(out), *ones, -1)
        gate, bias = gate.view(shape), None if bias is None else bias.view(shape)
        return torch.addcmul(e if bias is None else e + bias, gate, z)

    def _raw(self, raw: Tensor | None, x: Tensor) -> Tensor:
        raw = self.source.raw if raw is None else raw
        if raw is None:
            raise ValueError("raw must be given: [n], or [batch, n] with a row for each example; got None")
        check_raw(raw, self.num_hyper, len(x))
        return raw


def check_raw(raw: Tensor, num_hyper: int, batch: int) -> None:
    check_float("raw", raw)
    if raw.shape not in ((num_hyper,), (batch, num_hyper)):
        raise ValueError(
            f"raw must have shape [{num_hyper}] or, with a row for each example, [{batch}, {num_hyper}]; "
            f"got {tuple(raw.shape)}"
        )


class StnLinear(ResponseLayer):
    """y_i = W_0 x_i + (V u_i) * (W_1 x_i) + b_0 + (C u_i) * b_1.

    Arguments:
        in_features, out_features: of x's last axis, and of the answer's.
        num_hyper: n, the number of hyperparameters.
        bias: whether there are b_0, b_1 and C.
        gate_std: standard deviation of V and C at the start; 0 starts without a response.
        generator: for the start.

    Raises ValueError for sizes below 1.

    Example:
        >>> layer = StnLinear(4, 3, num_hyper=2)
        >>> layer(torch.randn(5, 4), torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_hyper: int,
        *,
        bias: bool = True,
        gate_std: float | int = 0.01,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_sizes(in_features=in_features, out_features=out_features)
        super().__init__(
            (out_features, in_features),
            num_hyper,
            bias=bias,
            gate_std=gate_std,
            generator=generator,
            device=device,
            dtype=dtype,
        )

    def forward(
        self, x: Float[Tensor, "batch *rest in_features"], raw: Tensor | None = None
    ) -> Float[Tensor, "batch *rest out_features"]:
        """Args: x; raw: u, [n] for all examples (the weights are collapsed once) or [batch, n], a row for each.

        Raises ValueError for shapes that do not fit, or without raw outside of a `SelfTuned`.
        """
        check_float("x", x)
        if x.ndim < 2 or x.shape[-1] != self.weight.shape[-1]:
            raise ValueError(f"x must have shape [batch, ..., {self.weight.shape[-1]}], got {tuple(x.shape)}")
        raw = self._raw(raw, x)
        if raw.ndim == 1:
            return F.linear(x, *self.collapsed(raw))
        if x.ndim > 2:
            return self._respond(F.linear(x, self.weight.flatten(0, 1)), raw, -1)
        # units before examples, so that e and z lie each in one piece; and BLAS takes three to six times longer for
        # [batch, n] @ [n, out], and backward for [out, batch] @ [batch, n] unless u is [n, batch] in memory
        u = raw.mT.contiguous()
        e, z = (self.weight.flatten(0, 1) @ x.mT).chunk(2)
        v, *c = self.gate.unbind(0)
        if self.bias is not None:
            b_0, b_1 = self.bias.unsqueeze(-1).unbind(0)
            e = torch.addmm(e + b_0, c[0] * b_1, u)
        return (e + (v @ u) * z).mT  # addcmul would save a pass here, and take two more backward


class _StnConv(ResponseLayer):
    """One gate for each output channel, the same at all places."""

    dims: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        num_hyper: int,
        *,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        bias: bool = True,
        gate_std: float | int = 0.01,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_sizes(in_channels=in_channels, out_channels=out_channels)
        given: dict[str, Any] = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
        for name, value in given.items():
            for number in value if isinstance(value, tuple | list) else (value,):
                if name != "padding" or not isinstance(number, str):
                    check_count(name, number, least=int(name != "padding"))
        kernel = (kernel_size,) * self.dims if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(kernel) != self.dims:
            raise ValueError(f"kernel_size must be {self.dims} numbers of at least 1, got {kernel_size}")
        super().__init__(
            (out_channels, in_channels, *kernel),
            num_hyper,
            bias=bias,
            gate_std=gate_std,
            generator=generator,
            device=device,
            dtype=dtype,
        )
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(
        self, x: Float[Tensor, "batch channels *places"], raw: Tensor | None = None
    ) -> Float[Tensor, "batch channels_out *places_out"]:
        """As `StnLinear.forward`; channels stand second."""
        check_float("x", x)
        if x.ndim != self.dims + 2 or x.shape[1] != self.weight.shape[2]:
            raise ValueError(
                f"x must have {self.dims + 2} axes, [batch, {self.weight.shape[2]}, ...], got {tuple(x.shape)}"
            )
        raw = self._raw(raw, x)
        conv: Any = F.conv2d if self.dims == 2 else F.conv1d
        where = (self.stride, self.padding, self.dilation)
        if raw.ndim == 1:
            return conv(x, *self.collapsed(raw), *where)
        return self._respond(conv(x, self.weight.flatten(0, 1), None, *where), raw, 1)


class StnConv1d(_StnConv):
    """`StnConv2d` along one axis, x [batch, channels, length]."""

    dims = 1


class StnConv2d(_StnConv):
    """Convolution whose output channels r have weights W_0r + (V u_i)_r W_1r; x [batch, channels, height, width].

    Arguments as of `torch.nn.Conv2d` without groups, and `num_hyper`, `gate_std`, `generator` as of `StnLinear`.

    Example:
        >>> layer = StnConv2d(3, 8, 3, padding=1, num_hyper=2)
        >>> layer(torch.randn(5, 3, 6, 6), torch.zeros(5, 2)).shape
        torch.Size([5, 8, 6, 6])
    """

    dims = 2


class StnLSTMCell(nn.Module):
    """An LSTM cell whose two products are `StnLinear` layers with 4 hidden_size rows each.

    a = input(x) + hidden(h) = [i, f, g, o]; c' = sigmoid(f) c + sigmoid(i) tanh(g); h' = sigmoid(o) tanh(c'). The
    response gates act on a, before the LSTM's own gates, and see no input: the same raw at all steps of a sequence
    gives the same weights at all of them.

    Arguments as of `torch.nn.LSTMCell`, and `num_hyper`, `gate_std`, `generator` as of `StnLinear`.

    Example:
        >>> cell = StnLSTMCell(4, 6, num_hyper=2)
        >>> h, c = cell(torch.randn(5, 4), None, torch.zeros(5, 2))
        >>> h.shape
        torch.Size([5, 6])
    """

    def __init__(self, input_size: int, hidden_size: int, num_hyper: int, *, bias: bool = True, **kwargs: Any) -> None:
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        self.hidden_size = hidden_size
        self.input = StnLinear(input_size, 4 * hidden_size, num_hyper, bias=bias, **kwargs)
        self.hidden = StnLinear(hidden_size, 4 * hidden_size, num_hyper, bias=bias, **kwargs)

    def forward(
        self,
        x: Float[Tensor, "batch input_size"],
        state: tuple[Tensor, Tensor] | None = None,
        raw: Tensor | None = None,
    ) -> tuple[Float[Tensor, "batch hidden"], Float[Tensor, "batch hidden"]]:
        """One step: (h', c') from x and (h, c), zeros if not given. Raises ValueError as `StnLinear`."""
        check_axes("batch input_size", x=x)
        h, c = (x.new_zeros(len(x), self.hidden_size),) * 2 if state is None else state
        i, f, g, o = (self.input(x, raw) + self.hidden(h, raw)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
