"""The figure of the best response: closed forms by brute force, the browser against Python, and what its runs show."""

from __future__ import annotations

import math
import random
from importlib.resources import files

import numpy as np
import pytest
import torch
from figure_page import difference, drag_by_finger, shown
from sklearn.linear_model import Ridge

from gated.lab.explorables.response import METHODS, WORDS, ResponseExplorable
from gated.lab.explorables.response_run import MODES, RATES, SETS, STEPS, TARGETS, RidgeTuning, draws

PLAIN = (3.0, 2.0, 1.0, 0.0, -1.0, -2.0)
WELL = {"lam": -4, "sigma": 0.5}
LARGE = {"lam": 3, "sigma": 3, "tau": 0.03}
WRONG = {"lam": 0, "sigma": 2.5}
NOISY = {"lam": -4, "sigma": 0.1, "tau": 0.001, "noise": 0.05}
NODES, MASS = np.polynomial.hermite_e.hermegauss(100)  # for expectations over a standard normal
MASS = MASS / MASS.sum()


def game(spectrum=PLAIN, *, tau: float = 0.01, noise: float = 0.0, seed: int = 0) -> RidgeTuning:
    return RidgeTuning(tuple(spectrum), tau, noise, seed)


def test_the_browser_agrees_on_240_states(visit):
    rng, states, expected = random.Random(11), [], []
    for _ in range(40):
        start = {
            "lam": rng.uniform(-6, 6),
            "sigma": 0.05 * 80 ** rng.random(),
            "tau": 1e-4 * 1000 ** rng.random(),
            "noise": rng.choice([0.0, 0.1 * rng.random()]),
            "spectrum": [rng.uniform(-5, 5) for _ in range(MODES)],
            "seed": rng.randrange(100),
        }
        for steps in (0, STEPS, *rng.sample(range(1, STEPS), 4)):
            figure = ResponseExplorable(**start, method=rng.choice(list(METHODS)), steps=steps)
            states.append(figure.state)
            expected.append(figure.values())
    page = visit("")
    script = files("gated.lab.explorables").joinpath("response.js").read_text(encoding="utf-8")
    body = script.replace("export default { render };", "return all.map((s) => compute(s, g, draws(s.seed)));")
    found = page.evaluate("([f, all, g]) => new Function('all', 'g', f)(all, g)", [body, states, SETS])
    assert len(found) == 240 and {v["kind"] for v in expected} >= WORDS.keys() - {"turned"}
    assert max(map(difference, expected, found)) < 1e-9


@pytest.mark.parametrize("lam", [-4.0, 0.3, 5.0])
def test_the_exact_response_is_ridge_regression(lam):
    """On real inputs with this spectrum and on scaled validation inputs, by another library."""
    rng, d = np.random.default_rng(0), np.exp(np.array(PLAIN) / 2)
    left, right = (
        np.linalg.qr(rng.standard_normal((30, MODES)))[0],
        np.linalg.qr(rng.standard_normal((MODES, MODES)))[0],
    )
    weights = Ridge(alpha=math.exp(lam), fit_intercept=False, solver="svd").fit(
        left * d @ right.T, left @ TARGETS.numpy()
    )
    predicted, slope = game().fit("exact", lam, 1.0, [0.0] * MODES)
    assert (d * (right.T @ weights.coef_)) == pytest.approx(predicted.numpy(), abs=1e-12)
    # the validation set, from its Gram matrix: any Z with Z^T Z = gram, and targets of length 1 with Z^T t = pull
    z = np.linalg.cholesky(np.array(SETS["gram"])).T
    part = np.linalg.solve(z.T, np.array(SETS["pull"]))
    rest = 1 - part @ part
    outputs = z @ np.diag(d) @ (right.T @ weights.coef_)
    assert rest > 0 and ((outputs - part) ** 2).sum() + rest == pytest.approx(game().loss(predicted).item(), abs=1e-12)
    # derivatives of the loss along the response
    at = lambda e: game().loss(game().fit("exact", lam + e, 1.0, [0.0] * MODES)[0]).item()  # noqa: E731
    first, second, _ = game().slopes("exact", predicted, slope)
    assert first == pytest.approx((at(1e-5) - at(-1e-5)) / 2e-5, abs=1e-9)
    assert second == pytest.approx((at(1e-3) - 2 * at(0) + at(-1e-3)) / 1e-6, abs=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.07])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize("method", ["stn", "delta"])
def test_the_line_is_a_least_squares_fit_under_the_perturbation(method, sigma, noise):
    """Every perturbation's training loss, weighted; a chance covariance is targets that rise with the perturbation."""
    lam, drawn, one = -0.4, draws(3)[7], game(noise=noise)
    centre, slope = one.fit(method, lam, sigma, drawn)
    for i, c in enumerate(PLAIN):
        d, ridge, eps = math.exp(c / 2), np.exp(lam + sigma * NODES), sigma * NODES
        targets = TARGETS[i].item() + noise * drawn[i] * NODES
        design = np.stack([np.ones_like(eps), eps], 1)
        if method == "delta":  # the centre is trained without a perturbation
            w = d * TARGETS[i].item() / (d * d + math.exp(lam))
            stiff = MASS * (d * d + ridge)
            jacobian = ((MASS * d * targets - stiff * w) * eps).sum() / (stiff * eps * eps).sum()
        else:
            normal = (MASS * (d * d + ridge) * design.T) @ design
            w, jacobian = np.linalg.solve(normal, (MASS * d * targets) @ design)
        assert (d * w, d * jacobian) == pytest.approx((centre[i].item(), slope[i].item()), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("method", ["stn", "delta"])
def test_a_step_is_a_gradient_step_of_the_objective(method):
    """Of E L_V(w_0 + J sigma xi) - tau H, by autograd over lambda's shift and rho, with the weights' line held."""
    for seed, (lam, sigma) in enumerate([(-3.0, 0.4), (1.0, 1.7), (4.0, 0.08)]):
        one = game(noise=0.02, tau=0.02, seed=seed)
        figure = ResponseExplorable(lam, sigma, 0.02, 0.02, method, spectrum=PLAIN, seed=seed)
        centre, slope = one.fit(method, lam, sigma, draws(seed)[0])
        shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
        rho = torch.tensor(sigma, dtype=torch.float64).expm1().log().requires_grad_()
        width = torch.nn.functional.softplus(rho)
        moved = centre + slope * (shift + width * torch.from_numpy(NODES))[:, None]
        entropy = torch.distributions.Normal(0.0, width).entropy()
        objective = torch.from_numpy(MASS) @ one.loss(moved) - 0.02 * entropy
        down, wider = torch.autograd.grad(objective, (shift, rho))
        lams, sigmas = figure.values()["paths"][method]
        assert lams[1] == pytest.approx(max(-6, min(6, lam - RATES[0] * down.item())), abs=1e-10)
        expected = torch.nn.functional.softplus(rho - RATES[1] * wider).item()
        assert sigmas[1] == pytest.approx(max(0.05, min(4, expected)), abs=1e-10)


def test_the_generator_draws_normal_numbers():
    numbers = np.array([draws(seed) for seed in range(100)])
    assert numbers.shape == (100, STEPS + 1, MODES)
    assert abs(numbers.mean()) < 0.01 and abs(numbers.var() - 1) < 0.02 and abs((numbers**4).mean() - 3) < 0.15
    flat = numbers.reshape(100, -1)
    assert abs((flat[:, 1:] * flat[:, :-1]).mean()) < 0.01 and abs((flat[1:] * flat[:-1]).mean()) < 0.01
    assert len({tuple(row) for row in flat}) == 100


def test_the_hypergradient_shrinks_before_it_turns_wrong():
    ratios = [ResponseExplorable(0, sigma).values()["ratio"] for sigma in (0.1, 0.5, 1, 1.5, 2, 3)]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] == pytest.approx(1, abs=0.02)
    assert 0.5 < ratios[2] < 0.9 and ratios[-1] < -0.3
    delta = [ResponseExplorable(0, sigma, method="delta").values()["ratio"] for sigma in (0.1, 1, 3)]
    assert delta[-1] > 0.2  # the exact centre keeps the sign, here
    small = ResponseExplorable(1.5, 0.05)
    v = small.values()
    assert v["centre"] == pytest.approx(v["gates"], abs=1e-3) and v["kind"] == "trust"


def test_an_exact_centre_does_not_save_the_sum_of_the_pushes():
    """Modes that push in opposite directions shrink by different factors: that can turn the sign for Δ-STN as well."""
    settings = {"spectrum": (0, -3, 2, 2, -3, -5), "method": "delta"}
    v = ResponseExplorable(0, 1.5, **settings).values()
    assert v["kind"] == "turned" and v["ratio"] < -0.3 and v["centre"] == pytest.approx(v["gates"])
    assert ResponseExplorable(0, 0.2, **settings).values()["ratio"] == pytest.approx(1, abs=0.15)


def test_sigma_settles_where_entropy_and_curvature_balance():
    for method in METHODS:
        v = ResponseExplorable(**WELL, method=method, steps=STEPS).values()
        assert v["sigma"] == pytest.approx(v["balance"], rel=0.02)
        assert v["lam"] == pytest.approx(v["best"], abs=0.06) and v["loss"] == pytest.approx(v["least"], abs=1e-3)
        assert v["balance"] == pytest.approx(math.sqrt(0.01 / v["curvature"]))
    # the exact loss bends down on the way, a line's never does
    assert ResponseExplorable(lam=-3, method="exact").values()["balance"] == ""
    assert ResponseExplorable(lam=-3).values()["curvature"] > 0


def test_too_wide_runs_away_and_the_exact_centre_does_not():
    ends = {m: ResponseExplorable(**LARGE, method=m, steps=STEPS).values() for m in METHODS}
    assert ends["stn"]["kind"] == "runaway" and ends["stn"]["sigma"] == 4 and ends["stn"]["lam"] > 2.5
    for method in ("delta", "exact"):
        assert ends[method]["lam"] == pytest.approx(ends[method]["best"], abs=0.06) and ends[method]["sigma"] < 1


def test_too_narrow_drowns_in_noise_and_a_larger_entropy_leads_out():
    noisy = ResponseExplorable(**NOISY, steps=40).values()
    assert noisy["kind"] == "noisy" and noisy["sigma"] == 0.05
    wild = np.std(noisy["paths"]["stn"][0][50:])
    calm = ResponseExplorable(**{**NOISY, "tau": 0.03}, steps=STEPS).values()
    assert np.std(calm["paths"]["stn"][0][60:]) < wild / 5 and calm["sigma"] > 0.3
    assert ResponseExplorable(**NOISY, seed=1).values()["fitted"] != ResponseExplorable(**NOISY).values()["fitted"]


def test_the_presets_and_the_words(visit):
    page = visit(ResponseExplorable().html())
    kinds = {"σ well set": WELL, "σ too large": LARGE, "wrong way": WRONG, "σ too small + noise": NOISY}
    for name, settings in kinds.items():
        page.get_by_role("button", name=name, exact=True).click()
        expected = ResponseExplorable(**settings).values()
        assert difference(expected, shown(page)) < 1e-12
        assert page.locator(".gx-note strong").inner_text() == WORDS[expected["kind"]][0]
        assert page.locator(".gx-note math").count() == 1
    page.get_by_label("exact response").check()
    assert page.locator(".gx-note strong").inner_text() == WORDS["exact"][0]
    assert page.locator("[data-slot=ratio]").inner_text() == "1.00"


def test_step_run_and_back(visit):
    page = visit(ResponseExplorable(**NOISY, steps=0).html())
    steps = page.locator("input[data-key=steps]")
    for _ in range(3):
        page.get_by_role("button", name="one step").click()
    assert steps.input_value() == "3"
    assert difference(ResponseExplorable(**NOISY, steps=3).values(), shown(page)) < 1e-12
    page.get_by_role("button", name="other noise").click()
    assert difference(ResponseExplorable(**NOISY, steps=3, seed=1).values(), shown(page)) < 1e-12
    page.get_by_role("button", name="run").click()
    page.wait_for_function("() => +document.querySelector('input[data-key=steps]').value > 5", timeout=8000)
    page.get_by_role("button", name="stop").click()
    stopped = steps.input_value()
    page.wait_for_timeout(150)
    assert steps.input_value() == stopped
    steps.evaluate("node => { node.value = 97; node.dispatchEvent(new Event('input', { bubbles: true })); }")
    page.get_by_role("button", name="run").click()
    page.wait_for_function("() => +document.querySelector('input[data-key=steps]').value === 100", timeout=8000)
    page.get_by_role("button", name="back to the start").click()
    assert steps.input_value() == "0" and shown(page)["lam"] == -4
    page.locator("input[data-key=noise]").focus()
    page.keyboard.press("Home")
    assert page.get_by_role("button", name="other noise").is_disabled()  # there is none


def test_the_spectrum_is_dragged_by_mouse_keys_and_finger(visit):
    page = visit(ResponseExplorable().html())
    gate, dot = page.locator("[data-gate='3']"), page.locator("[data-handle='3']")
    before, box = gate.get_attribute("d"), dot.locator("circle").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 30, steps=4)
    page.mouse.up()
    page.mouse.move(x, y)  # the button is up: nothing follows the pointer
    raised = float(dot.get_attribute("aria-valuenow"))
    assert raised > 1.5 and gate.get_attribute("d") != before
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert float(dot.get_attribute("aria-valuenow")) == pytest.approx(raised - 0.1)
    assert page.locator("[data-handle][tabindex='0']").get_attribute("data-handle") == "4"
    spectrum = [*PLAIN[:3], round(raised - 0.1, 1), *PLAIN[4:]]
    assert difference(ResponseExplorable(spectrum=spectrum).values(), shown(page)) < 1e-12

    page = visit(ResponseExplorable().html() + "<p style='height: 900px'>", width=375, has_touch=True, is_mobile=True)
    dot = page.locator("[data-handle='3']")
    box = dot.locator("circle").nth(1).bounding_box()
    assert box["width"] > 30  # wide enough for a finger
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    drag_by_finger(page, (x, y), (x, y - 20), (x, y - 30))
    assert float(dot.get_attribute("aria-valuenow")) > 2 and page.evaluate("scrollY") == 0


@pytest.mark.parametrize("width", [375, 343, 900])
def test_panels_stand_below_each_other_on_a_phone_and_can_be_read(visit, width):
    page = visit(ResponseExplorable().html(), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [figure.bounding_box() for figure in page.locator(".gx-figure").all()]
    assert len(boxes) == 3 and len({round(box["x"]) for box in boxes}) == (1 if width < 400 else 2)
    sizes = page.locator(".gx svg text").evaluate_all(
        "all => all.map((e) => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)"
    )
    assert min(sizes) >= 11


def test_every_slider_moves_picture_and_values_from_the_start(visit):
    page = visit(ResponseExplorable().html())
    figure = page.locator("[data-explorable=response]")
    state = lambda: ("".join(figure.locator("svg").evaluate_all("all => all.map(e => e.innerHTML)")), shown(page))  # noqa: E731
    for key in ("lam", "sigma", "tau", "noise", "steps"):
        picture, values = state()
        page.locator(f"input[data-key={key}]").focus()
        page.keyboard.press("ArrowRight")
        assert state()[0] != picture and state()[1] != values, key


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"lam": 6.1}, "lam"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": float("nan")}, "sigma"),
        ({"tau": 0.2}, "tau"),
        ({"noise": -0.01}, "noise"),
        ({"method": "adam"}, "method"),
        ({"steps": 101}, "steps"),
        ({"spectrum": (0.0,) * 5}, "spectrum"),
        ({"spectrum": (0, 0, 0, 0, 0, 5.1)}, "spectrum"),
        ({"mode": 6}, "mode"),
        ({"seed": 100}, "seed"),
    ],
)
def test_bad_settings_are_named(settings, argument):
    with pytest.raises(ValueError, match=f"^{argument} must be "):
        ResponseExplorable(**settings)
