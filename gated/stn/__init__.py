"""Networks that tune their own hyperparameters while they train: hyperparameters gate a response in each layer.

    layers.py            `StnLinear`, `StnConv1d`, `StnConv2d`, `StnLSTMCell`: weights affine in the hyperparameters
    hyperparameters.py   ranges, values, perturbation, entropy
    selftune.py          `selftune` for any module; dropout, noise and cutout with a strength for each example
    training.py          `Trainer`: the alternation, schedules and their replay, ensembles of runs, resuming
    theory.py            exact best responses, what a line makes of them, hypergradients
    study.py             the chapter's runs: arms at equal price

Paper: MacKay, Vicol, Lorraine, Duvenaud and Grosse, "Self-Tuning Networks: Bilevel Optimization of Hyperparameters
using Structured Best-Response Functions" (ICLR 2019, arXiv 1903.03088). The option `centred` with `linearised` is the
follow-up's: Bae and Grosse, Delta-STN (NeurIPS 2020, arXiv 2010.13514).
"""

from gated.stn.hyperparameters import Hyperparameter, Hyperparameters
from gated.stn.layers import StnConv1d, StnConv2d, StnLinear, StnLSTMCell
from gated.stn.selftune import Left, SelfTuned, cutout, dropout, input_noise, scale_noise, selftune
from gated.stn.training import Recorded, Trainer

__all__ = [
    "Hyperparameter",
    "Hyperparameters",
    "Left",
    "Recorded",
    "SelfTuned",
    "StnConv1d",
    "StnConv2d",
    "StnLSTMCell",
    "StnLinear",
    "Trainer",
    "cutout",
    "dropout",
    "input_noise",
    "scale_noise",
    "selftune",
]
