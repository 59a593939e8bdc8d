"""The definition: a Python loop over the steps that plain autograd goes through."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def lattice_force(
    z: Float[Tensor, "*rows dim"],
    stiffness: Float[Tensor, " dim"] | Float[Tensor, "dim dim"],
    coupling: Float[Tensor, " links"] | None = None,
    quartic: Float[Tensor, " dim"] | None = None,
) -> Float[Tensor, "*rows dim"]:
    """g = dU/dz of U = 1/2 z^T H z, or of the chain of oscillators that `langevin_scan` describes.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> lattice_force(torch.tensor([1.0, 2.0]), stiffness=torch.tensor([1.0, 3.0])).tolist()
        [1.0, 6.0]
    """
    dim = z.shape[-1] if z.ndim else 0
    if stiffness.shape not in ((dim,), (dim, dim)):
        raise ValueError(f"stiffness must have shape ({dim},) or ({dim}, {dim}); got {tuple(stiffness.shape)}")
    for name, value, size in (("coupling", coupling, dim - 1), ("quartic", quartic, dim)):
        if value is not None and value.shape != (size,):
            raise ValueError(f"{name} must have shape ({size},) for z of dim {dim}; got {tuple(value.shape)}")
    if stiffness.dim() == 2:
        return z @ stiffness
    g = stiffness * z
    if coupling is not None:
        pull = coupling * (z[..., :-1] - z[..., 1:])
        g = g + torch.nn.functional.pad(pull, (0, 1)) - torch.nn.functional.pad(pull, (1, 0))
    if quartic is not None:
        g = g + quartic * z**3
    return g


def naive_langevin_scan(
    z0: Float[Tensor, "batch dim"],
    v0: Float[Tensor, "batch dim"],
    noise: Float[Tensor, "batch time dim"],
    *,
    stiffness: Float[Tensor, " dim"] | Float[Tensor, "dim dim"],
    coupling: Float[Tensor, " links"] | None = None,
    quartic: Float[Tensor, " dim"] | None = None,
    step: float | int,
    decay: Tensor | float | int,
    temperature: Tensor | float | int = 1.0,
    control: Float[Tensor, "batch time dim"] | None = None,
    scheme: str = "baoab",
) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time dim"]]:
    """What `langevin_scan` computes, from its formulas, in the dtype of the inputs. Checks nothing.

    Args:
        scheme: as in `langevin_scan`, and so is all else.

    Example:
        >>> z0, v0, noise = torch.ones(1, 2), torch.zeros(1, 2), torch.randn(1, 5, 2)
        >>> options = {"stiffness": torch.ones(2), "step": 0.1, "decay": 0.9}
        >>> z, v = naive_langevin_scan(z0, v0, noise, **options)
        >>> torch.allclose(z, langevin_scan(z0, v0, noise, **options)[0], atol=1e-5)
        True
    """
    a = torch.as_tensor(decay, dtype=z0.dtype, device=z0.device)
    a = a[..., None] if a.dim() == 2 else a
    scale = ((2 * (1 - a) if scheme == "released" else 1 - a * a) * temperature).sqrt()
    kicks = scale * noise + (0 if control is None else control)
    decays = a.expand_as(noise).unbind(1)

    def force(z: Tensor) -> Tensor:
        return lattice_force(z, stiffness, coupling, quartic)

    z, v, zs, vs = z0, v0, [], []
    for a, kick in zip(decays, kicks.unbind(1), strict=True):
        if scheme == "released":
            z, v = z + step * v, a * (v - step * force(z)) + kick
        elif scheme == "symplectic":
            z = z + step * v
            v = a * (v - step * force(z)) + kick
        else:
            v = v - step / 2 * force(z)
            z = z + step / 2 * v
            v = a * v + kick
            z = z + step / 2 * v
            v = v - step / 2 * force(z)
        zs.append(z)
        vs.append(v)
    return torch.stack(zs, 1), torch.stack(vs, 1)
