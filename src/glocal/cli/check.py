"""`glocal check`: find unreadable files and invalid annotations of a data set before training."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import glocal.cli._options as opt
from glocal.cli import app

if TYPE_CHECKING:
    from glocal.data import Checked, CheckedShards, DetectionSource, SegmentationSource, Skipped

EXAMPLES = """\b
Examples:
  glocal check photos                        check the folder photos
  glocal check photos --out bad.jsonl        write the list to this file
  glocal check photos --max-pixels 100000000
  glocal check 'shards/train-{000..099}.tar' (quoted for the shell)
  glocal check coco --task detect            boxes and masks: coco/annotations/instances_train*.json
  glocal check ade20k --task segment         label maps
"""

Out = Annotated[
    Path,
    typer.Option(
        help="List of unusable files, one JSON object per line: a file, or a folder for skipped.jsonl. "
        "Empty if there are none."
    ),
]
FollowLinks = Annotated[bool, typer.Option("--follow-links", help="Follow links, each file and folder once.")]
MaxPixels = Annotated[int, typer.Option(min=1, max=178_956_970, help="Reject larger images before decoding.")]
MaxBytes = Annotated[int, typer.Option(min=1, help="Reject larger files before reading.")]
TaskOption = Annotated[
    str, typer.Option(help="Task of the data: classify, detect (COCO, Pascal VOC) or segment (label maps).")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Decoding workers; default: one per processor.")]


@app.command(epilog=EXAMPLES)
def check(
    data: opt.Data,
    out: Out = Path("skipped.jsonl"),
    follow_links: FollowLinks = False,
    max_pixels: MaxPixels = 64_000_000,
    max_bytes: MaxBytes = 256 * 2**20,
    task: TaskOption = "classify",
    split_seed: opt.SplitSeed = 0,
    workers: Workers = None,
) -> None:
    """Decode every image of DATA and list unusable files.

    Reads DATA/train/CLASS/* and DATA/val/CLASS/* (and DATA/test/CLASS/*), or DATA/CLASS/*, or shards (tar files of
    images and labels); with --task also annotations (docs/data-detection.md).

    Exit code 0 if every file is usable, 1 if some are not, 2 if DATA is unusable.
    """
    from glocal.data import (
        DataSource,
        DetectionSource,
        ImageLimits,
        SegmentationSource,
        builtin_names,
        check_folder,
        load_data,
        load_detection,
        load_segmentation,
        split_folder,
    )
    from glocal.errors import check_choice

    check_choice("--task", task, ("classify", "detect", "segment"))
    limits = ImageLimits(max_pixels=max_pixels, max_bytes=max_bytes)
    source: DataSource | DetectionSource | SegmentationSource
    if task != "classify":
        load = load_detection if task == "detect" else load_segmentation
        source = load(
            data, on_error="skip", split_seed=split_seed, follow_links=follow_links, workers=workers, limits=limits
        )
        _print_annotated(source, "objects" if task == "detect" else "images")
        _write_skipped(out, source.skipped)
    elif data.partition(":")[0] in builtin_names():
        source = load_data(data)
        _write_skipped(out, source.skipped)
    else:
        checked = check_folder(data, follow_links=follow_links, limits=limits, workers=workers)
        _print_counts(checked)
        _write_skipped(out, checked.skipped)
        source = split_folder(checked, split_seed=split_seed)
    for warning in source.warnings:
        typer.echo(f"Note: {warning}")
    test = source.test if isinstance(source, DataSource) else None
    counts = f"{len(source.train)} train and {len(source.val)} val images"
    if test is not None:
        counts = f"{len(source.train)} train, {len(source.val)} val and {len(test)} test images"
    typer.echo(f"{counts}: {source.split}")
    if source.skipped:
        raise typer.Exit(1)


def _print_counts(checked: "Checked | CheckedShards") -> None:
    from rich.markup import escape
    from rich.table import Table

    from glocal.cli._display import table_console
    from glocal.files import printable

    usable, unusable = checked.usable, checked.unusable
    table = Table("class", show_footer=True)
    table.columns[0].footer = "all"
    for part, of_class in usable.items():
        table.add_column(part or "images", footer=str(sum(of_class.values())), justify="right")
    table.add_column("unusable", footer=str(len(checked.skipped)), justify="right")
    for name in checked.classes:
        counts = [of_class.get(name, 0) for of_class in usable.values()]
        table.add_row(escape(printable(name)), *map(str, counts), str(unusable[name]))
    if "" in unusable:  # in shards: samples without a label
        table.add_row("[dim]no class[/]", *["0"] * len(usable), str(unusable[""]))
    table_console().print(table)
    _print_reasons(checked.skipped, "files")


def _print_annotated(source: "DetectionSource | SegmentationSource", what: str) -> None:
    """Print the number of objects, or images by class, of each part; not for generated sets."""
    from rich.markup import escape
    from rich.table import Table

    from glocal.cli._display import table_console
    from glocal.files import printable

    if source.counts:
        table = Table("class", *(f"{what} of {part}" for part in source.counts))
        for label, name in enumerate(source.classes):
            table.add_row(escape(printable(name)), *(str(counts[label]) for counts in source.counts.values()))
        table_console().print(table)
    _print_reasons(source.skipped, "files and objects")


def _print_reasons(skipped: "tuple[Skipped, ...]", what: str) -> None:
    from collections import Counter

    from rich.markup import escape
    from rich.table import Table

    from glocal.cli._display import table_console
    from glocal.files import printable

    if skipped:
        kinds = Counter(_kind(bad.reason) for bad in skipped)
        table = Table("reason", what)
        for kind, count in kinds.most_common():
            table.add_row(escape(printable(kind)), str(count))
        table_console().print(table)


def _kind(reason: str) -> str:
    """A reason without file-specific numbers and names."""
    if reason.startswith("has "):
        return "above the limits"
    for same in ("file", "key", "name"):
        if reason.startswith(f"the same {same} as "):
            return f"the same {same} as another"
    return reason.partition(" (")[0]


def _write_skipped(out: Path, skipped: "tuple[Skipped, ...]") -> None:
    import json

    from glocal.data import SkippedObject
    from glocal.errors import GlocalError
    from glocal.files import atomic_write_text, printable

    out = out / "skipped.jsonl" if out.is_dir() else out
    lines = (json.dumps(asdict(bad)) + "\n" for bad in skipped)
    try:
        atomic_write_text(out, "".join(lines))
    except OSError as error:
        raise GlocalError(f"--out: expected a writable path, got {printable(out)}: {error.strerror}") from None
    if skipped:
        what = "files and objects" if any(isinstance(bad, SkippedObject) for bad in skipped) else "files"
        typer.echo(f"Unusable {what}: {len(skipped)}, listed with reasons in {printable(out)}")
