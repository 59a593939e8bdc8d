"""How the operators stand in PyTorch's dispatcher. Run without the shape-checking import hook, whose wrappers the
compiler does not trace."""

import pytest
import torch

from gated.kernels.langevin_scan import inductor, langevin_scan


def tensors(potential: str, decay_steps: int):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    batch, time, dim = 2, 9, 4
    states = [normal(batch, dim), normal(batch, dim), normal(time, batch, dim)]
    factors = [torch.rand(decay_steps, batch, dim, generator=generator, dtype=torch.float64) for _ in range(2)]
    matrix = normal(1, dim, dim)
    coupling, quartic = (torch.rand(batch, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    coupling[:, -1] = 0
    return {
        "modes": [*states, *factors, None, normal(batch, dim), None, None],
        "matrix": [*states, *factors, normal(time, batch, dim), matrix + matrix.mT, None, None],
        "quartic": [*states, *factors, normal(time, batch, dim), normal(batch, dim), coupling, quartic],
    }[potential]


@pytest.mark.parametrize(("potential", "decay_steps"), [("matrix", 9), ("quartic", 1)])
def test_the_operators_are_registered_properly(potential, decay_steps):
    given = tensors(potential, decay_steps)
    leaves = [None if y is None else y.clone().requires_grad_() for y in given]
    torch.library.opcheck(torch.ops.gated.langevin_scan.default, (*leaves, 0.1, "released"))
    z, v = torch.ops.gated.langevin_scan(*given, 0.1, "released")
    z0, v0, noise, sigma, decay, _, *potential = given
    for wanted in ([True] * 5 + [y is not None for y in potential[1:]], [False] * 7):
        inputs = (z0, v0, z, v, noise, sigma, decay, *potential, 0.1, "released", v.clone(), z.clone(), wanted)
        torch.library.opcheck(torch.ops.gated.langevin_scan_backward.default, inputs)


@pytest.mark.parametrize("scheme", ["released", "baoab"])
def test_compiles_without_a_break(scheme):
    generator = torch.Generator().manual_seed(1)
    z0, noise, raw = (torch.randn(*shape, generator=generator) for shape in ((2, 4), (2, 30, 4), (4,)))

    def loss(z0: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        stiffness = torch.nn.functional.softplus(raw)
        z, v = langevin_scan(z0, -z0, noise, stiffness=stiffness, step=0.1, decay=torch.sigmoid(raw), scheme=scheme)
        return (z * v).sum()

    leaves = z0.requires_grad_(), raw.requires_grad_()
    want = torch.autograd.grad(loss(*leaves), leaves)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves), leaves)
    torch.testing.assert_close(got, want)


def test_fake_tensors():
    """Shapes and layouts without data, as the compiler asks for them."""
    with torch._subclasses.FakeTensorMode():
        state, noise = torch.empty(2, 4), torch.empty(2, 9, 4)
        for y in langevin_scan(state, state, noise, stiffness=torch.empty(4), step=0.1, decay=0.5):
            assert y.shape == (2, 9, 4)
            assert y.stride() == (4, 8, 1)


# In machine code -----------------------------------------------------------------------------------------------------

# Inductor's own call of the C++ compiler does not survive a space in the path of the environment.
COMPILES = " " not in torch.__file__


@pytest.fixture
def traced(monkeypatch):
    """The traced operations as they are, in short chunks, without the seconds of machine code."""
    inductor._compiled.cache_clear()
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda graph, *_, **__: graph)
    monkeypatch.setattr(inductor, "LENGTH", 6)
    yield
    inductor._compiled.cache_clear()


def problem(potential: str, decay: str, batch: int, time: int, dim: int, dtype=torch.float64, controlled: bool = True):
    generator = torch.Generator().manual_seed(time)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    given = {"z0": normal(batch, dim), "v0": normal(batch, dim), "noise": normal(batch, time, dim)}
    given |= {"stiffness": 2 * uniform(dim) - 0.5, "temperature": 0.5 + uniform(dim)}
    if controlled:
        given["control"] = normal(batch, time, dim)
    if potential != "modes":
        given["coupling"] = uniform(dim - 1)
    if potential == "quartic":
        given["quartic"] = uniform(dim)
    shapes = {"coordinate": (dim,), "time": (batch, time), "all": (batch, time, dim)}
    return given | {"decay": 0.2 + 0.7 * uniform(*shapes[decay])}


def outcome(given, wanted=None, **options):
    wanted = list(given) if wanted is None else wanted
    leaves = {name: y.detach().requires_grad_(name in wanted) for name, y in given.items()}
    z, v = langevin_scan(**leaves, step=0.1, **options)
    a, b = torch.randn(2, *z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(z.dtype)
    grads = torch.autograd.grad((z * a).sum() + (v * b).sum(), [leaves[name] for name in wanted])
    return {"z": z.detach(), "v": v.detach()} | dict(zip(wanted, grads, strict=True))


def assert_compiled_is_the_same(given, wanted=None, tolerance=1e-12, **options):
    got, want = outcome(given, wanted, compiled=True, **options), outcome(given, wanted, **options)
    for name, y in got.items():
        error = (y - want[name]).abs().max() / want[name].abs().max().clamp_min(1)
        assert error <= tolerance, (name, float(error))


@pytest.mark.parametrize("scheme", ["released", "symplectic", "baoab"])
@pytest.mark.parametrize("potential", ["modes", "chain", "quartic"])
@pytest.mark.parametrize("decay", ["coordinate", "all"])
def test_compiled_formulas_are_those_of_the_steps(traced, scheme, potential, decay):
    """Less than a chunk, chunks and a rest; several sizes by the same function."""
    for batch, time, dim in ((2, 5, 3), (1, 21, 6)):
        assert_compiled_is_the_same(problem(potential, decay, batch, time, dim), scheme=scheme)
    assert inductor._compiled.cache_info().misses == 2


@pytest.mark.parametrize(
    "wanted", [["z0"], ["noise"], ["temperature"], ["decay"], ["control"], ["stiffness"], ["coupling"], ["quartic"]]
)
def test_compiled_gradients_each_for_itself(traced, wanted):
    assert_compiled_is_the_same(problem("quartic", "time", 2, 8, 3), wanted, scheme="baoab")


def test_compiled_in_single_precision_and_without_control(traced):
    given = problem("chain", "coordinate", 3, 40, 5, torch.float32, controlled=False)
    assert_compiled_is_the_same(given, tolerance=1e-5, scheme="baoab")


@pytest.mark.parametrize("potential", ["modes", "quartic"])
def test_machine_code_at_all_sizes(monkeypatch, potential):
    """As many numbers as steps in a chunk, two, and those of a vector with a rest; in short chunks, for the clock."""
    inductor._compiled.cache_clear()
    monkeypatch.setattr(inductor, "LENGTH", 4)
    sizes, wanted = [(2, 9, 2), (1, 4, 2), (5, 6, 7)], ["z0", "v0", "stiffness"]
    if COMPILES:
        for size in sizes:
            assert_compiled_is_the_same(problem(potential, "coordinate", *size), wanted, scheme="released")
        assert inductor._compiled.cache_info().misses == 2
    else:
        with pytest.warns(RuntimeWarning, match="no effect"):
            assert_compiled_is_the_same(problem(potential, "coordinate", *sizes[0]), wanted, scheme="released")
    inductor._compiled.cache_clear()


def test_without_a_compiler_it_says_so_once_and_gives_the_same(monkeypatch):
    inductor._compiled.cache_clear()

    def broken(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch._inductor, "standalone_compile", broken)
    given = {name: y for name, y in problem("modes", "coordinate", 2, 20, 3).items() if name != "control"}
    with torch.no_grad(), pytest.warns(RuntimeWarning, match=r"no effect.*no compiler here") as caught:
        got = [langevin_scan(**given, step=0.1, compiled=True) for _ in range(2)]
    assert len(caught) == 1
    for a, b, c in zip(*got, langevin_scan(**given, step=0.1), strict=True):
        assert torch.equal(a, c) and torch.equal(b, c)
    inductor._compiled.cache_clear()


def test_what_is_not_compiled_is_as_without(traced):
    """A matrix, a single number and a single step."""
    for given in (
        problem("modes", "coordinate", 2, 20, 3) | {"stiffness": torch.eye(3, dtype=torch.float64)},
        problem("modes", "coordinate", 1, 20, 1),
        problem("modes", "coordinate", 2, 1, 3),
    ):
        assert_compiled_is_the_same(given, tolerance=0.0, scheme="baoab")
    assert not inductor._compiled.cache_info().misses


def test_compiled_inside_a_program_and_over_runs(traced):
    given = problem("quartic", "coordinate", 2, 20, 3)
    names, leaves = list(given), [y.requires_grad_() for y in given.values()]

    def loss(*inputs, compiled=True):
        z, v = langevin_scan(**dict(zip(names, inputs, strict=True)), step=0.1, compiled=compiled)
        return (z * v).sum()

    want = loss(*leaves, compiled=False)
    torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves), want)
    stacked = [torch.stack([y, y]) for y in leaves]
    torch.testing.assert_close(torch.func.vmap(loss)(*stacked), torch.stack([want, want]))
    inputs = tensors("quartic", 9)
    torch.library.opcheck(torch.ops.gated.langevin_scan.default, (*inputs, 0.1, "released", True))
