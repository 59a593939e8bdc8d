"""Weights of Hugging Face transformers' mixture-of-experts blocks, into an `MoE` and back.

    layer = mixtral_layer(model.state_dict(), prefix="model.layers.0.mlp.")
    y, routing = layer(x)                                    # y is what the block returns

Mixtral, `MixtralSparseMoeBlock`:

    gate.weight             [N, d]                    gate.score.weight
    experts.gate_up_proj    [N, 2 h, d]               experts.up, transposed        (transformers 5)
    experts.down_proj       [N, d, h]                 experts.down, transposed
    experts.{i}.w1.weight, .w3.weight, .w2.weight     the same, expert by expert    (checkpoint files)

Switch, `SwitchTransformersSparseMLP`:

    router.classifier.weight, .bias                   gate.gate.score.weight, .bias
    experts.expert_{i}.wi.weight, .wo.weight          experts.up, experts.down, stacked and transposed

Equal in evaluation mode: jitter on the router's input and dropout inside experts, which both blocks have in training
(off by default in Mixtral), are not copied. Tensors are copied, never shared. Nothing of transformers is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gated.gates._validation import check_count
from gated.moe.capacity import Capacity
from gated.moe.dispatch import sorted_dispatch
from gated.moe.experts import Activation, FFNExperts
from gated.moe.gates import SoftmaxTopKGate, TopKGate
from gated.moe.layer import MoE
from gated.moe.scores import LinearScore

__all__ = ["mixtral_layer", "mixtral_state", "switch_layer", "switch_state"]

State = Mapping[str, Tensor]


def mixtral_layer(
    state: State, k: int = 2, *, prefix: str = "", dispatch: Callable[..., Tensor] = sorted_dispatch
) -> MoE:
    """Mixtral's block: softmax over the k largest logits, SwiGLU experts.

    Args:
        state: a state dict that holds the block's tensors under `prefix`, in either of the two forms above.
        k: num_experts_per_tok.

    Raises:
        ValueError: a tensor is missing, or shapes do not fit.
    """
    gate = _get(state, prefix, "gate.weight")
    num_experts, dim = gate.shape
    if f"{prefix}experts.gate_up_proj" in state:
        up, down = (_get(state, prefix, f"experts.{name}_proj") for name in ("gate_up", "down"))
    else:
        w1, w3, down = (
            _stack(state, prefix, f"experts.{{}}.{name}.weight", num_experts) for name in ("w1", "w3", "w2")
        )
        up = torch.cat([w1, w3], 1)

    def build() -> MoE:
        experts = FFNExperts(num_experts, dim, down.shape[2], activation="silu", gated=True)
        return MoE(TopKGate(LinearScore(dim, num_experts), k), experts, dispatch)

    return _filled(build, {"gate.score.weight": gate, "experts.up": up.mT, "experts.down": down.mT})


def mixtral_state(layer: MoE, *, prefix: str = "", stacked: bool = True) -> dict[str, Tensor]:
    """The other way: a state dict for the block, stacked (version 5) or expert by expert (checkpoint files).

    Raises:
        ValueError: the layer computes something that Mixtral's block cannot.
    """
    experts, gate = layer.experts, layer.gate
    fits = isinstance(experts, FFNExperts) and isinstance(gate, TopKGate) and _plain(gate, bias=False)
    if not fits or not gate.renormalise:
        raise ValueError(f"layer must have a renormalised top-k gate on x W at temperature 1; got {layer}")
    if not experts.gated or experts.activation != "silu" or experts.up_bias is not None:
        raise ValueError(f"layer must have SwiGLU experts without biases; got {layer}")
    up, down = _detached(experts.up).mT, _detached(experts.down).mT
    result = {"gate.weight": _detached(gate.score.weight)}
    if stacked:
        result |= {"experts.gate_up_proj": up, "experts.down_proj": down}
    else:
        for i, (w1, w3) in enumerate(both.chunk(2) for both in up):
            for name, weight in (("w1", w1), ("w2", down[i]), ("w3", w3)):
                result[f"experts.{i}.{name}.weight"] = weight
    return {_key(prefix, name): tensor.contiguous() for name, tensor in result.items()}


def switch_layer(
    state: State,
    capacity: int,
    *,
    activation: Activation = "relu",
    prefix: str = "",
    dispatch: Callable[..., Tensor] = sorted_dispatch,
) -> MoE:
    """The Switch block: one expert a token, weighed by its probability; in each sequence an expert takes its first
    `capacity` tokens, the others get zeros.

    Args:
        state: a state dict that holds the block's tensors under `prefix`.
        capacity: expert_capacity of the configuration. activation: its dense_act_fn.

    Raises:
        ValueError: a tensor is missing, or shapes do not fit; a capacity below 0.
    """
    check_count("capacity", capacity, least=0)
    gate = _get(state, prefix, "router.classifier.weight")
    bias = state.get(f"{prefix}router.classifier.bias")
    num_experts, dim = gate.shape
    up, down = (_stack(state, prefix, f"experts.expert_{{}}.{name}.weight", num_experts) for name in ("wi", "wo"))

    def build() -> MoE:
        score = LinearScore(dim, num_experts, bias=bias is not None)
        router = Capacity(SoftmaxTopKGate(score, 1), size=capacity, per_sequence=True)
        return MoE(router, FFNExperts(num_experts, dim, down.shape[2], activation=activation), dispatch)

    tensors = {"gate.gate.score.weight": gate, "experts.up": up.mT, "experts.down": down.mT}
    return _filled(build, tensors if bias is None else tensors | {"gate.gate.score.bias": bias})


def switch_state(layer: MoE, *, prefix: str = "") -> dict[str, Tensor]:
    """The other way: a state dict for the block.

    Raises:
        ValueError: the layer computes something that the block cannot.

    The capacity is not in the state but is the configuration's expert_capacity; for a layer without one that is the
    longest sequence.
    """
    experts, gate = layer.experts, layer.gate
    if isinstance(gate, Capacity):
        if gate.size is None or not gate.per_sequence or gate.priority != "order":
            raise ValueError(f"layer must limit by size, by sequence and first come first served; got {layer}")
        gate = gate.gate
    fits = isinstance(experts, FFNExperts) and isinstance(gate, SoftmaxTopKGate) and _plain(gate, bias=True)
    if not fits or gate.k != 1 or gate.renormalise or experts.gated or experts.up_bias is not None:
        raise ValueError(
            f"layer must be a top-1 softmax gate at temperature 1 on experts of two matrices, no biases; got {layer}"
        )
    result = {"router.classifier.weight": _detached(gate.score.weight)}
    if gate.score.bias is not None:
        result["router.classifier.bias"] = _detached(gate.score.bias)
    for i, (up, down) in enumerate(zip(_detached(experts.up), _detached(experts.down), strict=True)):
        result |= {f"experts.expert_{i}.wi.weight": up.mT, f"experts.expert_{i}.wo.weight": down.mT}
    return {_key(prefix, name): tensor.contiguous() for name, tensor in result.items()}


def _plain(gate: TopKGate, *, bias: bool) -> bool:
    """Whether the logits are x W as they are, or x W + b with `bias`: what the other library computes."""
    score = gate.score
    return isinstance(score, LinearScore) and (bias or score.bias is None) and gate.temperature == 1


def _key(prefix: str, name: str) -> str:
    if not isinstance(prefix, str):
        raise ValueError(f"prefix must be a word, what stands before each name; got {prefix!r}")
    return prefix + name


def _get(state: State, prefix: str, name: str) -> Tensor:
    if _key(prefix, name) not in state:
        raise ValueError(
            f"state must hold {prefix + name!r}, or prefix={prefix!r} is another; got {sorted(state)[:8]}, ..."
        )
    return state[prefix + name].detach()


def _stack(state: State, prefix: str, name: str, num_experts: int) -> Tensor:
    return torch.stack([_get(state, prefix, name.format(i)) for i in range(num_experts)])


def _filled(build: Callable[[], MoE], tensors: dict[str, Tensor]) -> MoE:
    with torch.device("meta"):
        layer = build()
    shapes = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"state must give {name} the shape {shapes[name]}; got {tuple(tensor.shape)}")
    layer.load_state_dict(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, assign=True
    )
    return layer


def _detached(parameter: Any) -> Tensor:
    assert isinstance(parameter, Tensor | nn.Parameter)
    return parameter.detach().clone()
