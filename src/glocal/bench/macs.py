"""One counter of multiply-accumulates (MACs) for all families, attention products included.

What papers of this field print as "FLOPs" are MACs: one multiplication and one addition. Counted are convolutions and
matrix products, QK^T and AV of attention among them; normalisation, activations, pooling and other element-wise work
are not. Some published counts leave the attention products out (mmpretrain's do), so figures of two sources differ.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_params(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Number of parameters; a parameter shared by two modules counts once, buffers do not count."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def count_macs(model: nn.Module, image_size: int | tuple[int, int] = 224, in_chans: int = 3) -> int:
    """Multiply-accumulates of one forward pass for one image, in eval mode.

    A copy without storage (on the meta device) is run, so a large model costs neither memory nor time; a model whose
    forward asks for values is copied and run on the CPU instead. The model itself is not touched, nor are its forward
    hooks called. Attention counts in full under a mask too, as the papers count it.

    Args:
        model: takes (1, in_chans, H, W).
        image_size: side of a square image, or (H, W), in pixels.
        in_chans: channels of the image.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        return _count(copy_on_meta(model), (1, in_chans, height, width))
    except RuntimeError:  # needs values, or refuses the input: then the run on real tensors says so
        return _count(copy.deepcopy(model).cpu(), (1, in_chans, height, width))


def copy_on_meta(model: nn.Module) -> nn.Module:
    """Deep copy of a model whose parameters and buffers have shapes and no storage."""
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
    """Attention as matrix products, which the counter knows on every device: no fused kernel hides its work."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # nn.MultiheadAttention's own fused kernel
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _vector_product_flops(left: torch.Size, vector: torch.Size, **_: object) -> int:
    return 2 * left.numel()


# The products that torch's counter leaves out: `matmul` of a matrix or a vector with a vector.
_VECTOR_PRODUCTS = dict.fromkeys((torch.ops.aten.mv, torch.ops.aten.dot), _vector_product_flops)
