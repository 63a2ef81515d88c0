"""Local and global operations of a model: their contributions, and ablations.

Convolutions are local, attention is global (or windowed), linear layers do not mix places. A branch is ablated by its
mean over images, which removes the information about the image but keeps its level, or by zero.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from glocal.analysis.depth import ADDS, Point, walk
from glocal.analysis.watch import FunctionCall, OnProgress, predict, silent, watching
from glocal.errors import GlocalError, check_choice, nearest

WAYS = ("mean", "zero")


@dataclass(frozen=True, eq=False)
class Contribution:
    """Contribution of one operation to its stream.

    Attributes:
        name: see `Point`.
        kind: see `Point`.
        layout: of the stream, "tokens" or "map".
        ratio: norm of the branch over the norm of the skip.
        share: fraction of the sum due to the branch: <branch, sum> / <sum, sum>.
    """

    name: str
    kind: str
    layout: str
    ratio: float
    share: float


@dataclass(frozen=True, eq=False)
class Ablation:
    """Effect of ablating one or more operations.

    Attributes:
        name: of the operation or the group.
        kind: of the operations; "module" for modules given by name.
        operations: number of operations ablated together.
        logit_change: norm of the change of the logits over the norm of their variation between images.
        kept: fraction of images with unchanged top-1 prediction.
        accuracy: top-1 without it; None without labels.
    """

    name: str
    kind: str
    operations: int
    logit_change: float
    kept: float
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Locality:
    """Result of `locality`.

    Attributes:
        images: number of images.
        way: "mean" or "zero".
        accuracy: top-1 of the whole model; None without labels.
        contributions: of each operation, by depth.
        groups: all operations of a kind ablated at once.
        ablations: each operation ablated alone, then the modules given by name.
    """

    images: int
    way: str
    accuracy: float | None
    contributions: tuple[Contribution, ...]
    groups: tuple[Ablation, ...]
    ablations: tuple[Ablation, ...]


def locality(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    way: str = "mean",
    modules: Sequence[str] = (),
    each: bool = True,
    batch_size: int = 32,
    progress: OnProgress = silent,
) -> Locality:
    """Contributions and ablations of the operations of a model.

    Args:
        model: any classifier with residual sums; left unchanged.
        images: (B, 3, H, W) normalised images.
        labels: (B,) classes, if known.
        way: "mean" replaces a branch by its mean over the batch, "zero" by zero.
        modules: patterns of names of modules whose outputs are ablated as well (``*.conv_proj_q``).
        each: also ablate each operation alone, with one pass over all images each.
        batch_size: images per forward pass; "mean" needs several.
        progress: called with the number of ablations done.

    Raises:
        GlocalError: if there is nothing to ablate, or a pattern matches nothing.
    """
    check_choice("way", way, WAYS)
    points = [point for point in walk(model, images[: min(8, len(images))]).points if point.call >= 0]
    names = _matching(model, modules)
    if not points and not names:
        raise GlocalError("model: expected one with residual sums, got one without; give modules to ablate")
    whole = predict(model, images, batch_size)
    groups = _groups(points)
    jobs: list[tuple[str, str, int, Callable[[], Any]]] = [
        (name, members[0].kind, len(members), partial(_without, model, [p.call for p in members], points, way))
        for name, members in groups.items()
    ]
    if each:
        jobs += [(p.name, p.kind, 1, partial(_without, model, [p.call], points, way)) for p in points]
    jobs += [(name, "module", 1, partial(_replaced, model, name, way)) for name in names]
    measured = []
    for done, (name, kind, operations, ablated) in enumerate(jobs, start=1):
        with ablated():
            logits = predict(model, images, batch_size)
        measured.append(_compare(name, kind, operations, whole, logits, labels))
        progress(done, len(jobs))
    return Locality(
        images=len(images),
        way=way,
        accuracy=_accuracy(whole, labels),
        contributions=tuple(_contribution(point) for point in points),
        groups=tuple(measured[: len(groups)]),
        ablations=tuple(measured[len(groups) :]),
    )


def _contribution(point: Point) -> Contribution:
    skip, branch = point.skip, point.branch
    assert skip is not None
    assert branch is not None
    skip, branch = skip.detach().double(), branch.detach().double()
    both = skip + branch
    tiny = torch.finfo(both.dtype).tiny
    return Contribution(
        name=point.name,
        kind=point.kind,
        layout=point.layout,
        ratio=float(branch.norm() / skip.norm().clamp(min=tiny)),
        share=float((branch * both).sum() / both.square().sum().clamp(min=tiny)),
    )


def _groups(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Operations by kind; couplings by direction."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        name = f"all {point.kind}"
        if point.kind == "coupling":
            name += " into tokens" if point.layout == "tokens" else " into maps"
        groups.setdefault(name, []).append(point)
    return groups


def _compare(name: str, kind: str, operations: int, whole: Tensor, without: Tensor, labels: Tensor | None) -> Ablation:
    varies = (whole - whole.mean(0)).norm().clamp(min=torch.finfo(whole.dtype).tiny)
    kept = (whole.argmax(1) == without.argmax(1)).double().mean()
    change = float((without - whole).norm() / varies)
    return Ablation(name, kind, operations, change, float(kept), _accuracy(without, labels))


def _accuracy(logits: Tensor, labels: Tensor | None) -> float | None:
    return None if labels is None else float((logits.argmax(1) == labels).double().mean())


@contextmanager
def _without(model: nn.Module, calls: Sequence[int], points: Sequence[Point], way: str) -> Iterator[None]:
    """Context in which the branches of these additions are ablated."""
    first = {point.call: point.branch_first for point in points}
    numbers = count()

    def restart(*_: Any) -> None:
        nonlocal numbers
        numbers = count()

    def on_call(call: FunctionCall) -> Tensor | None:
        number = next(numbers)
        if number not in calls:
            return None
        branch, skip = call.args[:2] if first[number] else call.args[1::-1]
        branch = torch.zeros_like(branch) if way == "zero" else branch.mean(0, keepdim=True)
        return (skip + branch).expand_as(call.output)

    hook = model.register_forward_pre_hook(restart)
    try:
        with watching(model, on_call, ADDS):
            yield
    finally:
        hook.remove()


@contextmanager
def _replaced(model: nn.Module, name: str, way: str) -> Iterator[None]:
    """Context in which the output of a module is ablated."""

    def ablate(module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        return torch.zeros_like(output) if way == "zero" else output.mean(0, keepdim=True).expand_as(output).clone()

    hook = model.get_submodule(name).register_forward_hook(ablate)
    try:
        yield
    finally:
        hook.remove()


def _matching(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    known = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise GlocalError(f"modules: expected names of modules, got {pattern!r}{nearest(pattern, known)}")
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]
