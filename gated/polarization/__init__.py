"""Gates that decide for each input while the network trains, are driven to say the same for all, and are cut away.

    losses.py     polarization and activation losses, and what they measure
    network.py    `GatedResNet`: one gate for each block, or for each group of channels
    cost.py       multiply-adds and parameters of what a gate switches, in closed form
    prune.py      `audit` of the consensus, `prune` to a plain network, and the slicing itself
    train.py      one pass: train, freeze at consensus or in time, go on
    theory.py     the gates alone: their flow, thresholds, and the gradients of their estimators
    study.py      the chapter's experiment: this way to half of a network beside others, at one budget

Paper: Zhi, Babbar, Liu, Sun, Silavong, Shi and Moran, "Learning a Consensus Sub-Network with Polarization
Regularization and One Pass Training" (arXiv 2302.10798, version 5). The losses and the gates here are our reading of
its abstract and of the family of methods; the certificate, the theory and the audit are our own derivations.
"""

from gated.polarization.cost import Costs, costs, gate_macs
from gated.polarization.losses import (
    Decomposition,
    activation_loss,
    decomposition,
    polarization_loss,
    target_rate_loss,
)
from gated.polarization.network import FreeGate, GatedOutput, GatedResNet, InputGate
from gated.polarization.prune import Audit, Pruned, Shift, audit, prune, slice_blocks, slice_channels
from gated.polarization.train import Evaluation, OnePass, StepLoss, evaluate, freeze_pattern, one_pass, train_step

__all__ = [
    "Audit",
    "Costs",
    "Decomposition",
    "Evaluation",
    "FreeGate",
    "GatedOutput",
    "GatedResNet",
    "InputGate",
    "OnePass",
    "Pruned",
    "Shift",
    "StepLoss",
    "activation_loss",
    "audit",
    "costs",
    "decomposition",
    "evaluate",
    "freeze_pattern",
    "gate_macs",
    "one_pass",
    "polarization_loss",
    "prune",
    "slice_blocks",
    "slice_channels",
    "target_rate_loss",
    "train_step",
]
