"""The conventional form of the block against the Switch block of the transformers library, with copied weights."""

import pytest
import torch
from transformers import SwitchTransformersConfig
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from gated.pregated.decode import decode
from gated.pregated.model import PreGatedDecoder
from gated.pregated.store import ExpertStore, write_experts

DIM, HIDDEN, EXPERTS, BLOCKS = 16, 32, 5, 3


def ours():
    generator = torch.Generator().manual_seed(0)
    sizes = {"vocab": 11, "dim": DIM, "hidden": HIDDEN, "blocks": BLOCKS, "num_experts": EXPERTS, "look_ahead": 0}
    return PreGatedDecoder(**sizes, heads=2, context=8, between=1, generator=generator)


def switch(layer):
    """The library's block with the weights of ours; a capacity that no expert reaches."""
    config = SwitchTransformersConfig(
        d_model=DIM, d_ff=HIDDEN, num_experts=EXPERTS, expert_capacity=1000, router_bias=False, dense_act_fn="relu"
    )
    block = SwitchTransformersSparseMLP(config).eval()
    state = {"router.classifier.weight": layer.own.weight}
    for i in range(EXPERTS):
        state[f"experts.expert_{i}.wi.weight"] = layer.experts.w_in[i].T
        state[f"experts.expert_{i}.wo.weight"] = layer.experts.w_out[i].T
    block.load_state_dict({name: weight.detach().clone() for name, weight in state.items()})
    return block


def with_blocks(model, blocks, tokens):
    """The model's forward pass with other blocks in place of its mixtures."""
    x = model.tokens(tokens) + model.positions.weight[: tokens.shape[1]]
    for layer, block in zip(model.layers, blocks, strict=True):
        x = x + layer.attention(layer.attention_norm(x))
        x = x + block(layer.norm(x))
        for dense in layer.between:
            x = dense(x)
    return model.head(model.norm(x))


@pytest.fixture
def tokens():
    return torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(1))


def test_outputs_and_every_gradient(tokens):
    model, other = ours(), ours()
    blocks = [switch(layer) for layer in other.layers]
    want, got = with_blocks(other, blocks, tokens), model(tokens).logits
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(2))
    for logits in (got, want):
        (logits * weight).sum().backward()
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if ".own." not in name and ".experts." not in name:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-4, msg=name)
    for layer, block in zip(model.layers, blocks, strict=True):
        gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
        router = gradients["router.classifier.weight"]
        assert router.abs().max() > 0.01
        torch.testing.assert_close(layer.own.weight.grad, router, rtol=1e-4, atol=1e-4)
        for i in range(EXPERTS):
            for mine, name in ((layer.experts.w_in, "wi"), (layer.experts.w_out, "wo")):
                gradient = gradients[f"experts.expert_{i}.{name}.weight"]
                expected = torch.zeros_like(mine[i]) if gradient is None else gradient.T  # no token came
                torch.testing.assert_close(mine.grad[i], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("design", ["on_demand", "look_ahead"])
def test_offloaded_generation(tmp_path, tokens, design):
    """Experts fetched from a file give the logits of a model that is the library's block for block."""
    model = ours()
    write_experts([layer.experts for layer in model.layers], tmp_path / "x")
    with ExpertStore(tmp_path / "x") as store:
        done = decode(model, store, tokens, design)
    want = with_blocks(model, [switch(layer) for layer in model.layers], tokens)
    torch.testing.assert_close(done.logits, want, rtol=1e-5, atol=1e-5)
