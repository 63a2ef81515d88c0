"""The measurements of `glocal bench`: models, their peers and runtimes, at each batch and image size."""

import importlib.util
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import nn

from glocal.bench.environment import describe_environment, torch_threads
from glocal.bench.limits import Limits, fastest_product, memory_bandwidth
from glocal.bench.macs import count_macs, count_params
from glocal.bench.memory import peak_inference_memory, peak_training_memory
from glocal.bench.passes import PRECISIONS
from glocal.bench.peers import is_installed, make_peer, peers_of, randomize_weights, relative_difference
from glocal.bench.speed import Model, OnTiming, Row, compare, describe_failure
from glocal.errors import GlocalError, check_choice
from glocal.schema import BenchOptions, BenchResults, BenchRow, MachineLimits

RUNTIMES = {"eager": "torch", "compile": "torch", "onnxruntime": "onnxruntime", "openvino": "openvino"}
"""Runtimes, and the package that each needs."""
OF_TORCH = ("eager", "compile")
SMALLEST_IMAGE = 32
MODES = ("inference", "training")
MOST_COMPILED = 256

Create = Callable[[str, int], nn.Module]
"""Name and image size -> the model for it."""
Load = Callable[[nn.Module, str, int, int], Callable[[torch.Tensor], torch.Tensor]]
"""Model, runtime, image and batch size -> a function of (B, 3, H, W) images in this runtime."""


@dataclass(frozen=True)
class BenchSettings:
    """Settings of a benchmark.

    Attributes:
        models: names.
        batch_sizes: images per pass or step.
        image_sizes: sides in pixels.
        runtimes: of `RUNTIMES`; the first is the reference of each model.
        precision: "32", "bf16" or "fp16".
        device: such as "cpu" or "cuda".
        threads: of torch and the runtimes; None for their defaults.
        peers: whether to include other packages' implementations.
        train: whether to time training steps too.
        memory: whether to measure peak memory.
        seconds: per model and size, without warm-up.
        reference: the common reference model; by default each model's first runtime, or the first model if each has
            only one row.

    Raises:
        GlocalError: for an invalid value, or a runtime that is not installed or does not support the settings.
    """

    models: tuple[str, ...]
    batch_sizes: tuple[int, ...] = (1,)
    image_sizes: tuple[int, ...] = (224,)
    runtimes: tuple[str, ...] = ("eager",)
    precision: str = "32"
    device: str = "cpu"
    threads: int | None = None
    peers: bool = False
    train: bool = False
    memory: bool = False
    seconds: float = 2.0
    reference: str | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise GlocalError("models: expected at least one name, got none")
        for what, least, numbers in (
            ("batch", 1, self.batch_sizes),
            ("size", SMALLEST_IMAGE, self.image_sizes),
            ("threads", 1, () if self.threads is None else (self.threads,)),
        ):
            for number in numbers:
                if number < least:
                    raise GlocalError(f"{what}: expected {least} or more, got {number}")
        if not self.seconds > 0:
            raise GlocalError(f"seconds: expected a positive number, got {self.seconds:g}")
        check_choice("precision", self.precision, list(PRECISIONS))
        for runtime in self.runtimes:
            self._check_runtime(runtime)
        if self.reference is not None:
            check_choice("reference", self.reference, self.models)

    def _check_runtime(self, runtime: str) -> None:
        check_choice("runtime", runtime, list(RUNTIMES))
        if importlib.util.find_spec(package := RUNTIMES[runtime]) is None:
            raise GlocalError(f"runtime: {runtime} is not installed; pip install {package}")
        if runtime in OF_TORCH:
            return
        if self.device != "cpu":
            raise GlocalError(f"runtime: {runtime} runs on the CPU, got device {self.device}; add --device cpu")
        if self.precision == "bf16":
            raise GlocalError(f"precision: {runtime} runs 32 or fp16, got bf16")

    def configurations(self) -> Iterator[tuple[int, int, str]]:
        """All combinations of (image size, batch size, mode), grouped by image size."""
        return itertools.product(self.image_sizes, self.batch_sizes, MODES if self.train else MODES[:1])


@dataclass(frozen=True)
class Contender:
    """A model in one package and runtime.

    Attributes:
        model: its name in the settings.
        source: its package, for peers with version.
        runtime: of `RUNTIMES`.
        run: the timed function; None if it failed, or is created for each batch size.
        load: batch size -> the timed function and its difference.
        params: number of parameters.
        macs: multiply-accumulates of one image.
        difference: of its outputs from the first contender of the model; see `relative_difference`.
        same_function: whether that is only rounding; None for ours, or if not comparable.
        note: how it differs.
        error: why it could not be created.
    """

    model: str
    source: str
    runtime: str = "eager"
    run: Model | None = None
    load: Callable[[int], tuple[Model, float]] | None = None
    params: int = 0
    macs: int = 0
    difference: float | None = None
    same_function: bool | None = None
    note: str | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """A unique name."""
        return f"{self.model}, {self.source}, {self.runtime}"


class Yardstick:
    """The fastest matrix product of the machine, run in every round with the models.

    On a shared machine the peak changes over time.
    """

    def __init__(self, device: str, precision: str):
        self.device = torch.device(device)
        self.product = fastest_product(device, precision=precision)
        self.gb_per_s = memory_bandwidth(device)
        self.least_seconds = math.inf
        self()

    def __call__(self) -> None:
        """Run it once."""
        start = time.perf_counter()
        with torch.inference_mode():
            self.product.run()
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        self.least_seconds = min(self.least_seconds, time.perf_counter() - start)

    def limits(self) -> Limits:
        """The best measurements so far."""
        return Limits(self.product.gflops(self.least_seconds), self.product.name, self.gb_per_s)


def run_suite(
    settings: BenchSettings,
    *,
    create: Create,
    load: Load,
    observer: OnTiming | None = None,
    publish: Callable[[BenchResults], None] | None = None,
) -> BenchResults:
    """Measure each configuration (image size, batch size, mode).

    All models of a configuration are timed in interleaved rounds. A failure, out of memory or otherwise, is an error in
    its row.

    Args:
        settings: of the benchmark.
        create: creates a model.
        load: loads a model into a runtime other than torch.
        observer: progress callback.
        publish: called with the results after each configuration.

    Returns:
        JSON-serialisable results (docs/bench.md): ``environment``, ``settings``, ``limits``, ``rows``, ``notes``.
    """
    rows: list[BenchRow] = []
    results = cast(BenchResults, {})  # of no configuration
    configurations = list(settings.configurations())
    policy = os.environ.get("OMP_WAIT_POLICY")  # passive waiting is slower on idle cores
    with ExitStack() as stack:
        stack.enter_context(torch_threads(settings.threads))
        if "compile" in settings.runtimes:
            stack.enter_context(many_compiled())
        contenders: list[Contender] = []
        made_for = 0
        for i, (image_size, batch_size, mode) in enumerate(configurations):

            def report(what: str, done: float, i: int = i) -> None:
                if observer:
                    observer(what, (i + done) / len(configurations))

            if image_size != made_for:
                contenders = []  # frees the models of the last size
                contenders = list(make_contenders(settings, image_size, create, load, report))
                made_for = image_size
            if i == 0:
                report("measuring the machine", 0.0)
                yardstick = Yardstick(settings.device, settings.precision)
            rows += measure(contenders, settings, image_size, batch_size, mode, yardstick, report)
            results = {
                "environment": describe_environment(settings.device) | {"omp_wait_policy": policy},
                "settings": cast(BenchOptions, asdict(settings)),
                "limits": cast(MachineLimits, asdict(yardstick.limits())),
                "rows": rows,
                "notes": notes_on(settings),
            }
            if publish:
                publish(results)
    return results


def notes_on(settings: BenchSettings) -> list[str]:
    """Requested measurements that are not available, one line each."""
    notes = []
    if settings.train and not set(settings.runtimes) <= set(OF_TORCH):
        notes.append("training runs only in torch: other runtimes have no training rows")
    for name in settings.models if settings.peers else ():
        peers = peers_of(name)
        if not peers:
            notes.append(f"{name}: no known peer")
        notes += [
            f"{name}: {peer.package} is not installed; pip install {peer.package}"
            for peer in peers
            if not is_installed(peer)
        ]
    return notes


def make_contenders(
    settings: BenchSettings, image_size: int, create: Create, load: Load, observer: OnTiming
) -> Iterator[Contender]:
    """The models for one image size, each in its runtimes and followed by its peers."""
    for name in settings.models:
        observer(f"making {name}", 0.0)
        try:
            ours = create(name, image_size).eval()
            if settings.peers or not set(settings.runtimes) <= set(OF_TORCH):
                randomize_weights(ours, image_size)
            package = type(ours).__module__.partition(".")[0]
            first = Contender(name, package, params=count_params(ours), macs=count_macs(ours, image_size))
        except Exception as error:
            yield Contender(name, "", error=describe_failure(error))
            continue
        for runtime in settings.runtimes:
            if runtime in OF_TORCH:
                yield replace(first, runtime=runtime, run=_on_torch(ours, runtime))
            else:
                yield replace(first, runtime=runtime, load=partial(_load, load, ours, runtime, image_size))
        if settings.peers:
            yield from _peers(first, settings, ours, image_size, observer)


def _load(load: Load, ours: nn.Module, runtime: str, image_size: int, batch_size: int) -> tuple[Model, float]:
    run = load(ours, runtime, image_size, batch_size)
    return run, relative_difference(ours, run, image_size)


def _ready(contender: Contender, batch_size: int, observer: OnTiming) -> Contender:
    """The contender with its timed function; other runtimes are loaded for a fixed batch size, which is fastest."""
    if contender.load is None:
        return contender
    observer(f"exporting {contender.model} to {contender.runtime}", 0.0)
    try:
        run, difference = contender.load(batch_size)
        return replace(contender, run=run, difference=difference)
    except Exception as error:
        return replace(contender, error=describe_failure(error))


def _peers(
    first: Contender, settings: BenchSettings, ours: nn.Module, image_size: int, observer: OnTiming
) -> Iterator[Contender]:
    for peer in filter(is_installed, peers_of(first.model)):
        observer(f"making {first.model} of {peer.package}", 0.0)
        try:
            made = make_peer(peer, first.model, ours, image_size)
            theirs = replace(
                first,
                source=made.source,
                difference=made.difference,
                same_function=made.same_function,
                note=made.reason,
            )
            if not made.same_function:
                theirs = replace(theirs, params=count_params(made.model), macs=count_macs(made.model, image_size))
        except Exception as error:
            yield Contender(first.model, peer.package, error=describe_failure(error))
            continue
        for runtime in [runtime for runtime in settings.runtimes if runtime in OF_TORCH] or OF_TORCH[:1]:
            yield replace(theirs, runtime=runtime, run=_on_torch(made.model, runtime))


def measure(
    contenders: Sequence[Contender],
    settings: BenchSettings,
    image_size: int,
    batch_size: int,
    mode: str,
    yardstick: Yardstick,
    observer: OnTiming,
) -> list[BenchRow]:
    """One row per contender: time, ratio to its reference, memory."""
    train = mode == "training"
    if train:
        contenders = [contender for contender in contenders if contender.runtime in OF_TORCH]
    contenders = [_ready(contender, batch_size, observer) for contender in contenders]
    if any(contender.runtime == "compile" for contender in contenders):
        torch.compiler.reset()
    runs = {contender.label: contender.run for contender in contenders if contender.run is not None}
    timings: dict[str, Row] = {}
    if runs:
        compared = compare(
            runs,
            _references([contender for contender in contenders if contender.run is not None], settings.reference),
            image_size=image_size,
            batch_size=batch_size,
            device=settings.device,
            seconds=settings.seconds,
            train=train,
            precision=settings.precision,
            yardstick=yardstick,
            observer=lambda what, done: observer(f"{mode}, batch {batch_size}, {image_size} px: {what}", done),
        )
        timings = {row.name: row for row in compared}
    rows = []
    for contender in contenders:
        timing = timings.get(contender.label) or Row(contender.label, contender.label, error=contender.error)
        figures = asdict(timing)
        yardsticks = figures.pop("yardsticks")
        # a training step counts as three forward passes
        macs = (3 if train else 1) * batch_size * contender.macs
        described = {
            "model": contender.model,
            "source": contender.source,
            "runtime": contender.runtime,
            "mode": mode,
            "batch_size": batch_size,
            "image_size": image_size,
            "precision": settings.precision,
            "params": contender.params,
            "macs": contender.macs,
            **figures,
            "share_of_limit": macs / yardstick.product.macs / yardsticks if yardsticks else None,
            "memory_mib": None,
            "difference": contender.difference,
            "same_function": contender.same_function,
            "best_peer": False,
            "note": contender.note,
        }
        row = cast(BenchRow, described)
        if settings.memory and timing.error is None:
            observer(f"memory of {contender.label}", 1.0)
            try:
                row["memory_mib"] = _memory(contender, settings, (batch_size, 3, image_size, image_size), train)
            except Exception as error:  # it needs a second copy of the model
                row["note"] = f"memory: {describe_failure(error)}"
        rows.append(row)
    _mark_best_peers(rows)
    return rows


def _references(contenders: Sequence[Contender], reference: str | None) -> dict[str, str]:
    """Label of each contender -> label of its reference."""
    firsts = {contender.model: contender.label for contender in reversed(contenders)}
    if reference is None and len(firsts) == len(contenders):
        reference = contenders[0].model
    return {c.label: firsts.get(reference or c.model, firsts[c.model]) for c in contenders}


def _memory(
    contender: Contender, settings: BenchSettings, shape: tuple[int, int, int, int], train: bool
) -> float | None:
    """Peak memory, for eager torch models only."""
    if contender.runtime != "eager" or not isinstance(contender.run, nn.Module):
        return None
    peak = peak_training_memory if train else peak_inference_memory
    return peak(contender.run, shape, settings.device, precision=settings.precision)


def _mark_best_peers(rows: Sequence[BenchRow]) -> None:
    """Mark the fastest row of another package with the same function, for each model."""
    peers = [row for row in rows if row["same_function"] and row["ms"] is not None]
    for model in {row["model"] for row in peers}:
        of_model = [row for row in peers if row["model"] == model]
        best = min(of_model, key=lambda row: row["ratio"] or row["ms"] or 0.0)  # all have a ratio or none
        best["best_peer"] = True


def _on_torch(model: nn.Module, runtime: str) -> nn.Module:
    if runtime == "eager":
        return model
    compiled: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return compiled


@contextmanager
def many_compiled() -> Iterator[None]:
    """Raise torch's recompile limit of 8, beyond which models that share code would silently run uncompiled."""
    import torch._dynamo

    with torch._dynamo.config.patch(recompile_limit=MOST_COMPILED, fail_on_recompile_limit_hit=True):
        yield
