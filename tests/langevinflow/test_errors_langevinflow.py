"""What the module says about arguments that do not fit."""

import math

import pytest
import torch

from gated.langevinflow import (
    ConvPotential,
    Decoder,
    Encoder,
    GRUTransformer,
    GRUVae,
    LangevinFlow,
    LatticePotential,
    MaskedTransformer,
    PostNormLayer,
    Trainer,
    autocorrelation_time,
    bits_per_spike,
    check_step,
    coordinated_dropout,
    exact_noise,
    girsanov_kl,
    langevin_step,
    largest_step,
    match_parameters,
    ou_moments,
    poisson_nll,
    predict,
    released_noise,
    rotates,
    scored,
    split_moments,
    stationary_covariance,
    stiffness_of_periods,
)

EYE = torch.eye(2)
GEN = torch.Generator().manual_seed(0)
COUNTS = torch.ones(4, 6, 3)
TARGETS = torch.ones(4, 8, 5)
NAN, INF = math.nan, math.inf


def spoilt(counts: torch.Tensor, value: float) -> torch.Tensor:
    counts = counts.clone()
    counts[1, 2, 1] = value
    return counts


def flow(**kwargs) -> LangevinFlow:
    torch.manual_seed(0)
    return LangevinFlow(3, 5, 8, **{"dim": 4, **kwargs}).eval()


def trainer(spikes=COUNTS, targets=TARGETS, **kwargs) -> Trainer:
    return Trainer(flow(), spikes, targets, seed=0, **kwargs)


def unstable(**kwargs):
    model = flow(**kwargs)
    with torch.no_grad():
        model.potential.raw_stiffness.fill_(9.0)
    return model(COUNTS)


def diverging():
    model = flow()
    with torch.no_grad():
        model.decoder.readout.bias.fill_(200.0)
    return Trainer(model, COUNTS, TARGETS, seed=0).run(1)


def ablated(ablation: str, counts=COUNTS, generator=None):
    model = flow()
    model.ablation = ablation
    return model(counts, generator)


CASES = {
    "conv dim": (lambda: ConvPotential(6), r"dim must be a multiple of 4"),
    "conv init": (lambda: ConvPotential(4, init=-1), r"init must be a number in \[0, inf\); got -1"),
    "conv eps": (lambda: ConvPotential(4, eps=0), r"eps must be a positive finite number; got 0"),
    "lattice stiffness": (lambda: LatticePotential(torch.tensor([1.0, 0.0])), r"stiffness must be a row of positive"),
    "lattice coupling": (lambda: LatticePotential(torch.ones(4), coupling=0), r"coupling must be a positive"),
    "lattice quartic": (lambda: LatticePotential(torch.ones(4), quartic=-1), r"quartic must be a positive"),
    "lattice ends": (lambda: LatticePotential(torch.ones(2), periodic=True), r"at least 3 sites for periodic ends"),
    "periods": (lambda: stiffness_of_periods(8, 4, 3), r"shortest must be at most longest; got 8 and 4"),
    "temperature": (lambda: exact_noise(0.5, -1), r"temperature must be a number in \[0, inf\); got -1"),
    "decay": (lambda: exact_noise(1.5), r"decay must lie in \[0, 1\].*got decay 1.5"),
    "friction per bin": (lambda: released_noise(1.5), r"friction must be a number in \[0, 1\]; got 1.5"),
    "step sign": (lambda: langevin_step(lambda z: z, EYE, EYE, step=0), r"step must be a positive finite number"),
    "scheme": (lambda: langevin_step(lambda z: z, EYE, EYE, step=1, scheme="rk4"), r"scheme must be one of .*'rk4'"),
    "rotation": (lambda: rotates(1.0, 0.1, -0.1), r"decay must lie in \[0, 1\]"),
    "bound scheme": (lambda: largest_step(1.0, 0.5, "leapfrog"), r"scheme must be one of"),
    "unstable": (lambda: check_step(4 * EYE, 1.5), r"step must be below 2 / omega_max = 1 .* = 2 .*got 1.5"),
    "unstable euler": (
        lambda: check_step(EYE, 0.1, 1.0, "euler"),
        r"omega_max = 0 for 'euler'",
    ),
    "hessian": (lambda: check_step(NAN * EYE, 0.1), r"hessian must be finite"),
    "negative friction": (
        lambda: ou_moments(EYE, friction=-1, temperature=1, time=1),
        r"friction must be a number in \[0, inf\)",
    ),
    "time": (lambda: ou_moments(EYE, friction=1, temperature=1, time=0), r"time must be a positive"),
    "split steps": (
        lambda: split_moments(torch.eye(4), EYE, friction=1, temperature=1, time=1, steps=0),
        r"steps must be an integer of at least 1",
    ),
    "no stationary law": (
        lambda: stationary_covariance(-EYE, step=0.1, decay=0.5, scale=1),
        r"must make the step contract for a stationary law",
    ),
    "no friction": (lambda: stationary_covariance(EYE, step=0.1, decay=1, scale=0), r"contract for a stationary law"),
    "short series": (
        lambda: autocorrelation_time(torch.zeros(3)),
        r"series must have at least 4 steps; got shape \(3,\)",
    ),
    "keep": (lambda: coordinated_dropout(COUNTS, 0, GEN), r"keep must be a number in \(0, 1\]"),
    "rule": (lambda: scored(COUNTS > 0, 0.5, "all", GEN), r"rule must be one of \('original', 'released'\); got 'all'"),
    "negative counts": (lambda: poisson_nll(COUNTS, spoilt(COUNTS, -1)), r"counts must be finite counts of at least 0"),
    "counts that are NaN": (lambda: poisson_nll(COUNTS, spoilt(COUNTS, NAN)), r"counts must be finite counts"),
    "log rates": (lambda: poisson_nll(spoilt(COUNTS, INF), COUNTS), r"log_rates must be finite"),
    "push without noise": (lambda: girsanov_kl(COUNTS, 0), r"scale must be a number in \(0, inf\]; got 0"),
    "bits: shapes": (lambda: bits_per_spike(COUNTS, TARGETS), r"rates must have the shape of spikes"),
    "bits: no spikes": (lambda: bits_per_spike(COUNTS, 0 * COUNTS), r"spikes must hold at least one spike; got none"),
    "bits: empty": (lambda: bits_per_spike(COUNTS[:0], COUNTS[:0]), r"spikes must hold at least one spike"),
    "bits: only NaN": (lambda: bits_per_spike(COUNTS, NAN * COUNTS), r"spikes must hold at least one spike"),
    "bits: rates": (lambda: bits_per_spike(spoilt(COUNTS, NAN), COUNTS), r"rates must be finite and at least 0"),
    "bits: infinite rates": (lambda: bits_per_spike(spoilt(COUNTS, INF), COUNTS), r"rates must be finite"),
    "bits: negative rates": (lambda: bits_per_spike(spoilt(COUNTS, -1), COUNTS), r"rates must be finite and at least"),
    "bits: negative counts": (lambda: bits_per_spike(COUNTS, spoilt(COUNTS, -1)), r"spikes must be finite counts"),
    "observed": (lambda: LangevinFlow(0, 5, 8), r"observed must be an integer of at least 1"),
    "neurons": (lambda: LangevinFlow(6, 5, 8), r"neurons must be at least observed=6"),
    "bins": (lambda: LangevinFlow(3, 5, 0), r"bins must be an integer of at least 1"),
    "mode": (lambda: flow(mode="fixed"), r"mode must be one of \('released', 'corrected', 'controlled'\); got 'fixed'"),
    "kl": (lambda: flow(kl="released"), r"kl must be 'proper', or 'released' in mode 'released'"),
    "kl word": (lambda: flow(mode="released", kl="exact"), r"kl must be .*got 'exact'"),
    "learned friction": (lambda: flow(mode="released", learned_friction=True), r"must be left out in mode 'released'"),
    "friction": (lambda: flow(friction=1.0), r"friction must be a number in \(0, 1\); got 1.0"),
    "model step": (lambda: flow(step=-1), r"step must be a positive finite number; got -1"),
    "first lattice": (lambda: flow(periods=(2, 8)), r"step must be below 2 / omega_max = .* for 'baoab'"),
    "lattice that grew": (unstable, r"step must be below 2 / omega_max = .*; got 1"),
    "released step": (
        lambda: flow(mode="released", step=5.0),
        r"step must be below sqrt\(\(1 - a\) / a\) / omega_max = .* for 'euler'",
    ),
    "released dim": (lambda: flow(mode="released", dim=6), r"dim must be a multiple of 4"),
    "encoder": (lambda: Encoder(3, 4, source="next"), r"source must be one of \('current', 'lagged'\)"),
    "dropout": (lambda: Encoder(3, 4, rate=1.0), r"rate must be a number in \[0, 1\); got 1.0"),
    "layer heads": (lambda: PostNormLayer(6, 4, 8), r"dim must be a multiple of heads=4; got 6"),
    "depth": (lambda: Decoder(4, 5, depth=-1), r"depth must be an integer of at least 0; got -1"),
    "input neurons": (lambda: flow()(TARGETS), r"spikes must have shape \[trials, observed bins, 3\]"),
    "input bins": (lambda: flow()(torch.ones(4, 9, 3)), r"with at most 8 bins; got \(4, 9, 3\)"),
    "empty input": (lambda: flow()(COUNTS[:0]), r"not empty"),
    "input negative": (lambda: flow()(spoilt(COUNTS, -1)), r"spikes must be finite counts of at least 0"),
    "input NaN": (lambda: GRUVae(3, 5, 8).eval()(spoilt(COUNTS, NAN)), r"spikes must be finite counts"),
    "input infinite": (lambda: MaskedTransformer(3, 5, 8).eval()(spoilt(COUNTS, INF)), r"spikes must be finite"),
    "no generator": (lambda: flow().train()(COUNTS), r"generator must be given in training"),
    "rival without generator": (lambda: GRUTransformer(3, 5, 8)(COUNTS), r"generator must be given in training"),
    "ablation": (lambda: ablated("all"), r"ablation must be one of .*got 'all'"),
    "ablation noise": (lambda: ablated("noise"), r"generator must be given for the ablation 'noise'"),
    "ablation shuffle": (
        lambda: ablated("shuffle", COUNTS[:1]),
        r"at least 2 trials for .*'shuffle'; got 1",
    ),
    "match": (lambda: match_parameters(lambda w: GRUVae(3, 5, 8, dim=w), 10), r"target must lie within 5% of a size"),
    "trainer: empty": (lambda: trainer(COUNTS[:0], TARGETS[:0]), r"spikes must have shape .*, not empty"),
    "trainer: no spikes": (lambda: trainer(0 * COUNTS), r"spikes must hold at least one spike; got none"),
    "trainer: negative": (lambda: trainer(targets=spoilt(TARGETS, -1)), r"targets must be finite counts of at least 0"),
    "trainer: NaN": (lambda: trainer(spoilt(COUNTS, NAN)), r"spikes must be finite counts"),
    "trainer: trials": (lambda: trainer(targets=TARGETS[:3]), r"targets must have the trials of spikes"),
    "trainer: bins": (lambda: trainer(targets=TARGETS[:, :4]), r"and at least its bins and neurons"),
    "trainer: keep": (lambda: trainer(keep=1.2), r"keep must be a number in \(0, 1\]; got 1.2"),
    "trainer: rule": (lambda: trainer(rule="none"), r"rule must be one of"),
    "trainer: beta": (lambda: trainer(beta=-1), r"beta must be a number in \[0, inf\); got -1"),
    "trainer: rate": (lambda: trainer(rate=0), r"rate must be a positive"),
    "trainer: batch": (lambda: trainer(batch=0), r"batch must be an integer of at least 1"),
    "trainer: steps": (lambda: trainer().run(0), r"steps must be an integer of at least 1"),
    "trainer: infinite": (diverging, r"loss must be finite, got (inf|nan) at step 0"),
    "samples": (lambda: predict(flow(), COUNTS, samples=0), r"samples must be an integer of at least 1"),
    "samples without generator": (lambda: predict(flow(), COUNTS, samples=2), r"generator must be given for several"),
    "mean": (lambda: predict(flow(), COUNTS, mean="median"), r"mean must be 'arithmetic' or 'geometric'; got 'median'"),
}


@pytest.mark.parametrize("case", CASES)
def test_message_names_the_argument(case):
    call, message = CASES[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_step_that_fails_changes_no_weight():
    run = trainer()
    before = [p.detach().clone() for p in run.model.parameters()]
    with torch.no_grad():
        run.model.decoder.readout.bias.fill_(200.0)
    with pytest.raises(ValueError, match="loss must be finite"):
        run.run(1)
    after = dict(run.model.named_parameters())
    assert all(
        torch.equal(a, b) for (n, b), a in zip(after.items(), before, strict=True) if n != "decoder.readout.bias"
    )
    assert run.step == 0
