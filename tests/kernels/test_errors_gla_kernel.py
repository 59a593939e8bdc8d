"""Bad input to the gated linear attention operators: a ValueError that names the argument."""

import math

import pytest
import torch

from gated.kernels.gla import chunk_gla, fused_recurrent_gla


def good():
    return {name: torch.randn(2, 7, 3, d) for name, d in (("q", 4), ("k", 4), ("v", 5))} | {
        "g": -torch.rand(2, 7, 3, 4)
    }


def call(form, inputs, **options):
    q, k, v, g = (inputs[name] for name in "qkvg")
    return form(q, k, v, g, **options)


@pytest.fixture(params=[chunk_gla, fused_recurrent_gla], ids=["chunk", "recurrent"])
def form(request):
    return request.param


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, lambda y: y[0]) for name in "qkvg"),
        *((name, lambda y: y.int()) for name in "qkvg"),
        *((name, lambda y: y.tolist()) for name in "qkvg"),
        *((name, lambda y: y[:, :, :2]) for name in "kvg"),
        *((name, lambda y: y[:, :3]) for name in "kvg"),
        *((name, lambda y: y[:1]) for name in "kvg"),
        *((name, lambda y: y[..., :3]) for name in "kg"),
        *((name, lambda y: y.double()) for name in "kv"),
        *((name, lambda y: y.to("meta")) for name in "kvg"),
        *((name, lambda y: y.index_fill(1, torch.tensor(3), math.nan)) for name in "qkvg"),
        ("v", lambda y: y[..., :0]),
        ("g", lambda y: -y),
        ("g", lambda y: y.index_fill(1, torch.tensor(6), 1e-6)),
    ],
)
def test_names_the_wrong_tensor(form, name, change, recorded):
    inputs = good()
    inputs[name] = change(inputs[name])
    argument = "gk" if name == "g" and form is fused_recurrent_gla else name
    with pytest.raises(ValueError, match=rf"^{argument} "), torch.set_grad_enabled(recorded):
        call(form, inputs)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, "1", [1.0]])
def test_scale(form, scale):
    with pytest.raises(ValueError, match=r"^scale must be a finite number or None"):
        call(form, good(), scale=scale)


@pytest.mark.parametrize("name", "vg")
def test_says_where_the_first_wrong_number_is(form, name):
    inputs = good()
    inputs["g"][0, 0, 0, 0] = 0.0  # nothing is forgotten, and nothing wrong
    inputs[name][0, 3, 1, 2] = inputs[name][1, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r" at \(0, 3, 1, 2\)[.;] "):
        call(form, inputs)


@pytest.mark.parametrize("empty", [(0, 7, 3), (2, 0, 3), (2, 7, 0)])
def test_empty_sequences(form, empty):
    with pytest.raises(ValueError, match=r"^q must not be empty"):
        form(*(torch.randn(*empty, 4) for _ in range(3)), -torch.rand(*empty, 4))


@pytest.mark.parametrize(
    "state",
    [
        torch.zeros(1, 3, 4, 5),
        torch.zeros(2, 3, 5, 4),
        torch.zeros(2, 3, 4, 5).int(),
        torch.full((2, 3, 4, 5), math.nan),
        torch.zeros(2, 3, 4, 5, device="meta"),
    ],
)
def test_wrong_initial_state(form, state):
    with pytest.raises(ValueError, match=r"^initial_state "):
        call(form, good(), initial_state=state)


@pytest.mark.parametrize(
    "bounds",
    [
        torch.tensor([0, 3]),
        torch.tensor([0, 3, 8]),
        torch.tensor([1, 7]),
        torch.tensor([0, 3, 3, 7]),
        torch.tensor([0, 5, 3, 7]),
        torch.tensor([0]),
        torch.tensor([[0, 7]]),
        torch.tensor([0.0, 7.0]),
        [0, 7],
    ],
)
def test_bounds_that_do_not_cover_the_sequence(form, bounds):
    inputs = {name: y[:1] for name, y in good().items()}
    with pytest.raises(ValueError, match=r"^cu_seqlens "):
        call(form, inputs, cu_seqlens=bounds)


def test_packing_needs_a_batch_of_one(form):
    with pytest.raises(ValueError, match=r"^cu_seqlens packs"):
        call(form, good(), cu_seqlens=torch.tensor([0, 7]))


def test_value_gates_are_checked_too():
    q, k, v, g = good().values()
    for gv in (
        -torch.rand(2, 7, 3, 4),
        torch.rand(2, 7, 3, 5),
        torch.full((2, 7, 3, 5), math.nan),
        v.int(),
        [0.0],
    ):
        with pytest.raises(ValueError, match=r"^gv "):
            fused_recurrent_gla(q, k, v, g, gv=gv)
    with pytest.raises(ValueError, match=r"^v holds NaN"):
        fused_recurrent_gla(q, k, v * math.nan, g, gv=-torch.rand(2, 7, 3, 5))


def test_what_is_legal_is_not_refused(form):
    inputs = good()
    inputs["g"][:, 3] = -math.inf
    inputs["g"][:, 4] = 0.0
    o, state = call(form, inputs, output_final_state=True, scale=2)
    assert o.isfinite().all() and state.isfinite().all()
    one = {name: y[:1] for name, y in inputs.items()}
    o, _ = call(form, one, cu_seqlens=torch.tensor([0, 1, 7], dtype=torch.int32))
    assert o.isfinite().all()
