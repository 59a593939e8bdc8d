"""Arguments that fit, for every public name of the package: from the annotations alone where these suffice, else from
the tables here. `tests/test_errors_fuzz.py` exchanges them one by one."""

import atexit
import functools
import inspect
import shutil
import tempfile
import types
import typing
from collections.abc import Callable
from pathlib import Path

import torch
from public_names import PUBLIC, arms, hints, is_array
from torch import Tensor, nn

from gated import (
    advmoe,
    backbones,
    commformer,
    gates,
    gaussian_moe,
    gla,
    jeidnn,
    langevinflow,
    moe,
    ninformer,
    online_cbf,
    polarization,
    pregated,
    stn,
)
from gated.kernels import gmoe_em

AXES = {"batch": 2, "experts": 4, "num_experts": 4, "gates": 4, "exits": 5, "features": 6, "dim": 6, "two_dim": 12}
AXES |= {"tokens": 5, "classes": 3, "time": 7, "heads": 2, "key": 4, "value": 3, "k": 2, "agents": 3, "2": 2}


def tensor(annotation: object) -> Tensor:
    shape: list[int] = []
    for axis in annotation.dim_str.split():
        axis = axis.split("=")[-1].replace("#", "")
        size = AXES.get(axis, 3) if not axis.isdigit() else int(axis)
        shape.append(2 if axis.startswith("*") or axis == "..." else size)
    kinds = str(annotation.dtypes)
    if "float" in kinds:
        dtype = torch.float64 if "float32" not in kinds else None
        return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=dtype) * 0.8 + 0.1
    return torch.zeros(shape, dtype=torch.bool if "bool" in kinds else torch.int64)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def rising(n: int = 5) -> Tensor:
    return torch.arange(1, n + 1) / n


# What annotations alone do not say: an object of a class, a callable, values with a relation among themselves. ---

X, Y = torch.rand(2, 1, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 2])
IMAGES, FEATURES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.zeros(5, 6)
SPIKES = torch.ones(2, 8, 3)
F64 = torch.float64


def routed() -> nn.Module:
    return advmoe.MoECNN(1, 3, widths=(4, 4), strides=(1, 2), kernel_size=3).eval()


def globally() -> nn.Module:
    return advmoe.MoECNN(1, 3, widths=(4, 4), strides=(1, 2), kernel_size=3, routing="global").eval()


def sgd(model: nn.Module | None = None) -> torch.optim.Optimizer:
    return torch.optim.SGD((model or nn.Linear(2, 2)).parameters(), lr=0.1)


def steps(model: nn.Module) -> dict[str, object]:
    experts, routers = advmoe.optimizers(model)
    return {"model": model, "experts": experts, "routers": routers, "trades": advmoe.Trades(0.1, steps=1)}


def attack() -> dict[str, object]:
    return {"model": routed(), "x": X, "y": Y, "eps": 0.1}


def classes() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 3))


def resnet() -> nn.Module:
    return backbones.ResNet((1, 1), (4, 8), in_channels=1, num_classes=3)


def gated_resnet() -> nn.Module:
    return polarization.GatedResNet(resnet(), hidden=4)


def switch() -> nn.Module:
    gate = moe.gates.SoftmaxTopKGate(moe.gates.LinearScore(6, 4), 1)
    return moe.MoE(gate, moe.FFNExperts(4, 6, 8))


def mixtral() -> nn.Module:
    gate = moe.gates.TopKGate(moe.gates.LinearScore(6, 4), 2)
    return moe.MoE(gate, moe.FFNExperts(4, 6, 8, activation="silu", gated=True))


def moe_layer() -> nn.Module:
    return moe.MoE(moe.gates.TopKGate(moe.gates.LinearScore(6, 4), 2), moe.FFNExperts(4, 6, 8))


def exits() -> nn.Module:
    return jeidnn.ExitNetwork(jeidnn.ResidualMLP(3, 5, dim=4, depth=3), torch.zeros(4, 3))


def exit_data() -> object:
    return exits().features(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))


def mixture() -> dict[str, object]:
    x = gaussian_moe.truths.uniform(gaussian_moe.truths.UNIT, 40, generator=rng())
    points = gmoe_em.Points.pack(x, gaussian_moe.truths.DENSE.sample(x, rng()), torch.tensor([0, 20, 40]))
    return {"points": points, "start": gaussian_moe.starts.near(gaussian_moe.truths.DENSE, 2, 0.01, rng())}


def decoder(look_ahead: int = 1) -> nn.Module:
    return pregated.PreGatedDecoder(5, 8, 16, 2, 4, look_ahead=look_ahead, heads=2, context=6, generator=rng())


@functools.cache
def store() -> object:
    path = Path(tempfile.mkdtemp(prefix="gated-fuzz-")) / "experts"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    pregated.write_experts([layer.experts for layer in decoder().layers], path)
    return pregated.ExpertStore(path)


def tier() -> object:
    return pregated.FastTier(store(), 8 * store().expert_bytes)


def sizes() -> object:
    return ninformer.DIGITS


def crossing() -> object:
    return online_cbf.crossing(2, generator=rng())


def far() -> Tensor:
    return torch.full((2, 1, 2), 99.0, dtype=F64)


def trajectory() -> object:
    return online_cbf.rollout(crossing(), online_cbf.constant(2.0), steps=4)


def hyper() -> object:
    return stn.Hyperparameters([stn.Hyperparameter("rate", 0, 0.9, 0.3)])


def tuned() -> nn.Module:
    return stn.selftune(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), nn.Linear(4, 3)), hyper(), rates={"1": "rate"})


# By the parameter's name, within a package; then by the whole name.
MADE: dict[str, Callable[[], object]] = {
    "advmoe.model": routed,
    "advmoe.optimizer": sgd,
    "advmoe.router": lambda: (torch.ones(6), torch.tensor(0.0)),
    "advmoe.experts": lambda: (torch.ones(2, 6), torch.zeros(2)),
    "advmoe.trades": lambda: advmoe.Trades(0.1, steps=1),
    "advmoe.batch": lambda: (X, Y),
    "advmoe.router_batch": lambda: (X, Y),
    "advmoe.expert_batch": lambda: (X, Y),
    "jeidnn.network": exits,
    "jeidnn.batch": exit_data,
    "jeidnn.train": exit_data,
    "jeidnn.validation": exit_data,
    "jeidnn.costs": rising,
    "jeidnn.quotas": lambda: torch.full((5,), 0.2),
    "jeidnn.rates": lambda: torch.full((5,), 0.2),
    "langevinflow.gradient": lambda: lambda z: z,
    "langevinflow.hessian": lambda: torch.eye(6, dtype=F64),
    "moe.score": lambda: moe.gates.LinearScore(6, 4),
    "moe.gate": lambda: moe.gates.TopKGate(moe.gates.LinearScore(6, 4), 2),
    "moe.experts": lambda: moe.FFNExperts(4, 6, 8),
    "moe.routing": lambda: moe.gates.TopKGate(moe.gates.LinearScore(6, 4), 2)(FEATURES),
    "moe.layer": moe_layer,
    "moe.schedule": lambda: gates.constant_schedule(1.0),
    "gates.schedule": lambda: gates.constant_schedule(1.0),
    "ninformer.sizes": sizes,
    "ninformer.grid": lambda: (2, 3),
    "online_cbf.a": crossing,
    "online_cbf.state": lambda: online_cbf.initial_state(crossing(), online_cbf.SafetyFilter()),
    "online_cbf.rule": lambda: online_cbf.SafetyFilter(),
    "online_cbf.zeta": lambda: torch.full((2, 4, 2), 2.0, dtype=F64),
    "online_cbf.tuner": lambda: online_cbf.GraphTuner(width=4, generator=rng()),
    "online_cbf.problems": lambda: lambda *_: crossing(),
    "online_cbf.trajectory": trajectory,
    "online_cbf.policy": lambda: online_cbf.constant(2.0),
    "polarization.model": gated_resnet,
    "polarization.net": resnet,
    "polarization.loader": lambda: [(IMAGES, Y)],
    "pregated.model": decoder,
    "pregated.store": store,
    "pregated.tier": tier,
    "stn.hyperparameters": hyper,
}
GIVEN: dict[str, Callable[[], dict[str, object]]] = {
    "advmoe.exact_margin": lambda: {"y": torch.tensor([-1, 1])},
    "advmoe.frozen_path_attack": lambda: attack() | {"steps": 1, "eps": 0.5},
    "advmoe.released_attack": lambda: attack() | {"model": globally()},
    "advmoe.advmoe_step": lambda: steps(routed()),
    "advmoe.released_step": lambda: steps(globally()),
    "advmoe.attack_panel": lambda: attack() | {"steps": 1, "restarts": 1, "queries": 2},
    "advmoe.costs": lambda: {"name": "ResNet-18"},
    "advmoe.pgd": lambda: {
        "objective": lambda x, rows: x.flatten(1).sum(1),
        "broken": lambda x, rows: x.flatten(1)[:, 0] > 9,
        "x": X,
        "steps": 1,
    },
    "advmoe.project": lambda: {"x_adv": X + 1, "x": X},
    "advmoe.random_search": lambda: {"margin": lambda x, rows: x.flatten(1).sum(1), "x": X, "queries": 2},
    "advmoe.routes_of": lambda: {"x": X},
    "advmoe.route_robustness": lambda: {"x": X, "steps": 1},
    "advmoe.pathways": lambda: {"x": X},
    "advmoe.route_attack": lambda: {"x": X},
    "advmoe.trades_attack": lambda: {"x": X},
    **{f"advmoe.{name}_attack": attack for name in ("path", "search", "ste", "surrogate")},
    "advmoe.with_router_of": lambda: {"model": routed(), "donor": routed()},
    "backbones.macs": lambda: {"model": nn.Linear(3, 2), "input": torch.zeros(1, 3)},
    "backbones.ResNet": lambda: {"blocks_per_stage": (1, 1), "widths": (4, 8)},
    "commformer.Arm": lambda: {"name": "one"},
    "commformer.Cohort": lambda: {
        "build": lambda seed: commformer.CommFormer(3, 5, 2, width=8, seed=seed),
        "arms": [commformer.Arm("one")],
        "seeds": [0],
    },
    "commformer.ValueNorm": lambda: {"like": torch.zeros(2)},
    "commformer.graph_from_indices": lambda: {"senders_of": [[1], [2], [0]]},
    "commformer.relation_attention": lambda: {
        "q": torch.rand(2, 3, 4),
        "own": (torch.rand(2, 3, 4),) * 2,
        "others": (torch.rand(2, 3, 4),) * 2,
        "relation": torch.rand(2, 8),
        "links": torch.ones(2, 3, 3),
    },
    "commformer.released_attention": lambda: {
        "q": torch.rand(2, 3, 4),
        "k": torch.rand(2, 3, 4),
        "v": torch.rand(2, 3, 4),
        "relation": torch.rand(2, 8),
        "graph": torch.ones(2, 3, 3),
    },
    "gaussian_moe.fit": lambda: mixture() | {"max_iterations": 2},
    "gla.GatedLinearAttention": lambda: {"dim": 8, "heads": 2},
    "gla.SoftmaxAttention": lambda: {"dim": 8, "heads": 2},
    "gla.Block": lambda: {"dim": 8, "mixer": gla.SoftmaxAttention(8, 2)},
    "gla.check_input": lambda: {"x": torch.zeros(1, 3, 6), "mode": "chunk"},
    "jeidnn.ExitNetwork": lambda: {"backbone": jeidnn.ResidualMLP(3, 5, dim=4, depth=3), "example": torch.zeros(4, 3)},
    "jeidnn.Features": lambda: {name: getattr(exit_data(), name) for name in ("z", "last", "y")},
    "jeidnn.GatePolicy": lambda: {"gates": exits().gates},
    "jeidnn.accuracy_when_continuing": lambda: {"shares": [0.5, 0.5], "first": [0.6, 0.8], "second": [0.7, 0.9]},
    "jeidnn.at_cost": lambda: {"costs": [0.2, 1.0], "values": [0.5, 0.9]},
    "jeidnn.concave_hull": lambda: {"costs": [0.2, 1.0], "values": [0.5, 0.9]},
    "jeidnn.alternate": lambda: {"epochs": 1},
    "jeidnn.warm_up": lambda: {"epochs": 1},
    "jeidnn.joint_loss": lambda: {"x": torch.zeros(4, 3), "y": torch.zeros(4, dtype=torch.int64)},
    "jeidnn.gate_loss": lambda: {
        "gate_logits": torch.zeros(2, 4),
        "targets": jeidnn.gate_targets(torch.tensor([0, 4]), 5),
    },
    "jeidnn.optimal_stopping": lambda: {"transitions": torch.full((4, 3, 3), 1 / 3)},
    "kernels.barrier_qp.barrier_qp": lambda: {"c": torch.rand(2, 2), "d": torch.rand(2)},
    "kernels.gla.chunk_gla": lambda: {"g": -torch.rand(2, 7, 2, 4)},
    "kernels.gmoe_em.naive_gmoe_em": lambda: {
        "x": torch.rand(2, 9, 1, dtype=F64),
        "y": torch.rand(2, 9, dtype=F64),
        "top_k": 2,
        "rank": "logit",
        "activation": "identity",
        **{name: getattr(mixture()["start"], name) for name in ("beta0", "beta1", "a", "b", "variance", "tau")},
    },
    "kernels.gmoe_em.gmoe_em": lambda: (
        {"points": mixture()["points"]}
        | {name: getattr(mixture()["start"], name) for name in ("beta0", "beta1", "a", "b", "variance", "tau")}
    ),
    "kernels.grouped_gemm.grouped_gemm": lambda: {"offsets": torch.tensor([0, 1, 2, 3])},
    "kernels.grouped_gemm.naive_grouped_gemm": lambda: {
        "x": torch.rand(3, 3),
        "weight": torch.rand(3, 3, 3),
        "offsets": torch.tensor([0, 1, 2, 3]),
    },
    "kernels.langevin_scan.langevin_scan": lambda: {"decay": 0.5},
    "kernels.langevin_scan.naive_langevin_scan": lambda: {"decay": 0.5},
    "langevinflow.ConvPotential": lambda: {"dim": 8},
    "langevinflow.Trainer": lambda: {"model": langevinflow.GRUVae(3, 3, 8, dim=4), "spikes": SPIKES, "targets": SPIKES},
    "langevinflow.predict": lambda: {"model": langevinflow.GRUVae(3, 3, 8, dim=4), "spikes": SPIKES},
    "langevinflow.match_parameters": lambda: {"build": lambda width: nn.Linear(width, 1, bias=False), "target": 10},
    "langevinflow.stationary_covariance": lambda: {"step": 0.1},
    "langevinflow.split_moments": lambda: {"covariance": torch.eye(12, dtype=F64)},
    "moe.Capacity": lambda: {"factor": 1.5},
    "moe.ResidualExperts": lambda: {"core": moe.FFNExperts(1, 6, 8)},
    "moe.convert.switch_state": lambda: {"layer": switch()},
    "moe.expert_parallel.synchronise_gradients": lambda: {"module": nn.Linear(2, 2)},
    "moe.MixtureOfHeads": lambda: {"head_dim": 2},
    "moe.ModuleExperts": lambda: {"modules": [nn.Linear(6, 6), nn.Linear(6, 6)]},
    "moe.SharedExpert": lambda: {"shared": nn.Linear(6, 6)},
    "moe.slots_dispatch": lambda: {"routing": moe.gates.SoftMoEGate(6, 4)(FEATURES)},
    "moe.capacity_dispatch": lambda: {"routing": moe.limit(moe_layer().gate(FEATURES), 2)},
    "moe.convert.mixtral_layer": lambda: {"state": moe.convert.mixtral_state(mixtral())},
    "moe.convert.mixtral_state": lambda: {"layer": mixtral()},
    "moe.convert.switch_layer": lambda: {"state": moe.convert.switch_state(switch())},
    "ninformer.GMLPBlock": lambda: {"hidden": 4},
    "ninformer.Network": lambda: {"block": lambda: ninformer.StaticGate(16, 32)},
    "ninformer.matched_depths": lambda: {"budget": ninformer.network("mixer", sizes(), 2)},
    "online_cbf.Arena": lambda: vars(crossing()),
    "online_cbf.arena": lambda: {"start": crossing().start, "goal": crossing().goal, "obstacle": far()},
    "online_cbf.closest": lambda: {"position": crossing().start},
    "online_cbf.cross_entropy": lambda: {"score": lambda pairs: pairs.sum(1)},
    "online_cbf.descend": lambda: {"iterations": 1, "horizon": 5},
    "online_cbf.ppo": lambda: {"iterations": 1, "epochs": 1},
    "online_cbf.grid_search": lambda: {"pairs": ((2.0, 1.0),)},
    "online_cbf.join": lambda: {"arenas": [crossing(), crossing()]},
    "online_cbf.rollout": lambda: {"steps": 3},
    "online_cbf.log_uniform": lambda: {"size": (2,), "low": 0.5, "high": 2.0},
    "online_cbf.random_strengths": lambda: {"low": 0.5, "high": 2.0},
    "online_cbf.class_k": lambda: {"zeta": 2.0},
    "policy_gradient.advantages": lambda: {"value": torch.rand(8, 2, 3)},
    "polarization.Shift": lambda: {"shortcut": backbones.Shortcut(3, 3)},
    "polarization.costs": lambda: {"height": 8, "width": 8},
    "polarization.slice_blocks": lambda: {"keep": [True, True]},
    "polarization.slice_channels": lambda: {"keep": [[True] * 4, [True] * 8]},
    "polarization.one_pass": lambda: {"optimizer": sgd(), "batches": [(IMAGES, Y)], "held_out": IMAGES, "steps": 1},
    "polarization.train_step": lambda: {"optimizer": sgd(), "x": IMAGES, "y": Y},
    "pregated.ExpertStore": lambda: {"path": store().path},
    "pregated.FastTier": lambda: {"budget_bytes": 8 * store().expert_bytes},
    "pregated.Fetcher": lambda: {"backend": pregated.ThreadCopy(store())},
    "pregated.PreGatedDecoder": lambda: {"vocab": 5, "dim": 8, "hidden": 16, "blocks": 2, "heads": 2, "context": 6},
    "pregated.StreamCopy": lambda: {
        "device": "cpu",
        "pinned": False,
        "cuda": types.SimpleNamespace(Stream=lambda device: None),
    },
    "pregated.balance_loss": lambda: {"routes": decoder()(torch.zeros(1, 3, dtype=torch.int64))[1]},
    "pregated.rewire": lambda: {"model": decoder(0), "look_ahead": 1},
    "pregated.write_experts": lambda: {"layers": [decoder().layers[0].experts], "path": store().path.parent / "other"},
    "pregated.budget_needed": lambda: {"design": "on_demand"},
    "pregated.decode": lambda: {"tokens": torch.zeros(1, 3, dtype=torch.int64), "design": "resident"},
    "stn.Hyperparameter": lambda: {"name": "rate", "low": 0, "high": 0.9, "start": 0.3},
    "stn.Hyperparameters": lambda: {"hyperparameters": [stn.Hyperparameter("rate", 0, 0.9, 0.3)]},
    "stn.Trainer": lambda: {
        "model": tuned(),
        "train": (torch.rand(8, 3), torch.zeros(8, dtype=torch.int64)),
        "batch": 4,
    },
    "stn.SelfTuned": lambda: {"net": tuned().net, "source": tuned().source, "replaced": [], "left": []},
    "stn.selftune": lambda: {"module": nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1))},
}


def usual(name: str) -> dict[str, object]:
    """Arguments that fit: those without a default, and generators."""
    thing = PUBLIC[name]
    given, known = dict(GIVEN.get(name, dict)()), hints(thing)
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.name in given or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        annotation = arms(known.get(parameter.name, object))
        if torch.Generator in annotation:
            given[parameter.name] = rng()
        elif parameter.default is parameter.empty:
            made = MADE.get(f"{name.split('.')[0]}.{parameter.name}")
            given[parameter.name] = made() if made else fitting(parameter.name, annotation[0])
    return given


def fitting(name: str, annotation: object) -> object:
    if is_array(annotation):
        return tensor(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)[0]
    plain = {int: AXES.get(name, 3), float: 0.5, bool: False}
    if annotation in plain:
        return plain[annotation]
    raise LookupError(f"no value for {name}: {annotation}")
