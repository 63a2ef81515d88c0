"""`glocal analyze`: analyze a trained or untrained model."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import glocal.cli._options as opt
from glocal.cli import app
from glocal.cli._command_line import command_line
from glocal.errors import GlocalError, check_choice, nearest
from glocal.files import atomic_write_bytes, atomic_write_text, printable
from glocal.run_dir import check_writable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from glocal.inference.inputs import Inputs
    from glocal.report.analysis import Subject

KINDS = {
    "fourier": "whether the model blurs or sharpens its features, by operation",
    "attention": "attention maps: distance, entropy, position bias, rollout",
    "receptive-field": "effective receptive field, by depth",
    "locality": "ablation of operations: convolution, attention, MLP, coupling",
    "features": "pictures of the feature maps, each stream by depth",
    "cam": "Grad-CAM: evidence for the prediction by place",
    "similarity": "linear CKA between layers of one or two models",
    "position": "position information in features, by padding",
    "robustness": "robustness to noise, occlusion, shuffled patches, texture",
}


def functions() -> dict[str, Callable[..., Any]]:
    """The function of each of `KINDS`."""
    from glocal import analysis

    return {
        "fourier": analysis.fourier,
        "attention": analysis.attention,
        "receptive-field": analysis.receptive_field,
        "locality": analysis.locality,
        "features": analysis.features,
        "cam": analysis.cam,
        "similarity": analysis.similarity,
        "position": analysis.position,
        "robustness": analysis.robustness,
    }


VERSUS = ("fourier", "receptive-field", "similarity")
NUM_IMAGES = {
    "attention": 16, "features": 4, "cam": 8, "receptive-field": 32, "locality": 128, "similarity": 128,
    "robustness": 256,
}  # fmt: skip
SHOWN = 8  # maximum number of images on a page

EPILOG = (
    "\b\nKinds:\n"
    + "".join(f"  {kind:<16} {text}\n" for kind, text in KINDS.items())
    + """
\b
Examples:
  glocal analyze fourier run                              a trained model on built-in images
  glocal analyze attention run --images photos --out seen
  glocal analyze receptive-field run --versus conformer_micro   trained against untrained
  glocal analyze similarity run --versus other_run
  glocal analyze locality run --modules '*.conv_proj_q'
  glocal analyze fourier resnet50 --definition notebook   any model of glocal or timm, random weights

\b
Writes report.html, results.json, arrays.npz and figures/*.svg into --out.

\b
Exit codes:
  0 finished
  2 invalid arguments, model or images
"""
)

Kind = Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(KINDS)}.")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL|RUN", help="Folder of a run, its model.safetensors, or a model's name.")
]
Images = Annotated[
    list[str] | None,
    typer.Option(metavar="DATA|FILES", help="A built-in set, a folder or files; default: fashion-mini."),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for results; default: runs/analyze-KIND-MODEL.", show_default=False)
]
Versus = Annotated[
    str | None, typer.Option(metavar="MODEL|RUN", help="A second model, for fourier, receptive-field or similarity.")
]
Layers = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Analyze the outputs of these modules: 'stages.*'.")
]
Modules = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="locality: modules to ablate as well.")]
Output = Annotated[str, typer.Option(help="fourier: residual sums, or branch outputs.")]
Definition = Annotated[str, typer.Option(help="fourier: rings, or notebook (Park and Kim 2022).")]
Ablate = Annotated[str, typer.Option(help="locality: by the mean over images, or zero.")]
NumImages = Annotated[int | None, typer.Option(min=1, help="Number of images; default: by kind.")]
ImageSize = Annotated[int | None, typer.Option(min=8, help="Side in pixels; default: the model's own.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per forward pass.")]
Seed = Annotated[int, typer.Option(help="Seed of random weights and random choices.")]


@app.command(epilog=EPILOG)
def analyze(
    kind: Kind,
    model: Model,
    images: Images = None,
    out: Out = None,
    versus: Versus = None,
    layers: Layers = None,
    modules: Modules = None,
    output: Output = "residual",
    definition: Definition = "rings",
    ablate: Ablate = "mean",
    num_images: NumImages = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    device: opt.Device = "cpu",
) -> None:
    """Analyze a model: its features, attention maps and predictions.

    Works on runs of glocal and on any model of glocal or timm (by name, with random weights); the model is not changed.
    """
    check_choice("kind", kind, (*KINDS,))
    for name, given, of_kind in (("--versus", versus, VERSUS), ("--modules", modules, ("locality",))):
        if given and kind not in of_kind:
            raise GlocalError(f"{name}: works with {', '.join(of_kind)}, got {kind}")
    out = out or Path("runs") / f"analyze-{kind}-{Path(model).name}"
    check_writable(out)
    keywords = _keywords(kind, locals())

    from rich.markup import escape

    from glocal.cli._display import progress_bar, text_console
    from glocal.training import resolve_device

    device = resolve_device(device)
    subject = _load(model, image_size, seed)
    other = _load(versus, subject.size, seed) if versus else None
    chosen = _choose(images or ["fashion-mini"], num_images or NUM_IMAGES.get(kind, 64), subject.classes)
    with progress_bar("Analyzing") as update:
        if kind != "features":
            keywords["progress"] = update
        result, second = _run(kind, subject, other, chosen, device, keywords)
    try:
        page = _write(out, _describe(kind, subject, other, chosen), result, second)
    except OSError as error:
        raise GlocalError(f"out: cannot write to {printable(out)} ({error.strerror})") from error
    text_console().print(f"{kind} of [bold]{escape(printable(subject.name))}[/]: {escape(str(page))}")


def _keywords(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the function of a kind: the options that it has."""
    keywords: dict[str, Any] = {}
    if options["batch_size"] and kind != "features":
        keywords["batch_size"] = options["batch_size"]
    if options["layers"] and kind not in ("attention", "locality", "features", "robustness"):
        keywords["layers"] = options["layers"]
    if kind == "fourier":
        keywords |= {"output": options["output"], "definition": options["definition"]}
    if kind in ("receptive-field", "position", "robustness"):
        keywords["seed"] = options["seed"]
    if kind == "locality":
        keywords |= {"way": options["ablate"], "modules": options["modules"] or ()}
    return keywords


@dataclass(frozen=True, eq=False)
class _Model:
    """A model and its preprocessing."""

    module: "nn.Module"
    name: str
    weights: str
    classes: tuple[str, ...]
    size: int
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Images to analyze, and their labels among the model's classes, if known."""

    name: str
    inputs: "Inputs"
    labels: tuple[int, ...] | None

    def pixels(self, model: _Model) -> "np.ndarray":
        """(N, S, S, 3) uint8."""
        import numpy as np

        from glocal.data.transforms import resize_crop

        images = (self.inputs.image(i) for i in range(len(self.inputs)))
        return np.stack([resize_crop(image, model.size, model.crop_pct) for image in images])

    def tensors(self, model: _Model, device: str) -> "Tensor":
        """(N, 3, S, S) normalised."""
        import torch

        pixels = torch.from_numpy(self.pixels(model)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (model.mean, model.std))
        return ((pixels - mean) / std).to(device)


def _load(name: str, image_size: int | None, seed: int) -> _Model:
    """A saved model, if a file or folder of this name exists, else a new one of this architecture."""
    import timm

    from glocal.models.creation import create, default_image_size, normalisation
    from glocal.models.io import load_model

    if Path(name).exists() or Path(name).is_symlink():
        saved = load_model(name, "classification")
        size = image_size or saved.image_size
        return _Model(
            saved.model, saved.name, "trained weights", saved.classes, size, saved.crop_pct, saved.mean, saved.std
        )
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models())
        raise GlocalError(
            f"model: expected a run, a model.safetensors or a model's name, got {printable(name)!r}{hint}"
        )
    size = image_size or default_image_size(name)
    module = create(name, num_classes=10, image_size=size, seed=seed)
    classes = tuple(str(i) for i in range(10))
    mean, std = normalisation(module)
    return _Model(module.eval(), name, f"random weights, seed {seed}", classes, size, 1.0, mean, std)


def _choose(names: Sequence[str], count: int, classes: tuple[str, ...]) -> _Chosen:
    """A fixed random sample of ``count`` images."""
    import numpy as np

    from glocal.data import builtin_names, load_data
    from glocal.inference import list_inputs
    from glocal.inference.inputs import Inputs

    if len(names) == 1 and names[0].split(":")[0] in builtin_names():
        images = load_data(names[0]).val
        inputs, said = Inputs.of(images), [images.classes[label] for label in images.labels]
    else:
        inputs = list_inputs(names)
        said = [Path(path).parent.name for path in inputs.paths]
    # random, because sets are often sorted by class
    rows = np.sort(np.random.default_rng(0).permutation(len(inputs))[:count])
    known = {name: i for i, name in enumerate(classes)}
    labels = tuple(known.get(said[row], -1) for row in rows)
    taken = Inputs(tuple(inputs.paths[row] for row in rows), inputs.stores, inputs.places[rows])
    name = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return _Chosen(name, taken, labels if min(labels) >= 0 else None)


def _run(
    kind: str, model: _Model, other: _Model | None, chosen: _Chosen, device: str, options: Mapping[str, Any]
) -> tuple[Any, Any]:
    import torch

    function = functions()[kind]
    module, images = model.module.to(device), chosen.tensors(model, device)
    if kind in ("locality", "robustness"):
        labels = None if chosen.labels is None else torch.tensor(chosen.labels, device=device)
        return function(module, images, labels, **options), None
    if other is None:
        return function(module, images, **options), None
    others = chosen.tensors(other, device)
    if kind == "similarity":
        return function(module, images, other.module.to(device), other_images=others, **options), None
    return function(module, images, **options), function(other.module.to(device), others, **options)


def _describe(kind: str, model: _Model, other: _Model | None, chosen: _Chosen) -> "Subject":
    import glocal
    from glocal.report.analysis import Subject

    weights = "" if other is None or other.weights == model.weights else f" ({other.weights})"
    return Subject(
        kind=kind,
        model=model.name,
        weights=model.weights,
        data=f"{len(chosen.inputs)} images of {chosen.name}, {model.size} px",
        command=command_line(),
        glocal=glocal.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        pictures=chosen.pixels(model)[:SHOWN],
        classes=model.classes,
        versus=None if other is None else f"{other.name}{weights}",
    )


def _write(out: Path, subject: "Subject", result: Any, second: Any) -> Path:
    import io

    import numpy as np

    from glocal.analysis import to_arrays, to_json
    from glocal.report.analysis import write_analysis

    out.mkdir(parents=True, exist_ok=True)
    both = {"result": result} | ({"versus": second} if second is not None else {})
    described = {
        "kind": subject.kind,
        "model": subject.model,
        "weights": subject.weights,
        "data": subject.data,
        "command": subject.command,
        "glocal": subject.glocal,
        "created": subject.created,
    }
    results = {"schema": "glocal.analyze/1", **described, "versus_model": subject.versus, **to_json(both)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **to_arrays(both))
    atomic_write_bytes(out / "arrays.npz", buffer.getvalue())
    atomic_write_text(out / "results.json", json.dumps(results, indent=1, allow_nan=False))
    return write_analysis(out, subject, result, second)
