"""torch.export graphs of models, the source of every format."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from glocal.errors import GlocalError, first_line
from glocal.export.description import STEP

# Graphs of dynamic size are traced at a size that no model has by default, so that position tables are resampled; at
# the default size resampling is the identity. Tracing only propagates shapes, so the size costs nothing.
FREE_SIZE = 11 * STEP, 13 * STEP


class Graph(NamedTuple):
    """An exported graph.

    Attributes:
        program: (B, 3, H, W) float32 -> (B, K) float32; None for a format with weights only.
        dynamic: dynamic dimensions: ``batch``, ``size``.
        reason: why the size is fixed although a dynamic one was requested.
    """

    program: ExportedProgram | None
    dynamic: tuple[str, ...]
    reason: str | None = None


class Cast(nn.Module):
    """A copy of a model in another dtype; images and logits stay float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = copy.deepcopy(model).to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K) logits."""
        return self.model(x.to(self.dtype)).float()


def trace(model: nn.Module, *, image_size: tuple[int, int], batch_size: int, dynamic: bool) -> Graph:
    """Trace a model with torch.export.

    Args:
        model: in eval mode.
        image_size: height and width in pixels.
        batch_size: if fixed.
        dynamic: dynamic batch, and dynamic height and width if the model supports them.

    Raises:
        GlocalError: if the model cannot be traced.
    """
    if not dynamic:
        return Graph(_traced(model, (batch_size, *image_size), None), ())
    batch = Dim("batch", min=1)
    reason = next((f"{side} is not a multiple of {STEP}" for side in image_size if side % STEP), None)
    if reason is None:
        sides = {2: STEP * Dim("height", min=1), 3: STEP * Dim("width", min=1)}
        try:
            return Graph(_traced(model, (2, *FREE_SIZE), {0: batch, **sides}), ("batch", "size"))
        except GlocalError as error:
            reason = str(error)
    return Graph(_traced(model, (2, *image_size), {0: batch}), ("batch",), reason)


def _traced(model: nn.Module, shape: tuple[int, int, int], dynamic: Any) -> ExportedProgram:
    batch_size, height, width = shape
    images = torch.zeros(batch_size, 3, height, width)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(model, (images,), dynamic_shapes=dynamic and (dynamic,))
            program = program.run_decompositions({torch.ops.aten._upsample_bicubic2d_aa.vec: _resample})
    except Exception as error:  # model code may raise anything under torch.export
        raise GlocalError(
            f"torch.export cannot trace the model for {height} x {width} images: {first_line(error)}"
        ) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # contains local paths
    return program


def _resample(x: Tensor, size: list[int], align_corners: bool, scale_factors: Any) -> Tensor:
    """Antialiased bicubic resampling as two matrix products: exact in all runtimes.

    OpenVINO has no such operator; its conversion of ONNX's has errors of 1e-3 at the borders.
    """
    (h, w), (height, width) = x.shape[-2:], size
    return (_cubic(height, h) @ x.float() @ _cubic(width, w).T).to(x.dtype)


def decompose_attention(program: ExportedProgram) -> ExportedProgram:
    """Decompose attention and einsum into matrix products.

    ONNX's own decompositions are slow or reshape the keys and scale both factors: OpenVINO then does not recognise
    attention and is up to 10 % slower.
    """
    attention, einsum = torch.ops.aten.scaled_dot_product_attention.default, torch.ops.aten.einsum.default
    by_definition = torch.export.default_decompositions()[einsum]
    return program.run_decompositions({attention: _attention, einsum: by_definition})


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention in eval mode, by its definition."""
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], dim=-3) for x in (k, v))
    logits = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if is_causal:
        attn_mask = logits.new_ones(logits.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    mixed = logits.softmax(-1) @ v
    return mixed.transpose(1, -2).contiguous().transpose(1, -2)  # the memory layout of torch's: graphs have views of it


def _cubic(length: int, size: int) -> Tensor:
    """(length, size) weights of Keys' cubic kernel, a = -0.5, widened for downsampling; rows sum to 1."""
    at = torch.arange(length, dtype=torch.float32) + 0.5
    scale = size / torch.ones_like(at).sum()  # a tensor: runtimes do not compute with Python sizes
    distance = (torch.arange(size, dtype=torch.float32) + 0.5 - (scale * at)[:, None]).abs() / scale.clamp(min=1.0)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
    return weights / weights.sum(1, keepdim=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporters' warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
