"""One counter of multiply-accumulates (MACs) for all families, attention products included.

The "FLOPs" of vision papers are MACs: one multiplication and one addition. Convolutions and matrix products count,
including QK^T and AV of attention; normalisation, activations, pooling and other element-wise operations do not. Some
published counts, such as mmpretrain's, leave out the attention products.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_params(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Number of parameters; shared parameters count once, buffers do not."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def count_macs(model: nn.Module, image_size: int | tuple[int, int] = 224, in_chans: int = 3) -> int:
    """Multiply-accumulates of one forward pass for one image, in eval mode.

    Runs a copy on the meta device, so large models cost neither memory nor time; a model whose forward depends on
    values runs as a copy on the CPU. The model is unchanged and its forward hooks are not called. Masked attention
    counts in full, as in papers.

    Args:
        model: takes (1, in_chans, H, W).
        image_size: side of a square image, or (H, W), in pixels.
        in_chans: channels of the image.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        return _count(copy_on_meta(model), (1, in_chans, height, width))
    except RuntimeError:  # needs values, or rejects the input: then the run on real tensors raises the error
        return _count(copy.deepcopy(model).cpu(), (1, in_chans, height, width))


def copy_on_meta(model: nn.Module) -> nn.Module:
    """Deep copy of a model with parameters and buffers on the meta device."""
    memo: dict[int, torch.Tensor] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, memo)


def _count(model: nn.Module, shape: tuple[int, ...]) -> int:
    for module in model.eval().requires_grad_(False).modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    first = next(model.parameters(), torch.empty(0))
    images = torch.zeros(shape, dtype=first.dtype, device=first.device)
    with (
        torch.no_grad(),
        _plain_attention(),
        FlopCounterMode(display=False, custom_mapping=_VECTOR_PRODUCTS) as counter,
    ):
        model(images)
    return counter.get_total_flops() // 2


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Context in which attention runs as matrix products, which the counter supports on every device."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # nn.MultiheadAttention's own fused kernel
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _vector_product_flops(left: torch.Size, vector: torch.Size, **_: object) -> int:
    return 2 * left.numel()


# Products missing in torch's counter: `matmul` of a matrix or a vector with a vector.
_VECTOR_PRODUCTS = dict.fromkeys((torch.ops.aten.mv, torch.ops.aten.dot), _vector_product_flops)
