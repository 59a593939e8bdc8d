"""Data and models for what the theory of mixtures says: clusters of patches, routed patches, pieces of a function.

**Why a mixture at all.** Chen et al.'s images have four patches, made of four features v_k and four centres c_k:

    { a y v_k,  b c_k,  s g v_k',  noise },    label y = +-1,  cluster k,  k' != k,  random sign s = +-1.

The feature that carries the label and the distractor look alike; only the centre says which is which. A network that
adds up what it sees in each patch, F(x) = sum_p f(x_p), cannot use that: where a and g have one distribution it errs
on at least 1/8 of the images. A mixture can: the router reads the centre, an expert the feature. An expert m is

    f_m(x) = sum_j e_j sum_p sigma(<w_mj, x_p>),    sigma(z) = z^3 or z,  half of the e_j are 1 and half -1,

the router is h(x) = sum_p Theta x_p, and F = softmax(h)_m f_m with m = argmax h + U[0, 1] noise (while it is trained).

**Why route patches.** In Chowdhury et al.'s images one patch of many tells the label. `PatchRouter` lets each expert
look at the few patches that its router likes best.

**Why more experts.** `piecewise` gates and `best_experts` give the error of N experts in closed form.

Everything is batched over seeds. Sources: Chen, Deng, Wu, Gu and Li, "Towards Understanding Mixture of Experts in Deep
Learning", NeurIPS 2022 (arXiv 2208.02813); Chowdhury, Zhang, Wang, Liu and Chen, "Patch-level Routing in
Mixture-of-Experts is Provably Sample-efficient for Convolutional Neural Networks", ICML 2023 (arXiv 2306.04073).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gated.gates import softmax_gate
from gated.kernels.grouped_gemm import grouped_gemm

Range = tuple[float, float]


class Patches(NamedTuple):
    """Images as patches, labels +-1, and what only the maker of the data knows. Leading axes are seeds."""

    x: Float[Tensor, "*seeds n patches dim"]
    y: Float[Tensor, "*seeds n"]
    cluster: Int[Tensor, "*seeds n"]
    """Chen's data: which feature carries the label. Chowdhury's: where the patch that does is."""
    basis: Float[Tensor, "*seeds vectors dim"]
    """Orthonormal: the features, then the centres (or the irrelevant patterns)."""


def stack(data: list[Patches]) -> Patches:
    """Several data sets of one size as one with a leading axis of seeds."""
    return Patches(*map(torch.stack, zip(*data, strict=True)))


def _basis(vectors: int, dim: int, generator: torch.Generator) -> Tensor:
    if vectors > dim:
        raise ValueError(f"dim must be at least the number of vectors, {vectors}; got {dim}")
    return torch.linalg.qr(torch.randn(dim, vectors, generator=generator)).Q.T.contiguous()


def _shuffle(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The patches of each image in random order, and where the first of them went."""
    order = torch.rand(x.shape[:2], generator=generator).argsort(1)
    return x.gather(1, order[..., None].expand_as(x)), order.argmin(1)


def chen_data(
    n: int,
    generator: torch.Generator,
    *,
    sigma: float | int = 1.0,
    basis: Float[Tensor, "vectors dim"] | None = None,
    clusters: int = 4,
    dim: int = 50,
    alpha: Range = (0.5, 2.0),
    beta: Range = (1.0, 2.0),
    gamma: Range = (0.5, 3.0),
    scale: float | int = 10.0,
) -> Patches:
    """Chen et al.'s images: shuffled patches scale * {a y v_k, b c_k, s g v_k', xi}.

    y, s = +-1, the cluster k and k' != k are uniform, a ~ U[alpha], b ~ U[beta], g ~ U[gamma], and xi is normal with
    standard deviation sigma / sqrt(dim) in each coordinate. The authors' setting 1 has sigma = 1, setting 2 sigma = 2.

    Args:
        basis: the features and centres of data drawn before (its `basis`), so that train and test share them.
        clusters: number of features (and of centres), at least 2.

    Raises:
        ValueError: n < 1, clusters < 2, 2 clusters > dim, sigma < 0, or a basis of another shape.
    """
    if n < 1 or clusters < 2 or not sigma >= 0:
        raise ValueError(f"n >= 1, clusters >= 2, sigma >= 0 must hold; got n={n}, clusters={clusters}, sigma={sigma}")
    if basis is None:
        basis = _basis(2 * clusters, dim, generator)
    elif basis.shape != (2 * clusters, dim):
        raise ValueError(f"basis must be {(2 * clusters, dim)}; got {tuple(basis.shape)}")

    def uniform(bounds: Range) -> Tensor:
        return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(n, 1, generator=generator)

    y, sign = 2.0 * torch.randint(2, (2, n), generator=generator) - 1
    cluster = torch.randint(clusters, (n,), generator=generator)
    other = (cluster + torch.randint(1, clusters, (n,), generator=generator)) % clusters
    patches = [
        uniform(alpha) * y[:, None] * basis[cluster],
        uniform(beta) * basis[clusters + cluster],
        uniform(gamma) * sign[:, None] * basis[other],
        sigma / math.sqrt(dim) * torch.randn(n, dim, generator=generator),
    ]
    x, _ = _shuffle(scale * torch.stack(patches, 1), generator)
    return Patches(x, y, cluster, basis)


class PatchExperts(nn.Module):
    """For each seed, M two-layer CNNs and a linear router that picks one of them for each image.

    Args:
        seeds, num_experts, dim: sizes; with one expert there is no routing and its weight is 1.
        filters: of each expert, an even number; the first half counts for y = 1, the second for y = -1.
        power: 3 for sigma(z) = z^3, 1 for a linear expert.
        std: standard deviation of the filters at the start. The router starts at 0.

    Raises:
        ValueError: a size below 1, an odd number of filters, or std <= 0.
    """

    def __init__(
        self,
        seeds: int,
        num_experts: int,
        filters: int,
        dim: int,
        generator: torch.Generator,
        *,
        power: int = 3,
        std: float | int = 1e-3,
    ) -> None:
        super().__init__()
        sizes = {"seeds": seeds, "num_experts": num_experts, "filters": filters, "dim": dim, "power": power, "std": std}
        for name, size in sizes.items():
            if size <= 0:
                raise ValueError(f"{name} must be positive; got {size}")
        if filters % 2:
            raise ValueError(f"filters must be even; got {filters}")
        self.num_experts, self.power = num_experts, power
        self.filters = nn.Parameter(std * torch.randn(seeds, num_experts, filters, dim, generator=generator))
        self.router = nn.Parameter(torch.zeros(seeds, num_experts, dim))

    def logits(self, x: Float[Tensor, "seeds n patches dim"]) -> Float[Tensor, "seeds n experts"]:
        """h(x) = sum_p Theta x_p."""
        return x.sum(2) @ self.router.mT

    def outputs(
        self, x: Float[Tensor, "seeds n patches dim"], expert: Int[Tensor, "seeds n"]
    ) -> Float[Tensor, "seeds n"]:
        """f_m(x) with m = `expert` of each image; each image costs one expert."""
        seeds, n, patches, dim = x.shape
        group = (expert + self.num_experts * torch.arange(seeds, device=x.device)[:, None]).flatten()
        order = group.argsort(stable=True)
        load = torch.bincount(group, minlength=seeds * self.num_experts)
        rows = x.reshape(seeds * n, -1)[order].view(-1, dim)
        z = grouped_gemm(rows, self.filters.flatten(0, 1).mT, F.pad((patches * load).cumsum(0), (1, 0)))
        plus, minus = z.pow(self.power).view(seeds * n, patches, 2, -1).sum((1, 3)).unbind(1)
        return (plus - minus)[order.argsort()].view(seeds, n)

    def forward(
        self,
        x: Float[Tensor, "seeds n patches dim"],
        *,
        noise: float | int = 0.0,
        generator: torch.Generator | None = None,
        route: Int[Tensor, "seeds n"] | None = None,
    ) -> tuple[Float[Tensor, "seeds n"], Int[Tensor, "seeds n"]]:
        """(F(x), the chosen experts). `noise` is the upper end of the uniform noise on the logits that choose; the
        weight is softmax without noise. `route` replaces the router, and the weight is then 1."""
        if route is not None or self.num_experts == 1:
            expert = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device) if route is None else route
            return self.outputs(x, expert), expert
        h = self.logits(x)
        expert = (h.detach() + noise * torch.rand(h.shape, generator=generator, dtype=h.dtype)).argmax(-1)
        weight = softmax_gate(h).gather(-1, expert[..., None])[..., 0]
        return weight * self.outputs(x, expert), expert


def fit_experts(
    model: PatchExperts,
    data: Patches,
    generator: torch.Generator,
    *,
    steps: int,
    rate: float | int,
    router_rate: float | int = 0.1,
    noise: float | int = 1.0,
    stop: float | int = 0.0,
    route: Int[Tensor, "seeds n"] | None = None,
) -> Float[Tensor, "steps seeds"]:
    """Trains `model` in place on all images at once; returns the losses mean log(1 + exp(-y F(x))) before each step.

    Each expert moves by `rate` along its gradient divided by the gradient's norm, so that all learn at one pace however
    many images they get; the router takes plain gradient steps. A seed rests while its loss is at most `stop`.
    """
    losses = []
    for _ in range(steps):
        score, _ = model(data.x, noise=noise, generator=generator, route=route)
        loss = F.softplus(-data.y * score).mean(1)
        d_filters, d_router = torch.autograd.grad(
            loss.sum(), (model.filters, model.router), allow_unused=True, materialize_grads=True
        )
        active = (loss.detach() > stop).to(loss)
        length = d_filters.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-30)
        with torch.no_grad():
            model.filters.sub_(rate * active[:, None, None, None] * d_filters / length)
            model.router.sub_(router_rate * active[:, None, None] * d_router)
        losses.append(loss.detach())
    return torch.stack(losses)


@torch.no_grad()
def accuracy(
    model: PatchExperts, data: Patches, *, route: Int[Tensor, "seeds n"] | None = None
) -> Float[Tensor, " seeds"]:
    """Share of the images with y F(x) > 0, routed without noise."""
    return (data.y * model(data.x, route=route)[0] > 0).to(data.x).mean(1)


def contingency(
    cluster: Int[Tensor, "*seeds n"], expert: Int[Tensor, "*seeds n"], clusters: int, experts: int
) -> Float[Tensor, "*seeds clusters experts"]:
    """Share of the images that belong to cluster k and went to expert m (float64)."""
    cells = F.one_hot(cluster * experts + expert, clusters * experts).double().mean(-2)
    return cells.unflatten(-1, (clusters, experts))


def dispatch_entropy(share: Float[Tensor, "*seeds clusters experts"]) -> Float[Tensor, "*seeds"]:
    """H(cluster | expert) in nats: 0 where each expert serves one cluster, log(clusters) where routing is blind and the
    clusters are of one size. Low entropy says nothing about how well they are served."""
    return _entropy(share.flatten(-2)) - _entropy(share.sum(-2))


def mutual_information(share: Float[Tensor, "*seeds clusters experts"]) -> Float[Tensor, "*seeds"]:
    """I(cluster; expert) over the mean of the two entropies, in [0, 1]; 0 where one of them is 0."""
    cluster, expert = _entropy(share.sum(-1)), _entropy(share.sum(-2))
    shared = (cluster + expert - _entropy(share.flatten(-2))).clamp(min=0)
    return torch.where(cluster * expert > 0, 2 * shared / (cluster + expert).clamp(min=1e-30), 0.0)


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)


def chowdhury_data(
    n: int,
    generator: torch.Generator,
    *,
    patches: int = 16,
    dim: int = 64,
    patterns: int = 30,
    sigma: float | int = 0.5,
    basis: Float[Tensor, "vectors dim"] | None = None,
) -> Patches:
    """Images in which one patch, at a random place, is o_1 (y = 1) or o_2 (y = -1); each other patch is one of
    `patterns` irrelevant unit vectors, drawn uniformly. All vectors are orthonormal, and normal noise of standard
    deviation sigma / sqrt(dim) is added to each coordinate.

    Args:
        basis: that of data drawn before, so that train and test share it: o_1, o_2, then the patterns.

    Raises:
        ValueError: a size below 1, sigma < 0, patterns + 2 > dim, or a basis of another shape.
    """
    for name, size in {"n": n, "patches": patches, "patterns": patterns}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")
    if not sigma >= 0:
        raise ValueError(f"sigma must be at least 0; got {sigma}")
    if basis is None:
        basis = _basis(patterns + 2, dim, generator)
    elif basis.shape != (patterns + 2, dim):
        raise ValueError(f"basis must be {(patterns + 2, dim)}; got {tuple(basis.shape)}")
    second = torch.randint(2, (n,), generator=generator)
    other = 2 + torch.randint(patterns, (n, patches - 1), generator=generator)
    x = basis[torch.cat([second[:, None], other], 1)]
    x, place = _shuffle(x + sigma / math.sqrt(dim) * torch.randn(x.shape, generator=generator), generator)
    return Patches(x, 1.0 - 2.0 * second, place, basis)


class PatchRouter(nn.Module):
    """For each seed, M experts, each of which sees the `top` patches that its router likes best:

        F(x) = sum_m sum_(p in top of theta_m . x_p) softmax(theta_m . x_p)_p sum_j e_mj relu(<w_mj, x_p>),

    with the softmax over the kept patches, and half of the e_mj 1, half -1. With `top` = 1 that softmax is the constant
    1 and the router would not learn.

    Args:
        seeds, num_experts, dim: sizes. filters: of each expert, an even number. top: at least 2.
        std: standard deviation of filters and routers at the start.

    Raises:
        ValueError: a size below 1, an odd number of filters, or top < 2.
    """

    def __init__(
        self,
        seeds: int,
        num_experts: int,
        filters: int,
        dim: int,
        top: int,
        generator: torch.Generator,
        *,
        std: float | int = 0.1,
    ) -> None:
        super().__init__()
        for name, size in {"seeds": seeds, "num_experts": num_experts, "filters": filters, "dim": dim}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}")
        if filters % 2:
            raise ValueError(f"filters must be even; got {filters}")
        if top < 2:
            raise ValueError(f"top must be at least 2; got {top}")
        self.top = top
        self.filters = nn.Parameter(std * torch.randn(seeds, num_experts, filters, dim, generator=generator))
        self.router = nn.Parameter(std * torch.randn(seeds, num_experts, dim, generator=generator))

    def pick(
        self, x: Float[Tensor, "seeds n patches dim"]
    ) -> tuple[Float[Tensor, "seeds experts n top"], Int[Tensor, "seeds experts n top"]]:
        """(weights, places) of the patches that each expert looks at, the best liked first."""
        score = torch.einsum("snpd,smd->smnp", x, self.router)
        kept, place = score.topk(min(self.top, x.shape[2]), -1)
        return softmax_gate(kept), place

    def forward(
        self, x: Float[Tensor, "seeds n patches dim"], places: Int[Tensor, "seeds n seen"] | None = None
    ) -> Float[Tensor, "seeds n"]:
        """F(x). `places` are the patches that all experts see instead, with equal weights: all of them make it a
        convolutional network, random ones or the right one a baseline or an oracle."""
        experts = self.filters.shape[1]
        if places is None:
            weight, place = self.pick(x)
        else:
            place = places[:, None].expand(-1, experts, -1, -1)
            weight = torch.full(place.shape, 1 / place.shape[-1]).to(x)
        seen = x[:, None].expand(-1, experts, -1, -1, -1)
        seen = seen.gather(3, place[..., None].expand(*place.shape, x.shape[-1]))
        z = F.relu(torch.einsum("smnld,smjd->smnlj", seen, self.filters))
        plus, minus = z.unflatten(-1, (2, -1)).sum(-1).unbind(-1)
        return (weight * (plus - minus)).sum((1, 3))


def piecewise(x: Float[Tensor, " n"], num_experts: int) -> Float[Tensor, "n experts"]:
    """A hard gate on [0, 1): expert i has the weight 1 on [i / N, (i + 1) / N), the others 0."""
    if num_experts < 1:
        raise ValueError(f"num_experts must be at least 1; got {num_experts}")
    return F.one_hot((num_experts * x).long().clamp(0, num_experts - 1), num_experts).to(x)


def best_experts(
    gate: Float[Tensor, "n experts"], x: Float[Tensor, " n"], y: Float[Tensor, " n"], *, order: int = 1
) -> Float[Tensor, " n"]:
    """The best fit of y by sum_i gate_i(x) E_i(x), where each E_i is a polynomial of degree `order` (least squares over
    all experts at once): what a mixture with this gate can reach, whoever trains it. Use float64."""
    powers = x[:, None] ** torch.arange(order + 1, device=x.device)
    design = (gate[:, :, None] * powers[:, None]).flatten(1)
    return design @ torch.linalg.lstsq(design, y[:, None], driver="gelsd").solution[:, 0]
