"""`glocal bench`: speed of models on this machine, against other packages and in other runtimes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import glocal.cli._options as opt
from glocal.cli import app
from glocal.errors import GlocalError
from glocal.run_dir import check_writable

if TYPE_CHECKING:
    from glocal.bench.suite import BenchSettings, Load
    from glocal.cli._bench_display import Watcher

DEFAULT_MODELS = ["glocal_resnet50", "botnet50", "glocal_vit_small_patch16_224", "t2t_vit_14", "cvt_13"]
"""One per family, with 20 to 26 million parameters."""
EPILOG = """\
\b
Examples:
  glocal bench                                          five families at batch 1
  glocal bench botnet50 resnet50 --batch 1,8            any model of glocal or timm
  glocal bench glocal_resnet50 --peers --threads 2      against torchvision, timm and transformers
  glocal bench cvt_13 --runtime eager,compile,onnxruntime
  glocal bench conformer_small_patch16 --train --memory --precision bf16 --device cuda --batch 8,64
  glocal bench --size 224,384 --out bench               results.json, results.csv, bench.svg

\b
Exit codes:
  0 finished; failures are listed in their rows
  1 nothing could be measured
  2 invalid arguments
  130 stopped by Ctrl-C: finished results are in --out
"""

Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODELS", help="Names of glocal's or timm's models; default: one per family."),
]
BatchSizes = Annotated[str, typer.Option(metavar="N,N", help="Images per pass.")]
ImageSizes = Annotated[str, typer.Option(metavar="N,N", help="Sides of the images, in pixels.")]
Peers = Annotated[bool, typer.Option("--peers", help="Also the same models of other packages, with the same weights.")]
Train = Annotated[bool, typer.Option("--train", help="Also training: forward, loss, backward, AdamW.")]
Memory = Annotated[bool, typer.Option("--memory", help="Also measure peak memory, in eager mode.")]
Precision = Annotated[str, typer.Option(help="32, or bf16 or fp16 by autocast.")]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help="Threads of the CPU; default: torch's.", show_default=False)
]
Runtimes = Annotated[str, typer.Option(metavar="A,B", help="eager, compile (torch.compile), onnxruntime, openvino.")]
Reference = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Common reference; default: each model's first row, or the first model.",
        show_default=False,
    ),
]
Seconds = Annotated[float, typer.Option(help="Per row, without warm-up.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for results and a plot.")]


@app.command(epilog=EPILOG)
def bench(
    models: Models = None,
    batch: BatchSizes = "1",
    size: ImageSizes = "224",
    peers: Peers = False,
    train: Train = False,
    memory: Memory = False,
    precision: Precision = "32",
    threads: Threads = None,
    runtime: Runtimes = "eager",
    reference: Reference = None,
    device: opt.Device = "auto",
    seconds: Seconds = 2.0,
    out: Out = None,
) -> None:
    """Measure the speed of models on this machine, in interleaved rounds: times, ratios, fraction of the peak.

    A ratio is a row's time over that of its reference in the same round: the median of all rounds, with a 90 %
    interval. It also holds on a shared machine, where absolute times do not.
    """
    from glocal.bench.suite import BenchSettings, run_suite
    from glocal.cli._bench_display import Watcher, conclude
    from glocal.cli._display import table_console, text_console
    from glocal.models.creation import check_model, create
    from glocal.training import resolve_device

    names = [name.strip() for item in models or DEFAULT_MODELS for name in item.split(",") if name.strip()]
    for name in names:
        check_model(name)
    settings = BenchSettings(
        models=tuple(dict.fromkeys(names)),
        batch_sizes=_numbers("batch", batch),
        image_sizes=_numbers("size", size),
        runtimes=tuple(dict.fromkeys(name.strip() for name in runtime.split(","))),
        precision=precision,
        device=resolve_device(device),
        threads=threads,
        peers=peers,
        train=train,
        memory=memory,
        seconds=seconds,
        reference=reference,
    )
    if out is not None:
        check_writable(out)
    watcher = Watcher(text_console(stderr=True), out)
    with _watched(watcher):
        results = run_suite(
            settings,
            create=lambda name, side: create(name, num_classes=1000, image_size=side, seed=0),
            load=_loader(settings),
            observer=watcher.update,
            publish=watcher.publish,
        )
    conclude(table_console(), results, out)
    if all(row["ms"] is None for row in results["rows"]):
        raise typer.Exit(1)


@contextmanager
def _watched(watcher: "Watcher") -> Iterator[None]:
    """Keep the finished results if a benchmark is stopped, or cannot write."""
    try:
        yield
    except KeyboardInterrupt:
        watcher.close()
        kept = f"; {watcher.out} has the finished results" if watcher.published else ""
        watcher.console.print(f"Stopped{kept}.")
        raise typer.Exit(130) from None
    except OSError as error:
        raise GlocalError(f"out: cannot write ({error.strerror or error})") from error
    finally:
        watcher.close()


def _numbers(what: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(item) for item in text.split(",")))
    except ValueError:
        raise GlocalError(f"{what}: expected whole numbers such as 1,8,32; got {text!r}") from None


def _loader(settings: "BenchSettings") -> "Load":
    """A function that loads a model into a runtime by export."""

    def load(model: Any, runtime: str, image_size: int, batch_size: int) -> Any:
        import torch

        from glocal.export import export_model, load_exported

        with tempfile.TemporaryDirectory() as folder:
            openvino = runtime == "openvino"
            path = Path(folder) / ("model.xml" if openvino else "model.onnx")
            export_model(
                model,
                path,
                to="openvino" if openvino else "onnx",
                image_size=image_size,
                batch_size=batch_size,
                half=settings.precision == "fp16",
            )
            threads = settings.threads or torch.get_num_threads()
            return load_exported(path, runtime="openvino" if openvino else "onnxruntime", threads=threads)

    return load
