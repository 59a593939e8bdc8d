"""`selftune` makes any network self-tuning: supported layers are replaced in a copy, the rest is reported.

Also the regularisers whose strength differs between examples: `dropout`, `input_noise`, `scale_noise`, `cutout`. Their
strengths ([batch] or a single number) come from `Hyperparameters.values`. They act in training only.
"""

import copy
import math
from collections import Counter
from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gated.gates._validation import check_float, check_sizes, holds_anywhere
from gated.stn.hyperparameters import Hyperparameters
from gated.stn.layers import Given, ResponseLayer, StnConv1d, StnConv2d, StnLinear, StnLSTMCell, check_raw

CAP = 0.95  # 1 / (1 - rate) is 20 there; beyond, float32 soon rounds 1 - rate to 0
_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LSTMCell)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)


class Left(NamedTuple):
    """A module that `selftune` left as it was, and why.

    Args:
        name, kind, reason: its place in the model, its class, and the reason in words.
    """

    name: str
    kind: str
    reason: str


class StnDropout(nn.Module):
    """Dropout at the rate of each example, of the hyperparameter `name`; for whole channels (axis 1) if asked."""

    def __init__(self, name: str, channels: bool, source: Given) -> None:
        super().__init__()
        self.name, self.channels, self.source = name, channels, source

    def extra_repr(self) -> str:
        return self.name

    def forward(self, x: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        if not self.training:
            return x
        if self.source.rates is None:
            raise ValueError("x must come through SelfTuned, which sets the rates; got a direct call")
        return dropout(x, self.source.rates[self.name], self.source.generator, channels=self.channels)


class SelfTuned(nn.Module):
    """A network whose weights respond to hyperparameters; made by `selftune`.

    Attributes: `net`, the network with replaced layers; `hyperparameters`; `replaced`, the names of those layers;
    `left`, a list of `Left`; `centred`. One call at a time: layers read what they need from a shared place.
    """

    def __init__(
        self,
        net: nn.Module,
        hyperparameters: Hyperparameters,
        source: Given,
        replaced: list[str],
        left: list[Left],
        centred: bool,
    ) -> None:
        super().__init__()
        self.net, self.hyperparameters, self.source = net, hyperparameters, source
        self.replaced, self.left, self.centred = replaced, left, centred
        self.has_rates = any(isinstance(m, StnDropout) for m in net.modules())

    def forward(
        self, x: Any, raw: Float[Tensor, "*batch n"] | None = None, generator: torch.Generator | None = None
    ) -> Any:
        """The network's answer with hyperparameters `raw`: [batch, n], or [n] for all (default: `hyperparameters.raw`).

        In training mode the dropouts named in `rates` draw from `generator` at the (detached) rates of raw; in
        evaluation mode there are none, so that raw acts through the gates alone. Raises ValueError for a raw that has
        another shape.
        """
        raw = self._check(raw, x)
        return self._call(x, self.seen(raw), raw, generator)

    def linearised(
        self, x: Any, raw: Float[Tensor, "*batch n"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch *outputs"]:
        """f(w_0) + J (Theta u): the answer to first order in the response, by one forward-mode derivative.

        w_0 are the weights at u = 0, which with `centred` means at `hyperparameters.raw`; Theta u is the response. In
        the weights' response each layer is linear in u, so the derivative in u at 0 along u is J (Theta u).

        For networks of PyTorch's own operators. One that calls an operator of `gated.kernels`, which have reverse mode
        only, works in `forward`; here it raises NotImplementedError.
        """
        raw = self._check(raw, x)
        seen = self.seen(raw)
        first: Any = torch.func.jvp(lambda u: self._call(x, u, raw, generator), (torch.zeros_like(seen),), (seen,))
        return first[0] + first[1]

    def seen(self, raw: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """What the gates see: raw, or with `centred` raw - hyperparameters.raw, the latter without gradient."""
        return raw - self.hyperparameters.raw.detach() if self.centred else raw

    def squared_norm(self, raw: Float[Tensor, "*batch n"] | None = None) -> Float[Tensor, "*batch"]:
        """|W(raw_i)|^2 over all linear, convolutional and LSTM-cell weights (no biases), for each example."""
        seen = self.seen(self.hyperparameters.raw if raw is None else raw)
        total = seen.new_zeros(seen.shape[:-1])
        for m in self.net.modules():
            if isinstance(m, ResponseLayer):
                total = total + m.squared_norm(seen)
            elif isinstance(m, _PLAIN):
                total = total + sum(p.square().sum() for p in m.parameters(recurse=False) if p.ndim > 1)
        return total

    def _check(self, raw: Tensor | None, x: Any) -> Tensor:
        raw = self.hyperparameters.raw if raw is None else raw
        check_raw(raw, len(self.hyperparameters), len(x) if isinstance(x, Tensor) else len(raw))
        return raw

    def _call(self, x: Any, seen: Tensor, raw: Tensor, generator: torch.Generator | None) -> Any:
        source = self.source
        source.raw, source.generator = seen, generator
        source.rates = self.hyperparameters.values(raw) if self.training and self.has_rates else None
        try:
            return self.net(x)
        finally:
            source.raw = source.rates = source.generator = None


def selftune(
    module: nn.Module,
    hyperparameters: Hyperparameters,
    *,
    rates: Mapping[str, str] | None = None,
    centred: bool = False,
    respond: bool = True,
    gate_std: float | int = 0.01,
    generator: torch.Generator | None = None,
) -> SelfTuned:
    """A copy of `module` in which linear, convolutional (1d, 2d) and LSTM-cell layers respond to the hyperparameters.

    Args:
        module: any network whose first axis is the batch. It is not changed. Replaced layers start from its weights.
        hyperparameters: used, not copied.
        rates: for each dropout in `module` (its name, as in `named_modules`) the name of the hyperparameter that is
            its rate. Other dropouts stay as they are.
        centred: the gates see raw - hyperparameters.raw (detached) instead of raw, so that moving the hyperparameters
            does not move the weights (Delta-STN).
        respond: False replaces dropouts only: a plain network for schedules and fixed values.
        gate_std, generator: of the response's start.

    Raises:
        ValueError: batch norm in the module, a name in `rates` that is no dropout or no hyperparameter, a rate whose
            range reaches beyond 0.95 or below 0, nothing to replace.
    """
    rates = dict(rates or {})
    named = dict(module.named_modules())
    ranges = {h.name: h for h in hyperparameters.all}
    for name, rate in rates.items():
        if not isinstance(named.get(name), _DROPOUTS):
            known = [n for n, m in named.items() if isinstance(m, _DROPOUTS)]
            raise ValueError(f"rates must name dropouts of module, {known}; got {name!r}")
        if rate not in ranges:
            raise ValueError(f"rates must map to hyperparameters, {list(ranges)}; got {rate!r}")
        high = ranges[rate].high
        if high is None or high > CAP or ranges[rate].low < 0:
            raise ValueError(f"{rate!r} in rates must have a range within [0, {CAP}], got high={high}")
    for name, m in named.items() if respond else ():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"module must not have batch norm, got {name!r}: its statistics mix examples with different "
                "hyperparameters, and those it keeps belong to none of them; use LayerNorm or GroupNorm"
            )
    builder = _Builder(hyperparameters, rates, respond, gate_std, generator)
    net = builder.swap(copy.deepcopy(module), "", None)
    if respond and not builder.replaced:
        reasons = "; ".join(f"{m.name} ({m.kind}): {m.reason}" for m in builder.left)
        raise ValueError(f"module must have a layer that can respond, got none: {reasons or 'no layers'}")
    return SelfTuned(net, hyperparameters, builder.source, builder.replaced, builder.left, centred)


class _Builder:
    """Walks through a module, replaces, and keeps the books. A module that stands at two places is replaced once."""

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        rates: Mapping[str, str],
        respond: bool,
        gate_std: float | int,
        generator: torch.Generator | None,
    ) -> None:
        self.n, self.rates, self.respond = len(hyperparameters), rates, respond
        self.options = {"gate_std": gate_std, "generator": generator}
        self.source, self.done = Given(), dict[int, nn.Module]()
        self.kept: list[nn.Module] = []  # alive, so that no id is used twice
        self.replaced: list[str] = []
        self.left: list[Left] = []
        self.owners: Counter[int] | None = None

    def swap(self, m: nn.Module, name: str, parent: nn.Module | None) -> nn.Module:
        if self.owners is None:
            self.owners = Counter(id(p) for part in m.modules() for p in part.parameters(recurse=False))
        if id(m) not in self.done:
            self.kept.append(m)
            self.done[id(m)] = m  # a module that contains itself ends here
            self.done[id(m)] = self._new(m, name, parent)
        return self.done[id(m)]

    def _new(self, m: nn.Module, name: str, parent: nn.Module | None) -> nn.Module:
        if name in self.rates:
            return StnDropout(self.rates[name], not isinstance(m, nn.Dropout), self.source)
        if isinstance(m, ResponseLayer):
            if m.num_hyper != self.n:
                raise ValueError(f"{name} must have num_hyper={self.n}, got {m.num_hyper}")
            m.source = self.source
            self.replaced.append(name)
            return m
        why = self._why_not(m, parent)
        if why is None:
            self.replaced.append(name)
            return self._response(m)
        if why:
            self.left.append(Left(name, type(m).__name__, why))
        for key, child in list(m._modules.items()):
            if child is not None:
                m._modules[key] = self.swap(child, f"{name}.{key}" if name else key, m)
        return m

    def _why_not(self, m: nn.Module, parent: nn.Module | None) -> str | None:
        """None: replace it. Empty: nothing in it could respond."""
        own = [key for key, _ in m.named_parameters(recurse=False)]
        if isinstance(m, _DROPOUTS) and m.p:
            return f"not in rates, so its rate stays {m.p}"
        if not own or not self.respond:
            return ""
        if type(m) not in _PLAIN:
            if isinstance(m, _PLAIN):
                return "a subclass, which may use its weights in another way"
            if isinstance(m, nn.RNNBase):
                return "its weights are the same for a whole batch; use LSTMCell"
            return f"no response for its {', '.join(own)}"
        assert self.owners is not None
        if any(self.owners[id(p)] > 1 for p in m.parameters()):
            return "shares a weight with another layer"
        if not all(p.requires_grad for p in m.parameters()):
            return "its weights are frozen"
        if m._forward_pre_hooks or m._forward_hooks:
            return "has hooks"
        if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            return f"{type(parent).__name__} reads its weights directly"
        if isinstance(m, nn.Conv1d | nn.Conv2d) and (m.groups > 1 or m.padding_mode != "zeros"):
            return "has groups or a padding that is not zeros"
        return None

    def _response(self, m: Any) -> nn.Module:
        weight = next(m.parameters())
        options: dict[str, Any] = {**self.options, "device": weight.device, "dtype": weight.dtype}
        if isinstance(m, nn.LSTMCell):
            cell = StnLSTMCell(m.input_size, m.hidden_size, self.n, bias=m.bias, **options)
            cell.input.start_from(m.weight_ih, m.bias_ih if m.bias else None)
            cell.hidden.start_from(m.weight_hh, m.bias_hh if m.bias else None)
            cell.input.source = cell.hidden.source = self.source
            return cell.train(m.training)
        options["bias"] = m.bias is not None
        layer: ResponseLayer
        if isinstance(m, nn.Linear):
            layer = StnLinear(m.in_features, m.out_features, self.n, **options)
        else:
            kind = StnConv2d if isinstance(m, nn.Conv2d) else StnConv1d
            options |= {"stride": m.stride, "padding": m.padding, "dilation": m.dilation}
            layer = kind(m.in_channels, m.out_channels, m.kernel_size, self.n, **options)
        layer.start_from(m.weight, m.bias)
        layer.source = self.source
        return layer.train(m.training)


# Regularisers with a strength for each example ------------------------------------------------------------------------


def dropout(
    x: Float[Tensor, "batch *rest"],
    rate: Float[Tensor, "*batch"] | float | int,
    generator: torch.Generator | None = None,
    *,
    channels: bool = False,
) -> Float[Tensor, "batch *rest"]:
    """x m / (1 - rate), m = 1 with probability 1 - rate; a rate for each example, or one. No gradient to the rate.

    With `channels` m is the same within each channel (axis 1). Raises ValueError for rates outside [0, 1).
    """
    rate = _each("rate", rate, x).detach()
    if holds_anywhere(~((rate >= 0) & (rate < 1))):
        raise ValueError(f"rate must lie in [0, 1), got {rate.flatten().tolist()}")
    shape = (*x.shape[:2], *[1] * (x.ndim - 2)) if channels else x.shape
    keep = torch.rand(shape, generator=generator, device=x.device, dtype=x.dtype) >= rate
    return x * (keep / (1 - rate))


def input_noise(
    x: Float[Tensor, "batch *rest"],
    std: Float[Tensor, "*batch"] | float | int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch *rest"]:
    """x + std_i xi, xi standard normal; a standard deviation for each example, or one. ValueError if negative."""
    std = _each("std", std, x)
    return x + std * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def scale_noise(
    x: Float[Tensor, "batch *rest"],
    strength: Float[Tensor, "*batch"] | float | int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch *rest"]:
    """x times one number for each example, uniform in [1 / (1 + s), 1 + s]. ValueError for a negative strength s."""
    high = 1 + _each("strength", strength, x)
    u = torch.rand(len(x), *[1] * (x.ndim - 1), generator=generator, device=x.device, dtype=x.dtype)
    return x * (1 / high + (high - 1 / high) * u)


def cutout(
    x: Float[Tensor, "batch *rest"],
    holes: Float[Tensor, "*batch"] | float | int,
    length: Float[Tensor, "*batch"] | float | int,
    generator: torch.Generator | None = None,
    *,
    axes: int = 1,
    most: int = 4,
) -> Float[Tensor, "batch *rest"]:
    """Zeros in `holes` stretches (axes 1) or squares (axes 2, images) of side `length` along the last axes.

    Centres c are uniform over all places, a hole is c - length//2 to c - length//2 + length - 1, and what reaches over
    the edge is lost.

    Args:
        holes, length: whole numbers (a discrete hyperparameter's values), for each example or one for all.
        most: as many holes are drawn, whatever the number used, so that equal generators give equal centres.

    Raises:
        ValueError: more holes than `most`, negative numbers, axes that x does not have.
    """
    check_sizes(axes=axes, most=most)
    if axes >= x.ndim:
        raise ValueError(f"axes must leave the batch axis of x, {tuple(x.shape)}; got {axes}")
    number, side = (_each(name, v, x).reshape(-1, 1, 1) for name, v in (("holes", holes), ("length", length)))
    if holds_anywhere(number > most):
        raise ValueError(f"holes must be at most most={most}, got {number.flatten().tolist()}")
    active = torch.arange(most, device=x.device)[None, :, None] < number
    hit = active.view(-1, most, *[1] * axes)
    for axis in range(axes):
        size = x.shape[axis - axes]
        centre = (torch.rand(len(x), most, 1, generator=generator, device=x.device, dtype=x.dtype) * size).floor()
        first = centre - (side / 2).floor()
        place = torch.arange(size, device=x.device)
        inside = (place >= first) & (place < first + side)
        hit = hit & inside.view(len(x), most, *[1] * axis, size, *[1] * (axes - axis - 1))
    keep = ~hit.any(1)
    return x * keep.view(len(x), *[1] * (x.ndim - 1 - axes), *keep.shape[1:])


def _each(name: str, value: Tensor | float | int, x: Tensor) -> Tensor:
    """[batch, 1, ...], or no axes for a single number."""
    check_float("x", x)
    if not isinstance(value, Real | Tensor):
        raise ValueError(f"{name} must be a number or a tensor; got {value!r}")
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if value.ndim > 1 or (value.ndim == 1 and len(value) != len(x)):
        raise ValueError(f"{name} must be one number or [{len(x)}], one for each example; got {tuple(value.shape)}")
    if holds_anywhere(~((value >= 0) & (value < math.inf))):
        raise ValueError(f"{name} must be finite and not negative, got {value.tolist()}")
    return value.view(-1, *[1] * (x.ndim - 1)) if value.ndim else value
