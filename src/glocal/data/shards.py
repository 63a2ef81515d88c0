"""Shards: images and labels as members of plain tar files, in the layout of WebDataset.

WebDataset: Aizman, Maltby and Breuel 2019, https://arxiv.org/abs/2001.01858; its rules for samples and keys are at
https://github.com/webdataset/webdataset. Shards are untrusted, like images: only headers are parsed here, and images
are read by random access through the image loader.
"""

import hashlib
import itertools
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from glocal.data.folder import check_classes, hold_out
from glocal.data.images import ImageError, ImageLimits, open_image
from glocal.data.scan import CRASHED, Scanned, cache_file, read_cache, scan_all, scan_lock, stamp, write_cache
from glocal.data.sets import DataSource, ImageSet, Skipped, some, warn_of_duplicates
from glocal.data.shard_index import INDEX_VERSION, Index, Sample, read_image, read_index
from glocal.data.shard_names import ShardList, list_shards
from glocal.errors import GlocalError
from glocal.files import printable

CLASS_FILE = "classes.txt"
READERS = 8  # threads that read headers, mostly waiting for disk or network
TRANSIENT = ("MemoryError", "unreadable (")  # in reasons that may not recur, so they are not cached


@dataclass(frozen=True, eq=False)
class Shards:
    """Images inside tar files, read by random access: a `Store`.

    It can be pickled and forked: each process opens files on first use.

    Attributes:
        files: absolute paths of the shards.
        stamps: size in bytes and modification time in ns of each shard when it was checked.
        shard: (N,) int64, index of each image's file.
        offset: (N,) int64, of each image in its file.
        size: (N,) int64, of each image in bytes.
        limits: of the image loader.
    """

    files: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    limits: ImageLimits

    def image(self, path: str, row: int) -> Image.Image:
        """Load an image; raises ImageError, also if the shard has changed since it was checked."""
        shard = int(self.shard[row])
        place = self.files[shard], self.stamps[shard], int(self.offset[row]), int(self.size[row])
        return open_image(read_image(path, *place, limits=self.limits), limits=self.limits, name=path)


@dataclass(frozen=True, slots=True)
class LabelledSample:
    """A usable sample: its path, key, shard index, content and label."""

    path: str
    key: str
    shard: int
    sample: Sample
    label: int


@dataclass(frozen=True)
class CheckedShards:
    """Shards, every image of which has been decoded once.

    Attributes:
        listed: the shards.
        stamps: size and modification time of each, train before val.
        classes: names in the order of labels.
        parts: part -> usable samples, in the order of the shards.
        skipped: unusable samples with reasons, by path.
        unusable: class -> number of unusable samples; "" for unknown classes.
        unused: members that belong to no sample.
        limits: of the image loader.
    """

    listed: ShardList
    stamps: tuple[tuple[int, int], ...]
    classes: tuple[str, ...]
    parts: dict[str, list[LabelledSample]]
    skipped: tuple[Skipped, ...]
    unusable: dict[str, int]
    unused: list[str]
    limits: ImageLimits

    @property
    def usable(self) -> dict[str, dict[str, int]]:
        """Part ("train", "val", or "" if there is only one) -> class -> number of usable images."""
        counts = {}
        for part, found in self.parts.items():
            labels = np.array([one.label for one in found], dtype=np.int64)
            counts[part] = dict(
                zip(self.classes, np.bincount(labels, minlength=len(self.classes)).tolist(), strict=True)
            )
        return counts


def shuffled(groups: np.ndarray, rng: np.random.Generator, window: int = 16) -> np.ndarray:
    """A shuffled order that reads few shards at a time: shards are shuffled, then images within windows of shards.

    Args:
        groups: (N,) the shard of each image.
        rng: of the order.
        window: shards that are mixed; with all of them, the order is uniformly random.

    Returns:
        (N,) int64, a permutation of 0..N-1.

    Raises:
        GlocalError: if window is below 1.
    """
    if window < 1:
        raise GlocalError(f"window: expected at least 1 shard, got {window}")
    shards, group = np.unique(groups, return_inverse=True)
    turn = rng.permutation(len(shards)) // window  # of each shard: the window it is in
    return np.lexsort((rng.random(len(groups)), turn[group])).astype(np.int64)


def check_shards(name: str, limits: ImageLimits, *, progress: bool = True, workers: int | None = None) -> CheckedShards:
    """Decode every image of the shards once; unusable samples are listed, not raised.

    The index of each shard is cached in the user's cache folder by its size, times and inode.

    Args:
        name: as for `list_shards`.
        limits: of the image loader.
        progress: show a progress bar on standard error if it is a terminal.
        workers: decoding processes; one per CPU core by default.

    Raises:
        GlocalError: if the shards are missing, or the class names conflict.
    """
    listed = list_shards(name)
    files = [file for part in listed.parts.values() for file in part]
    shown = {file: os.path.relpath(file, listed.root) for file in files}
    indexes = _scan_shards(shown, limits, progress=progress, workers=workers)
    train_files = next(iter(listed.parts.values()))
    classes = _class_names(listed.root, [sample for file in train_files for sample in indexes[file].samples])
    labels = {cls: label for label, cls in enumerate(classes)}

    skipped: list[Skipped] = []
    unusable = dict.fromkeys(classes, 0)
    parts: dict[str, list[LabelledSample]] = {}
    numbers = itertools.count()
    for part, of_part in listed.parts.items():
        seen: dict[str, str] = {}
        parts[part] = []
        for file in of_part:
            index, shard = indexes[file], next(numbers)
            if index.damage is not None:
                skipped.append(Skipped(shown[file], index.damage))
                unusable[""] = unusable.get("", 0) + 1
            for member, reason in index.refused:
                skipped.append(Skipped(f"{shown[file]}/{member}", reason))
                unusable[""] = unusable.get("", 0) + 1
            for sample in index.samples:
                path = f"{shown[file]}/{sample.name}"
                label, reason = _label(sample, labels)
                reason = sample.reason or reason
                if label is not None and not reason:
                    key = sample.key
                    first = seen.setdefault(key, path)
                    if first is path:
                        parts[part].append(LabelledSample(path, key, shard, sample, label))
                        continue
                    reason = f"the same key as {printable(first)}"
                skipped.append(Skipped(path, reason))
                cls = "" if label is None else classes[label]
                unusable[cls] = unusable.get(cls, 0) + 1
    stamps = tuple(_short(indexes[file]) for file in files)
    unused = [f"{shown[file]}/{member}" for file in files for member in indexes[file].unused]
    skipped.sort(key=lambda bad: bad.path)
    return CheckedShards(listed, stamps, classes, parts, tuple(skipped), unusable, unused, limits)


def split_shards(checked: CheckedShards, *, split_seed: int = 0, val_fraction: float = 0.2) -> DataSource:
    """Split the usable images: train and val as given, or a held-out fraction of each class.

    Raises:
        GlocalError: if a class is empty, or there is only one.
    """
    for part, found in checked.parts.items():
        if not found:
            raise GlocalError(
                f"data: expected images with labels in the shards{f' of {part}' if part else ''}, got no usable "
                f"ones (`glocal check` lists why)"
            )
    if "val" in checked.parts:
        train, val = checked.parts["train"], checked.parts["val"]
        check_classes(_keys(checked.classes, train), "train", needed=1)
        check_classes(_keys(checked.classes, val), "val", needed=1)
        split = "train and val as in the shards"
    else:
        if not 0 < val_fraction < 1:
            raise GlocalError(f"val_fraction: expected a number between 0 and 1, got {val_fraction}")
        whole = checked.parts[""]
        keys = _keys(checked.classes, whole)
        check_classes(keys, "", needed=2)
        held = {key for of_class in hold_out(keys, split_seed, val_fraction)[1].values() for key in of_class}
        train = [one for one in whole if one.key not in held]
        val = [one for one in whole if one.key in held]
        split = f"{val_fraction:.0%} of each class held out for val, split seed {split_seed}"
    both = [*train, *val]
    store = Shards(
        files=tuple(file for files in checked.listed.parts.values() for file in files),
        stamps=checked.stamps,
        shard=np.array([one.shard for one in both], dtype=np.int64),
        offset=np.array([one.sample.offset for one in both], dtype=np.int64),
        size=np.array([one.sample.size for one in both], dtype=np.int64),
        limits=checked.limits,
    )
    rows = np.arange(len(both))
    warnings = [f"ignored, in neither train nor val: {some(checked.listed.unused)}"] * bool(checked.listed.unused)
    warnings += [f"ignored, in no sample: {some(checked.unused)}"] * bool(checked.unused)
    twins = warn_of_duplicates(*(((one.path, one.sample.digest) for one in part) for part in (train, val)))
    return DataSource(
        name=checked.listed.name,
        train=_image_set("train", checked.classes, train, store, rows[: len(train)]),
        val=_image_set("val", checked.classes, val, store, rows[len(train) :]),
        classes=checked.classes,
        skipped=checked.skipped,
        warnings=(*warnings, *twins),
        split=split,
        fingerprint=_fingerprint(checked.classes, {"train": train, "val": val}),
    )


def _image_set(
    name: str, classes: tuple[str, ...], found: list[LabelledSample], store: Shards, rows: np.ndarray
) -> ImageSet:
    labels = np.array([one.label for one in found], dtype=np.int64)
    return ImageSet(name, classes, labels, tuple(one.path for one in found), store, rows, groups=store.shard[rows])


def _keys(classes: tuple[str, ...], found: list[LabelledSample]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {cls: [] for cls in classes}
    for one in found:
        keys[classes[one.label]].append(one.key)
    return keys


def _fingerprint(classes: tuple[str, ...], parts: dict[str, list[LabelledSample]]) -> str:
    """By key, so that it does not depend on the distribution over shards."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for part, found in parts.items():
        for key, label, content in sorted((one.key, one.label, one.sample.digest) for one in found):
            digest.update(f"{part}\0{key}\0{label}\0{content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


# Classes


def _class_names(root: Path, samples: list[Sample]) -> tuple[str, ...]:
    """Class names by label: from classes.txt, or the JSON of train, or the labels themselves.

    Raises:
        GlocalError: if classes.txt is invalid, a label has two names, or a name two labels.
    """
    file = root / CLASS_FILE
    if os.path.lexists(file):
        return _read_class_file(file)
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    numbered, named = set(), set()
    for sample in samples:
        if sample.label is not None:
            numbered.add(sample.label)
        if sample.cls is not None:
            named.add(sample.cls)
        if sample.label is not None and sample.cls is not None:
            name, label = names.setdefault(sample.label, sample.cls), labels.setdefault(sample.cls, sample.label)
            if (name, label) != (sample.cls, sample.label):
                got = (
                    f"{name} and {sample.cls} for {label}"
                    if name != sample.cls
                    else f"{label} and {sample.label} for {name}"
                )
                raise GlocalError(
                    f"data: expected one class name for each label in the .json of the shards, got {printable(got)}; "
                    f"name the classes in {printable(file)}, one per line"
                )
    if not numbered:
        return tuple(sorted(named))
    count = max(numbered) + 1
    if len(names) == count:
        return tuple(names[label] for label in range(count))
    return tuple(map(str, range(count)))


def _read_class_file(file: Path) -> tuple[str, ...]:
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise GlocalError(
                f"data: expected a file with one class name per line, got something else at {printable(file)}"
            )
        names = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise GlocalError(f"data: expected a readable {printable(file)}, got: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise GlocalError(
            f"data: expected UTF-8 in {printable(file)}, got other bytes at {error.start}; save it as UTF-8"
        ) from None
    names = [name.strip() for name in names]  # also the \r of Windows
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise GlocalError(
            f"data: expected a class name in each line of {printable(file)}, got nothing in line {names.index('') + 1}"
        )
    name, count = max(Counter(names).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise GlocalError(f"data: expected each class once in {printable(file)}, got {printable(name)} {count} times")
    return tuple(names)


def _label(sample: Sample, labels: Mapping[str, int]) -> tuple[int | None, str]:
    """The label of a sample, or None and the reason."""
    if sample.label is not None:
        if sample.label < len(labels):
            return sample.label, ""
        return None, f"label out of range ({sample.label}, there are {len(labels)} classes)"
    if sample.cls is not None:
        if sample.cls in labels:
            return labels[sample.cls], ""
        return None, f"unknown class ({printable(sample.cls)})"
    return None, "no label"


# The scan


class _ScanItem(NamedTuple):
    """An image to decode: its location, its name in messages, and its index in its shard."""

    file: str
    stamp: tuple[int, int]
    offset: int
    size: int
    name: str
    number: int


def _scan_shards(
    shown: Mapping[str, str], limits: ImageLimits, *, progress: bool, workers: int | None
) -> dict[str, Index]:
    """Path -> index of the shard, every image decoded; from the cache if the shard is unchanged.

    Args:
        shown: absolute path -> name in messages.
        limits: of the image loader.
        progress: show a progress bar.
        workers: decoding processes.
    """
    key = ("shards", INDEX_VERSION, asdict(limits))
    real = {file: os.path.realpath(file) for file in shown}
    caches = {file: cache_file(*key, real[file]) for file in shown}
    with scan_lock(cache_file(*key, sorted(real.values())), shown=progress):
        indexes = {file: index for file in shown if (index := _read_index(caches[file], stamp(file)))}
        new = [file for file in shown if file not in indexes]
        with ThreadPoolExecutor(READERS) as pool:
            indexes |= zip(new, pool.map(read_index, new), strict=True)
        tasks = [
            _ScanItem(file, _short(indexes[file]), sample.offset, sample.size, f"{shown[file]}/{sample.name}", number)
            for file in shown
            for number, sample in enumerate(indexes[file].samples)
            if sample.reason is None and not sample.digest
        ]
        scan = partial(scan_member, limits=limits)
        scanned = scan_all(scan, tasks, progress=progress, workers=workers)
        for file, of_shard in itertools.groupby(scanned, key=lambda pair: pair[0].file):
            _store_results(indexes[file], of_shard, caches[file])  # shard by shard, so that Ctrl-C loses only one
        with_tasks = {task.file for task in tasks}
        for file in new:
            if file not in with_tasks:
                _write_index(caches[file], indexes[file])
    return indexes


def scan_member(task: _ScanItem, *, limits: ImageLimits) -> Scanned:
    """Decode one image of a shard."""
    try:
        content = read_image(task.name, task.file, task.stamp, task.offset, task.size, limits=limits)
        open_image(content, limits=limits, name=task.name)
    except ImageError as error:
        return Scanned(error.reason)
    return Scanned(None, hashlib.sha256(content).hexdigest())


def _store_results(index: Index, scanned: Iterable[tuple[_ScanItem, Scanned]], cache: Path) -> None:
    again = {}
    for task, found in scanned:
        sample = index.samples[task.number]
        index.samples[task.number] = replace(sample, reason=found.reason, digest=found.digest)
        if found.reason and (found.reason == CRASHED or any(word in found.reason for word in TRANSIENT)):
            again[task.number] = sample
    _write_index(cache, replace(index, samples=[again.get(i, sample) for i, sample in enumerate(index.samples)]))


def _short(index: Index) -> tuple[int, int]:
    return (index.stamp[0], index.stamp[1]) if index.stamp else (0, 0)


def _write_index(cache: Path, index: Index) -> None:
    if index.stamp is not None:
        rows = [astuple(sample) for sample in index.samples]
        write_cache(cache, [index.stamp, rows, index.refused, index.unused, index.damage])


def _read_index(cache: Path, now: list[int] | None) -> Index | None:
    match read_cache(cache):
        case [list(before), list(rows), list(refused), list(unused), str() | None as damage] if before == now:
            try:
                samples = [Sample(*row) for row in rows]
                return Index(before, samples, [(name, reason) for name, reason in refused], unused, damage)
            except (TypeError, ValueError):  # not written by us
                return None
    return None
