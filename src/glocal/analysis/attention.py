"""Attention maps, recomputed beside the model, and what they say: distance, entropy, position, rollout.

No model hands its maps out, for fused attention never makes them. Each attention is met where its queries, keys and
values are: at `Attend` by a hook; elsewhere at torch's functions, `scaled_dot_product_attention`,
`multi_head_attention_forward`, or a softmax whose result is multiplied with values.
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
from glocal.analysis.watch import Call, Frame, Progress, evaluating, silent, watching
from glocal.errors import GlocalError
from glocal.layers.attention import Attend

FUNCTIONS = frozenset((
    "scaled_dot_product_attention", "multi_head_attention_forward", "softmax", "matmul", "__matmul__", "bmm",
))  # fmt: skip


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention of a forward pass. B' is the batch, times windows or channels where these attend apart.

    Attributes:
        name: the module it is in.
        weights: (B', n, N, M) attention maps; rows sum to 1.
        content: (B', n, N, M) logits from q and k alone, scaled; None where only the maps could be seen.
        bias: what was added to them, broadcastable to the same shape, or None.
        output: what the model computed.
        recomputed: the same from the maps.
        layout: where queries and keys lie in the image, or None where that is not clear.
    """

    name: str
    weights: Tensor
    content: Tensor | None
    bias: Tensor | None
    output: Tensor
    recomputed: Tensor
    layout: "Layout | None"


@dataclass(frozen=True)
class Layout:
    """Where the tokens of an attention lie.

    Attributes:
        queries: their grid.
        keys: their grid.
        query_step: pixels of the image from one query to the next, down and across.
        key_step: the same of keys.
        whole: whether the grid covers the image, and not a window of it.
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
    """Every attention of one forward pass in evaluation mode, in the order of the pass.

    Args:
        model: any module that takes images; left as it was.
        images: (B, 3, H, W).
    """
    calls: list[AttentionCall] = []
    waiting: dict[int, tuple[Tensor, Tensor]] = {}  # softmax results by identity, with their logits
    recomputing = False

    def note(name: str, frames: Sequence[Frame], **parts: Any) -> None:
        weights = parts["weights"]
        parts["weights"] = weights.reshape(-1, *weights.shape[-3:]) if weights.ndim > 3 else weights[:, None]
        calls.append(AttentionCall(name, layout=_layout(parts["weights"], frames, images), **parts))

    def see(call: Call) -> None:
        frames = call.frames
        if recomputing or any(isinstance(frame.module, Attend) for frame in frames):
            return
        name = frames[-1].name if frames else ""
        if call.name == "scaled_dot_product_attention":
            note(name, frames, **_fused(call.output, *call.args, **call.kwargs))
        elif call.name == "multi_head_attention_forward":
            note(name, frames, **_multi_head(call))
        elif call.name == "softmax":
            if _is_last(call) and call.output.ndim >= 3:
                waiting[id(call.output)] = (call.output, call.args[0])
        else:
            if found := waiting.pop(id(call.args[0]), None):
                weights, logits = found
                recomputed = logits.softmax(-1) @ call.args[1]
                note(name, frames, weights=weights, content=None, bias=None, output=call.output, recomputed=recomputed)

    def attend(name: str, module: Attend, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        nonlocal recomputing
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        recomputing = True
        parts = _fused(output, given["q"], given["k"], given["v"], given.get("bias"), scale=module.scale)
        note(name, inside[name], **parts)
        recomputing = False

    inside: dict[str, tuple[Frame, ...]] = {}

    def entered(name: str, module: nn.Module, args: Any) -> None:
        inside[name] = tuple(stack[:-1])

    names = [(name, module) for name, module in model.named_modules() if isinstance(module, Attend)]
    hooks = []
    try:
        with evaluating(model), torch.no_grad(), watching(model, see, FUNCTIONS) as stack:
            for name, module in names:
                hooks.append(module.register_forward_pre_hook(partial(entered, name)))
                hooks.append(module.register_forward_hook(partial(attend, name), with_kwargs=True))
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _is_last(call: Call) -> bool:
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


def _multi_head(call: Call) -> dict[str, Any]:
    """The parts of a call of torch's `multi_head_attention_forward`: it is asked again, for its maps."""
    again = {**call.kwargs, "need_weights": True, "average_attn_weights": False}
    recomputed, weights = torch.nn.functional.multi_head_attention_forward(*call.args, **again)
    assert weights is not None
    return {"weights": weights, "content": None, "bias": None, "output": call.output[0], "recomputed": recomputed}


def _layout(weights: Tensor, frames: Sequence[Frame], images: Tensor) -> Layout | None:
    """Where the tokens of (B', n, N, M) maps lie: in windows of the map that a module around has, or over the image."""
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
                return Layout(window, window, step, step, whole=times == 1)
            break
    queries, keys = grid_of(num_queries, height, width), grid_of(num_keys, height, width)
    if queries is None or keys is None or min(queries[1:]) < 2:
        return None
    steps = [(height / grid.rows, width / grid.columns) for grid in (queries, keys)]
    return Layout(queries, keys, steps[0], steps[1], whole=True)


# What the maps say.


@dataclass(frozen=True, eq=False)
class AttentionPoint:
    """What is measured at one attention.

    Attributes:
        name: the module it is in.
        heads: how many.
        queries, keys: how many tokens, prefix tokens included.
        windows: attentions that are computed apart for one image: windows, or channels.
        distance: (n,) by head, pixels of the image between a query and what it attends to, weighted by the map; None
            where it is not known where tokens lie.
        uniform_distance: what maps that weigh all keys the same would give.
        entropy: (n,) by head, of the rows of the map in nats: 0 is one key, log(keys) all of them.
        bias_share: (n,) share of the variance of a row's logits that comes from what is added to q k: cov(bias, logits)
            / var(logits). None where nothing is added, or logits were not seen.
        error: largest difference between the model's output and that of the recomputed maps, relative to the largest
            output.
    """

    name: str
    heads: int
    queries: int
    keys: int
    windows: int
    distance: np.ndarray | None
    uniform_distance: float | None
    entropy: np.ndarray
    bias_share: np.ndarray | None
    error: float


@dataclass(frozen=True, eq=False)
class Attention:
    """Result of `attention`.

    Attributes:
        images: how many.
        points: each attention, in the order of the pass.
        rolled: names of the attentions that the rollout goes through; empty where there is none.
        rollout: (K, h, w) for the first K images, how much of each place reaches the output (Abnar and Zuidema 2020):
            the class token, or the mean of all tokens. Sums to 1.
        focus: for each attention over the whole image that can be shown, its name, and (K, h, w) mean over heads of the
            map of the class token, or where there is none of the token in the centre.
    """

    images: int
    points: tuple[AttentionPoint, ...]
    rolled: tuple[str, ...]
    rollout: np.ndarray | None
    focus: dict[str, np.ndarray]


def attention(
    model: nn.Module, images: Tensor, *, shown: int = 4, batch_size: int = 8, progress: Progress = silent
) -> Attention:
    """Where the attentions of a model look.

    Args:
        model: any module that takes images; left as it was.
        images: (B, 3, H, W) normalised images.
        shown: K, images whose maps are kept.
        batch_size: images that are run at once.
        progress: told how many images are done.

    Raises:
        GlocalError: if no attention is found.
    """
    points: list[AttentionPoint] = []
    shown = min(shown, len(images), batch_size)
    rolled: tuple[str, ...] = ()
    rollout: np.ndarray | None = None
    focus: dict[str, np.ndarray] = {}
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        calls = attention_calls(model, batch)
        if not calls:
            raise GlocalError(
                "model: expected one with softmax attention, got one without; fourier, receptive-field and "
                "features take any model"
            )
        measured = [_measure(call, len(batch)) for call in calls]
        points = [_mean(p, start, q, len(batch)) for p, q in zip(points, measured, strict=True)] if points else measured
        if start == 0:
            rolled, rollout = _rollout(calls, len(batch), shown)
            focus = {c.name: _focus(c, len(batch), shown) for c in calls if c.layout and c.layout.whole}
        progress(start + len(batch), len(images))
    return Attention(len(images), tuple(points), rolled, rollout, focus)


def _measure(call: AttentionCall, num_images: int) -> AttentionPoint:
    weights = call.weights.double()
    batch, heads, queries, keys = weights.shape
    entropy = -(weights * weights.clamp(min=torch.finfo(torch.float64).tiny).log()).sum(-1).mean((0, 2))
    distance, uniform = None, None
    if call.layout is not None:
        between = torch.from_numpy(call.layout.distance()).to(weights.device)
        local = weights[:, :, call.layout.queries.prefix :, call.layout.keys.prefix :]
        mass = local.sum((0, 2, 3)).clamp(min=torch.finfo(torch.float64).tiny)
        distance = ((local * between).sum((0, 2, 3)) / mass).numpy(force=True)
        uniform = float(between.mean())
    scale = call.output.abs().max().clamp(min=torch.finfo(call.output.dtype).tiny)
    return AttentionPoint(
        name=call.name,
        heads=heads,
        queries=queries,
        keys=keys,
        windows=batch // num_images,
        distance=distance,
        uniform_distance=uniform,
        entropy=entropy.numpy(force=True),
        bias_share=None if call.content is None or call.bias is None else bias_share(call.content, call.bias),
        error=float((call.output - call.recomputed).abs().max() / scale),
    )


def bias_share(content: Tensor, bias: Tensor) -> np.ndarray:
    """(n,) share of the variance of a row's logits that comes from the bias: cov(bias, logits) / var(logits), by head.

    What does not differ within a row is left out, as the softmax does not see it; so are keys that are masked.

    Args:
        content: (B', n, N, M) logits from q and k.
        bias: what is added to them, broadcastable to that; -inf masks.
    """
    content, bias = torch.broadcast_tensors(content.double(), bias.double())
    seen = bias.isfinite()
    count = seen.sum(-1, keepdim=True).clamp(min=1)

    def centred(x: Tensor) -> Tensor:
        x = x.masked_fill(~seen, 0)
        return (x - x.sum(-1, keepdim=True) / count).masked_fill(~seen, 0)

    of_content, of_bias = centred(content), centred(bias)
    dims = [d for d in range(content.ndim) if d != content.ndim - 3]
    logits = of_content + of_bias
    total = logits.square().sum(dims).clamp(min=torch.finfo(torch.float64).tiny)
    return ((of_bias * logits).sum(dims) / total).numpy(force=True)


def _mean(one: AttentionPoint, weight: int, other: AttentionPoint, weight_of_other: int) -> AttentionPoint:
    """The mean of what two batches gave."""
    share = weight_of_other / (weight + weight_of_other)

    def between(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
        return None if a is None or b is None else a + share * (b - a)

    entropy = between(one.entropy, other.entropy)
    assert entropy is not None
    return AttentionPoint(
        name=one.name,
        heads=one.heads,
        queries=one.queries,
        keys=one.keys,
        windows=one.windows,
        distance=between(one.distance, other.distance),
        uniform_distance=one.uniform_distance,
        entropy=entropy,
        bias_share=between(one.bias_share, other.bias_share),
        error=max(one.error, other.error),
    )


def _rollout(calls: Sequence[AttentionCall], num_images: int, shown: int) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Attention rollout (Abnar and Zuidema 2020, §4) over the last attentions that share one grid over the image."""
    run: list[AttentionCall] = []
    for call in reversed(calls):
        same = call.layout is not None and call.layout.whole and call.layout.queries == call.layout.keys
        if not same or len(call.weights) != num_images or (run and call.layout != run[0].layout):
            break
        run.append(call)
    if not run:
        return (), None
    run.reverse()
    layout = run[0].layout
    assert layout is not None
    mixed = torch.eye(run[0].weights.shape[-1], dtype=torch.float64, device=run[0].weights.device)
    for call in run:
        step = call.weights[:shown].double().mean(1)  # (K, N, N)
        mixed = (step + torch.eye(step.shape[-1], dtype=step.dtype, device=step.device)) / 2 @ mixed
    prefix, rows, columns = layout.queries
    reached = (mixed[:, 0] if prefix else mixed.mean(1))[:, prefix:]  # (K, hw)
    reached = reached / reached.sum(-1, keepdim=True)
    return tuple(call.name for call in run), reached.unflatten(1, (rows, columns)).numpy(force=True)


def _focus(call: AttentionCall, num_images: int, shown: int) -> np.ndarray:
    """(K, h, w) where the class token looks, or the token in the centre: mean over heads."""
    assert call.layout is not None
    queries, keys = call.layout.queries, call.layout.keys
    query = 0 if queries.prefix else (queries.rows // 2) * queries.columns + queries.columns // 2
    seen = call.weights[:, :, query, keys.prefix :].double().unflatten(0, (num_images, -1)).mean((1, 2))  # (B, hw)
    return seen[:shown].unflatten(1, keys[1:]).numpy(force=True)
