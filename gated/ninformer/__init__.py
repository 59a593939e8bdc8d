"""NiNformer: a transformer block whose attention is replaced by a product with a gate that a whole MLP-Mixer makes.

    gate.py     the block as released, and what can be changed in it
    blocks.py   MLP-Mixer (the inner network too), LocalViT and gMLP: the baselines besides ViT
    fused.py    how Mixer and the gating unit run without gradients
    model.py    `build(kind, sizes, depth)`: whole networks of one form, with the gate dial
    sizes.py    their widths; those of the released script and of this book
    budget.py   parameters and MACs in closed form: equal depth, equal parameters, equal MACs
    task.py     a task that needs multiplication, and its control

Source: Abdullah and Aydin, "NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function",
2024 (arXiv 2403.02411).
"""

from gated.ninformer.blocks import MLP, GMLPBlock, LocalMLP, LocalViTBlock, MixerBlock, SpatialGate
from gated.ninformer.budget import Budget, block_macs, block_params, crossover, matched_depths, network
from gated.ninformer.gate import FourierGate, NiNBlock, SqueezeGate, StaticGate, Variant
from gated.ninformer.model import FlatMLP, Kind, Network, build
from gated.ninformer.sizes import DIGITS, MNIST, RELEASED, Sizes
from gated.ninformer.task import mixing_task

__all__ = [
    "DIGITS",
    "MLP",
    "MNIST",
    "RELEASED",
    "Budget",
    "FlatMLP",
    "FourierGate",
    "GMLPBlock",
    "Kind",
    "LocalMLP",
    "LocalViTBlock",
    "MixerBlock",
    "Network",
    "NiNBlock",
    "Sizes",
    "SpatialGate",
    "SqueezeGate",
    "StaticGate",
    "Variant",
    "block_macs",
    "block_params",
    "build",
    "crossover",
    "matched_depths",
    "mixing_task",
    "network",
]
