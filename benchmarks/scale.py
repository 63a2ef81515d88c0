"""What training on ImageNet-22k and predicting a billion images take: every part that two cores can measure.

    OMP_NUM_THREADS=1 python benchmarks/scale.py          writes docs/results/scale.json; docs/scale.md cites it

Images, shards and indexes are synthetic. What is extrapolated is so by the number of samples, bytes or classes alone.
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import shlex
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import date
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

import glocal
from glocal.bench import describe_environment
from glocal.data import ImageLimits, load_data, open_image
from glocal.data import shards as shard_files
from glocal.data.images import ImageError
from glocal.data.scan import Scanned, cache_file, stamp, write_cache
from glocal.data.shard_index import INDEX_VERSION, Index, Sample, read_index
from glocal.data.transforms import resize_crop
from glocal.files import atomic_write_text, sha256, sync
from glocal.inference import Prediction, list_inputs
from glocal.inference.answers import described, most_probable
from glocal.inference.output import CsvLines, JsonLines
from glocal.metrics.classification import Outcomes
from glocal.models.io import ModelConfig, save_model
from glocal.training import Checkpointer, load_recipe
from glocal.training.loader import BatchIndices, ImageBatches, TrainingBatches, epoch_order

RESULT = Path(__file__).parents[1] / "docs/results/scale.json"
IMAGES, CLASSES = 14_197_122, 21_841  # ImageNet, fall 2011 release (ImageNet-22k)
SIZE = 500, 375  # pixels, the commonest size of ImageNet
QUALITY = 90
CONTRAST, DETAIL = 30, 5  # of a picture: gives files of the mean size of ImageNet-22k, 1.3 TB / 14.2M
DISTINCT = 128  # pictures
SCANNED = 1024  # samples in the shards that are scanned and read
INDEX = 210_000, 800_000  # samples of the two synthetic indexes; what a sample takes is the slope
PER_SHARD = 10_000
FILES = 30_000, 120_000
REPEATS = 3


def picture(seed: int) -> bytes:
    """A JPEG with the spectrum of a photograph: amplitude falls with frequency."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1
    planes = []
    shared = np.fft.rfft2(rng.standard_normal((height, width))) / frequency
    for _ in range(3):  # channels of a photograph are alike
        own = np.fft.rfft2(rng.standard_normal((height, width))) / frequency
        plane = np.fft.irfft2(0.95 * shared + 0.05 * own, s=(height, width))
        planes.append(plane / plane.std())
    pixels = 128 + CONTRAST * np.stack(planes, -1) + DETAIL * rng.standard_normal((height, width, 1))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def write_shards(folder: Path, pictures: list[bytes], part: str, count: int, per_shard: int) -> None:
    """Shards as WebDataset's writer makes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, first in enumerate(range(0, count, per_shard)):
        with tarfile.open(folder / f"{part}-{shard:06d}.tar", "w") as tar:
            for i in range(first, min(first + per_shard, count)):
                for extension, content in (("jpg", pictures[i % len(pictures)]), ("cls", str(i % 10).encode())):
                    member = tarfile.TarInfo(f"{i:08d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def seconds(
    work: Callable[[], Any], repeats: int = REPEATS, clock: Callable[[], float] = time.process_time
) -> list[float]:
    """Seconds of each of several runs: of this process on a core, which others on the machine do not add to."""
    took = []
    for _ in range(repeats):
        start = clock()
        work()
        took.append(clock() - start)
    return took


def rate(count: float, took: Iterable[float]) -> dict[str, float]:
    """How many a second: median, and the range over repeats."""
    rates = [count / each for each in took]
    return {"median": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}


def apart(work: Callable[..., Any], *args: Any) -> Any:
    """Run a measurement in a new process: a forked one would fill what its parent has let go, and look small."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_send, args=(sender, work, args))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def _send(sender: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    sender.send(work(*args))


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """The most bytes of this process that were ever in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def private() -> int:
    """Bytes of this process that it shares with no other one."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))


# Reading


def reading(pictures: list[bytes], folder: Path, shards: Path) -> dict[str, Any]:
    """Images a second of one core: parts of the way first, then batches as training gets them."""
    recipe, plain = load_recipe("deit"), load_recipe("micro", settings=["flip=false"])
    first = pictures[: DISTINCT // 2]
    opened = [open_image(content) for content in first]
    augment = TrainingBatches(ImageBatches(load_data(folder, progress=False).train, 224), recipe, 0).randaugment
    assert augment is not None
    draw = np.arange(4, dtype=np.uint32)
    parts = {
        "open_image": lambda: [open_image(content) for content in first],
        "fit_224": lambda: [resize_crop(image, 224) for image in opened],
        "randaugment_224": lambda: [augment(image, draw + np.uint32(i)) for i, image in enumerate(opened)],
        "pillow_alone": lambda: [Image.open(io.BytesIO(content)).load() for content in first],
    }
    took: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(REPEATS):  # in turn, so that what else runs on the machine meets all alike
        for name, work in parts.items():
            took[name] += seconds(work, 1)
    found: dict[str, Any] = {
        "parts_images_per_core_second": {name: rate(len(first), each) for name, each in took.items()}
    }

    sources = {}
    for source, where in (("files", folder), ("shards", shards)):
        images = load_data(where, progress=False).train.subset(np.arange(2 * DISTINCT))
        for way, of in (("centre crop", plain), ("RandAugment (deit)", recipe)):
            sources[source, way] = TrainingBatches(ImageBatches(images, 224), of, 0)
    keys = [BatchIndices(0, part) for part in np.array_split(np.arange(2 * DISTINCT), 16)]
    passes = [(*name, workers) for name in sources for workers in (1, 2)]
    on_cores: dict[tuple[str, str, int], list[float]] = {name: [] for name in passes}
    by_clock: dict[tuple[str, str, int], list[float]] = {name: [] for name in passes}
    for _ in range(REPEATS):
        for source, way, workers in passes:
            cpu, count = _seconds_of_children(), 0
            loader: Any = DataLoader(sources[source, way], batch_size=None, sampler=keys, num_workers=workers)
            for batch in loader:
                count += len(batch.labels)
                if count == len(batch.labels):
                    began_with, start = count, time.perf_counter()  # workers have started
            by_clock[source, way, workers].append((time.perf_counter() - start) / (count - began_with))
            on_cores[source, way, workers].append((_seconds_of_children() - cpu) / count)
    found["loader"] = [
        {
            "from": source,
            "way": way,
            "processes": workers,
            "images_per_core_second": rate(1, on_cores[source, way, workers]),
            "images_per_s_by_the_clock": rate(1, by_clock[source, way, workers]),
        }
        for source, way, workers in passes
    ]
    return found


def _seconds_of_children() -> float:
    """On cores, of the processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def scanning(shards: Path) -> dict[str, Any]:
    """The look at every image before the first start, and the next start."""
    os.environ["GLOCAL_CACHE"] = tempfile.mkdtemp()
    try:
        first = seconds(partial(load_data, shards, progress=False, workers=1), 1)
        again = seconds(partial(load_data, shards, progress=False, workers=1))
    finally:
        del os.environ["GLOCAL_CACHE"]
    files = sorted(shards.glob("*.tar"))
    headers = seconds(lambda: [read_index(str(file)) for file in files])
    count = 2 * SCANNED  # train and val
    return {
        "images": count,
        "first_images_per_core_second": count / first[0],
        "again_seconds": statistics.median(again),
        "headers_samples_per_s": rate(count, headers),
    }


# The index


def synthetic_index(folder: Path, count: int) -> None:
    """Shards that are empty, and a cache that says they hold samples: what a second start finds."""
    for part, samples in (("train", count), ("val", count // 20)):
        for shard, first in enumerate(range(0, samples, PER_SHARD)):
            file = folder / f"{part}-{shard:06d}.tar"
            file.touch()
            index = Index(stamp(str(file)))
            index.samples = [
                Sample(
                    f"{i:08d}.jpg",
                    92_000 * (i - first),
                    91_743,
                    i % 10_000,
                    None,
                    None,
                    f"{i:016x}{part:>8}" + "a" * 40,
                )
                for i in range(first, min(first + PER_SHARD, samples))
            ]
            key = ("shards", INDEX_VERSION, asdict(ImageLimits()))
            shard_files._remember(cache_file(*key, os.path.realpath(file)), index)


def load_index(folder: Path) -> dict[str, float]:
    """Seconds and memory of a start whose images were all checked before."""
    before, start = resident(), time.process_time()
    source = load_data(folder, progress=False)
    took, after = time.process_time() - start, resident()
    images, store = (source.train, source.val), vars(source.train.store)
    arrays = [*(array for part in images for array in (part.labels, part.rows, part.groups)), *store.values()]
    child_sees = _touched_in_a_fork(source.train.paths)
    return {
        "samples": len(source.train) + len(source.val),
        "seconds": took,
        "resident": after - before,
        "peak": peak() - before,
        "arrays": sum(array.nbytes for array in arrays if isinstance(array, np.ndarray)),
        "paths": sum(sys.getsizeof(path) + 8 for path in (*source.train.paths, *source.val.paths)),
        "private_in_a_fork_that_reads_all_paths": child_sees,
    }


def _touched_in_a_fork(paths: tuple[str, ...]) -> int:
    """Counting references writes to the memory of a path, so a process that reads them gets pages of its own."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        before = private()
        for path in paths:
            os.fspath(path)
        sender.send(private() - before)
        os._exit(0)
    found = receiver.recv()
    os.waitpid(child, 0)
    return int(found)


def synthetic_files(folder: Path, count: int) -> None:
    """A folder of empty files, and a cache that says they are images."""
    entries = {}
    for i in range(count):
        part = "val" if i % 21 == 0 else "train"
        path = f"{part}/n{i % 100:08d}/n{i % 100:08d}_{i:08d}.JPEG"
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        entries[path] = [stamp(file), f"{i:064x}"]
    key = (os.fspath(folder.resolve()), asdict(ImageLimits()), False)
    write_cache(cache_file(*key), entries)


def index_memory(scratch: Path) -> dict[str, Any]:
    """What a sample of an index takes: the difference of a large and a small one."""
    found: dict[str, Any] = {}
    for kind, make, sizes in (("shards", synthetic_index, INDEX), ("files", synthetic_files, FILES)):
        runs = []
        for count in sizes:
            folder = scratch / f"{kind}-{count}"
            folder.mkdir()
            os.environ["GLOCAL_CACHE"] = str(scratch / f"cache-{kind}-{count}")
            make(folder, count)
            runs.append(apart(load_index, folder))
            cached = sum(file.stat().st_size for file in Path(os.environ["GLOCAL_CACHE"]).rglob("*.json"))
            runs[-1]["cache_bytes"] = cached
        del os.environ["GLOCAL_CACHE"]
        small, large = runs
        samples = large["samples"] - small["samples"]
        per_sample = {name: (large[name] - small[name]) / samples for name in large if name != "samples"}
        found[kind] = {"runs": runs, "per_sample": per_sample}
    return found


def order() -> dict[str, float]:
    """The order of one epoch of ImageNet-22k."""

    class Data:
        groups = np.arange(IMAGES) // PER_SHARD

        def __len__(self) -> int:
            return IMAGES

    data: Any = Data()
    before = resident()
    took = seconds(partial(epoch_order, data, 0, 0), 2)
    return {"images": IMAGES, "seconds": statistics.median(took), "peak_bytes": peak() - before}


# Checkpoints


def checkpoints(scratch: Path) -> dict[str, Any]:
    """ViT-B with a head of 21,841 classes and its optimizer's moments, written and read as a run does."""
    name = "glocal_vit_base_patch16_224"
    model = glocal.create_model(name, num_classes=CLASSES)
    classes = [f"n{i:08d}" for i in range(CLASSES)]

    def write(folder: Path, state_dict: dict[str, torch.Tensor]) -> None:
        model.load_state_dict(state_dict, assign=True)
        save_model(
            model, folder, ModelConfig.of_classifier(model, classes=classes, image_size=224, keywords={"img_size": 224})
        )

    state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    moments = {
        key: {"step": torch.tensor(1.0), "exp_avg": torch.randn_like(of), "exp_avg_sq": torch.rand_like(of)}
        for key, of in model.named_parameters()
    }
    kept = Checkpointer(scratch / "checkpoints", write)
    step = iter(range(1, 100))
    saving = seconds(
        lambda: kept.save(next(step), {"state_dict": state, "optimizer": moments}, None), clock=time.perf_counter
    )
    folder = kept.path(kept.steps()[0])
    size = sum(file.stat().st_size for file in folder.iterdir())
    loading = seconds(lambda: kept.load_newest(print), 2, clock=time.perf_counter)
    big = folder / "optim.safetensors"
    hashing = seconds(lambda: sha256(big), 2)

    def raw() -> None:
        file = scratch / "raw"
        file.write_bytes(content)
        sync(file)

    content = bytes(256 * 2**20)
    writing = seconds(raw, clock=time.perf_counter)
    parameters = sum(of.numel() for of in model.parameters())
    return {
        "model": name,
        "classes": CLASSES,
        "parameters": parameters,
        "bytes": size,
        "bytes_per_parameter": size / parameters,
        "save_seconds_by_the_clock": {
            "median": statistics.median(saving),
            "lowest": min(saving),
            "highest": max(saving),
        },
        "save_mb_per_s_by_the_clock": size / 1e6 / statistics.median(saving),
        "load_seconds_by_the_clock": statistics.median(loading),
        "sha256_mb_per_s": big.stat().st_size / 1e6 / statistics.median(hashing),
        "write_and_fsync_mb_per_s_by_the_clock": len(content) / 1e6 / statistics.median(writing),
    }


# Validation


def validation(num_images: int) -> dict[str, float]:
    """Scores of logits of 21,841 classes."""
    logits = np.random.default_rng(0).standard_normal((num_images, CLASSES), dtype=np.float32)
    labels = np.arange(num_images) % CLASSES
    before, start = resident(), time.process_time()
    outcomes = Outcomes.of(logits, labels)
    took = time.process_time() - start
    return {
        "images": num_images,
        "classes": CLASSES,
        "logits_bytes": logits.nbytes,
        "outcomes_seconds": took,
        "outcomes_peak_bytes": peak() - before,
        "outcomes_bytes": sum(getattr(outcomes, name).nbytes for name in outcomes.__dataclass_fields__),
    }


def scoring(num_classes: int) -> dict[str, float]:
    """Scores and their JSON with K classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, 50_000)
    outcomes = Outcomes(labels, labels, rng.random(50_000), rng.random(50_000), *np.ones((2, 50_000), bool))
    before, start = resident(), time.process_time()
    metrics = outcomes.score(num_classes)
    scored, scored_peak, start = time.process_time() - start, peak() - before, time.process_time()
    text = json.dumps(metrics.to_dict(), indent=1, allow_nan=False)
    return {
        "classes": num_classes,
        "score_seconds": scored,
        "score_peak_bytes": scored_peak,
        "json_seconds": time.process_time() - start,
        "json_bytes": len(text),
    }


# Prediction


def prediction(shards: Path) -> dict[str, Any]:
    """A row of the output: its bytes, what it costs to make, write and look at again; the list of inputs."""
    names = tuple(f"n{i:08d}" for i in range(CLASSES))
    logits = np.random.default_rng(0).standard_normal((256, CLASSES), dtype=np.float32)
    paths = [f"shards/train-{i // PER_SHARD:06d}.tar/{i:08d}.jpg" for i in range(256)]
    found: dict[str, Any] = {"classes": CLASSES, "top_k": 5}
    rows: list[Prediction] = []

    def rank() -> None:
        rows[:] = described(paths, [None] * len(paths), *most_probable(logits, 5), names)

    found["rank_images_per_s"] = rate(len(paths), seconds(rank))
    for suffix in (".jsonl", ".csv"):
        lines = JsonLines() if suffix == ".jsonl" else CsvLines(5)
        written = [lines.line(row) for row in rows]
        many = rows * 20
        found[suffix] = {
            "bytes_per_row": statistics.mean(map(len, written)),
            "rows_per_s": rate(len(many), seconds(lambda lines=lines, many=many: [lines.line(row) for row in many])),
            "rows_per_s_looked_at_again": rate(
                len(many),
                seconds(
                    lambda lines=lines, written=written: [
                        lines.has_error(line, path)
                        for _ in range(20)
                        for path, line in zip(paths, written, strict=True)
                    ]
                ),
            ),
        }
    listed = list_inputs([str(shards)])
    found["list_samples_per_s"] = rate(len(listed), seconds(lambda: list_inputs([str(shards)])))
    found["digest_samples_per_s"] = rate(len(listed), seconds(listed.digest))
    return found


def list_memory(folder: Path) -> dict[str, float]:
    """Memory of a list of inputs."""
    before, start = resident(), time.process_time()
    listed = list_inputs([str(folder)])
    return {"samples": len(listed), "seconds": time.process_time() - start, "resident": resident() - before}


def broken(pictures: list[bytes]) -> dict[str, float]:
    """What a refused image costs beside one that is read."""
    cut = [content[: len(content) // 2] for content in pictures[:64]]

    def refuse() -> list[Scanned]:
        found = []
        for content in cut:
            try:
                open_image(content)
            except ImageError as error:
                found.append(Scanned(error.reason))
        return found

    assert len(refuse()) == len(cut)
    return {"refused_images_per_s": statistics.median(len(cut) / each for each in seconds(refuse))}


# What follows


MEAN_BYTES = 1.31e12 / IMAGES
GPUS = {"A100": (312e12, 0.40), "H100, H200": (989e12, 0.30)}  # bf16 peak by data sheet, share of it that is assumed
MODELS = ("cvt_13", "glocal_vit_base_patch16_224", "cvt_w24")
GPU_HOURS_BETWEEN_FAILURES = (
    16_384 * 54 * 24 / 419
)  # Grattafiori et al. 2024, The Llama 3 Herd of Models, section 3.3.4
RANKS = 8  # processes of a node
WORKERS = 8  # of a process: the default
BILLION = 1e9


def plan(found: dict[str, Any]) -> dict[str, Any]:
    """Arithmetic on what was measured and on what is assumed; nothing here was measured on a GPU."""
    counted = json.loads(files("glocal.models").joinpath("counted.json").read_text())
    speed = {
        (row["from"], row["way"]): row["images_per_core_second"]["median"]
        for row in found["reading"]["loader"]
        if row["processes"] == 1
    }
    training_read, test_read = speed["shards", "RandAugment (deit)"], speed["shards", "centre crop"]
    epochs = []
    for gpu, (flops, share) in GPUS.items():
        for name in MODELS:
            images_per_s = flops * share / (6 * counted[name]["macs"])
            epochs.append(
                {
                    "gpu": gpu,
                    "model": name,
                    "macs": counted[name]["macs"],
                    "image_size": counted[name]["input_size"][-1],
                    "images_per_s_per_gpu": images_per_s,
                    "cores_per_gpu": images_per_s / training_read,
                    "mb_per_s_per_gpu": images_per_s * MEAN_BYTES / 1e6,
                    "gpu_hours_per_epoch": IMAGES / images_per_s / 3600,
                    "core_hours_per_epoch": IMAGES / training_read / 3600,
                    "minutes_per_epoch": {n: IMAGES / images_per_s / n / 60 for n in (8, 64)},
                }
            )
    index, samples = {kind: found["index"][kind]["per_sample"] for kind in ("shards", "files")}, 1.05 * IMAGES
    memory = {
        kind: {
            "cached_start_seconds_of_a_process": per["seconds"] * samples,
            "cached_start_minutes_of_a_node_one_after_the_other": per["seconds"] * samples * RANKS / 60,
            "peak_gb_of_a_process": per["peak"] * samples / 1e9,
            "resident_gb_of_a_process": per["resident"] * samples / 1e9,
            "gb_of_a_node_processes": per["resident"] * samples * RANKS / 1e9,
            "gb_of_a_worker_after_an_epoch": per["private_in_a_fork_that_reads_all_paths"] * samples / 1e9,
            "gb_of_a_node_workers": per["private_in_a_fork_that_reads_all_paths"] * samples * RANKS * WORKERS / 1e9,
            "cache_gb": per["cache_bytes"] * samples / 1e9,
        }
        for kind, per in index.items()
    }
    checkpoint = found["checkpoint"]["save_seconds_by_the_clock"]["median"]
    failures = []
    for number in (8, 64, 512):
        between = GPU_HOURS_BETWEEN_FAILURES / number * 3600
        every = (2 * checkpoint * between) ** 0.5
        failures.append(
            {
                "gpus": number,
                "hours_between_failures": between / 3600,
                "best_interval_minutes": every / 60,
                "lost_share_at_best": checkpoint / every + every / (2 * between),
                "lost_share_hourly": checkpoint / 3600 + 3600 / (2 * between),
            }
        )
    prediction = found["prediction"]
    return {
        "assumed": {
            "images": IMAGES,
            "mean_bytes": MEAN_BYTES,
            "gpus": GPUS,
            "gpu_hours_between_failures": GPU_HOURS_BETWEEN_FAILURES,
        },
        "epochs": epochs,
        "scan_core_hours": IMAGES / found["scan"]["first_images_per_core_second"] / 3600,
        "index": memory,
        "shards": {
            "per_shard": PER_SHARD,
            "count": IMAGES / PER_SHARD,
            "gb_each": PER_SHARD * MEAN_BYTES / 1e9,
            "window_gb": 16 * PER_SHARD * MEAN_BYTES / 1e9,
        },
        "failures": failures,
        "validation": {
            "logits_gb_of_50_000_images": 50_000 * CLASSES * 4 / 1e9,
            "outcomes_mb_of_50_000_images": 50_000
            * found["validation"]["outcomes_bytes"]
            / found["validation"]["images"]
            / 1e6,
            "outcomes_images_per_core_second": found["validation"]["images"] / found["validation"]["outcomes_seconds"],
        },
        "billion": {
            "read_core_hours": BILLION / test_read / 3600,
            "rank_core_hours": BILLION / prediction["rank_images_per_s"]["median"] / 3600,
            "list_hours": BILLION / prediction["list_samples_per_s"]["median"] / 3600,
            "list_gb": BILLION * found["list"]["resident"] / found["list"]["samples"] / 1e9,
            "digest_hours": BILLION / prediction["digest_samples_per_s"]["median"] / 3600,
            "look_again_hours": BILLION / prediction[".jsonl"]["rows_per_s_looked_at_again"]["median"] / 3600,
            "jsonl_gb": BILLION * prediction[".jsonl"]["bytes_per_row"] / 1e9,
            "csv_gb": BILLION * prediction[".csv"]["bytes_per_row"] / 1e9,
        },
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--plan", action="store_true", help="only do the arithmetic again, on what was measured")
    parser.add_argument("--index", action="store_true", help="only measure the index again, and do the arithmetic")
    args = parser.parse_args()
    if args.plan or args.index:
        measured = json.loads(args.out.read_text())
        if args.index:
            with tempfile.TemporaryDirectory() as temporary:
                measured["index"] = index_memory(Path(temporary))
        atomic_write_text(args.out, json.dumps(measured | {"plan": plan(measured)}, indent=1, default=float) + "\n")
        return
    torch.set_num_threads(1)
    began = time.perf_counter()
    found: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/scale.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "environment": describe_environment(),
        "note": "cores shared with other work; seconds are on a core of the process, or as said by the clock; medians",
    }

    def add(name: str, value: Any) -> None:
        found[name] = value
        print(f"{name} ({time.perf_counter() - began:.0f} s): {json.dumps(value, default=float)}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        os.environ["GLOCAL_CACHE"] = str(scratch / "cache")
        pictures = [picture(seed) for seed in range(DISTINCT)]
        add("images", {"pixels": SIZE, "quality": QUALITY, "mean_bytes": statistics.mean(map(len, pictures))})
        write_shards(scratch / "listed", [b"x"], "train", 100_000, PER_SHARD)
        add("list", apart(list_memory, scratch / "listed"))  # those of memory first, while this process is small
        add("index", index_memory(scratch))
        add("order", apart(order))
        add("validation", apart(validation, 1_000))
        add("scoring", [apart(scoring, k) for k in (1_000, CLASSES)])
        os.environ["GLOCAL_CACHE"] = str(scratch / "cache")
        folder, shards = scratch / "folder", scratch / "shards"
        for i, content in enumerate(pictures * 4):
            file = folder / ("train" if i < 3 * DISTINCT else "val") / str(i % 10) / f"{i:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        for part in ("train", "val"):
            write_shards(shards, pictures, part, SCANNED, SCANNED // 4)
        add("reading", reading(pictures, folder, shards))
        add("scan", scanning(shards))
        add("refused", broken(pictures))
        add("prediction", prediction(shards))
        add("checkpoint", checkpoints(scratch))
    add("plan", plan(found))
    found["took_seconds"] = round(time.perf_counter() - began)
    atomic_write_text(args.out, json.dumps(found, indent=1, default=float) + "\n")
    print(f"{found['took_seconds']} s; written to {args.out.name}")


if __name__ == "__main__":
    main()
