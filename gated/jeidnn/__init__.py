"""Exits and gates learned together on a frozen network (JEI-DNN), with real early stop.

Source: Regol, Chataoui & Coates 2024, arXiv 2310.09163.

    exits        gates to a distribution over exits; the hard rule; expected cost
    labels       what the gates are taught, how the inference modules are weighted
    network      exits on any backbone by hooks; a batch that shrinks as samples leave; costs in multiply-adds
    policies     who leaves: gates, thresholds, patience, a plan
    training     warm-up, gate phase, head phase, alternation, on features computed once
    baselines    thresholds, quotas, patience, chance, mixtures, oracle; curves at equal cost
    calibration  calibration error, reliability, temperature, conformal sets, bias at exits
    stopping     optimal stopping, and worlds solved by hand
    mlp          a residual MLP to try it on
    study        the chapter's comparison, seed by seed
"""

from gated.jeidnn.baselines import (
    Tally,
    at_cost,
    concave_hull,
    geometric_quotas,
    oracle_exit,
    patience_exit,
    quota_thresholds,
    random_exit_accuracy,
    tally,
    threshold_exit,
)
from gated.jeidnn.calibration import (
    brier,
    calibration_error,
    conformal_quantile,
    conformal_sets,
    conformal_thresholds,
    exit_bias,
    fit_temperature,
    reliability,
    set_quality,
)
from gated.jeidnn.exits import (
    conditional_gates,
    exit_distribution,
    expected_cost,
    hard_exit,
    objective,
    remaining_mass,
)
from gated.jeidnn.labels import (
    exit_labels,
    exit_losses,
    gate_loss,
    gate_targets,
    inference_loss,
    positive_weights,
    regret,
)
from gated.jeidnn.mlp import ResidualMLP
from gated.jeidnn.network import Answer, ExitNetwork, Features, released_exit_count, transformer_exit_macs
from gated.jeidnn.policies import (
    GatePolicy,
    PatiencePolicy,
    PlanPolicy,
    ThresholdPolicy,
    UncertaintyGate,
    score,
    uncertainty,
)
from gated.jeidnn.stopping import (
    accuracy_when_continuing,
    beta_bernoulli_chain,
    calibrated_two_exits,
    expected_maximum,
    optimal_stopping,
    selection_bias,
)
from gated.jeidnn.training import alternate, gate_phase, head_phase, joint_loss, warm_up

__all__ = [
    "Answer", "ExitNetwork", "Features", "GatePolicy", "PatiencePolicy", "PlanPolicy", "ResidualMLP", "Tally",
    "ThresholdPolicy", "UncertaintyGate", "accuracy_when_continuing", "alternate", "at_cost", "beta_bernoulli_chain",
    "brier", "calibrated_two_exits", "calibration_error", "concave_hull", "conditional_gates",
    "conformal_quantile", "conformal_sets", "conformal_thresholds", "exit_bias", "exit_distribution", "exit_labels",
    "exit_losses", "expected_cost", "expected_maximum", "fit_temperature", "gate_loss", "gate_phase",
    "gate_targets", "geometric_quotas", "hard_exit", "head_phase", "inference_loss", "joint_loss", "objective",
    "optimal_stopping", "oracle_exit", "patience_exit", "positive_weights", "quota_thresholds",
    "random_exit_accuracy", "regret", "released_exit_count", "reliability", "remaining_mass", "score",
    "selection_bias", "set_quality", "tally", "threshold_exit", "transformer_exit_macs", "uncertainty", "warm_up",
]  # fmt: skip
