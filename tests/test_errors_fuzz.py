"""Every public name of the package is called with values that nobody meant: the answer is a ValueError or a TypeError
that names the argument, or a result, and never another exception or a silent broadcast.

For each name `usual` makes arguments that fit, from the annotations alone where that suffices (`GIVEN` holds the
others). Then Hypothesis exchanges one of them for a value that its annotation suggests.
"""

import atexit
import functools
import importlib
import inspect
import pkgutil
import re
import shutil
import tempfile
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gated
import gated.gaussian_moe.starts
import gated.gaussian_moe.truths
import gated.moe.convert
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


def modules() -> Iterator[types.ModuleType]:
    for found in pkgutil.walk_packages(gated.__path__, "gated."):
        if not re.search(r"\.(lab|gpu|inductor)\b", found.name):
            yield importlib.import_module(found.name)


def is_record(thing: type) -> bool:
    """A dataclass that only holds what a function found."""
    return hasattr(thing, "__dataclass_fields__") and not hasattr(thing, "__post_init__")


def public() -> dict[str, Callable]:
    """What `__all__` lists, or, in a module of its own, what it defines; not the records that functions return."""
    names: dict[str, Callable] = {}
    for module in modules():
        alone = module.__name__.count(".") == 1 and not hasattr(module, "__path__")
        own = [n for n, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", [n for n in own if n[0] != "_"] if alone else []):
            thing = getattr(module, name)
            if inspect.isfunction(thing) or (
                inspect.isclass(thing) and not issubclass(thing, tuple | Exception) and not is_record(thing)
            ):
                if thing in names.values():
                    continue
                names.setdefault(f"{module.__name__}.{name}".removeprefix("gated."), thing)
    return names


PUBLIC = public()


def hints(thing: Callable) -> dict[str, object]:
    function = thing.__init__ if inspect.isclass(thing) else thing
    found = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    if inspect.isclass(thing) and getattr(thing, "__dataclass_fields__", None):
        found = typing.get_type_hints(thing) | found
    return found


def arms(annotation: object) -> list[object]:
    """The members of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [each for arm in typing.get_args(annotation) for each in arms(arm)]
    return [annotation]


def is_array(annotation: object) -> bool:
    return inspect.isclass(annotation) and hasattr(annotation, "dim_str")


def tensor(annotation: object) -> Tensor:
    shape: list[int] = []
    for axis in annotation.dim_str.split():
        axis = axis.split("=")[-1].replace("#", "")
        shape += (
            [2] if axis.startswith("*") or axis == "..." else [AXES.get(axis, 3) if not axis.isdigit() else int(axis)]
        )
    kinds = str(annotation.dtypes)
    generator = torch.Generator().manual_seed(1)
    if "float" in kinds:
        return (
            torch.rand(shape, generator=generator, dtype=torch.float64 if "float32" not in kinds else None) * 0.8 + 0.1
        )
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
    "moe.core": lambda: moe.FFNExperts(4, 6, 8),
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
    "advmoe.Panel": lambda: {"clean": torch.ones(2, dtype=torch.bool), "found": {}},
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
    "jeidnn.Features": lambda: vars(exit_data()) if hasattr(exit_data(), "__dict__") else {},
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
    "kernels.gla.chunk_gla": lambda: {"g": -torch.rand(2, 7, 2, 4)},
    "kernels.gmoe_em.naive_gmoe_em": lambda: {
        "x": torch.rand(2, 9, 1),
        "y": torch.rand(2, 9),
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
    "ninformer.Network": lambda: {"block": lambda: ninformer.StaticGate(16, 32)},
    "ninformer.matched_depths": lambda: {"budget": ninformer.network("mixer", sizes(), 2)},
    "online_cbf.Arena": lambda: vars(crossing()),
    "online_cbf.arena": lambda: {"start": crossing().start, "goal": crossing().goal},
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
    "pregated.Decoded": lambda: {"active": [[0]], "guessed": [[0]]},
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


# What nobody meant: (a description, the value, whether only an error is right). ---

Case = tuple[str, str, object, bool]
SIGNED = {"seed", "start", "bias", "init"}  # whole numbers or positions that may be negative
# Rotary positions start at a size, which under tracing is no `int`: its kind is not looked at.
UNCHECKED = {("gla.rotate", "start")}
PRECISIONS = ("float64", "half")
NAN, INF = float("nan"), float("inf")


def axes_of(annotation: object) -> list[str]:
    return annotation.dim_str.split()


def shared(name: str, given: dict[str, object]) -> dict[str, int]:
    """In how many of the tensors given each axis stands."""
    count: dict[str, int] = {}
    for parameter, annotation in hints(PUBLIC[name]).items():
        array = next((arm for arm in arms(annotation) if is_array(arm)), None)
        if array is not None and isinstance(given.get(parameter), Tensor):
            for axis in {each for each in axes_of(array) if not each.isdigit()}:
                count[axis] = count.get(axis, 0) + 1
    return count


def hostile(name: str, given: dict[str, object]) -> Iterator[Case]:
    """Every exchange of one argument."""
    known, count = hints(PUBLIC[name]), shared(name, given)
    for parameter in inspect.signature(PUBLIC[name]).parameters.values():
        annotation = arms(known.get(parameter.name, object))
        for what, value, wrong in values(annotation, given.get(parameter.name), count, parameter.name in SIGNED):
            yield parameter.name, what, value, wrong


def values(
    annotation: list[object], now: object, count: dict[str, int], signed: bool
) -> Iterator[tuple[str, object, bool]]:
    plain = not {float, int, str, bool}.isdisjoint(annotation)
    if int in annotation and float not in annotation:
        yield from [("-3", -3, not signed), ("0", 0, False)] if not signed else []
        yield from [
            ("a bool", True, True),
            ("1.5", 1.5, True),
            ("nan", NAN, True),
            ("a word", "3", str not in annotation),
        ]
    elif float in annotation:
        yield from [
            ("nan", NAN, True),
            ("inf", INF, False),
            ("-inf", -INF, False),
            ("0", 0, False),
            ("-1.5", -1.5, False),
        ]
        yield from [("1e30", 1e30, False), ("a word", "1", True)]
    if any(typing.get_origin(arm) is typing.Literal for arm in annotation) or annotation == [str]:
        yield from [("an unknown word", "nonsense", annotation != [str]), ("a number", 3, annotation != [str])]
    arrays = [arm for arm in annotation if is_array(arm)]
    plain, numbers = plain and annotation != [str], re.compile(r"(Sequence|tuple)\[(int|float)")
    if (
        (arrays or plain or isinstance(now, Tensor))
        and torch.device not in annotation
        and type(None) not in annotation
        and bool not in annotation
    ):
        yield "None", None, True
    if arrays and isinstance(now, Tensor):
        yield from changed(now, axes_of(arrays[0]), count, len(arrays) == 1 and not plain)
    if any(numbers.search(str(arm)) for arm in annotation) and not isinstance(now, Tensor):
        yield from [
            ("()", (), False),
            ("(-1,)", (-1,), False),
            ("(nan, nan)", (NAN, NAN), False),
            ("a word", "ab", False),
        ]


def changed(now: Tensor, axes: list[str], count: dict[str, int], alone: bool) -> Iterator[tuple[str, object, bool]]:
    """Tensors of other shapes, dtypes and contents."""
    yield from [("a list", now.tolist(), False), ("strided", torch.stack([now, now], -1)[..., 0], False)]
    yield from [("int64", now.long(), False), ("float64", now.double(), False), ("bool", now.bool(), False)]
    yield "half", now.half(), False
    if now.is_floating_point():
        yield from [("nan", now * NAN, False), ("inf", now * INF, False), ("negative", -now, False)]
    else:
        yield from [("too large", now.long() + 10**6, False), ("negative", now.long() - 10**6, False)]
    fixed = not any(axis.lstrip("#").startswith("*") or axis == "..." for axis in axes)
    yield "one axis more", now[None].expand(3, *now.shape), alone and fixed
    if now.ndim:
        yield "one axis less", now[0], alone and fixed
    for i in range(now.ndim):
        axis = axes[i] if fixed and i < len(axes) else axes[0] if i < now.ndim - len(axes) + 1 else axes[i - now.ndim]
        tied = alone and now.shape[i] > 1 and (axis.isdigit() or count.get(axis, 0) > 1) and "#" not in axis
        yield f"axis {i} of size 1", now.narrow(i, 0, min(1, now.shape[i])), tied
        yield f"axis {i} longer", torch.cat([now, now], i), tied
        yield f"axis {i} empty", now.narrow(i, 0, 0), tied


def verdict(name: str, case: Case) -> str | None:
    """What is wrong with the answer, or None."""
    parameter, _, value, wrong = case
    thing = PUBLIC[name]
    given = usual(name)
    # a hyperparameter speaks of itself by the name that it was given
    names = "|".join(map(re.escape, [*inspect.signature(thing).parameters, str(given.get("name", "name"))]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            thing(**given | {parameter: value})
    except ValueError as error:
        return None if re.search(rf"\b({names})\b", str(error)) else f"names no argument: {error!r}"
    except TypeError:
        return None  # what Python or PyTorch says of a wrong kind is clear
    except Exception as error:
        if isinstance(error, AttributeError) and (value is None or isinstance(value, str | list)):
            return None
        if "torch.distributed is not initialised" in str(error):
            return None  # said by what works only among several processes
        if (
            isinstance(error, RuntimeError)
            and re.search(r"dtype|scalar type|weight type|not implemented for", str(error))
            and case[1] in PRECISIONS
        ):
            return None  # PyTorch refuses to mix precisions, as `nn.Linear` does; autocast mixes them
        return None if type(error).__module__.startswith("gated") else f"raises {error!r}"
    return "is taken" if wrong else None


CONSTRUCTORS = [name for name, thing in PUBLIC.items() if inspect.isclass(thing)]
FUNCTIONS = [name for name in PUBLIC if name not in CONSTRUCTORS]
# Functions that still answer one of these values with an error of PyTorch, or take it, and why: none is known.
OPEN: dict[str, str] = {}
# A kernel's definition (`naive_...`) is its formula and nothing else: the operator beside it checks.
EXAMINED = [name for name in PUBLIC if name not in OPEN and ".naive_" not in name]


@pytest.mark.parametrize("name", EXAMINED)
def test_bad_values_are_refused_by_name(name):
    given = usual(name)
    cases = [case for case in hostile(name, given) if (name, case[0]) not in UNCHECKED]

    @settings(max_examples=7, derandomize=True, database=None, deadline=None)
    @hypothesis_given(st.sampled_from(cases or [("", "", None, False)]))
    def one(case: Case) -> None:
        wrong = verdict(name, case) if cases else None
        assert wrong is None, f"{name}({case[0]}: {case[1]}) {wrong}"

    one()


def test_what_is_open_still_exists():
    assert set(OPEN) <= set(FUNCTIONS)
    assert all(OPEN.values())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_arguments_that_fit(name):
    """A new public name needs an entry above where its annotations do not say enough."""
    inspect.signature(PUBLIC[name]).bind(**usual(name))
