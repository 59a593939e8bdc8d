"""Gaussian mixtures of linear experts behind a softmax gate, and how well their parameters can be estimated.

    model.py        the model: gate (all experts or top-K, temperature, activation), density, mean, samples
    truths.py       the models that the chapters draw their data from
    em.py, steps.py, starts.py    maximum likelihood for many data sets at once: the loop, a step of it, where it begins
    estimator.py    the same for one data set, as a scikit-learn regressor
    voronoi.py      which fitted expert stands for which true one, and losses between the two
    distances.py    Hellinger and total variation by quadrature
    fisher.py       Fisher information, what it cannot see, standard errors, the profile along a ray
    splits.py       an expert taken apart: how fast the density notices
    boundary.py     the place where a top-1 gate switches, by a scan
    rates.py        slopes of errors against the number of points, with intervals
    study.py        the sweep over sizes and replicates, in shards

Sources: Nguyen, Akbarian, Yan and Ho 2024 (arXiv 2309.13850), chapter topk_theory; Nguyen, Akbarian and Ho 2024 (arXiv
2401.13875), chapter temperature_theory.
"""

from gated.gaussian_moe.em import Fit, fit
from gated.gaussian_moe.model import Gate, GaussianMoE
from gated.kernels.gmoe_em import Points

__all__ = ["Fit", "Gate", "GaussianMoE", "Points", "fit"]
