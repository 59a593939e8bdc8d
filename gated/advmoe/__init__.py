"""Robust training of a CNN that chooses: expert-selecting convolutions, adversarial training in two levels, attacks.

    conv.py        one group of output channels for each input, by real dispatch; the gate's stand-in gradients
    routers.py     who decides; the norm behind the decision
    networks.py    networks whose every convolution chooses
    training.py    TRADES; routers and experts in turn, together, or as in the authors' program
    search.py      projected gradients and random search, which refuse to stand still
    attacks.py     four ways to attack a network that chooses, and their union
    exact.py       the exact margin for a linear router between linear experts
    measures.py    load, churn, and what the routes know
    published.py   multiply-adds of the published architectures

Paper: Zhang et al., "Robust Mixture-of-Expert Training for Convolutional Neural Networks", ICCV 2023
(arXiv 2308.10110).
"""

from gated.advmoe.attacks import (
    Panel,
    attack_panel,
    frozen_path_attack,
    path_attack,
    pathways,
    released_attack,
    route_attack,
    score_gap,
    search_attack,
    ste_attack,
    surrogate_attack,
)
from gated.advmoe.conv import MoEConv, expert_conv, top1
from gated.advmoe.exact import ExactMargin, LinearMoE, exact_margin
from gated.advmoe.measures import (
    churn,
    load_entropy,
    route_label_information,
    route_load,
    route_robustness,
    routes_of,
    with_router_of,
)
from gated.advmoe.networks import MoECNN, MoEResNet18, RoutedNetwork, Trace
from gated.advmoe.published import ARCHITECTURES, Costs, costs
from gated.advmoe.routers import ConstantRouter, LayerRouter, image_router, small_router
from gated.advmoe.search import Found, pgd, random_search
from gated.advmoe.training import (
    AttackError,
    Trades,
    advmoe_step,
    evaluating,
    joint_step,
    kl,
    optimizers,
    project,
    released_step,
    standard_step,
    trades_attack,
    trades_loss,
)

__all__ = [
    "ARCHITECTURES", "AttackError", "ConstantRouter", "Costs", "ExactMargin", "Found", "LayerRouter", "LinearMoE",
    "MoECNN", "MoEConv", "MoEResNet18", "Panel", "RoutedNetwork", "Trace", "Trades", "advmoe_step", "attack_panel",
    "churn", "costs", "evaluating", "exact_margin", "expert_conv", "frozen_path_attack", "image_router", "joint_step",
    "kl", "load_entropy", "optimizers", "path_attack", "pathways", "pgd", "project", "random_search",
    "released_attack", "released_step", "route_attack", "route_label_information", "route_load", "route_robustness",
    "routes_of", "score_gap", "search_attack", "small_router", "standard_step", "ste_attack", "surrogate_attack",
    "top1", "trades_attack", "trades_loss", "with_router_of",
]  # fmt: skip
