"""`glocal convert`: a released checkpoint -> safetensors with glocal's parameter names."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glocal.cli import app
from glocal.errors import GlocalError
from glocal.files import atomic_write_bytes, printable

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = """\b
Examples:
  glocal convert 81.5_T2T_ViT_14.pth.tar --model t2t_vit_14 --out t2t_vit_14.safetensors
  glocal convert conformer.pth --model conformer_tiny_patch16 --out conformer.safetensors --num-classes 10

\b
Then, with glocal or timm:
  glocal compare photos --mode finetune --models t2t_vit_14 --weights t2t_vit_14=t2t_vit_14.safetensors
  timm.create_model("t2t_vit_14", pretrained=True, pretrained_cfg_overlay={"file": "t2t_vit_14.safetensors"})
"""


@app.command(epilog=EXAMPLES)
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint: .safetensors, .pth, .pth.tar, .bin.")],
    model: Annotated[str, typer.Option(help="Its model: one of `glocal models`.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    num_classes: Annotated[int | None, typer.Option(help="Classes of its head; default: from the file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not print the name mapping.")] = False,
) -> None:
    """Convert a released checkpoint to glocal's parameter names, strictly, and print the name mapping.

    Supports the authors' releases, mmpretrain, Hugging Face, timm and torchvision. No code in the file is executed.
    """
    if out.suffix != ".safetensors":
        raise GlocalError(f"out: expected a name that ends in .safetensors, got {printable(str(out))}")
    from safetensors.torch import save

    import glocal
    from glocal.checkpoints.read import read_checkpoint
    from glocal.checkpoints.unwrap import unwrap

    checkpoint = read_checkpoint(file)
    source = unwrap(checkpoint)
    classes = num_classes or _classes_of_head(model, checkpoint)
    converted = glocal.convert_checkpoint(model, checkpoint, **({"num_classes": classes} if classes else {}))
    if not quiet:
        for line in _map(source, converted):
            typer.echo(printable(line))
    metadata = {"model": model, "source": file.name, "glocal": glocal.__version__}
    content = save({name: tensor.contiguous().clone() for name, tensor in converted.items()}, metadata)
    try:
        atomic_write_bytes(out, content)
    except OSError as error:
        raise GlocalError(f"out: cannot write {printable(str(out))} ({error.strerror})") from error
    typer.echo(f"{len(source)} entries read, {len(converted)} written: {printable(str(out))}", err=True)


def _classes_of_head(model: str, checkpoint: dict[str, Any]) -> int | None:
    import torch

    import glocal

    with torch.device("meta"):
        made: Any = glocal.create_model(model)
    if not hasattr(made, "adapt_checkpoint"):  # timm's: convert_checkpoint raises the error
        return None
    head = made.adapt_checkpoint(dict(checkpoint), made).get(f"{made.classifiers()[0]}.weight")
    return None if head is None else len(head)


def _map(source: "dict[str, Tensor]", converted: "dict[str, Tensor]") -> list[str]:
    """One line per entry; joined, reshaped and dropped ones come last."""
    ours = {_place(tensor): name for name, tensor in converted.items()}
    moved = {name: ours[_place(tensor)] for name, tensor in source.items() if _place(tensor) in ours}
    lines = [f"{old} -> {new}" for old, new in moved.items()]
    made = [name for name in converted if name not in set(moved.values())]
    used = [name for name in source if name not in moved]
    return lines + ([f"reshaped, merged or dropped: {', '.join(used)} -> {', '.join(made) or '-'}"] if used else [])


def _place(tensor: "Tensor") -> tuple[int, int]:
    """Address and size of a tensor: equal for renamed tensors."""
    return tensor.data_ptr(), tensor.numel()
