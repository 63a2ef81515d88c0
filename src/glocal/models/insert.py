"""Insert attention into an existing ResNet: BoTNet's experiment on any ResNet of timm or torchvision."""

from typing import Any

import torch
from timm.layers import to_2tuple
from torch import nn

from glocal.layers import MHSA2d, NonLocal2d

KINDS = ("mhsa", "non-local")


def insert_attention(
    model: nn.Module,
    *,
    stages: tuple[int, ...] = (4,),
    kind: str = "mhsa",
    position: str = "relative",
    num_heads: int = 4,
    img_size: int | tuple[int, int] = 224,
) -> nn.Module:
    """Insert attention into some stages of a ResNet, in place; all other weights are kept.

    "mhsa" replaces the last 3x3 convolution of every block of a stage by multi-head self-attention (Srinivas et al.
    2021, Tab. 1); the new layer is randomly initialised. "non-local" puts one non-local block before the last block of
    a stage (Wang et al. 2018, §4.1); it is initialised as the identity, so the outputs are unchanged.

    Args:
        model: a ResNet with `layer1` to `layer4`: glocal's, timm's or torchvision's, pretrained or not.
        stages: stages from 1 to 4; the paper's c5 is stage 4.
        kind: "mhsa" or "non-local".
        position: "relative", "absolute" or "none"; for "mhsa".
        num_heads: heads; for "mhsa".
        img_size: height and width for which position tables are made; other sizes resample them.

    Returns:
        The same model.

    Raises:
        ValueError: if the model has no such stages or blocks, or kind, stages or position are unknown. The model is
            then unchanged.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    chosen = [_stage(model, number) for number in stages]
    if kind == "non-local":
        if any("non_local" in dict(stage.named_children()) for stage in chosen):
            raise ValueError("expected stages without a non-local block, got one that already has it")
        for stage in chosen:
            _insert_non_local(stage)
        return model

    spots = [(block, _last_convolution(block)) for stage in chosen for block in stage.children()]
    sizes = _input_sizes(model, [conv for _, conv in spots], img_size)
    layers = [
        MHSA2d(conv.out_channels, num_heads, size=sizes[conv], position=position, stride=conv.stride[0]).to(conv.weight)
        for _, conv in spots
    ]
    for (block, conv), layer in zip(spots, layers, strict=True):
        block.conv2 = layer.train(conv.training)
    return model


def _stage(model: nn.Module, number: int) -> nn.Sequential:
    stage = dict(model.named_children()).get(f"layer{number}")
    if number not in (1, 2, 3, 4) or not isinstance(stage, nn.Sequential) or not len(stage):
        raise ValueError(
            f"expected a ResNet with layer1 to layer4 and stages from 1 to 4, "
            f"got stage {number!r} of {type(model).__name__}"
        )
    return stage


def _last_convolution(block: nn.Module) -> nn.Conv2d:
    conv = getattr(block, "conv2", None)
    if not isinstance(conv, nn.Conv2d) or conv.in_channels != conv.out_channels or conv.stride[0] not in (1, 2):
        raise ValueError(
            f"expected residual blocks whose conv2 is a square convolution, got {type(block).__name__} with conv2 "
            f"{type(conv).__name__}: attention can be inserted into basic and bottleneck blocks without attention"
        )
    return conv


def _input_sizes(
    model: nn.Module, convs: list[nn.Conv2d], img_size: int | tuple[int, int]
) -> dict[nn.Module, tuple[int, int]]:
    """Height and width of the input of each convolution, recorded in one forward pass."""
    sizes: dict[nn.Module, tuple[int, int]] = {}

    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        height, width = args[0].shape[-2:]
        sizes[module] = (height, width)

    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    image = torch.zeros(1, first.in_channels, *to_2tuple(img_size)).to(first.weight)
    handles = [conv.register_forward_pre_hook(record) for conv in convs]
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():
            model.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return sizes


def _insert_non_local(stage: nn.Sequential) -> None:
    """Insert before the last block under a new name, so that the blocks keep their parameter names."""
    blocks = dict(stage.named_children())
    last_name, last = list(blocks.items())[-1]
    entry = next(module for module in last.modules() if isinstance(module, nn.Conv2d))
    non_local = NonLocal2d(entry.in_channels).to(entry.weight).train(last.training)
    del stage[-1]
    stage.add_module("non_local", non_local)
    stage.add_module(last_name, last)
