"""With copied weights the layer is transformers' block: outputs and every gradient, both ways."""

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, SwitchTransformersConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from gated import moe
from gated.moe import convert

DIM, HIDDEN, EXPERTS = 12, 20, 6
DISPATCHES = [moe.sorted_dispatch, moe.loop_dispatch, moe.dense_dispatch, moe.capacity_dispatch]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(block):
    """transformers leaves these tensors uninitialised."""
    generator = rng()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return block.eval()


def mixtral(k=2):
    config = MixtralConfig(
        hidden_size=DIM, intermediate_size=HIDDEN, num_local_experts=EXPERTS, num_experts_per_tok=k,
        experts_implementation="eager",
    )  # fmt: skip
    return filled(MixtralSparseMoeBlock(config))


def switch(capacity=2, bias=False, activation="relu"):
    config = SwitchTransformersConfig(
        d_model=DIM, d_ff=HIDDEN, num_experts=EXPERTS, expert_capacity=capacity, router_bias=bias,
        dense_act_fn=activation,
    )  # fmt: skip
    return filled(SwitchTransformersSparseMLP(config))


def same_gradients(theirs, ours, to_theirs, x):
    """Outputs, the input's gradient and all weights', the latter by converting ours as if it were a state."""
    y_weight = torch.randn(x.shape, generator=rng(2))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    want, (got, routing) = theirs(inputs[0]), ours(inputs[1])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for y in (want, got):
        (y * y_weight).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-5, atol=1e-5)
    for parameter in ours.parameters():
        parameter.data = parameter.grad
    gradients = to_theirs(ours)
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        want = torch.zeros_like(gradient) if expected[name] is None else expected[name]  # no token came
        torch.testing.assert_close(gradient, want, rtol=1e-5, atol=1e-5)
    return routing


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("k", [1, 2, EXPERTS])
def test_mixtral(dispatch, k):
    block = mixtral(k)
    layer = convert.mixtral_layer(block.state_dict(), k, dispatch=dispatch)
    same_gradients(block, layer, convert.mixtral_state, torch.randn(2, 7, DIM, generator=rng(1)))


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize(
    ("capacity", "bias", "activation"), [(2, False, "relu"), (1, True, "gelu"), (64, False, "silu")]
)
def test_switch_with_its_overflow(dispatch, capacity, bias, activation):
    block = switch(capacity, bias, activation)
    layer = convert.switch_layer(block.state_dict(), capacity, activation=activation, dispatch=dispatch)
    x = torch.randn(3, 11, DIM, generator=rng(1))
    routing = same_gradients(block, layer, convert.switch_state, x)
    taken = block.router(x)[0].sum()
    assert int(routing.dropped) == 33 - int(taken)
    assert (int(routing.dropped) > 0) == (capacity < 64)


def test_both_ways_and_nothing_is_shared():
    theirs = mixtral().state_dict()
    layer = convert.mixtral_layer({f"model.{name}": tensor for name, tensor in theirs.items()}, prefix="model.")
    back = convert.mixtral_state(layer, prefix="model.")
    assert back.keys() == {f"model.{name}" for name in theirs}
    for name, tensor in theirs.items():
        assert torch.equal(back[f"model.{name}"], tensor)
        back[f"model.{name}"].zero_()
        assert torch.equal(convert.mixtral_state(layer)[name], tensor)
    with torch.no_grad():
        layer.experts.up.zero_()
        layer.gate.score.weight.zero_()
    assert all((tensor != 0).any() for tensor in theirs.values())

    theirs = switch(bias=True).state_dict()
    back = convert.switch_state(convert.switch_layer(theirs, 2))
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_checkpoint_files_hold_mixtral_expert_by_expert():
    """w1, w3 and w2 of an expert in its own formula."""
    layer = convert.mixtral_layer(mixtral().state_dict())
    state = convert.mixtral_state(layer, prefix="block_sparse_moe.", stacked=False)
    again = convert.mixtral_layer(state, prefix="block_sparse_moe.")
    for name, tensor in layer.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    x = torch.randn(5, DIM, generator=rng())
    for i, expert in enumerate(layer.experts.each()):
        w1, w2, w3 = (state[f"block_sparse_moe.experts.{i}.w{j}.weight"] for j in (1, 2, 3))
        torch.testing.assert_close(expert(x), (nn.functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T)


def test_dtype_follows_the_state():
    state = {name: tensor.bfloat16() for name, tensor in mixtral().state_dict().items()}
    layer = convert.mixtral_layer(state)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in layer.parameters())
    x = torch.randn(1, 9, DIM, generator=rng()).bfloat16()
    want = mixtral().bfloat16()(x)
    assert layer(x)[0].dtype == torch.bfloat16
    torch.testing.assert_close(layer(x)[0].float(), want.float(), rtol=0.05, atol=0.05)


def test_inside_a_whole_model():
    """A causal language model whose blocks are replaced says the same."""
    config = MixtralConfig(
        vocab_size=31, hidden_size=DIM, intermediate_size=HIDDEN, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=EXPERTS, experts_implementation="eager",
    )  # fmt: skip
    model = filled(MixtralForCausalLM(config))
    ids = torch.randint(31, (2, 9), generator=rng())

    class Block(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)[0]

    with torch.no_grad():
        want = model(ids).logits
        state = model.state_dict()
        for i, layer in enumerate(model.model.layers):
            layer.mlp = Block(convert.mixtral_layer(state, prefix=f"model.layers.{i}.mlp."))
        torch.testing.assert_close(model(ids).logits, want, rtol=1e-5, atol=1e-5)
