"""Every head on every backbone: build, train, predict, export, and overfit one image.

    OMP_NUM_THREADS=1 python benchmarks/heads_matrix.py              all, hours on two cores; resumes where it stopped
    OMP_NUM_THREADS=1 python benchmarks/heads_matrix.py fcos cvt     pairs whose names contain every word, done again

Writes docs/results/heads.json after each pair, and heads.md from it. The backbones are the micro models of all families
and two of timm, all untrained; the image has 96 x 96 pixels, three objects, and three classes.
"""

import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import glocal
from glocal.files import atomic_write_text
from glocal.heads import create_detector, create_segmenter
from glocal.heads.detection import DETECTORS

RESULT = Path(__file__).parents[1] / "docs/results/heads"
SIZE = 96
CLASSES = 3

FAMILIES = ("resnet", "botnet", "vit", "t2t_vit", "cvt", "cat", "conformer")
BACKBONES = (*(f"{family}_micro" for family in FAMILIES), "resnet18d", "vit_tiny_patch16_224")
SEGMENTERS = ("semantic_fpn", "upernet", "smp_unet", "smp_fpn", "smp_segformer", "smp_deeplabv3plus")
EXPORTED = ("resnet_micro", "vit_micro")  # with detectors, whose export takes minutes
NARROW = {"semantic_fpn": {"dim": 64, "head_dim": 64}, "upernet": {"dim": 64}}

STEPS = 10  # of the first look
LIMIT = 600  # steps to know one image by heart
# learning rates to try in turn, and the steps of each in units of LIMIT; 1e-3 once for all others
TRIES = {"detr": ((1e-3, 1), (3e-4, 3)), "deformable_detr": ((5e-4, 1),), "rt_detr": ((5e-4, 1), (2e-4, 3))}
ASK_EVERY = 20


def scene(size: int = SIZE, seed: int = 0) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Three objects of three classes on noise.

    Returns:
        (3, size, size) image in [0, 1]; its detection target; (size, size) classes of its pixels, 0 the background.
    """
    generator = torch.Generator().manual_seed(seed)
    image = 0.5 + 0.1 * torch.randn(3, size, size, generator=generator)
    corners = torch.tensor([[0.08, 0.10, 0.50, 0.45], [0.40, 0.55, 0.90, 0.92], [0.64, 0.12, 0.90, 0.38]])
    boxes = (corners * size).round()
    labels = torch.tensor([0, 1, 2])
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
    masks = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    masks[1] &= ((x - (x0 + x1)[1] / 2) / (x1 - x0)[1]) ** 2 + ((y - (y0 + y1)[1] / 2) / (y1 - y0)[1]) ** 2 < 0.25
    pixels = torch.zeros(size, size, dtype=torch.long)
    for mask, label, colour in zip(masks, labels, torch.eye(3), strict=True):
        image[:, mask] += 0.5 * (colour - 0.3)[:, None]
        pixels[mask] = label + 1
    return image.clamp(0, 1), {"boxes": boxes, "labels": labels, "masks": masks}, pixels


def detector(kind: str, backbone: str | nn.Module, **kwargs: Any) -> nn.Module:
    """A detector for the scene."""
    return create_detector(kind, backbone, CLASSES, preset="small", min_size=SIZE, max_size=SIZE, **kwargs)


def segmenter(kind: str, backbone: str | nn.Module, **kwargs: Any) -> nn.Module:
    """A segmenter for the scene."""
    return create_segmenter(kind, backbone, CLASSES + 1, **{**NARROW.get(kind, {}), **kwargs})


def train(
    model: nn.Module, loss: Callable[[], Tensor], steps: int, ask: Callable[[], float] | None = None, lr: float = 1e-3
) -> tuple[list[float], dict[str, Any]]:
    """AdamW with a warm-up of 20 steps and clipped gradients, until ``ask`` is content.

    Args:
        model: in training, and again after `ask`.
        loss: of one step.
        steps: at most.
        ask: after every 20 steps, how good the model is, 1 for all one can ask.
        lr: after the warm-up.

    Returns:
        The losses, and with `ask` the steps taken and the last answer.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, 1) * (0.55 + 0.45 * math.cos(math.pi * step / max(steps, LIMIT)))
    )
    losses, answer = [], 0.0
    for step in range(1, steps + 1):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(value.detach()))
        if ask and step % ASK_EVERY == 0:
            model.eval()
            with torch.no_grad():
                answer = ask()
            model.train()
            if answer >= 1:
                break
    return losses, {"steps": len(losses), "answer": round(answer, 4)}


def ap50(model: nn.Module, image: Tensor, target: dict[str, Tensor]) -> float:
    """Average precision at an IoU of 0.5 on one image; of boxes and masks the lower, where there are masks."""
    from torchmetrics.detection import MeanAveragePrecision

    (found,) = model([image])
    kinds = ("bbox", "segm") if "masks" in found else ("bbox",)
    metric = MeanAveragePrecision(iou_type=kinds, iou_thresholds=[0.5], backend="faster_coco_eval")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about many detections
        metric.update([found], [target])
        result = metric.compute()
    return float(min(value for name, value in result.items() if name in ("map", "bbox_map", "segm_map")))


def miou(logits: Tensor, pixels: Tensor) -> float:
    """Mean over the classes of intersection over union of (K, H, W) logits and (H, W) classes."""
    found = logits.argmax(0)
    scores = []
    for label in range(len(logits)):
        both, either = (found == label) & (pixels == label), (found == label) | (pixels == label)
        scores.append(float(both.sum() / either.sum().clamp(min=1)))
    return sum(scores) / len(scores)


def by_heart(head: str, backbone: str | nn.Module, limit: int = LIMIT, **kwargs: Any) -> dict[str, Any]:
    """Train on one image alone until nothing is left to learn: AP50 of 1, or a mean IoU of 0.98."""
    image, target, pixels = scene()
    batch = ((image - 0.5) / 0.25).expand(2, -1, -1, -1)  # smp's BatchNorms ask for two
    start, end = time.perf_counter(), {}
    for lr, share in TRIES.get(head, ((1e-3, 1),)):
        torch.manual_seed(0)
        model = (detector if head in DETECTORS else segmenter)(head, backbone, **kwargs)

        def loss(model: nn.Module = model) -> Tensor:
            if head in DETECTORS:
                return sum(model([image], [target]).values())
            return F.cross_entropy(model(batch), pixels.expand(2, -1, -1))

        def ask(model: nn.Module = model) -> float:
            return ap50(model, image, target) if head in DETECTORS else miou(model(batch[:1])[0], pixels) / 0.98

        _, end = train(model, loss, limit * share, ask, lr)
        end["lr"] = lr
        if end["answer"] >= 1:
            break
    score = {"ap50": end["answer"]} if head in DETECTORS else {"miou": round(0.98 * end["answer"], 4)}
    return score | {"steps": end["steps"], "lr": end["lr"], "seconds": round(time.perf_counter() - start, 1)}


def first_look(head: str, backbone: str) -> dict[str, Any]:
    """Build, train ten steps on a fixed batch, predict at an odd size, export."""
    torch.manual_seed(0)
    image, target, pixels = scene()
    odd, odd_target, _ = scene(90, seed=1)
    start = time.perf_counter()
    if head in DETECTORS:
        model = detector(head, backbone)
        images, targets = [image, odd], [target, odd_target]
        losses, _ = train(model, lambda: sum(model(images, targets).values()), STEPS, lr=5e-4)
        took = (time.perf_counter() - start) / STEPS
        model.eval()
        with torch.no_grad():
            found = model([odd[:, :70]])[0]
        assert set(found) >= {"boxes", "labels", "scores"}
        assert ((found["labels"] >= 0) & (found["labels"] < CLASSES)).all()
    else:
        model, batch = segmenter(head, backbone), torch.stack((image, image.flip(2)))
        wanted = torch.stack((pixels, pixels.flip(1)))
        losses, _ = train(model, lambda: F.cross_entropy(model(batch), wanted), STEPS, lr=5e-4)
        took = (time.perf_counter() - start) / STEPS
        model.eval()
        with torch.no_grad():
            assert model(odd[None, :, :70]).shape == (1, CLASSES + 1, 70, 90)
    return {
        "params_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
        "loss_first": round(losses[0], 3),
        "loss_last": round(min(losses[-3:]), 3),
        "step_seconds": round(took, 2),
        "export": exports(head, model) if head in SEGMENTERS or backbone in EXPORTED else {},
    }


def exports(head: str, model: nn.Module) -> dict[str, str]:
    """What torch.export and ONNX take: segmenters whole, detectors up to their levels or queries."""
    found = {}
    part, dynamic = exportable(head, model)
    example = torch.randn(2, 3, 128, 192)  # no level of one pixel: its size would be taken for fixed
    for name, shapes in (("torch.export", dynamic), ("onnx", dynamic)):
        try:
            found[name] = _export(name, part, example, shapes)
        except Exception as error:  # what fails is a result
            try:
                found[name] = _export(name, part, example, None)
            except Exception:
                found[name] = f"no: {type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
    return found


def exportable(head: str, model: nn.Module) -> tuple[nn.Module, Any]:
    """The part with tensors in and out, and its dynamic shapes."""
    dim = torch.export.Dim
    shapes = ({0: dim("batch", min=1, max=16), 2: 32 * dim("h", min=4, max=16), 3: 32 * dim("w", min=4, max=16)},)
    if head in SEGMENTERS:
        return model, shapes
    if head in DETECTORS and DETECTORS[head].family == "detr":
        return _Queries(model.network.model), shapes
    return _Levels(model.network.backbone), shapes


class _Levels(nn.Module):
    def __init__(self, levels: nn.Module):
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.levels(x).values())


class _Queries(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        out = self.model(pixel_values=x)
        return out.logits, out.pred_boxes


def _export(name: str, part: nn.Module, example: Tensor, shapes: Any) -> str:
    """Export, run at another size where that may change, and compare; "any size" or "one size"."""
    other = torch.randn(1, 3, 192, 128) if shapes else example
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = part(other)
        if name == "torch.export":
            got = torch.export.export(part, (example,), dynamic_shapes=shapes).module()(other)
        else:
            import onnxruntime

            program = torch.onnx.export(part, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False)
            session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
            got = [torch.from_numpy(out) for out in session.run(None, {session.get_inputs()[0].name: other.numpy()})]
    expected, got = ([x] if isinstance(x, Tensor) else list(x) for x in (expected, got))
    worst = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, got, strict=True))
    assert worst < 1e-3, f"differs by {worst:.1e}"
    return "any size" if shapes else "one size"


def table(cells: dict[str, dict[str, Any]]) -> str:
    """The pairs as a page: steps to overfit one image, losses, seconds and exports."""
    heads, backbones = (*DETECTORS, *SEGMENTERS), BACKBONES
    lines = ["# Every head on every backbone", "", *__doc__.split("\n\n")[2].splitlines(), ""]

    def rows(title: str, show: Callable[[dict[str, Any]], str]) -> None:
        lines.extend(
            ["", f"## {title}", "", "| head | " + " | ".join(backbones) + " |", "| --- " * (1 + len(backbones)) + "|"]
        )
        for head in heads:
            shown = [show(cells[f"{head} {name}"]) if f"{head} {name}" in cells else "" for name in backbones]
            lines.append(f"| {head} | " + " | ".join(shown) + " |")

    def learnt(cell: dict[str, Any]) -> str:
        if "failed" in cell:
            return cell["failed"]
        end = cell["by_heart"]
        done = end["ap50"] >= 1 if "ap50" in end else end["miou"] >= 0.98
        score = f"AP50 {end['ap50']:.2f}" if "ap50" in end else f"mIoU {end['miou']:.3f}"
        how = f" at {end['lr']:g}" if end["lr"] < 5e-4 else ""
        return f"{end['steps']}{how}" if done else f"**{score}** after {end['steps']}{how}"

    rows(
        "Steps to overfit one image (AP50 of 1 or mean IoU of 0.98), and the learning rate if not the first",
        learnt,
    )
    rows(
        f"Loss at the first step and after {STEPS}",
        lambda c: f"{c['loss_first']} → {c['loss_last']}" if "loss_first" in c else "",
    )
    rows("Seconds per training step of two images, one thread", lambda c: str(c.get("step_seconds", "")))
    rows(
        "Export: whole segmenters, DETR up to its queries, other detectors up to their levels; torch.export, ONNX",
        lambda c: ", ".join(c["export"].values()) if "export" in c else "",
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fill in the pairs that are missing, or that the words on the command line name."""
    warnings.simplefilter("ignore")
    words = sys.argv[1:]
    path = RESULT.with_suffix(".json")
    cells: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for head in (*DETECTORS, *SEGMENTERS):
        for backbone in BACKBONES:
            name = f"{head} {backbone}"
            if not all(word in name for word in words) if words else name in cells:
                continue
            try:
                cell = first_look(head, backbone) | {"by_heart": by_heart(head, backbone)}
            except Exception as error:  # what fails is a result
                cell = {"failed": f"{type(error).__name__}: {str(error).strip()[:200]}"}
            print(name, json.dumps(cell), flush=True)
            cells = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            cells[name] = cell
            atomic_write_text(path, json.dumps(cells, indent=1) + "\n")
            atomic_write_text(RESULT.with_suffix(".md"), table(cells))


if __name__ == "__main__":
    assert glocal.list_models()  # registered
    main()
