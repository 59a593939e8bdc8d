"""Bad input to the Langevin scan: a ValueError that names the argument, and what would do."""

import math

import pytest
import torch

from gated.kernels.langevin_scan import langevin_scan

BATCH, TIME, DIM = 2, 5, 3


def call(**changed):
    given = {"z0": torch.zeros(BATCH, DIM), "v0": torch.zeros(BATCH, DIM), "noise": torch.ones(BATCH, TIME, DIM)}
    given |= {"stiffness": torch.ones(DIM), "step": 0.1, "decay": 0.5}
    return langevin_scan(**given | changed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("z0", torch.zeros(DIM)),
        ("z0", torch.zeros(BATCH, DIM + 1)),
        ("z0", torch.zeros(BATCH, DIM).long()),
        ("z0", [0.0]),
        ("v0", torch.zeros(BATCH + 1, DIM)),
        ("v0", None),
        ("noise", torch.zeros(BATCH, DIM)),
        ("noise", torch.zeros(BATCH, 0, DIM)),
        ("control", torch.zeros(BATCH, TIME + 1, DIM)),
        ("stiffness", torch.zeros(DIM + 1)),
        ("stiffness", torch.zeros(DIM, DIM + 1)),
        ("stiffness", torch.ones(DIM, DIM).triu()),
        ("stiffness", 1.0),
        ("coupling", torch.zeros(DIM)),
        ("quartic", torch.zeros(DIM, DIM)),
        ("step", 0.0),
        ("step", -0.1),
        ("step", math.inf),
        ("step", True),
        ("step", torch.tensor(0.1)),
        ("decay", -0.1),
        ("decay", 1.1),
        ("decay", math.nan),
        ("decay", torch.full((DIM,), 1.5)),
        ("decay", torch.full((BATCH, TIME), -0.5)),
        ("decay", torch.full((TIME,), 0.5)),
        ("decay", "0.5"),
        ("temperature", -1.0),
        ("temperature", math.inf),
        ("temperature", torch.tensor(-1.0)),
        ("temperature", torch.ones(BATCH, TIME)),
        ("scheme", "leapfrog"),
        ("z0", torch.full((BATCH, DIM), math.nan)),
        ("v0", torch.full((BATCH, DIM), math.inf)),
        ("noise", torch.full((BATCH, TIME, DIM), math.nan)),
        ("control", torch.full((BATCH, TIME, DIM), math.nan)),
        ("quartic", torch.full((DIM,), math.nan)),
    ],
)
def test_names_the_argument(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must"):
        call(**{name: value})


@pytest.mark.parametrize("name", ["coupling", "quartic"])
def test_a_matrix_has_its_couplings_in_it(name):
    size = DIM - 1 if name == "coupling" else DIM
    with pytest.raises(ValueError, match=rf"^{name} must be None"):
        call(stiffness=torch.eye(DIM), **{name: torch.ones(size)})


@pytest.mark.parametrize("scheme", ["symplectic", "baoab"])
def test_an_unstable_step_says_the_bound(scheme):
    """2 / omega: for modes, a matrix, and a chain of three, whose largest eigenvalue is s + 3 kappa."""
    for stiffness, coupling, bound in (
        (torch.tensor([1.0, 4.0, 2.0]), None, 1.0),
        (torch.diag(torch.tensor([1.0, 4.0, 2.0])), None, 1.0),
        (torch.ones(DIM), torch.ones(DIM - 1), 1.0),
    ):
        with pytest.raises(ValueError, match=rf"^step must be below 2 / omega_max = {bound:g}, .* got 1.01"):
            call(stiffness=stiffness, coupling=coupling, step=1.01, scheme=scheme)
        assert call(stiffness=stiffness, coupling=coupling, step=0.99, scheme=scheme)[0].isfinite().all()


def test_the_bound_is_exact_for_a_chain():
    """Row sums bound the largest eigenvalue, 4 here, by 5; what lies between is legal."""
    bound = 2 / math.sqrt(5)
    assert call(coupling=torch.ones(DIM - 1), step=bound * 1.05)[0].isfinite().all()


def test_an_exploding_quartic_blames_the_step():
    with pytest.raises(ValueError, match=r"^step is too large"):
        call(quartic=torch.ones(DIM), noise=torch.full((BATCH, 50, DIM), 100.0), step=0.9)


def test_what_is_legal_is_not_refused():
    """A saddle, no noise, no friction, no memory, and the published step beyond every bound."""
    assert call(stiffness=-torch.ones(DIM))[0].isfinite().all()
    assert call(temperature=0.0)[0].eq(0).all()
    assert call(decay=1.0)[0].eq(0).all()
    assert call(decay=0)[1].isfinite().all()
    assert call(step=3, scheme="released")[0].isfinite().all()
    one = torch.zeros(BATCH, 1)
    assert call(z0=one, v0=one, noise=torch.ones(BATCH, 1, 1), stiffness=torch.ones(1), coupling=torch.ones(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    cuda = {"z0": torch.zeros(BATCH, DIM), "v0": torch.zeros(BATCH, DIM), "noise": torch.ones(BATCH, TIME, DIM)}
    cuda = {name: y.cuda() for name, y in cuda.items()} | {"stiffness": torch.eye(DIM).cuda()}
    with pytest.raises(ValueError, match=r"^decay must be the same"):
        call(**cuda, decay=torch.full((DIM,), 0.5).cuda())
    with pytest.raises(ValueError, match=r"^z0 is float64"):
        call(**{name: y.double() for name, y in cuda.items()})
