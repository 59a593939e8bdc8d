"""Every module of the package is given tensors that do not fit: the answer is a ValueError that names an argument of
`forward`, or a result whose shape is the one that the annotations promise, and never a silent broadcast.

`fitting_inputs` gives tensors that fit the module that `usual` makes. Then each axis of each is exchanged: of size 1,
longer, missing, one too many; and the kind of number.
"""

import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from jaxtyping import jaxtyped
from public_names import PUBLIC, arms, hints, is_array, subject
from torch import Tensor, nn
from usual_arguments import MADE, rng, tensor, tuned, usual

from gated import online_cbf


def has_forward(thing: object) -> bool:
    return inspect.isclass(thing) and issubclass(thing, nn.Module) and thing.forward is not nn.Module.forward


# A class to derive from: what its own `forward` does needs what the derived class sets up.
ABSTRACT = {"advmoe.RoutedNetwork"}
WITHOUT_INPUTS = {"gates.HardConcrete"}
MODULES = {name: thing for name, thing in PUBLIC.items() if has_forward(thing) and name not in ABSTRACT}


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=rng()) * 0.8 + 0.1


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


# What the annotations of `forward` do not say: sizes that the module was made with, and what may be left out.
GIVEN: dict[str, Callable[[], dict[str, object]]] = {
    "advmoe.LinearMoE": lambda: {"x": rand(2, 6)},
    "advmoe.MoEConv": lambda: {"x": rand(2, 3, 5, 5)},
    "advmoe.MoEResNet18": lambda: {"x": rand(2, 3, 8, 8)},
    "commformer.CommFormer": lambda: {
        "action": torch.tensor([[0, 1, 2], [2, 0, 1]]),
        "receive": rand(2, 3),
        "noise": rand(2, 3, 3),
        "receive_noise": rand(2, 3),
    },
    "gla.GatedLinearAttention": lambda: {"x": rand(2, 7, 8)},
    "gla.SoftmaxAttention": lambda: {"x": rand(2, 7, 8)},
    "gla.Block": lambda: {"x": rand(2, 7, 8)},
    "jeidnn.ExitNetwork": lambda: {"x": rand(4, 3)},
    "jeidnn.ResidualMLP": lambda: {"x": rand(4, 3)},
    "langevinflow.Encoder": lambda: {"bins": 4},
    "moe.Capacity": lambda: {"x": rand(5, 6), "mask": ones(5, 4)},
    "moe.ExpertDropout": lambda: {"x": rand(5, 6), "mask": ones(5, 4)},
    "moe.MoE": lambda: {"mask": ones(2, 4)},
    "moe.SharedExpert": lambda: {"mask": ones(2, 4)},
    "moe.FFNExperts": lambda: {"rows": rand(3, 6), "offsets": torch.tensor([0, 1, 2, 3, 3])},
    "moe.LinearExperts": lambda: {"rows": rand(3, 6), "offsets": torch.tensor([0, 1, 2, 3, 3])},
    "moe.ModuleExperts": lambda: {"rows": rand(3, 6), "offsets": torch.tensor([0, 1, 3])},
    "moe.ResidualExperts": lambda: {"rows": rand(3, 6), "offsets": torch.tensor([0, 1, 2, 3, 3])},
    "ninformer.FlatMLP": lambda: {"x": rand(2, 1, 8, 8)},
    "ninformer.LocalMLP": lambda: {"x": rand(2, 6, 6)},
    "ninformer.LocalViTBlock": lambda: {"x": rand(2, 6, 6)},
    "ninformer.Network": lambda: {"x": rand(2, 1, 8, 8)},
    "online_cbf.GraphTuner": lambda: {name: MADE[f"online_cbf.{name}"]() for name in ("a", "state")},
    "online_cbf.Neighbourhood": lambda: {
        "seen": online_cbf.observe(*(MADE[f"online_cbf.{name}"]() for name in ("a", "state")))
    },
    "polarization.GatedResNet": lambda: {"x": rand(2, 1, 8, 8)},
    "pregated.PreGatedDecoder": lambda: {"tokens": torch.zeros(2, 4, dtype=torch.int64)},
    "stn.SelfTuned": lambda: {"x": rand(4, 3), "raw": rand(4, 1)},
    "stn.StnConv1d": lambda: {"x": rand(2, 3, 5), "raw": rand(2, 3)},
    "stn.StnConv2d": lambda: {"x": rand(2, 3, 5, 5), "raw": rand(2, 3)},
    "stn.StnLSTMCell": lambda: {"x": rand(2, 3), "raw": rand(2, 3)},
    "stn.StnLinear": lambda: {"x": rand(2, 4, 3), "raw": rand(2, 3)},
}
# Axes that no weight fixes, and where the same name does stand for a size that the module was made with.
FREE = {"batch", "*batch", "rows", "tokens", "time", "trials", "bins", "observed_bins", "..."}
FREE |= {"height", "width", "*space", "*places", "*rest"}
FIXED = {
    "ninformer.GMLPBlock": {"tokens"},
    "ninformer.LocalMLP": {"tokens"},
    "ninformer.LocalViTBlock": {"tokens"},
    "ninformer.MixerBlock": {"tokens"},
    "ninformer.NiNBlock": {"tokens"},
    "ninformer.SpatialGate": {"tokens"},
    "ninformer.StaticGate": {"tokens"},
}
LOOSE = {
    "advmoe.ConstantRouter": {"channels"},
    "commformer.ReceiveGate": {"agents"},
    "gates.DenseToSparseGate": {"gates"},
    "jeidnn.UncertaintyGate": {"classes", "dim"},
    "moe.baselines.RandomGate": {"features"},
    "ninformer.FourierGate": {"dim"},
    "polarization.FreeGate": {"channels"},
}
# An answer of PyTorch's own: whose, what, and why it is right.
EXCUSED = {
    "moe.ModuleExperts": (r"mat1 and mat2", "the modules are the caller's, and say by themselves what they take"),
    "stn.StnConv1d": (r"Kernel size can't be greater", "a convolution says that its kernel is larger than the signal"),
    "stn.StnConv2d": (r"Kernel size can't be greater", "the same of an image"),
}


class Exchange(NamedTuple):
    parameter: str
    what: str
    value: object
    axis: str | None


def is_float64(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


def fitting_inputs(name: str) -> dict[str, object]:
    forward, given = MODULES[name].forward, dict(GIVEN.get(name, dict)())
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        annotation = arms(hints(forward).get(parameter.name, object))
        if parameter.name not in given and (parameter.default is parameter.empty or parameter.name == "mask"):
            value = tensor(annotation[0]) if is_array(annotation[0]) else None
            value = torch.ones_like(value) if parameter.name == "mask" and value is not None else value
            given[parameter.name] = value.float() if is_float64(value) else value
    return given


def exchanges(name: str, given: dict[str, object]) -> Iterator[Exchange]:
    known = hints(MODULES[name].forward)
    for parameter, value in given.items():
        if isinstance(value, Tensor):
            for what, new, axis in changed(value, axes_of(known.get(parameter, object))):
                yield Exchange(parameter, what, new, axis)
        for field in getattr(value, "_fields", ()):  # a record: of each of its tensors
            part, annotation = getattr(value, field), typing.get_type_hints(type(value), include_extras=True)[field]
            for what, new, axis in changed(part, axes_of(annotation)) if isinstance(part, Tensor) else ():
                yield Exchange(f"{parameter}.{field}", what, value._replace(**{field: new}), axis)


def axes_of(annotation: object) -> list[str]:
    array = next((arm for arm in arms(annotation) if is_array(arm)), None)
    return array.dim_str.replace("#", "").split() if array else []


def changed(now: Tensor, axes: list[str]) -> Iterator[tuple[str, Tensor, str | None]]:
    star = next((i for i, axis in enumerate(axes) if axis.startswith("*") or axis == "..."), len(axes))
    many = now.ndim - len(axes) + 1
    names = axes[:star] + axes[star : star + 1] * many + axes[star + 1 :] if star < len(axes) else axes
    names = names or ["..."] * now.ndim
    for i, axis in enumerate(names):
        if now.shape[i] > 1:
            yield f"axis {i} of size 1", now.narrow(i, 0, 1), axis
        if now.shape[i]:
            yield f"axis {i} longer", torch.cat([now, now], i), axis
    yield "one axis less", now[0], None
    yield "one axis more", now[None].expand(2, *now.shape), None
    yield "another kind", now.long() if now.is_floating_point() else now.float(), None


@functools.cache
def made(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (tuned() if name == "stn.SelfTuned" else MODULES[name](**usual(name))).eval()


def fits(name: str, given: dict[str, object], result: object) -> bool:
    """Whether inputs and result have, together, the shapes of the annotations."""
    known = hints(MODULES[name].forward)
    with jaxtyped("context"):
        arrays = [(given[p], known[p]) for p in given if isinstance(given[p], Tensor) and p in known]
        return all(holds(value, annotation) for value, annotation in [*arrays, (result, known["return"])])


def holds(value: object, annotation: object) -> bool:
    options = arms(annotation)
    if typing.get_origin(annotation) is tuple:
        return all(holds(each, part) for each, part in zip(value, typing.get_args(annotation), strict=False))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = typing.get_type_hints(type(value), include_extras=True)
        return all(holds(getattr(value, field), parts[field]) for field in value._fields)
    if isinstance(value, Tensor) and any(map(is_array, options)):
        return any(isinstance(value, each) for each in options if is_array(each))
    return True


def back(value: object, kind: object) -> object:
    """The same numbers in the kind that fits."""
    if isinstance(value, tuple):
        return type(value)(*map(back, value, kind))
    return value.to(kind) if isinstance(kind, Tensor) else value


def equal(one: object, other: object) -> bool:
    if isinstance(one, tuple):
        return all(map(equal, one, other))
    return one.dtype == other.dtype and torch.equal(one, other) if isinstance(one, Tensor) else one == other


def verdict(name: str, given: dict[str, object], case: Exchange) -> str | None:
    """What is wrong with the answer, or None."""
    parameter = case.parameter.partition(".")[0]
    new = given | {parameter: case.value}
    try:
        with torch.random.fork_rng(devices=[]):
            result = made(name)(**new)
    except Exception as error:
        names = (*given, *getattr(case.value, "_fields", ()))
        if isinstance(error, ValueError) and any(subject(each, str(error)) for each in names):
            return None
        if name in EXCUSED and re.search(EXCUSED[name][0], str(error)):
            return None
        return f"raises {error!r}"[:200]
    if case.what == "another kind":
        same = made(name)(**given | {parameter: back(case.value, given[parameter])})
        return None if equal(result, same) else "depends on the kind of number"
    free = (FREE - FIXED.get(name, set())) | LOOSE.get(name, set())
    if case.axis is not None and case.axis not in free:
        return "is taken"
    return None if fits(name, new, result) else "gives another shape than the annotations say"


@pytest.mark.parametrize("name", MODULES)
def test_forward_refuses_what_does_not_fit(name):
    given = fitting_inputs(name)
    result = made(name)(**given)
    assert fits(name, given, result)
    cases = list(exchanges(name, given))
    assert bool(cases) == (name not in WITHOUT_INPUTS)
    found = [(case, wrong) for case in cases if (wrong := verdict(name, given, case)) is not None]
    assert not found, "\n".join(f"{name}({case.parameter}: {case.what}, {case.axis}) {wrong}" for case, wrong in found)
