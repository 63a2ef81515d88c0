"""Shards: images and labels as members of plain tar files, in the layout of WebDataset.

WebDataset: Aizman, Maltby and Breuel 2019, https://arxiv.org/abs/2001.01858; its rule of samples and keys is at
https://github.com/webdataset/webdataset. Shards are untrusted, like images: only headers are read here, and the bytes
of a member are read where they lie and go through the gate.
"""

import hashlib
import itertools
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from glocal.data.folder import check_classes, hold_out
from glocal.data.images import ImageError, ImageLimits, open_image
from glocal.data.scan import CRASHED, Scanned, alone, cache_file, read_cache, scan_all, stamp, write_cache
from glocal.data.sets import DataSource, ImageSet, Skipped, some, warn_of_twins
from glocal.data.shard_index import INDEX_VERSION, Index, Sample, read_image, read_index
from glocal.data.shard_names import ShardList, list_shards
from glocal.errors import GlocalError
from glocal.files import printable

CLASS_FILE = "classes.txt"
READERS = 8  # threads that read headers: they wait for the disk or the network, mostly
FLEETING = ("MemoryError", "cannot be read (")  # in reasons that may be gone the next time


@dataclass(frozen=True, eq=False)
class Shards:
    """Images inside tar files, each read at its place: a `Store`.

    It can be pickled and forked: files are opened when they are first read, by each process for itself.

    Attributes:
        files: absolute paths of the shards.
        stamps: size in bytes and time of change in ns of each shard when it was checked.
        shard: (N,) int64, the file each image is in.
        offset: (N,) int64, where its bytes begin.
        size: (N,) int64, how many they are.
        limits: of the gate.
    """

    files: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    limits: ImageLimits

    def image(self, path: str, row: int) -> Image.Image:
        """Through the gate; raises ImageError, also where the shard is another one than that which was checked."""
        shard = int(self.shard[row])
        place = self.files[shard], self.stamps[shard], int(self.offset[row]), int(self.size[row])
        return open_image(read_image(path, *place, limits=self.limits), limits=self.limits, name=path)


@dataclass(frozen=True, slots=True)
class ShardImage:
    """A sample that can be used: its path, key, number of its shard, what is in it and its label."""

    path: str
    key: str
    shard: int
    sample: Sample
    label: int


@dataclass(frozen=True)
class CheckedShards:
    """Shards whose every image has been decoded once.

    Attributes:
        listed: the shards.
        stamps: size and time of change of each, train before val.
        classes: names in the order of labels.
        parts: part -> samples that can be used, in the order of the shards.
        skipped: what cannot, with reasons, by path.
        unusable: class -> samples that cannot be used; "" for those whose class is not known.
        unused: members that belong to no sample.
        limits: of the gate.
    """

    listed: ShardList
    stamps: tuple[tuple[int, int], ...]
    classes: tuple[str, ...]
    parts: dict[str, list[ShardImage]]
    skipped: tuple[Skipped, ...]
    unusable: dict[str, int]
    unused: list[str]
    limits: ImageLimits

    @property
    def usable(self) -> dict[str, dict[str, int]]:
        """Part ("train", "val", or "" where there is only one) -> class -> images that can be used."""
        counts = {}
        for part, found in self.parts.items():
            labels = np.array([one.label for one in found], dtype=np.int64)
            counts[part] = dict(
                zip(self.classes, np.bincount(labels, minlength=len(self.classes)).tolist(), strict=True)
            )
        return counts


def shuffled(groups: np.ndarray, rng: np.random.Generator, window: int = 16) -> np.ndarray:
    """An order in which few shards are read at a time: shards are shuffled, then images inside windows of them.

    Args:
        groups: (N,) the shard of each image.
        rng: where the order comes from.
        window: shards that are mixed; as many as there are, and every order is as likely as another.

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
    """Decode every image of the shards once and say what was found; a bad one is no error here.

    What each shard holds is remembered in the user's cache by its size, times and inode.

    Args:
        name: as for `list_shards`.
        limits: of the gate.
        progress: show a progress bar on standard error, where it is a terminal.
        workers: processes that decode; as many as there are processors by default.

    Raises:
        GlocalError: if there are no such shards, or the names of classes do not fit.
    """
    listed = list_shards(name)
    files = [file for part in listed.parts.values() for file in part]
    shown = {file: os.path.relpath(file, listed.root) for file in files}
    indexes = _scan_shards(shown, limits, progress=progress, workers=workers)
    to_learn_from = next(iter(listed.parts.values()))
    classes = _class_names(listed.root, [sample for file in to_learn_from for sample in indexes[file].samples])
    labels = {cls: label for label, cls in enumerate(classes)}

    skipped: list[Skipped] = []
    unusable = dict.fromkeys(classes, 0)
    parts: dict[str, list[ShardImage]] = {}
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
                        parts[part].append(ShardImage(path, key, shard, sample, label))
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
    """Two parts of the images that can be used: train and val as the shards have them, or a share of each class.

    Raises:
        GlocalError: if a class is empty or alone.
    """
    for part, found in checked.parts.items():
        if not found:
            raise GlocalError(
                f"data: expected images with labels in the shards{f' of {part}' if part else ''}, got none that can be "
                f"used (`glocal check` lists why)"
            )
    if "val" in checked.parts:
        train, val = checked.parts["train"], checked.parts["val"]
        check_classes(_keys(checked.classes, train), "train", needed=1)
        check_classes(_keys(checked.classes, val), "val", needed=1)
        split = "train and val as the shards have them"
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
    warnings = [f"not used, as they belong to no part: {some(checked.listed.unused)}"] * bool(checked.listed.unused)
    warnings += [f"not used, as they belong to no sample: {some(checked.unused)}"] * bool(checked.unused)
    twins = warn_of_twins(*(((one.path, one.sample.digest) for one in part) for part in (train, val)))
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
    name: str, classes: tuple[str, ...], found: list[ShardImage], store: Shards, rows: np.ndarray
) -> ImageSet:
    labels = np.array([one.label for one in found], dtype=np.int64)
    return ImageSet(name, classes, labels, tuple(one.path for one in found), store, rows, groups=store.shard[rows])


def _keys(classes: tuple[str, ...], found: list[ShardImage]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {cls: [] for cls in classes}
    for one in found:
        keys[classes[one.label]].append(one.key)
    return keys


def _fingerprint(classes: tuple[str, ...], parts: dict[str, list[ShardImage]]) -> str:
    """By key, so that the same samples in other shards have the same one."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for part, found in parts.items():
        for key, label, content in sorted((one.key, one.label, one.sample.digest) for one in found):
            digest.update(f"{part}\0{key}\0{label}\0{content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


# Classes


def _class_names(root: Path, samples: list[Sample]) -> tuple[str, ...]:
    """Names by label: from classes.txt, or from the JSON of train, or the labels themselves.

    Raises:
        GlocalError: if classes.txt cannot be used, or a label has two names or a name two labels.
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
                    f"name the classes in {printable(file)}, a name a line"
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
                f"data: expected a file with a class name a line, got something else at {printable(file)}"
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
    """The label of a sample, or None and why it has none of these classes."""
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


class _Task(NamedTuple):
    """An image to be decoded: where it is, what messages call it, and its number in the index of its shard."""

    file: str
    stamp: tuple[int, int]
    offset: int
    size: int
    name: str
    number: int


def _scan_shards(
    shown: Mapping[str, str], limits: ImageLimits, *, progress: bool, workers: int | None
) -> dict[str, Index]:
    """Path -> what the shard holds, every image decoded; from the cache where the shard is that of before.

    Args:
        shown: absolute path -> what messages call it.
        limits: of the gate.
        progress: show a progress bar.
        workers: processes that decode.
    """
    key = ("shards", INDEX_VERSION, asdict(limits))
    real = {file: os.path.realpath(file) for file in shown}
    caches = {file: cache_file(*key, real[file]) for file in shown}
    with alone(cache_file(*key, sorted(real.values())), shown=progress):
        indexes = {file: index for file in shown if (index := _recall(caches[file], stamp(file)))}
        new = [file for file in shown if file not in indexes]
        with ThreadPoolExecutor(READERS) as pool:
            indexes |= zip(new, pool.map(read_index, new), strict=True)
        tasks = [
            _Task(file, _short(indexes[file]), sample.offset, sample.size, f"{shown[file]}/{sample.name}", number)
            for file in shown
            for number, sample in enumerate(indexes[file].samples)
            if sample.reason is None and not sample.digest
        ]
        look = partial(scan_member, limits=limits)
        scanned = scan_all(look, tasks, progress=progress, workers=workers)
        for file, of_shard in itertools.groupby(scanned, key=lambda pair: pair[0].file):
            _merge_scanned(indexes[file], of_shard, caches[file])  # shard by shard: Ctrl-C loses one, not all
        with_tasks = {task.file for task in tasks}
        for file in new:
            if file not in with_tasks:
                _remember(caches[file], indexes[file])
    return indexes


def scan_member(task: _Task, *, limits: ImageLimits) -> Scanned:
    """Decode one image of a shard."""
    try:
        content = read_image(task.name, task.file, task.stamp, task.offset, task.size, limits=limits)
        open_image(content, limits=limits, name=task.name)
    except ImageError as error:
        return Scanned(error.reason)
    return Scanned(None, hashlib.sha256(content).hexdigest())


def _merge_scanned(index: Index, scanned: Iterable[tuple[_Task, Scanned]], cache: Path) -> None:
    again = {}
    for task, found in scanned:
        sample = index.samples[task.number]
        index.samples[task.number] = replace(sample, reason=found.reason, digest=found.digest)
        if found.reason and (found.reason == CRASHED or any(word in found.reason for word in FLEETING)):
            again[task.number] = sample
    _remember(cache, replace(index, samples=[again.get(i, sample) for i, sample in enumerate(index.samples)]))


def _short(index: Index) -> tuple[int, int]:
    return (index.stamp[0], index.stamp[1]) if index.stamp else (0, 0)


def _remember(cache: Path, index: Index) -> None:
    if index.stamp is not None:
        rows = [[getattr(sample, name) for name in Sample.__slots__] for sample in index.samples]
        write_cache(cache, [index.stamp, rows, index.refused, index.unused, index.damage])


def _recall(cache: Path, now: list[int] | None) -> Index | None:
    match read_cache(cache):
        case [list(before), list(rows), list(refused), list(unused), str() | None as damage] if before == now:
            try:
                samples = [Sample(*row) for row in rows]
                return Index(before, samples, [(name, reason) for name, reason in refused], unused, damage)
            except (TypeError, ValueError):  # not written by us
                return None
    return None
