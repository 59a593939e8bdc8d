"""Every public name of the package is called with values that nobody meant: the answer is a ValueError or a TypeError
that names the argument, or a result, and never another exception or a silent broadcast.

`usual` gives arguments that fit; they are called as they are, and must give a result. Then each argument is exchanged
for each of the values that its annotation, or what stands there, suggests.
"""

import functools
import inspect
import re
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import usual_arguments
from public_names import PUBLIC, RECORDS, arms, hints, is_array, subject
from torch import Tensor
from usual_arguments import tensor, usual

import gated

NAN, INF = float("nan"), float("inf")
SIGNED = {"seed", "start", "bias", "init"}  # whole numbers or positions that may be negative

# A record that the package fills is not checked where it is made. Here is who returns it, or holds it.
RESULTS = {
    "advmoe.Costs": "advmoe.costs",
    "advmoe.ExactMargin": "advmoe.exact_margin",
    "advmoe.Found": "advmoe.pgd",
    "advmoe.Panel": "advmoe.attack_panel",
    "advmoe.Trace": "advmoe.RoutedNetwork.trace",
    "commformer.Decision": "commformer.Cohort.decide",
    "commformer.Losses": "commformer.Cohort.update",
    "commformer.Rollout": "commformer.Cohort.collect",
    "gaussian_moe.Fit": "gaussian_moe.fit",
    "gla.GLAState": "gla.GatedLinearAttention.forward",
    "gla.KVCache": "gla.SoftmaxAttention.forward",
    "jeidnn.Answer": "jeidnn.ExitNetwork.decide",
    "jeidnn.Tally": "jeidnn.tally",
    "kernels.barrier_qp.BarrierQP": "kernels.barrier_qp.barrier_qp",
    "kernels.gmoe_em.Activation": "kernels.gmoe_em.ACTIVATIONS",
    "kernels.gmoe_em.Statistics": "kernels.gmoe_em.gmoe_em",
    "kernels.topk_gate.TopK": "kernels.topk_gate.topk_gate",
    "langevinflow.Dropped": "langevinflow.coordinated_dropout",
    "langevinflow.Loss": "langevinflow.Trainer.loss",
    "langevinflow.Rates": "langevinflow.LangevinFlow.forward",
    "online_cbf.CrossEntropy": "online_cbf.cross_entropy",
    "online_cbf.GridSearch": "online_cbf.grid_search",
    "online_cbf.Navigation": "online_cbf.navigation",
    "online_cbf.Observation": "online_cbf.observe",
    "online_cbf.Progress": "online_cbf.ppo",
    "online_cbf.Rewards": "online_cbf.rewards",
    "online_cbf.Trajectory": "online_cbf.rollout",
    "polarization.Audit": "polarization.audit",
    "polarization.Costs": "polarization.costs",
    "polarization.Decomposition": "polarization.decomposition",
    "polarization.Evaluation": "polarization.evaluate",
    "polarization.GatedOutput": "polarization.GatedResNet.forward",
    "polarization.OnePass": "polarization.one_pass",
    "polarization.Pruned": "polarization.prune",
    "polarization.StepLoss": "polarization.train_step",
    "pregated.Decoded": "pregated.decode",
    "stn.Left": "stn.SelfTuned",
    "stn.Recorded": "stn.Trainer.schedule",
}
# A record that a reader may fill is checked by each function that takes it: its fields are exchanged there.
TAKEN = {
    name: RECORDS[name]
    for name in (
        "gaussian_moe.Points",
        "moe.Routing",
        "moe.Slots",
        "ninformer.Budget",
        "online_cbf.AgentState",
    )
}


class Case(NamedTuple):
    """One exchange. `wrong`: only an error is right; `kind`: which excuses hold for it."""

    parameter: str
    what: str
    value: object
    wrong: bool
    kind: str
    whole: object = None  # the record that holds the value, where it is a field


def shared(name: str, given: dict[str, object]) -> dict[str, int]:
    """In how many of the tensors given each axis stands."""
    count: dict[str, int] = {}
    for parameter, annotation in hints(PUBLIC[name]).items():
        array = next((arm for arm in arms(annotation) if is_array(arm)), None)
        if array is not None and isinstance(given.get(parameter), Tensor):
            for axis in {each for each in array.dim_str.split() if not each.isdigit()}:
                count[axis] = count.get(axis, 0) + 1
    return count


def hostile(name: str, given: dict[str, object]) -> Iterator[Case]:
    """Every exchange of one argument, and of one field of a record."""
    known, count = hints(PUBLIC[name]), shared(name, given)
    for p in inspect.signature(PUBLIC[name]).parameters.values():
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            continue
        annotation, now = arms(known.get(p.name, object)), given.get(p.name, p.default)
        for what, value, wrong, kind in values(annotation, now, count, p.name in SIGNED):
            yield Case(p.name, what, value, wrong, kind)
        if type(now) in TAKEN.values():
            yield from fields(p.name, now)


def fields(parameter: str, record: object) -> Iterator[Case]:
    for field, annotation in typing.get_type_hints(type(record), include_extras=True).items():
        for what, value, wrong, kind in values(arms(annotation), getattr(record, field), {}, False):
            held = {each: getattr(record, each) for each in typing.get_type_hints(type(record))}
            yield Case(f"{parameter}.{field}", what, value, wrong, kind, type(record)(**held | {field: value}))


Exchange = tuple[str, object, bool, str]


def values(annotation: list[object], now: object, count: dict[str, int], signed: bool) -> Iterator[Exchange]:
    nothing = type(None) not in annotation
    numbers = re.compile(r"(Sequence|tuple|list)\[(int|float)")
    arrays = [arm for arm in annotation if is_array(arm)]
    literal = any(typing.get_origin(arm) is typing.Literal for arm in annotation)
    number, word = {int, float} & set(annotation), literal or str in annotation
    plain, kind = bool(number or word or bool in annotation), "plain"
    if number == {int}:
        yield from [("-3", -3, not signed, "plain"), ("0", 0, False, "plain")] if not signed else []
        yield from [("a bool", True, True, "plain"), ("1.5", 1.5, True, "plain"), ("nan", NAN, True, "plain")]
    elif number:
        yield from [("nan", NAN, True, "plain"), ("a bool", True, False, "plain")]
        yield from [(str(x), x, False, "plain") for x in (INF, -INF, 0, -1.5, 1e30)]
    if number:
        yield "a word", "3", not word, "plain"
    elif word:
        kind = "path" if Path in annotation else "device" if torch.device in annotation else kind
        yield from [("an unknown word", "nonsense", literal, kind), ("a number", 3, literal, kind)]
    elif bool in annotation:  # Python takes anything for true or false, and so do we: this must only not break
        yield from [("a number", 2, False, "plain"), ("a word", "no", False, "plain")]
    if nothing and (arrays or plain or isinstance(now, Tensor)):
        kind = kind if plain else "tensor"
        yield "None", None, bool(arrays or number or literal), kind
    if arrays and now is None:
        now = tensor(arrays[0])
    if arrays and isinstance(now, Tensor):
        yield from changed(now, arrays[0].dim_str.split(), count, len(arrays) == 1 and not plain)
    elif any(numbers.search(str(arm)) for arm in annotation) and not isinstance(now, Tensor):
        yield from [("()", (), False, "plain"), ("(-1,)", (-1,), False, "plain")]
        yield from [("(nan, nan)", (NAN, NAN), False, "plain"), ("a word", "ab", False, "plain")]
    elif not plain and now is not None:  # any object with the right methods will do; who only keeps it, takes it
        yield from [("None", None, False, "object")] if nothing else []
        yield from [("a number", 3, False, "object"), ("a word", "ab", False, "object")]


def changed(now: Tensor, axes: list[str], count: dict[str, int], alone: bool) -> Iterator[Exchange]:
    """Tensors of other shapes, dtypes and contents."""
    yield from [("a list", now.tolist(), False, "tensor")]
    yield "strided", torch.stack([now, now], -1)[..., 0], False, "content"
    yield from [("int64", now.long(), False, "dtype"), ("bool", now.bool(), False, "dtype")]
    yield from [("float64", now.double(), False, "precision"), ("half", now.half(), False, "precision")]
    if now.is_floating_point():
        yield from [(what, value, False, "content") for what, value in (("nan", now * NAN), ("inf", now * INF))]
        yield "negative", -now, False, "content"
    else:
        yield "too large", now.long() + 10**6, False, "content"
        yield "negative", now.long() - 10**6, False, "content"
    fixed = not any(axis.lstrip("#").startswith("*") or axis == "..." for axis in axes)
    yield "one axis more", now[None].expand(3, *now.shape), alone and fixed, "shape"
    if now.ndim:
        yield "one axis less", now[0], alone and fixed, "shape"
    for i in range(now.ndim):
        axis = axes[i] if fixed and i < len(axes) else axes[0] if i < now.ndim - len(axes) + 1 else axes[i - now.ndim]
        tied = alone and now.shape[i] > 1 and (axis.isdigit() or count.get(axis, 0) > 1) and "#" not in axis
        yield f"axis {i} of size 1", now.narrow(i, 0, min(1, now.shape[i])), tied, "shape"
        yield f"axis {i} longer", torch.cat([now, now], i), tied, "shape"
        yield f"axis {i} empty", now.narrow(i, 0, 0), tied, "shape"


# What an error must say ---


def relation(name: str, case: Case, message: str) -> bool:
    """Whether the message is about another argument and says what of this one it does not fit: its name or its size."""
    own = case.parameter.split(".")
    others = (set(inspect.signature(PUBLIC[name]).parameters) | set(getattr(case.whole, "_fields", ()))) - set(own)
    if case.kind not in ("shape", "precision"):
        return False
    if any(re.search(rf"(?<!\w){re.escape(each)}(?!\w)", message) for each in own if each != "a"):
        return True
    sizes = "|".join(map(str, case.value.shape)) if case.kind == "shape" else str(case.value.dtype)
    met = any(subject(other, message) for other in others)
    return met and bool(re.search(rf"(?<!\w)({sizes})(?!\w|\.\d)", message))


# An answer that is not about an argument, from whom, and why it is right. Each must come.
ANSWERS: dict[str, tuple[str, set[tuple[str, str]]]] = {
    r"AttackError: the attack": (
        "an attack that stands still says so, whatever held it: here a radius beyond all numbers, or no inputs",
        {
            ("advmoe.attack_panel", "eps"),
            ("advmoe.frozen_path_attack", "eps"),
            ("advmoe.path_attack", "eps"),
            ("advmoe.ste_attack", "eps"),
            ("advmoe.surrogate_attack", "eps"),
            ("advmoe.trades_attack", "x"),
        },
    ),
    r"AttackError: the margin is not finite": (
        "the margin is the caller's function of x",
        {("advmoe.random_search", "x")},
    ),
    r"ValueError: scores must be finite \(a router that diverged, or x\?\)": (
        "a router's scores are not finite, and only the caller can tell whose fault it is; x is asked about",
        {(f"advmoe.{name}", "x") for name in ("attack_panel", "route_robustness", "routes_of", "trades_attack")},
    ),
    r"ValueError: loss must be finite, got nan: .* look at x": (
        "the same of a loss",
        {("polarization.train_step", "x")},
    ),
    r"FetchError: .* did not arrive within 0 s": ("the limit is what was asked for", {("pregated.decode", "seconds")}),
}


def said(error: Exception) -> set[tuple[str, str]]:
    """Who may give this answer, and about which argument."""
    found = f"{type(error).__name__}: {error}"
    return set().union(*(where for pattern, (_, where) in ANSWERS.items() if re.match(pattern, found)))


def excuse(case: Case, error: Exception) -> str | None:
    """Why an error that does not name the argument is right."""
    message, came = str(error), type(case.value).__name__
    kinds = TypeError, AttributeError
    if case.kind in ("tensor", "object", "path") and isinstance(error, kinds) and re.search(rf"\b{came}\b", message):
        return "Python and PyTorch say which kind of object came where a tensor, a path or one of ours must stand"
    if case.kind == "object" and isinstance(error, ValueError) and message.endswith(f"; got {came}"):
        return "what is wrong with a thing within the object (a batch of it) is said of that thing"
    if case.kind == "path" and isinstance(error, FileNotFoundError) and str(case.value) in message:
        return "Python says which file is not there"
    where = "Expected one of cpu|device|NVIDIA driver"
    if case.kind == "device" and isinstance(error, RuntimeError) and re.search(where, message):
        return "PyTorch says which devices there are"
    mixed = r"dtype|scalar type|weight type|not implemented for 'Half'"
    if case.kind == "precision" and isinstance(error, RuntimeError) and re.search(mixed, message):
        return "PyTorch refuses to mix precisions, as `nn.Linear` does; autocast mixes them"
    if isinstance(error, RuntimeError) and message.startswith("gated::") and subject(case.parameter, message):
        return "an operator's schema refuses the kind, and names the argument"
    return None


def verdict(name: str, case: Case, heard: set[tuple[str, str]]) -> str | None:
    """What is wrong with the answer, or None. `heard` gathers the `ANSWERS` that came."""
    torch.manual_seed(0)
    thing, given = PUBLIC[name], usual(name)
    spoken = case.parameter.split(".")  # a record's field, or the record
    if case.parameter == "start" and name == "stn.Hyperparameter":
        spoken.append(str(given["name"]))  # a hyperparameter speaks of its value by its own name
    try:
        thing(**given | {spoken[0]: case.value if case.whole is None else case.whole})
    except Exception as error:
        message = str(error)
        if isinstance(error, ValueError | TypeError) and any(subject(each, message) for each in spoken):
            return None
        if isinstance(error, ValueError) and relation(name, case, message):
            return None
        if excuse(case, error):
            return None
        if (name, case.parameter) in said(error):
            return heard.add((name, case.parameter))
        return f"raises {error!r}"[:300]
    return "is taken" if case.wrong else None


# The tests ---

# A kernel's definition (`naive_...`) is its formula and nothing else: the operator beside it checks.
EXAMINED = [name for name in PUBLIC if ".naive_" not in name]
WITHOUT_ARGUMENTS = {"advmoe.RoutedNetwork", "ninformer.FourierGate"}


@pytest.fixture(autouse=True)
def quiet(request, monkeypatch, tmp_path) -> Iterator[None]:
    """No warnings, no file left here, the same generator after, and a world of one process where there must be one."""
    monkeypatch.chdir(tmp_path)
    alone = "expert_parallel" in request.node.name
    if alone:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield
    if alone:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", PUBLIC)
def test_the_usual_arguments_give_a_result(name):
    """A new public name needs an entry in `usual_arguments` where its annotations do not say enough."""
    thing = PUBLIC[name]
    result = thing(**usual(name))
    gives = hints(thing).get("return") is not type(None) or inspect.isclass(thing)
    assert (result is not None) == gives


@pytest.mark.parametrize("name", EXAMINED)
def test_bad_values_are_refused_by_name(name):
    cases = list(hostile(name, usual(name)))
    assert bool(cases) == (name not in WITHOUT_ARGUMENTS)
    heard: set[tuple[str, str]] = set()
    found = [(case, wrong) for case in cases if (wrong := verdict(name, case, heard)) is not None]
    assert not found, "\n".join(f"{name}({case.parameter}: {case.what}) {wrong}" for case, wrong in found)
    assert heard == {pair for _, pairs in ANSWERS.values() for pair in pairs if pair[0] == name}


def test_every_record_is_filled_by_the_package_or_checked_where_it_is_taken():
    assert not set(RESULTS) & set(TAKEN)
    assert set(RESULTS) | set(TAKEN) == set(RECORDS)
    taken = {type(value) for name in EXAMINED for value in usual(name).values()}
    assert set(TAKEN.values()) <= taken


@pytest.mark.parametrize("record", RESULTS)
def test_the_package_fills_a_record_that_nothing_checks(record):
    maker = functools.reduce(getattr, RESULTS[record].split("."), gated)
    thing = RECORDS[record]
    if isinstance(maker, dict):
        assert {type(value) for value in maker.values()} == {thing}
    else:
        annotations = hints(maker.fget if isinstance(maker, property) else maker)
        assert f"{thing.__module__}.{thing.__qualname__}" in str(annotations.values())


def test_no_table_holds_what_is_not_there(monkeypatch):
    class Asked(dict):
        def get(self, key):
            asked.add(key)
            return super().get(key)

    asked: set[str] = set()
    monkeypatch.setattr(usual_arguments, "MADE", Asked(usual_arguments.MADE))
    for name in PUBLIC:
        usual(name)
    assert set(usual_arguments.MADE) <= asked
    assert set(usual_arguments.GIVEN) <= set(PUBLIC)
    assert {name for _, pairs in ANSWERS.values() for name, _ in pairs} | WITHOUT_ARGUMENTS <= set(EXAMINED)


@pytest.mark.parametrize(
    ("parameter", "message", "named"),
    [
        ("a", "a must be finite; got nan", True),
        ("a", "logits must leave a gate open; got a row of -inf only", False),
        ("k", "x must have k columns; got 3", False),
        ("rate", "rate must be a number in [0, 1); got 2", True),
        ("size", "batch must be at least 1, size at least 2; got 0", False),
        ("size", "gates and size must be as many", True),
        ("size", "width must divide size=3; got 2", True),
        ("size", "resize must be True; got 0", False),
    ],
)
def test_what_counts_as_naming_an_argument(parameter, message, named):
    assert subject(parameter, message) == named


@pytest.mark.parametrize(
    ("answer", "kind", "excused"),
    [
        (AttributeError("'NoneType' object has no attribute 'shape'"), "tensor", True),
        (TypeError("'<' not supported between instances of 'int' and 'NoneType'"), "plain", False),
        (AttributeError("'int' object has no attribute 'shape'"), "tensor", False),
        (RuntimeError("expected scalar type Double but found Float"), "shape", False),
        (IndexError("index 5 is out of bounds"), "content", False),
    ],
)
def test_excuses_are_narrow(answer, kind, excused):
    assert bool(excuse(Case("x", "None", None, False, kind), answer)) == excused
