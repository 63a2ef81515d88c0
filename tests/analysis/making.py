"""Small models of many houses, and what must not change about them."""

import contextlib

import timm
import torch
from torch import nn

import glocal

OURS = ("resnet", "botnet", "vit", "t2t_vit", "cvt", "cat", "conformer")
TIMM = {
    "timm vit": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2},
    ),
    "timm swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2)},
    ),
    "timm pvt": ("pvt_v2_b0", {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}),
    "timm deit": (
        "deit_tiny_distilled_patch16_224",
        {"img_size": 32, "patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2},
    ),
    "timm beit": (
        "beit_base_patch16_224",
        {"img_size": 32, "patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2},
    ),
    "timm resnet": ("resnet10t", {}),
    "timm convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
}


def model(name: str) -> nn.Module:
    """A small classifier of ten classes, its weights drawn so that every branch does something."""
    torch.manual_seed(0)
    if name in OURS:
        made = glocal.create_model(f"{name}_micro", num_classes=10)
    elif name in TIMM:
        architecture, kwargs = TIMM[name]
        made = timm.create_model(architecture, num_classes=10, **kwargs)
    elif name == "torchvision":
        from torchvision.models import VisionTransformer

        made = VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=10
        )
    else:
        from transformers import ViTConfig, ViTForImageClassification

        made = ViTForImageClassification(
            ViTConfig(
                hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32,
                patch_size=4, num_labels=10, attn_implementation=name.split()[-1],
            )
        )  # fmt: skip
    for module in made.modules():  # norms that start branches at zero, and logits of nearly nothing
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
    return made


def images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@contextlib.contextmanager
def unchanged(module: nn.Module):
    """Weights, gradients, modes, hooks and padding are afterwards what they were."""

    def state():
        return {
            name: (
                part.training,
                len(part._forward_hooks),
                len(part._forward_pre_hooks),
                len(part._backward_hooks),
                getattr(part, "padding_mode", None),
            )
            for name, part in module.named_modules()
        }

    before, weights = state(), {key: value.clone() for key, value in module.state_dict().items()}
    yield
    assert state() == before
    for key, value in module.state_dict().items():
        assert torch.equal(value, weights[key]), key
    assert all(parameter.grad is None for parameter in module.parameters())
