"""Points along a model's depth: the residual sums.

Nearly every vision backbone is a stream of features to which attention, MLPs and convolutions add their outputs. Each
such sum of two maps is a point with skip, branch and output. Which operand is the branch, and its kind of operation, is
read from the autograd graph, so it works for any model.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from glocal.analysis.maps import to_map
from glocal.analysis.watch import FunctionCall, evaluating, logits_of, watching
from glocal.errors import GlocalError, nearest
from glocal.layers.attention import Attend

KINDS = ("attention", "convolution", "mlp", "coupling")
ADDS = frozenset(("add", "add_"))
_PRODUCTS = ("Addmm", "Mm", "Bmm", "Baddbmm", "Convolution", "ScaledDotProduct", "Softmax", "Linear")
_VIEWS = ("View", "Expand", "T", "Transpose", "Permute", "Unsqueeze", "Squeeze", "Reshape", "UnsafeView", "Clone")


@dataclass(frozen=True, eq=False)
class Point:
    """One point along the depth.

    Attributes:
        name: of its module, and its kind: "blocks.0 attention".
        kind: of the branch: "attention", "convolution" (or pooling), "mlp" (linear layers), or "coupling" if it comes
            from another stream than the skip.
        raw: output in the model's own layout; part of the graph, so that gradients can be computed.
        raw_skip: skip input; None at the output of a named layer.
        raw_branch: output of the branch; likewise.
        image_size: height and width of the image, in pixels.
        call: index of the addition in the pass; -1 at the output of a layer.
        branch_first: whether the branch is its first operand.
        fine: see `to_map`.
    """

    name: str
    kind: str
    raw: Tensor
    raw_skip: Tensor | None
    raw_branch: Tensor | None
    image_size: tuple[int, int]
    call: int = -1
    branch_first: bool = False
    fine: tuple[int, int] | None = None

    @property
    def output(self) -> Tensor:
        """(B, C, h, w) map of the output, without prefix tokens."""
        return self.map_of(self.raw)

    @property
    def skip(self) -> Tensor | None:
        """(B, C, h, w) map of the skip."""
        return None if self.raw_skip is None else self.map_of(self.raw_skip)

    @property
    def branch(self) -> Tensor | None:
        """(B, C, h, w) map of the branch."""
        return None if self.raw_branch is None else self.map_of(self.raw_branch)

    @property
    def layout(self) -> str:
        """The model's own: "tokens" or "map"."""
        return "tokens" if self.raw.ndim == 3 else "map"

    def map_of(self, x: Tensor) -> Tensor:
        """A tensor of the point's layout -> its (B, C, h, w) map."""
        made = to_map(x, *self.image_size, self.fine)
        assert made is not None
        return made


@dataclass(frozen=True, eq=False)
class Walk:
    """One forward pass.

    Attributes:
        points: in execution order.
        logits: (B, K) output of the model.
        images: (B, 3, H, W) leaf of the graph.
    """

    points: tuple[Point, ...]
    logits: Tensor
    images: Tensor


def walk(model: nn.Module, images: Tensor, layers: Sequence[str] = ()) -> Walk:
    """Run the model and collect all points, with gradients.

    Args:
        model: any classifier of images; run in eval mode and left unchanged.
        images: (B, 3, H, W) normalised images.
        layers: patterns of module names (``stages.*``) whose outputs to use instead of residual sums. Models with fewer
            than two of these give the map outputs of all convolutions and linear layers.

    Raises:
        GlocalError: if a pattern matches no module with a map.
    """
    if layers:
        names = [name for name, _ in model.named_modules() if any(fnmatchcase(name, pattern) for pattern in layers)]
        if not names:
            close = nearest(layers[0], [name for name, _ in model.named_modules()])
            raise GlocalError(f"layers: expected names of modules, got {', '.join(layers)}, which match none{close}")
        found = _walk_layers(model, images, names)
        if not found.points:
            raise GlocalError(f"layers: expected modules that return maps, got {', '.join(layers)}, which return none")
        return found
    found = _walk_sums(model, images)
    if len(found.points) >= 2:
        return found
    weights = [
        name
        for name, module in model.named_modules()
        if not [*module.children()] and getattr(getattr(module, "weight", None), "ndim", 0) >= 2
    ]
    found = _walk_layers(model, images, weights)
    if not found.points:
        raise GlocalError("model: expected one with feature maps, got one without a residual sum or a map")
    return found


def _walk_sums(model: nn.Module, images: Tensor) -> Walk:
    points: list[Point] = []
    graph = _Graph()
    calls = count()

    def on_call(call: FunctionCall) -> Tensor | None:
        number = next(calls)
        first, second = (call.args[0], call.args[1]) if len(call.args) > 1 else (None, None)
        if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
            return None
        fine = _fine(first, second)
        if not _is_map(call.output, images, fine):
            return None
        if call.output.shape not in (first.shape, second.shape) or call.kwargs.get("alpha", 1) != 1:
            return None
        kind, swapped = graph.classify(first, second)
        if kind is None:
            return None
        first, second = torch.broadcast_tensors(first, second)
        skip, branch = (second, first) if swapped else (first, second)
        graph.add(call.output, skip)
        name = f"{call.frames[-1].name} {kind}".strip()
        points.append(Point(name, kind, call.output, skip, branch, _size(images), number, swapped, fine))
        return call.output.clone()  # so that in-place activations do not change the point

    def mark(module: nn.Module, args: Any, output: Tensor) -> None:
        graph.attends.add(output.grad_fn)

    hooks = [module.register_forward_hook(mark) for module in model.modules() if isinstance(module, Attend)]
    try:
        with evaluating(model), torch.enable_grad(), watching(model, on_call, ADDS):
            images = images.detach().clone().requires_grad_()
            graph.images = images
            logits = logits_of(model(images))
    finally:
        for hook in hooks:
            hook.remove()
    return Walk(_numbered(points), logits, images)


def _walk_layers(model: nn.Module, images: Tensor, names: Iterable[str]) -> Walk:
    points: list[Point] = []
    graph = _Graph()
    modules = dict(model.named_modules())

    def take(name: str, module: nn.Module, args: Any, output: Any) -> Any:
        several = isinstance(output, tuple | list)
        for i, x in enumerate(output if several else (output,)):
            if isinstance(x, Tensor) and _is_map(x, images):
                nodes, sources = graph.behind(x.grad_fn)
                if sources:
                    kind = graph.kind(nodes)
                    points.append(Point(f"{name}[{i}]" if several else name, kind, x, None, None, _size(images)))
                    graph.add(x, x)
        return None if several or not isinstance(output, Tensor) else output.clone()

    hooks = [modules[name].register_forward_hook(partial(take, name)) for name in names]
    try:
        with evaluating(model), torch.enable_grad():
            images = images.detach().clone().requires_grad_()
            graph.images = images
            logits = logits_of(model(images))
    finally:
        for hook in hooks:
            hook.remove()
    return Walk(_numbered(points), logits, images)


def _is_map(x: Any, images: Tensor, fine: tuple[int, int] | None = None) -> bool:
    if not isinstance(x, Tensor) or x.ndim < 3 or len(x) != len(images):
        return False
    return to_map(x, *_size(images), fine) is not None


def _fine(first: Tensor, second: Tensor) -> tuple[int, int] | None:
    """The two broadcast axes of a coarse map that is added to a fine one."""
    if first.ndim != second.ndim:
        return None
    axes = [i for i, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)) if a != b]
    return (axes[0], axes[1]) if len(axes) == 2 else None


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _numbered(points: Sequence[Point]) -> tuple[Point, ...]:
    """Points with unique names: the second of a name ends in 2."""
    seen: Counter[str] = Counter()
    named = []
    for point in points:
        seen[point.name] += 1
        name = point.name if seen[point.name] == 1 else f"{point.name} {seen[point.name]}"
        named.append(replace(point, name=name))
    return tuple(named)


class _Graph:
    """The autograd graph of a running pass, with its points."""

    def __init__(self) -> None:
        self.points: dict[Any, Any] = {}  # the node of each point -> the source of its skip
        self.attends: set[Any] = set()
        self.images: Tensor | None = None

    def add(self, output: Tensor, skip: Tensor) -> None:
        sources = self.behind(skip.grad_fn)[1]
        self.points[output.grad_fn] = next(iter(sources)) if len(sources) == 1 else None

    def behind(self, node: Any) -> tuple[set[Any], set[Any]]:
        """Nodes between here and the nearest earlier points, and these points; "image" is the model's input."""
        nodes: set[Any] = set()
        sources: set[Any] = set()
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node in self.points:
                sources.add(node)
            elif node is not None and node not in nodes:
                nodes.add(node)
                if getattr(node, "variable", None) is self.images:
                    sources.add("image")
                waiting += [parent for parent, _ in node.next_functions]
        return nodes, sources

    def classify(self, first: Tensor, second: Tensor) -> tuple[str | None, bool]:
        """Kind of the branch, and whether it is the first operand; None if this is not a residual sum."""
        (of_first, from_first), (of_second, from_second) = self.behind(first.grad_fn), self.behind(second.grad_fn)
        if not (from_first and from_second):  # a position embedding, or a bias
            return None, False
        swapped = _work(of_first - of_second) > _work(of_second - of_first)
        branch, skip = (of_first - of_second, of_second) if swapped else (of_second - of_first, of_first)
        sources, origin = (from_first, from_second) if swapped else (from_second, from_first)
        if not branch and not skip:
            return None, False
        if not all(self._comes_from(source, origin) for source in sources):
            return "coupling", swapped
        return self.kind(branch), swapped

    def _comes_from(self, source: Any, origin: set[Any]) -> bool:
        """Whether the skip path of a point leads back to one of ``origin``."""
        while source is not None and source not in origin:
            source = self.points.get(source)
        return source is not None

    def kind(self, nodes: set[Any]) -> str:
        """The kind of operation of some nodes."""
        if nodes & self.attends or any(_attends(node) for node in nodes):
            return "attention"
        return "convolution" if any(_convolves(node) for node in nodes) else "mlp"


def _work(nodes: set[Any]) -> int:
    return sum(node.name().startswith(_PRODUCTS) for node in nodes)


def _attends(node: Any) -> bool:
    """Softmax, fused attention, or a product of two activations."""
    name = node.name()
    if "ScaledDotProduct" in name or "oftmax" in name:
        return True
    return name.startswith("Bmm") and not any(_is_weight(parent) for parent, _ in node.next_functions)


def _is_weight(node: Any) -> bool:
    while node is not None and node.name().removesuffix("Backward0") in _VIEWS:
        node = node.next_functions[0][0]
    return node is None or hasattr(node, "variable")


def _convolves(node: Any) -> bool:
    """Convolution of more than one pixel, or pooling."""
    name = node.name()
    return "Pool" in name or (name.startswith("Convolution") and max(node._saved_weight.shape[2:]) > 1)
