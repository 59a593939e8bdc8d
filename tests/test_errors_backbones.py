"""What the plain networks say about arguments that do not fit."""

import pytest
import torch

from gated.backbones import PatchEmbedding, ResNet, Shortcut, TransformerBlock, ViT

VIT = {"image_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 3, "dim": 8, "depth": 1, "heads": 2}


@pytest.mark.parametrize(
    ("blocks", "widths", "classes", "words"),
    [
        ((1, 1), (8,), 3, "widths must have one entry"),
        ((), (), 3, "widths must have one entry"),
        ((1, 0), (8, 8), 3, "blocks_per_stage must be"),
        ((1, 1), (8, 8.5), 3, "widths must be"),
        ((1, 1), (8, 4), 3, "out_channels must be at least in_channels=8"),
        ((1,), (8,), 0, "num_classes must be"),
    ],
)
def test_resnet_names_the_argument(blocks, widths, classes, words):
    with pytest.raises(ValueError, match=words):
        ResNet(blocks, widths, in_channels=1, num_classes=classes)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 8, 8), (2, 1, 0, 8)])
def test_images_that_do_not_fit(shape):
    net, vit = ResNet((1,), (4,), in_channels=1, num_classes=3), ViT(**VIT)
    for call in (net, vit, lambda x: next(net.features(x)), lambda x: next(vit.features(x))):
        with pytest.raises(ValueError, match="x must"):
            call(torch.zeros(shape))


def test_integers_are_no_images():
    with pytest.raises(ValueError, match="floating-point"):
        ResNet((1,), (4,), in_channels=1, num_classes=3)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_vit_has_one_image_size():
    with pytest.raises(ValueError, match="8 x 8"):
        ViT(**VIT)(torch.zeros(1, 1, 12, 12))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch_size": 3}, "image_size must be a multiple"),
        ({"heads": 3}, "dim must be a multiple of heads=3"),
        ({"pool": "max"}, "pool must be one of"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\)"),
        ({"depth": 0}, "depth must be"),
        ({"mlp_dim": 0}, "mlp_dim must be"),
    ],
)
def test_vit_names_the_argument(change, words):
    with pytest.raises(ValueError, match=words):
        ViT(**VIT | change)


def test_parts_check_their_sizes():
    with pytest.raises(ValueError, match="stride must be"):
        Shortcut(1, 1, 0)
    with pytest.raises(ValueError, match="heads must be"):
        TransformerBlock(8, 0, 8)
    with pytest.raises(ValueError, match="patch_size must be"):
        PatchEmbedding(8, -4, 1, 8)
