"""`glocal eval`: evaluate a trained model on labelled images."""

from typing import Annotated

import typer

import glocal.cli._options as opt
from glocal.cli import app
from glocal.cli._command_line import check_file, write_json
from glocal.files import printable
from glocal.formatting import few
from glocal.schema import EvalResults

EPILOG = f"""\
\b
Examples:
  glocal eval run photos                        on the validation set
  glocal eval run new_photos --part all         on every image of CLASS folders
  glocal eval compared/runs/vit_micro-f1-s0 fashion-mini --out results.json

{opt.EVAL_CODES}"""
SHOWN = 5
"""Number of worst classes and of confused pairs shown on the terminal; the file has all."""

PartOption = Annotated[str, typer.Option(help="val, train, or all images of CLASS folders.")]


@app.command(name="eval", epilog=EPILOG)
def evaluate(
    model: opt.RunFileOrExport,
    data: opt.Data,
    part: PartOption = "val",
    out: opt.Json = None,
    on_error: opt.OnError = "stop",
    split_seed: opt.SplitSeed = 0,
    follow_links: opt.FollowLinks = False,
    batch_size: opt.BatchSize = 64,
    workers: opt.Workers = None,
    device: opt.Device = "auto",
    runtime: opt.Runtime = None,
    trust: opt.Trust = False,
) -> None:
    """Evaluate a saved or exported model: top-1, top-5, calibration, per-class accuracy, confusions.

    Classes are matched to the model's by name.
    """
    check_file(out)
    import glocal
    from glocal.cli._display import progress_bar
    from glocal.inference import device_for, evaluation_sets, open_model
    from glocal.inference import evaluate as measure

    saved = open_model(model, runtime, trust=trust)  # type: ignore[arg-type]
    device = device_for(saved, device)
    sets = evaluation_sets(
        data,
        part,  # type: ignore[arg-type]
        on_error=on_error,  # type: ignore[arg-type]
        split_seed=split_seed,
        follow_links=follow_links,
        workers=workers or None,
    )
    with progress_bar("Evaluating") as update:
        evaluation = measure(
            saved,
            sets,
            on_error=on_error,  # type: ignore[arg-type]
            batch_size=batch_size,
            workers=workers,
            device=device,
            progress=update,
        )
    results: EvalResults = {"glocal": glocal.__version__, **evaluation}
    if out is not None:
        write_json(out, results)
    _show(results)


def _show(results: EvalResults) -> None:
    from rich.markup import escape

    from glocal.cli._display import simple_table, table_console

    def shown(name: str) -> str:
        return escape(printable(name))

    console, model, data = table_console(), results["model"], results["data"]
    console.print(
        f"[bold]{shown(model['name'])}[/] on {results['images']:,} images of {shown(data['name'])} "
        f"({data['part']}: {shown(data['split'])})"
    )
    for warning in data["warnings"]:
        console.print(f"[yellow]Note:[/] {shown(warning)}")
    scores = simple_table(numbers=("top-1 %", "top-5 %", "calibration error %", "NLL, nats"))
    values = [100 * results["top1"], results["top5"] and 100 * results["top5"], 100 * results["ece"], results["nll"]]
    scores.add_row(*("-" if value is None else f"{value:.2f}" for value in values))
    console.print(scores)
    by_class = {entry["class"]: entry for entry in results["per_class"]}
    worst = simple_table("worst classes", numbers=("top-1 %", "images"))
    for name in results["worst_classes"][:SHOWN]:
        top1 = by_class[name]["top1"]
        assert top1 is not None  # a class without images is none of the worst
        worst.add_row(shown(name), f"{100 * top1:.1f}", f"{by_class[name]['images']:,}")
    console.print(worst)
    if results["confusions"]:
        pairs = simple_table("class", "predicted as", numbers=("images",))
        for pair in results["confusions"][:SHOWN]:
            pairs.add_row(shown(pair["true"]), shown(pair["predicted"]), f"{pair['count']:,}")
        console.print(pairs)
    if missing := results["missing_classes"]:
        console.print(f"Classes of the model without images: {few(missing, 10, show=shown)}")
    if skipped := results["skipped"]:
        console.print(f"[yellow]Unreadable images skipped: {len(skipped)}[/]")
        for bad in skipped[:10]:
            console.print(f"  {shown(bad['path'])}: {shown(bad['reason'])}")
