"""Statistics of attention maps: distance, entropy, position bias, rollout."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from glocal.analysis.attention_maps import AttentionCall, attention_calls
from glocal.analysis.watch import OnProgress, silent
from glocal.errors import GlocalError


@dataclass(frozen=True, eq=False)
class AttentionPoint:
    """Statistics of one attention layer.

    Attributes:
        name: of its module.
        heads: number of heads.
        queries, keys: number of tokens, including prefix tokens.
        windows: separate attentions per image: windows, or channels.
        distance: (n,) by head, mean attention distance in pixels of the image; None if the positions of tokens are
            unknown.
        uniform_distance: the distance for uniform attention.
        entropy: (n,) by head, of the rows of the map in nats: from 0 (one key) to log(keys) (uniform).
        bias_share: (n,) fraction of the variance of a row's logits due to the bias: cov(bias, logits) / var(logits).
            None without a bias, or if logits are not accessible.
        error: largest difference between the model's output and the output of the recomputed maps, relative to the
            largest output.
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
        images: number of images.
        points: one per attention layer, in execution order.
        rolled: names of the attention layers in the rollout; empty if there is none.
        rollout: (K, h, w) for the first K images, the contribution of each place to the output (Abnar and Zuidema
            2020): the class token, or the mean of all tokens. Sums to 1.
        focus: by name of each global attention layer, the (K, h, w) map of the class token, or else of the central
            token, mean over heads.
    """

    images: int
    points: tuple[AttentionPoint, ...]
    rolled: tuple[str, ...]
    rollout: np.ndarray | None
    focus: dict[str, np.ndarray]


def attention(
    model: nn.Module, images: Tensor, *, shown: int = 4, batch_size: int = 8, progress: OnProgress = silent
) -> Attention:
    """Statistics of all attention layers of a model.

    Args:
        model: any module on images; left unchanged.
        images: (B, 3, H, W) normalised images.
        shown: K, number of images whose maps are returned.
        batch_size: images per forward pass.
        progress: called with the number of images done.

    Raises:
        GlocalError: if the model has no attention.
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
    """(n,) fraction of the variance of a row's logits due to the bias, by head: cov(bias, logits) / var(logits).

    Row means are removed, as the softmax ignores them; masked keys are excluded.

    Args:
        content: (B', n, N, M) logits from q and k.
        bias: added to them, broadcastable; -inf masks.
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
    """The mean of the results of two batches."""
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
    """Attention rollout (Abnar and Zuidema 2020, §4) over the last attention layers with one common token grid."""
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
    """(K, h, w) attention of the class token, or else of the central token, mean over heads."""
    assert call.layout is not None
    queries, keys = call.layout.queries, call.layout.keys
    query = 0 if queries.prefix else (queries.rows // 2) * queries.columns + queries.columns // 2
    seen = call.weights[:, :, query, keys.prefix :].double().unflatten(0, (num_images, -1)).mean((1, 2))  # (B, hw)
    return seen[:shown].unflatten(1, keys[1:]).numpy(force=True)
