"""Class activation maps: the evidence for a class by place.

Grad-CAM, Selvaraju et al. 2017 (https://arxiv.org/abs/1610.02391), §3: channels weighted by the mean gradient of the
class's logit, summed, negative values clipped. Works on maps and tokens, which are both maps here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from glocal.analysis.depth import walk
from glocal.analysis.watch import OnProgress, silent
from glocal.errors import GlocalError


@dataclass(frozen=True, eq=False)
class Cam:
    """Result of `cam`.

    Attributes:
        layer: the point whose features are used.
        size: rows and columns of its map.
        maps: (B, h, w) from 0 to 1, the largest of an image being 1 (all 0 without positive evidence).
        classes: (B,) explained class of each map.
        probabilities: (B,) of that class.
    """

    layer: str
    size: tuple[int, int]
    maps: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray


def cam(
    model: nn.Module,
    images: Tensor,
    classes: Tensor | None = None,
    *,
    layers: Sequence[str] = (),
    batch_size: int = 8,
    progress: OnProgress = silent,
) -> Cam:
    """Grad-CAM at the deepest point from which the logit depends on every place.

    The logits of a class token do not depend on the other tokens of the last block; there the point is before the last
    attention.

    Args:
        model: any classifier; left unchanged.
        images: (B, 3, H, W) normalised images.
        classes: (B,) classes to explain; the predicted ones by default.
        layers: patterns of module names, as in `walk`.
        batch_size: images per forward pass.
        progress: called with the number of images done.

    Raises:
        GlocalError: if no map has a gradient.
    """
    chosen, layer, size = [], "", (0, 0)
    predicted, probabilities = [], []
    for start in range(0, len(images), batch_size):
        found = walk(model, images[start : start + batch_size], layers)
        wanted = found.logits.argmax(1) if classes is None else classes[start : start + batch_size]
        score = found.logits.gather(1, wanted[:, None]).sum()
        points = [point for point in found.points if min(point.output.shape[-2:]) > 1]
        gradients = torch.autograd.grad(score, [point.raw for point in points], allow_unused=True) if points else ()
        for point, gradient in reversed([*zip(points, gradients, strict=True)]):
            if gradient is not None and (not layer or point.name == layer):
                slope = point.map_of(gradient)
                if layer or bool((slope != 0).any((0, 1)).all()):
                    layer, size = point.name, (slope.shape[-2], slope.shape[-1])
                    chosen.append((point.output.detach() * slope.mean((2, 3), keepdim=True)).sum(1).relu())
                    break
        if not layer:
            raise GlocalError("model: expected one whose logits depend on a map of features, got none")
        predicted.append(wanted)
        probabilities.append(found.logits.detach().softmax(1).gather(1, wanted[:, None])[:, 0])
        progress(start + len(wanted), len(images))
    maps = torch.cat(chosen)
    largest = maps.amax((1, 2), keepdim=True)
    maps = maps / torch.where(largest > 0, largest, 1)
    return Cam(layer, size, *(x.numpy(force=True) for x in (maps, torch.cat(predicted), torch.cat(probabilities))))
