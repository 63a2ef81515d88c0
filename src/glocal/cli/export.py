"""`glocal export`: export a model for other runtimes, verified against the model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glocal.cli import app
from glocal.errors import GlocalError, check_choice
from glocal.files import printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from glocal.export import Check, Exported, Size, Source

EPILOG = """\
\b
Examples:
  glocal export run --to onnx                           NAME.onnx in this folder, for images as in training
  glocal export run --to openvino --dynamic             dynamic batch and image size
  glocal export run --to onnx --half --out small.onnx   weights of 16 bits
  glocal export cvt_13 --weights cvt_13.safetensors --to onnx --size 384
  glocal predict cvt_13.onnx photos                     use it

\b
Formats:
  onnx          FILE.onnx, for ONNX Runtime and others       torch-export  FILE.pt2, for torch.export.load
  openvino      FILE.xml and FILE.bin                        aoti          FILE.pt2, compiled here (C++ compiler)
  safetensors   a folder, for glocal and timm

\b
Exit codes:
  0 written and verified
  1 the outputs differ from the model's: the differences are shown, the file is removed
  2 invalid arguments, or the model does not support this export
"""
IMAGES = 8
"""For the comparison."""

RunOrName = Annotated[
    str, typer.Argument(metavar="RUN|NAME", help="Folder of a run, its model.safetensors, or the name of a model.")
]
To = Annotated[str, typer.Option(help="onnx, openvino, torch-export, aoti or safetensors.")]
SizeOption = Annotated[
    str | None,
    typer.Option(metavar="S|HxW[,...]", help="Image size in pixels; further ones are verified too, with --dynamic."),
]
Dynamic = Annotated[
    bool, typer.Option("--dynamic", help="Dynamic batch, and dynamic size (multiples of 32) if supported.")
]
Half = Annotated[bool, typer.Option("--half", help="16-bit weights: half the size, less accurate.")]
Weights = Annotated[
    str | None, typer.Option(metavar="FILE|pretrained", help="For a NAME: a checkpoint, or timm's weights.")
]
BatchSize = Annotated[int, typer.Option(help="Batch size, without --dynamic.")]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Default: the model's name, in this folder.")]
Images = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DATA|FILE", help="For the comparison: a folder, files, a built-in set. Default: fashion-mini."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier export of the same format.")]


@app.command(epilog=EPILOG)
def export(
    model: RunOrName,
    to: To,
    size: SizeOption = None,
    dynamic: Dynamic = False,
    half: Half = False,
    weights: Weights = None,
    batch: BatchSize = 1,
    out: Out = None,
    images: Images = None,
    force: Force = False,
) -> None:
    """Export a trained model for another runtime, and verify it on real images.

    The file includes class names and preprocessing. It is removed if its outputs differ from the model's by more than
    rounding.
    """
    sizes = _sizes(size)
    from glocal.cli._display import text_console
    from glocal.export import ENDS, FORMATS, RANDOM, VerificationError, export_model

    check_choice("to", to, FORMATS)
    source = _source(model, weights, sizes)
    target = out or Path(source.name + ENDS[to])  # type: ignore[index]
    console = text_console(stderr=True)
    if source.weights == RANDOM:
        console.print(f"[yellow]Note:[/] {source.name} has random weights; give --weights FILE, or the folder of a run")
    try:
        with console.status(f"Exporting {source.name}"):
            exported = export_model(
                source.model,
                target,
                to=to,  # type: ignore[arg-type]
                image_size=sizes[0] if sizes else source.image_size,
                dynamic=dynamic,
                half=half,
                batch_size=batch,
                classes=source.classes,
                crop_pct=source.crop_pct,
                interpolation=source.interpolation,
                mean=source.mean,
                std=source.std,
                other_sizes=sizes[1:],
                images=_images(images, max(batch, IMAGES)),
                overwrite=force,
                model_args=source.model_args,
            )
    except VerificationError as error:
        _show(error.checks)
        typer.secho("Error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    _show(exported.checks)
    typer.echo(_sentence(exported, source))


def _sentence(exported: "Exported", source: "Source") -> str:
    description = exported.description
    height, width = description.image_size
    takes = f"{height} x {width} images"
    if "size" in description.dynamic:
        takes += ", or any height and width of multiples of 32"
    takes += ", any number at once" if description.dynamic else f", {description.batch_size} at once"
    fixed = f"\nIts image size is fixed: {exported.fixed_because}" if exported.fixed_because else ""
    return (
        f"{printable(exported.path)}: {description.name} ({source.weights}) for {takes}; "
        f"{exported.num_bytes / 1e6:,.1f} MB{', half precision' if description.half else ''}; verified in "
        f"{exported.runtime} (tolerance {exported.tolerance:g}){fixed}"
    )


def _sizes(text: str | None) -> "tuple[Size, ...]":
    """``224,288x320`` -> (224, (288, 320))."""
    items = [] if text is None else text.split(",")
    if not all(re.fullmatch(r"\d{1,5}(x\d{1,5})?", item.strip()) for item in items):
        raise GlocalError(f"size: expected pixels such as 224, 224x288 or 224,288; got {text!r}")
    pairs = [[int(side) for side in item.split("x")] for item in items]
    return tuple(pair[0] if len(pair) == 1 else (pair[0], pair[1]) for pair in pairs)


def _source(model: str, weights: str | None, sizes: "Sequence[Size]") -> "Source":
    from glocal.export import from_run, named

    path = Path(model)
    if path.exists() or path.suffix == ".safetensors" or "/" in model:
        if weights is not None:
            raise GlocalError(
                f"--weights: expected the name of a model, got {printable(path)}, which has its own weights"
            )
        return from_run(path)
    return named(
        model,
        "pretrained" if weights == "pretrained" else None if weights is None else Path(weights),
        sizes[0] if sizes else None,
    )


def _images(names: list[str] | None, count: int) -> "list[Image] | None":
    """A number of images, evenly spaced over all."""
    if not names:
        return None
    from glocal.data import builtin_names, load_data
    from glocal.inference import Inputs, list_inputs

    is_builtin = len(names) == 1 and names[0].partition(":")[0] in builtin_names()
    listed = Inputs.of(load_data(names[0], progress=False).val) if is_builtin else list_inputs(names)
    count = min(count, len(listed))
    return [listed.image(i * len(listed) // count) for i in range(count)]


def _show(checks: "Sequence[Check]") -> None:
    typer.echo(f"{'images':>6}  {'size':>11}  {'difference':>10}  of the largest logit")
    for check in checks:
        height, width = check.image_size
        typer.echo(
            f"{check.batch_size:>6}  {f'{height} x {width}':>11}  {check.difference:>10.1e}  {check.relative:.1e}"
        )
