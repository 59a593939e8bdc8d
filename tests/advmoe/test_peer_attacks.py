"""The panel beside another library's attack on the same model: its union finds at least as many failures."""

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from gated.advmoe import MoECNN, attack_panel, optimizers, standard_step

EPS, STEPS, RESTARTS = 0.15, 10, 2


@pytest.fixture(scope="module", params=["layer", "global"])
def trained(request):
    """A mixture that knows three shapes of signal, and signals that it has not seen."""
    torch.manual_seed(0)
    t = torch.linspace(0, 1, 16)
    shapes = torch.stack([(6.28 * t).sin(), (12.57 * t).sin(), 2 * t - 1])
    y = torch.randint(3, (400,))
    x = (0.6 * shapes[y] + 0.3 * torch.randn(400, 16))[:, None]
    model = MoECNN(1, 3, widths=(8, 12), strides=(1, 2), routing=request.param)
    every = list(optimizers(model, lr=0.05))
    for batch in torch.arange(200).split(50) * 10:
        standard_step(model, every, (x[batch], y[batch]))
    return model.eval(), x[250:], y[250:]


# ART hands its own tensors to NumPy in a way that newer NumPy dislikes
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_union_finds_at_least_as_many_failures_as_arts_pgd(trained):
    model, x, y = trained
    panel = attack_panel(
        model, x, y, EPS, steps=STEPS, restarts=RESTARTS, queries=60, generator=torch.Generator().manual_seed(0)
    )
    np.random.seed(0)  # noqa: NPY002 (ART draws its starts from the global state)
    peer = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=3, device_type="cpu"
    )
    attack = ProjectedGradientDescentPyTorch(
        peer,
        norm=np.inf,
        eps=EPS,
        eps_step=EPS / 4,
        max_iter=STEPS,
        num_random_init=RESTARTS,
        batch_size=len(x),
        verbose=False,
    )
    x_adv = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
    assert (x_adv - x).abs().amax() <= EPS * (1 + 1e-5)
    with torch.no_grad():
        # what is wrong as it stands counts for both; CE's slope through a router may well lead such an input home
        theirs = panel.clean | (model(x_adv).argmax(1) != y)
    assert theirs.sum() > panel.clean.sum()  # the peer does something
    assert panel.union.sum() >= theirs.sum()
    assert panel.found["ste"].broken.sum() >= 0.9 * theirs.sum()  # the same attack, but for its random starts
