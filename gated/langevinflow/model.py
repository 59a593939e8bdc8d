"""A sequential variational autoencoder of spike counts whose latent is a particle under friction.

    h_t          = m_t * GRU(x_t, h_{t-1})                        encoder; after the observed bins the last one stays
    (z_0, v_0)   ~ N(A h_0, exp(B h_0)), four linear maps
    (z_t, v_t)   one step of `gated.langevinflow.integrators`     the flow
    log rate     = W TransformerLayer([z, v, h]) + b              decoder, over all bins at once

Three forms of the flow. "released": the convolutional potential, the explicit step h = .01 and noise sqrt(2 gamma), one
step a bin; h_t never enters it after t = 0. "corrected": a confining lattice, BAOAB and the noise of temperature 1;
positions start and are read in units of their thermal width, or slow modes would drown all else in the decoder.
"controlled": "corrected" with a push B u(h_t) on the velocity, which costs what Girsanov's theorem says; without such a
push posterior and prior share drift and noise, and all that the KL divergence holds is that of (z_0, v_0).

Source: Song, Keller, Yue, Perona and Welling, "Langevin Flows for Modeling Neural Latent Dynamics", CCN 2025
(arXiv 2507.11531), and its public code. The corrected and the controlled form are ours, and so is learned friction.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gated.gates._validation import check_choice, check_count, check_floats, check_number, check_positive, check_sizes
from gated.kernels.langevin_scan import langevin_scan
from gated.langevinflow._validation import check_generator, check_input, check_rate, check_task
from gated.langevinflow.integrators import check_step, exact_noise, released_noise
from gated.langevinflow.objective import gaussian_kl, girsanov_kl, released_kl
from gated.langevinflow.potentials import ConvPotential, LatticePotential, stiffness_of_periods

Mode = Literal["released", "corrected", "controlled"]
EncoderInput = Literal["current", "lagged"]
Ablation = Literal["no potential", "frozen velocity", "zero", "noise", "shuffle"]
_FIXUP = 0.67 * 3**-0.25  # T-fixup's factor as released


class Rates(NamedTuple):
    """What each model here returns."""

    log_rates: Tensor
    """[trials, bins, neurons]: log of the expected counts per bin."""
    kl: Tensor
    """[trials], nats."""
    z: Tensor | None = None
    """Positions [trials, bins, dim] as the decoder reads them, in units of `LangevinFlow.width`; None for rivals."""
    v: Tensor | None = None
    """Velocities, likewise."""
    h: Tensor | None = None
    """Recurrent states [trials, bins, dim], where there are any."""


def dropout(
    x: Float[Tensor, "*shape"], rate: float | int, generator: torch.Generator | None
) -> Float[Tensor, "*shape"]:
    """x with a share `rate` of its entries 0 and the others over 1 - rate; x itself without a generator."""
    if not rate or generator is None:
        return x
    draws = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return x * draws.ge_(rate).div_(1 - rate)


class Encoder(nn.Module):
    """h_t = m_t * GRUCell(x_t, h_{t-1}) from h = 0, m_t the dropout's mask, which acts on the state that is carried on.

    Args:
        observed, dim: widths of x and of h.
        source: "current": h_t has seen x_t. "lagged": the released order, h_0 sees x_0, h_t sees x_{t-1}, so that bin
            0 comes twice and the last bin only after the observed window.
        rate: of the dropout.

    Raises:
        ValueError: a size below 1, an unknown source, a rate outside [0, 1).
    """

    def __init__(self, observed: int, dim: int, *, source: EncoderInput = "current", rate: float | int = 0.05) -> None:
        super().__init__()
        check_sizes(observed=observed, dim=dim)
        check_choice("source", source, get_args(EncoderInput))
        check_rate(rate)
        self.observed, self.dim, self.source, self.rate = observed, dim, source, rate
        self.cell = nn.GRUCell(observed, dim)

    def forward(
        self,
        spikes: Float[Tensor, "trials observed_bins observed"],
        bins: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "trials bins dim"]:
        """h for all bins; from the end of the observed ones on, the last one is fed again and again."""
        check_floats(f"trials observed_bins {self.observed}", spikes=spikes)
        check_count("bins", bins)
        seen = spikes.shape[1]
        at = torch.arange(bins, device=spikes.device)
        if self.source == "lagged":
            at = (at - 1).clamp_min(0)
        inputs = spikes[:, at.clamp_max(seen - 1)]
        mask = dropout(spikes.new_ones(len(spikes), bins, self.dim), self.rate, generator)
        h, states = spikes.new_zeros(len(spikes), self.dim), []
        for x, m in zip(inputs.unbind(1), mask.unbind(1), strict=True):
            h = self.cell(x, h)
            h = h if generator is None else h * m
            states.append(h)
        return torch.stack(states, 1)


class PostNormLayer(nn.Module):
    """x' = LN(x + Attention(x)), then LN(x' + W_2 relu(W_1 x')): all bins see all bins, and no position is added.

    The layer of the first Transformer (Vaswani et al. 2017), with dropout on attention weights, on the hidden layer and
    on both branches, drawn from a generator.

    Args:
        dim, heads, hidden: widths; dim a multiple of heads.
        rate: of the dropout.
        fixup: multiply three of the first matrices (attention's output, W_1, W_2) by .67 * 3^(-1/4), as released.

    Raises:
        ValueError: a width that the heads do not divide.
    """

    def __init__(self, dim: int, heads: int, hidden: int, *, rate: float | int = 0.0, fixup: bool = False) -> None:
        super().__init__()
        check_sizes(dim=dim, heads=heads, hidden=hidden)
        check_rate(rate)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads={heads}; got {dim}")
        self.heads, self.rate = heads, rate
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)
        if fixup:
            with torch.no_grad():
                for layer in (self.out, self.up, self.down):
                    layer.weight *= _FIXUP

    def forward(
        self, x: Float[Tensor, "trials bins dim"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "trials bins dim"]:
        check_floats(f"trials bins {self.out.in_features}", x=x)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if generator is None:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
            mixed = dropout(weights, self.rate, generator) @ v
        branch = self.out(mixed.transpose(1, 2).flatten(2))
        x = self.attention_norm(x + dropout(branch, self.rate, generator))
        branch = self.down(dropout(F.relu(self.up(x)), self.rate, generator))
        return self.mlp_norm(x + dropout(branch, self.rate, generator))


class Decoder(nn.Module):
    """Log rates from the states of all bins: `depth` post-norm layers, then a linear map. Depth 0 reads bins alone.

    Args:
        neurons: how many rates a bin has.
        rate, fixup: as in `PostNormLayer`.

    Raises:
        ValueError: a negative depth; as in `PostNormLayer`.
    """

    def __init__(
        self,
        dim: int,
        neurons: int,
        *,
        depth: int = 1,
        heads: int = 2,
        hidden: int = 64,
        rate: float | int = 0.05,
        fixup: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, neurons=neurons)
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
            raise ValueError(f"depth must be an integer of at least 0; got {depth!r}")
        self.layers = nn.ModuleList(PostNormLayer(dim, heads, hidden, rate=rate, fixup=fixup) for _ in range(depth))
        self.readout = nn.Linear(dim, neurons)

    def forward(
        self, state: Float[Tensor, "trials bins dim"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "trials bins neurons"]:
        check_floats(f"trials bins {self.readout.in_features}", state=state)
        for layer in self.layers:
            state = layer(state, generator)
        return self.readout(state)


class LangevinFlow(nn.Module):
    """Counts of the observed neurons -> log rates of all neurons in all bins, through a particle (module docstring).

    Args:
        observed: neurons whose counts are the input; they come first in the output.
        neurons: neurons of the output; those beyond `observed` are held out.
        bins: bins of the output; those beyond the input's are forward prediction.
        dim: d, width of z, v and h each; a multiple of 4 in mode "released".
        mode: form of the flow.
        step: h, in bins; default .01 (released) or 1.
        friction: gamma in (0, 1), for each step: v keeps 1 - gamma. Default .55 (released) or .1. Of continuous
            time it is gamma_c = -ln(1 - gamma) / h.
        learned_friction: gamma_t = sigmoid(W h_t + b) for each entry, which starts near `friction`; the prior keeps
            `friction`, and the difference has its price in the KL. Ours; not with "released".
        periods: shortest and longest period, in units of bins, with which the lattice starts.
        quartic: first quartic coefficient of the lattice; None for a linear force.
        encoder_input: of `Encoder`.
        depth, heads, hidden: of the `Decoder`.
        rate: of all dropout.
        kl: "proper", or "released" for the released formula (mode "released" only), with its sampled velocities.
        ablation: what is taken from the flow, None for nothing; it may be changed at any time. "no potential": no
            force. "frozen velocity": v stays v_0. The others act on what the decoder sees of z and v. "zero": zeros.
            "noise": fresh N(0, 1). "shuffle": those of another trial.

    Raises:
        ValueError: sizes below 1, fewer neurons or bins than observed, an unknown choice, friction outside (0, 1), a
            step at which the first lattice is unstable (the bound is in the message), options that exclude each other.

    Example:
        >>> model = LangevinFlow(observed=20, neurons=25, bins=30, dim=8)
        >>> spikes = torch.ones(4, 25, 20)  # trials, bins that are seen, neurons that are seen
        >>> model(spikes, torch.Generator().manual_seed(0)).log_rates.shape
        torch.Size([4, 30, 25])
    """

    def __init__(
        self,
        observed: int,
        neurons: int,
        bins: int,
        *,
        dim: int = 32,
        mode: Mode = "corrected",
        step: float | int | None = None,
        friction: float | int | None = None,
        learned_friction: bool = False,
        periods: tuple[float | int, float | int] = (6, 60),
        quartic: float | int | None = None,
        encoder_input: EncoderInput = "current",
        depth: int = 1,
        heads: int = 2,
        hidden: int = 64,
        rate: float | int = 0.05,
        kl: Literal["proper", "released"] = "proper",
        ablation: Ablation | None = None,
    ) -> None:
        super().__init__()
        check_task(observed, neurons, bins)
        check_choice("mode", mode, get_args(Mode))
        released = mode == "released"
        if kl not in ("proper", "released") or (kl == "released" and not released):
            raise ValueError(f"kl must be 'proper', or 'released' in mode 'released'; got {kl!r} in mode {mode!r}")
        if released and (learned_friction or quartic is not None):
            raise ValueError("learned_friction and quartic must be left out in mode 'released'")
        check_choice("ablation", ablation, (None, *get_args(Ablation)))
        if len(periods) != 2:
            raise ValueError(f"periods must be the shortest and the longest; got {periods}")
        for period in periods:
            check_positive("periods", period)
        self.bins, self.mode, self.kl, self.ablation = bins, mode, kl, ablation
        self.step = (0.01 if released else 1.0) if step is None else step
        self.friction = (0.55 if released else 0.1) if friction is None else friction
        check_positive("step", self.step)
        check_number("friction", self.friction, "(0, 1)")
        check_choice("encoder_input", encoder_input, get_args(EncoderInput))
        self.encoder = Encoder(observed, dim, source=encoder_input, rate=rate)
        self.start = nn.ModuleDict({name: nn.Linear(dim, dim) for name in ("z", "z_log", "v", "v_log")})
        self.potential: ConvPotential | LatticePotential = (
            ConvPotential(dim) if released else LatticePotential(stiffness_of_periods(*periods, dim), quartic=quartic)
        )
        self.push = self.gate = None
        if mode == "controlled":
            last = nn.Linear(dim, dim, bias=False)
            nn.init.normal_(last.weight, std=0.01 / math.sqrt(dim))
            self.push = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), last)
        if learned_friction:
            self.gate = nn.Linear(dim, dim)
            nn.init.normal_(self.gate.weight, std=0.01 / math.sqrt(dim))
            nn.init.constant_(self.gate.bias, math.log(self.friction / (1 - self.friction)))
        self.decoder = Decoder(3 * dim, neurons, depth=depth, heads=heads, hidden=hidden, rate=rate, fixup=released)
        check_step(self.potential.hessian(), self.step, self.decay, "euler" if released else "baoab")

    @property
    def decay(self) -> float:
        """a = 1 - gamma."""
        return 1.0 - self.friction

    @property
    def scale(self) -> float:
        """sigma, of the noise of a step."""
        return released_noise(self.friction) if self.mode == "released" else float(exact_noise(self.decay))

    def forward(
        self,
        spikes: Float[Tensor, "trials observed_bins observed"],
        generator: torch.Generator | None = None,
    ) -> Rates:
        """One sample of the posterior, decoded.

        Args:
            spikes: counts, after coordinated dropout if there is any.
            generator: of the flow's noise and, in training, of all dropout. None, in evaluation only: no noise, and
                the path starts at the means.

        Raises:
            ValueError: empty, negative or non-finite counts, another number of neurons, more bins than the output has,
                no generator in training, an unstable step.
        """
        check_input(spikes, self.encoder.observed, self.bins)
        check_generator(self, generator)
        masks = generator if self.training else None
        h = self.encoder(spikes, self.bins, masks)
        z, v, kl = self.flow(h, spikes.shape[1], generator)
        z, v = self._ablated(z, v, generator)
        return Rates(self.decoder(torch.cat([z, v, h], -1), masks), kl, z, v, h)

    def flow(
        self, h: Float[Tensor, "trials bins dim"], observed_bins: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "trials bins dim"], Float[Tensor, "trials bins dim"], Float[Tensor, " trials"]]:
        """(z, v, KL) of a path that starts from h_0; pushes and learned friction act in the observed bins only."""
        mean_z, log_z, mean_v, log_v = (self.start[name](h[:, 0]) for name in ("z", "z_log", "v", "v_log"))
        kl = gaussian_kl(mean_z, log_z) + gaussian_kl(mean_v, log_v)
        z, v, width = mean_z, mean_v, self.width()
        noise = torch.zeros_like(h[:, 1:])
        if generator is not None:
            first = torch.randn((2, *z.shape), generator=generator, device=z.device, dtype=z.dtype)
            z, v = z + (log_z / 2).exp() * first[0], v + (log_v / 2).exp() * first[1]
            noise = torch.randn(noise.shape, generator=generator, device=z.device, dtype=z.dtype)
        steered = torch.arange(1, self.bins, device=h.device)[:, None] < observed_bins
        control = None if self.push is None else self.push(h[:, 1:]) * steered
        gamma = None if self.gate is None else torch.where(steered, self.gate(h[:, 1:]).sigmoid(), self.friction)
        if self.ablation == "frozen velocity":
            control = gamma = None
        z = width * z
        path_z, path_v = self._path(z, v, noise, control, gamma)
        z, v = torch.cat([z[:, None], path_z], 1), torch.cat([v[:, None], path_v], 1)
        if self.kl == "released":
            kl = kl + released_kl(path_v, self.friction)
        elif gamma is not None:
            kl = kl + self._gated_kl(z, v, control, gamma)
        elif control is not None:
            kl = kl + girsanov_kl(control, self.scale).sum(-1)
        return z / width, v, kl

    def width(self) -> Float[Tensor, " dim"]:
        """The unit in which positions start and are read: the thermal width 1 / sqrt(H_ii), or 1 as released."""
        diagonal = self.potential.hessian().diagonal()
        return torch.ones_like(diagonal) if self.mode == "released" else diagonal.rsqrt()

    def prior(
        self, trials: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "trials bins dim"], Float[Tensor, "trials bins dim"]]:
        """(z, v) that run free from the prior N(0, I) (in units of `width`), without any data."""
        weight = self.decoder.readout.weight
        shape = (2, trials, self.bins, self.encoder.dim)
        draws = torch.randn(shape, generator=generator, device=weight.device, dtype=weight.dtype)
        (z, noise), (v, _) = ((each[:, 0], each[:, 1:]) for each in draws)
        width = self.width()
        path_z, path_v = self._path(width * z, v, noise, None, None)
        return torch.cat([z[:, None], path_z / width], 1), torch.cat([v[:, None], path_v], 1)

    def _path(
        self, z: Tensor, v: Tensor, noise: Tensor, control: Tensor | None, gamma: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.ablation == "frozen velocity":
            steps = torch.arange(1, noise.shape[1] + 1, device=z.device, dtype=z.dtype)[:, None]
            return z[:, None] + self.step * steps * v[:, None], v[:, None].expand_as(noise)
        if not noise.shape[1]:
            return noise, noise
        stiffness, coupling, quartic = self.potential.hessian(), None, None
        if isinstance(self.potential, LatticePotential):  # the scan checks the step itself, but not the released one
            stiffness, coupling, quartic = self.potential.stiffness, self.potential.coupling, self.potential.quartic
        else:
            check_step(stiffness, self.step, self.decay, "euler")
        if self.ablation == "no potential":
            stiffness, coupling, quartic = z.new_zeros(z.shape[-1]), None, None
        return langevin_scan(
            z,
            v,
            noise,
            stiffness=stiffness,
            coupling=coupling,
            quartic=quartic,
            step=self.step,
            decay=self.decay if gamma is None else 1 - gamma,
            control=control,
            scheme="released" if self.mode == "released" else "baoab",
        )

    def _gated_kl(self, z: Tensor, v: Tensor, control: Tensor | None, gamma: Tensor) -> Tensor:
        """sum_t KL(N(a_t w + u_t, s_t^2) || N(a w, s^2)), w the velocity that the leak of step t meets."""
        met = v[:, :-1]
        if self.ablation != "no potential":
            met = met - self.step / 2 * self.potential.gradient(z[:, :-1])
        apart = (self.friction - gamma) * met + (0.0 if control is None else control)
        narrow = torch.as_tensor(exact_noise(1 - gamma)).log() * 2
        return gaussian_kl(apart, narrow, 0.0, 2 * math.log(self.scale)).sum(-1)

    def _ablated(self, z: Tensor, v: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        if self.ablation is not None:
            check_choice("ablation", self.ablation, get_args(Ablation))
        if self.ablation == "zero":
            return torch.zeros_like(z), torch.zeros_like(v)
        if self.ablation == "noise":
            if generator is None:
                raise ValueError("generator must be given for the ablation 'noise'; got None")
            fresh = torch.randn((2, *z.shape), generator=generator, device=z.device, dtype=z.dtype)
            return fresh[0], fresh[1]
        if self.ablation == "shuffle":
            if len(z) < 2:
                raise ValueError(f"spikes must have at least 2 trials for the ablation 'shuffle'; got {len(z)}")
            by = 1 if generator is None else int(torch.randint(1, len(z), (), generator=generator))
            return z.roll(by, 0), v.roll(by, 0)
        return z, v
