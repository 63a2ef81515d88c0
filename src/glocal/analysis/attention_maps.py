"""Attention maps, recomputed beside the model, with the positions of queries and keys.

Fused attention never materialises its maps. Each attention is intercepted at its queries, keys and values: at `Attend`
by a hook; elsewhere at torch's functions `scaled_dot_product_attention`, `multi_head_attention_forward`, or a softmax
whose result is multiplied with values.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glocal.analysis.maps import Grid, grid_of, to_map
from glocal.analysis.watch import Frame, FunctionCall, evaluating, watching
from glocal.layers.attention import Attend

FUNCTIONS = frozenset((
    "scaled_dot_product_attention", "multi_head_attention_forward", "softmax", "matmul", "__matmul__", "bmm",
))  # fmt: skip


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention of a forward pass. B' is the batch size, times the number of separate windows or channels.

    Attributes:
        name: of its module.
        weights: (B', n, N, M) attention maps; rows sum to 1.
        content: (B', n, N, M) logits from q and k alone, scaled; None if only the maps are accessible.
        bias: added to them, broadcastable, or None.
        output: of the model.
        recomputed: output from the maps.
        layout: positions of queries and keys in the image, or None if unknown.
    """

    name: str
    weights: Tensor
    content: Tensor | None
    bias: Tensor | None
    output: Tensor
    recomputed: Tensor
    layout: "TokenLayout | None"


@dataclass(frozen=True)
class TokenLayout:
    """Positions of the tokens of an attention.

    Attributes:
        queries: their grid.
        keys: their grid.
        query_step: pixels of the image from one query to the next, down and across.
        key_step: the same of keys.
        whole: whether the grid covers the whole image, not a window.
    """

    queries: Grid
    keys: Grid
    query_step: tuple[float, float]
    key_step: tuple[float, float]
    whole: bool

    def distance(self) -> np.ndarray:
        """(queries, keys) pixels between their centres, without prefix tokens."""
        of_queries, of_keys = _centres(self.queries, self.query_step), _centres(self.keys, self.key_step)
        return np.hypot(*(of_queries[:, None] - of_keys[None]).transpose(2, 0, 1))


def _centres(grid: Grid, step: tuple[float, float]) -> np.ndarray:
    rows, columns = np.mgrid[: grid.rows, : grid.columns]
    return np.stack([(rows.ravel() + 0.5) * step[0], (columns.ravel() + 0.5) * step[1]], axis=1)


def attention_calls(model: nn.Module, images: Tensor) -> list[AttentionCall]:
    """Every attention of one forward pass in eval mode, in execution order.

    Args:
        model: any module on images; left unchanged.
        images: (B, 3, H, W).
    """
    calls: list[AttentionCall] = []
    waiting: dict[int, tuple[Tensor, Tensor]] = {}  # softmax results by identity, with their logits
    recomputing = False

    def record(name: str, frames: Sequence[Frame], **parts: Any) -> None:
        weights = parts["weights"]
        parts["weights"] = weights.reshape(-1, *weights.shape[-3:]) if weights.ndim > 3 else weights[:, None]
        calls.append(AttentionCall(name, layout=_layout(parts["weights"], frames, images), **parts))

    def on_call(call: FunctionCall) -> None:
        frames = call.frames
        if recomputing or any(isinstance(frame.module, Attend) for frame in frames):
            return
        name = frames[-1].name if frames else ""
        if call.name == "scaled_dot_product_attention":
            record(name, frames, **_fused(call.output, *call.args, **call.kwargs))
        elif call.name == "multi_head_attention_forward":
            record(name, frames, **_multi_head(call))
        elif call.name == "softmax":
            if _is_last(call) and call.output.ndim >= 3:
                waiting[id(call.output)] = (call.output, call.args[0])
        else:
            if found := waiting.pop(id(call.args[0]), None):
                weights, logits = found
                recomputed = logits.softmax(-1) @ call.args[1]
                record(
                    name, frames, weights=weights, content=None, bias=None, output=call.output, recomputed=recomputed
                )

    def attend(name: str, module: Attend, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        nonlocal recomputing
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        recomputing = True
        parts = _fused(output, given["q"], given["k"], given["v"], given.get("bias"), scale=module.scale)
        record(name, inside[name], **parts)
        recomputing = False

    inside: dict[str, tuple[Frame, ...]] = {}

    def entered(name: str, module: nn.Module, args: Any) -> None:
        inside[name] = tuple(stack[:-1])

    names = [(name, module) for name, module in model.named_modules() if isinstance(module, Attend)]
    hooks = []
    try:
        with evaluating(model), torch.no_grad(), watching(model, on_call, FUNCTIONS) as stack:
            for name, module in names:
                hooks.append(module.register_forward_pre_hook(partial(entered, name)))
                hooks.append(module.register_forward_hook(partial(attend, name), with_kwargs=True))
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _is_last(call: FunctionCall) -> bool:
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    return dim in (-1, call.output.ndim - 1)


def _fused(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> dict[str, Any]:
    """The parts of a call of torch's `scaled_dot_product_attention`, by its definition."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    content = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    bias = attn_mask
    if is_causal:
        bias = torch.ones(content.shape[-2:], dtype=torch.bool, device=content.device).tril()
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=content.dtype).masked_fill(~bias, -math.inf)
    weights = (content if bias is None else content + bias).softmax(-1)
    parts: dict[str, Any] = {"weights": weights, "content": content, "bias": bias, "output": output}
    return {**parts, "recomputed": weights @ value}


def _multi_head(call: FunctionCall) -> dict[str, Any]:
    """The parts of a call of torch's `multi_head_attention_forward`: called again with need_weights."""
    again = {**call.kwargs, "need_weights": True, "average_attn_weights": False}
    recomputed, weights = torch.nn.functional.multi_head_attention_forward(*call.args, **again)
    assert weights is not None
    return {"weights": weights, "content": None, "bias": None, "output": call.output[0], "recomputed": recomputed}


def _layout(weights: Tensor, frames: Sequence[Frame], images: Tensor) -> TokenLayout | None:
    """Positions of the tokens of (B', n, N, M) maps: in windows of the map of an enclosing module, or over the image.

    Windows contain neighbours, or a grid of distant tokens (`_is_spread`).
    """
    height, width = images.shape[-2:]
    batch, _, num_queries, num_keys = weights.shape
    times = batch // len(images)
    side = math.isqrt(num_queries)
    if side * side == num_queries == num_keys:
        for tensor in (tensor for frame in reversed(frames) for tensor in frame.tensors[:1]):
            features = to_map(tensor, height, width) if len(tensor) == len(images) else None
            if features is None:
                continue
            rows, columns = features.shape[-2:]
            if times == -(-rows // side) * -(-columns // side):
                window, step = Grid(0, side, side), (height / rows, width / columns)
                tokens = (tensor for frame in reversed(frames) for tensor in frame.tensors[:1] if len(tensor) == batch)
                if _is_spread(next(tokens, None), features, side):
                    step = (height / side, width / side)
                return TokenLayout(window, window, step, step, whole=times == 1)
            break
    queries, keys = grid_of(num_queries, height, width), grid_of(num_keys, height, width)
    if queries is None or keys is None or min(queries[1:]) < 2:
        return None
    steps = [(height / grid.rows, width / grid.columns) for grid in (queries, keys)]
    return TokenLayout(queries, keys, steps[0], steps[1], whole=True)


def _is_spread(tokens: Tensor | None, features: Tensor, side: int) -> bool:
    """Whether each window is a grid of tokens over the whole map (MaxViT's grid attention) instead of neighbours.

    Args:
        tokens: (B', N, C), (B', s, s, C) or (B', C, s, s), input of the attention, if a module received it.
        features: (B, C, h, w), the same values up to a norm.
        side: s, of a window.
    """
    batch, chs, rows, columns = features.shape
    if tokens is None or len(tokens) <= batch or tokens.numel() != features.numel() or rows % side or columns % side:
        return False
    channels_first = tokens.ndim == 4 and tokens.shape[-1] != chs
    found = (tokens.flatten(2).mT if channels_first else tokens.reshape(-1, side**2, chs)).flatten(0, 1)

    def cut(down: int, across: int, order: tuple[int, ...]) -> Tensor:
        cells = features.unflatten(3, (across, -1)).unflatten(2, (down, -1))  # (B, C, down, h/down, across, w/across)
        return cells.permute(order).reshape(-1, chs)

    near = cut(rows // side, columns // side, (0, 2, 4, 3, 5, 1))
    far = cut(side, side, (0, 3, 5, 2, 4, 1))
    return _correlation(found, far) > max(0.9, _correlation(found, near))


def _correlation(one: Tensor, other: Tensor) -> float:
    """Mean correlation of the channels of (tokens, C) values, with ``other`` raw or with normalised tokens."""
    normalised = torch.nn.functional.layer_norm(other, other.shape[-1:])

    def standard(x: Tensor) -> Tensor:
        x = x.double() - x.double().mean(0)
        return x / x.norm(dim=0).clamp(min=torch.finfo(x.dtype).tiny)

    return max(float((standard(one) * standard(x)).sum(0).abs().mean()) for x in (other, normalised))
