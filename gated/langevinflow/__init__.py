"""Latents that flow: counts of neurons through a particle with inertia, a leak, noise and a learned potential.

    potentials.py    the released convolutional potential in closed form, and a confining lattice of oscillators
    integrators.py   the released step, symplectic Euler and BAOAB; bounds of the step; when a mode can rotate
    physics.py       moments, stationary laws and errors of averages, exact on quadratic potentials
    objective.py     coordinated dropout, Poisson likelihood, KL proper and as released, the cost of a push
    model.py         `LangevinFlow`: recurrent encoder, flow, one-layer Transformer decoder
    rivals.py        the same task without a particle, at equal size
    training.py      `Trainer`, which can be resumed bit for bit, and `predict`
    metrics.py       bits per spike

Nothing in the leak is learned or depends on the input: v keeps 1 - gamma each step, a constant forget gate. The gates
that are learned are the encoder's. `learned_friction=True` turns the leak into one; that extension is ours.

Paper: Song, Keller, Yue, Perona and Welling, "Langevin Flows for Modeling Neural Latent Dynamics", CCN 2025
(arXiv 2507.11531).
"""

from gated.langevinflow.integrators import (
    check_step,
    exact_noise,
    langevin_step,
    largest_step,
    released_noise,
    rotates,
    simulate,
    step_matrix,
)
from gated.langevinflow.metrics import bits_per_spike
from gated.langevinflow.model import Decoder, Encoder, LangevinFlow, PostNormLayer, Rates
from gated.langevinflow.objective import (
    Dropped,
    coordinated_dropout,
    gaussian_kl,
    girsanov_kl,
    poisson_nll,
    released_beta,
    released_kl,
    scored,
)
from gated.langevinflow.physics import (
    autocorrelation_time,
    mean_with_error,
    ou_moments,
    split_moments,
    stationary_covariance,
    step_covariance,
)
from gated.langevinflow.potentials import ConvPotential, LatticePotential, stiffness_of_periods
from gated.langevinflow.rivals import GRUTransformer, GRUVae, MaskedTransformer, match_parameters
from gated.langevinflow.training import Loss, Trainer, predict

__all__ = [
    "ConvPotential",
    "Decoder",
    "Dropped",
    "Encoder",
    "GRUTransformer",
    "GRUVae",
    "LangevinFlow",
    "LatticePotential",
    "Loss",
    "MaskedTransformer",
    "PostNormLayer",
    "Rates",
    "Trainer",
    "autocorrelation_time",
    "bits_per_spike",
    "check_step",
    "coordinated_dropout",
    "exact_noise",
    "gaussian_kl",
    "girsanov_kl",
    "langevin_step",
    "largest_step",
    "match_parameters",
    "mean_with_error",
    "ou_moments",
    "poisson_nll",
    "predict",
    "released_beta",
    "released_kl",
    "released_noise",
    "rotates",
    "scored",
    "simulate",
    "split_moments",
    "stationary_covariance",
    "step_covariance",
    "step_matrix",
    "stiffness_of_periods",
]
