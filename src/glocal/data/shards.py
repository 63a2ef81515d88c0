"""Shards: images and labels as members of plain tar files, in the layout of WebDataset.

WebDataset: Aizman, Maltby and Breuel 2019, https://arxiv.org/abs/2001.01858; its rule of samples and keys is at
https://github.com/webdataset/webdataset. Shards are untrusted, like images: only headers are read here, and the bytes
of a member are read where they lie and go through the gate.
"""

import errno
import glob
import hashlib
import itertools
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from glocal.data.folder import SYSTEM_NAMES, check_classes, hold_out
from glocal.data.images import ImageError, ImageLimits, open_image
from glocal.data.scan import CRASHED, Scanned, alone, cache_file, read_cache, scan_all, stamp, write_cache
from glocal.data.sets import DataSource, ImageSet, Skipped, some, warn_of_twins
from glocal.data.tar import DamagedError, Member, read_at, read_members
from glocal.errors import GlocalError
from glocal.files import printable

INDEX_VERSION = 1  # to be raised when the same shard gives other samples or reasons: they are cached under it
SHARD = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
IMAGES = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"))  # what the gate takes, by extension
LABELS = ("cls", "json")
MOST_LABELS = 1_000_000  # a class more than this is a slip or an attack: each becomes a name in memory
MOST_SHARDS = 1_000_000  # of a brace range
CLASS_FILE = "classes.txt"

MOST_LABEL = {"cls": 64, "json": 2**20}  # bytes
READERS = 8  # threads that read headers: they wait for the disk or the network, mostly
FLEETING = ("MemoryError", "cannot be read (")  # in reasons that may be gone the next time
OPEN_SHARDS = 64  # descriptors a process keeps; the usual limit of a process is 1,024


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
        return open_image(_read_image(path, *place, limits=self.limits), limits=self.limits, name=path)


@dataclass(frozen=True)
class ShardList:
    """Which files are the shards of a data set.

    Attributes:
        name: what the user called it.
        root: folder that all are in, or in folders of.
        parts: "train" and "val", or "" where a part is to be held out -> absolute paths.
        unused: other shards of the folder.
    """

    name: str
    root: Path
    parts: dict[str, list[str]]
    unused: list[str]


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample as its shard has it.

    Attributes:
        name: of the image in the shard, or of the first member where there is no image.
        offset: where the bytes of the image begin.
        size: how many they are.
        label: from .cls, or "label" or "cls" in .json.
        cls: class name: "class" in .json.
        reason: why it cannot be used, or None.
        digest: SHA-256 of the image's bytes; "" where it has not been decoded.
    """

    name: str
    offset: int
    size: int
    label: int | None
    cls: str | None
    reason: str | None
    digest: str = ""

    @property
    def key(self) -> str:
        """What the members of the sample have in common."""
        return split_name(self.name)[0]


@dataclass
class Index:
    """What a shard holds.

    Attributes:
        stamp: size, times and inode of the shard; None if it could not be read.
        samples: in their order.
        refused: (name, reason) of members that are no files and so cannot be part of a sample.
        unused: members that belong to no sample.
        damage: why the rest of the shard cannot be read, or None.
    """

    stamp: list[int] | None
    samples: list[Sample] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
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
    parts: dict[str, list[Found]]
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


def is_shards(name: str) -> bool:
    """Whether DATA means shards: a .tar, with or without braces and stars, or a folder of them without class folders.

    Compressed ones count, for `list_shards` to say why they cannot be used.
    """
    if os.path.isdir(name):
        return bool(_tars(name))
    return name.casefold().endswith((SHARD, *COMPRESSED))


def expand_braces(pattern: str) -> list[str]:
    """Every name that a pattern stands for: ``{000..099}`` counts up at its width, ``{a,b}`` lists; others stay.

    Raises:
        GlocalError: for a range that falls, or more than a million names.
    """
    names: list[str] = []
    expanded = [pattern]
    while expanded != names:
        names, found = expanded, dict[str, None]()
        for name in names:
            inside = _expand_one(name) or [name]
            if len(names) * len(inside) > MOST_SHARDS:
                raise GlocalError(f"data: expected at most {MOST_SHARDS:,} shards, got more in {printable(pattern)}")
            found.update(dict.fromkeys(inside))
        expanded = list(found)
    return names


def _expand_one(name: str) -> list[str]:
    """The names that the first innermost braces stand for; none where there are no braces."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", name)
    if braces is None:
        return []
    first, last, listed = braces.groups()
    if listed is not None:
        inside = listed.split(",")
    else:
        if len(first) > 18 or len(last) > 18 or not 0 <= int(last) - int(first) < MOST_SHARDS:
            raise GlocalError(
                f"data: expected a range that rises, of at most {MOST_SHARDS:,} shards, got {printable(braces[0])}"
            )
        padded = any(end.startswith("0") and len(end) > 1 for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        inside = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    return [name[: braces.start()] + one + name[braces.end() :] for one in inside]


def list_shards(name: str) -> ShardList:
    """Find the shards of a data set, and those of val beside those of train.

    Args:
        name: a folder of shards, or a path that ends in .tar, with ``{000..099}``, ``{a,b}`` or ``*`` in it.

    Raises:
        GlocalError: if shards are missing, compressed, not on a file system, or of more than one part.
    """
    if "://" in name or name.startswith("pipe:"):
        raise GlocalError(
            f"data: expected shards on a local or mounted file system, got {printable(name)}; "
            f"mount the storage or copy the shards: images are read at their places, not as a stream"
        )
    if os.path.isdir(name):
        return _list_folder(name)
    _refuse_compressed(name)
    names = [name] if os.path.lexists(name) else expand_braces(name)
    files: dict[str, None] = {}
    missing = []
    for one in names:
        matching = sorted(_matching(one)) if "*" in one and not os.path.lexists(one) else [one]
        files.update(dict.fromkeys(os.path.abspath(file) for file in matching))
        missing += [file for file in matching if not os.path.lexists(file)]
        if not matching:
            raise GlocalError(f"data: expected shards, got no file that {printable(one)} matches")
    if missing:
        raise GlocalError(
            f"data: expected {len(files)} shard{'s' * (len(files) > 1)}, got {len(files) - len(missing)}; "
            f"missing: {some(missing)}"
        )
    val = _val_beside(files)
    if both := sorted(set(files) & set(val)):
        raise GlocalError(
            f"data: expected shards of one part, got those of train and val in {printable(name)}: "
            f"{some([os.path.basename(file) for file in both])}; "
            f"give those of train alone (the ones of val beside them are found), or the folder"
        )
    return _listed(name, list(files), val, [])


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
    parts: dict[str, list[Found]] = {}
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
                        parts[part].append(Found(path, key, shard, sample, label))
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


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member: the base name is cut at its first dot; the extension is the rest, in lower case.

    A name that is in no sample, as it has no dot or begins with one, has the key "".
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and extension else ("", "")


def read_index(file: str) -> Index:
    """Read the headers and labels of a shard once; never raises for what a shard holds."""
    index = Index(stamp(file))
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # opening a pipe would wait for a writer
            return replace(index, stamp=None, damage="expected a regular file, got something else")
        descriptor = os.open(file, os.O_RDONLY)
        try:
            _fill(index, descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return Index(None, damage=f"cannot be read ({error.strerror})")
    return index


def _image_set(name: str, classes: tuple[str, ...], found: list[Found], store: Shards, rows: np.ndarray) -> ImageSet:
    labels = np.array([one.label for one in found], dtype=np.int64)
    return ImageSet(name, classes, labels, tuple(one.path for one in found), store, rows, groups=store.shard[rows])


def _keys(classes: tuple[str, ...], found: list[Found]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {cls: [] for cls in classes}
    for one in found:
        keys[classes[one.label]].append(one.key)
    return keys


def _fingerprint(classes: tuple[str, ...], parts: dict[str, list[Found]]) -> str:
    """By key, so that the same samples in other shards have the same one."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for part, found in parts.items():
        for key, label, content in sorted((one.key, one.label, one.sample.digest) for one in found):
            digest.update(f"{part}\0{key}\0{label}\0{content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


# Which files


def _tars(folder: str) -> list[str]:
    """Names of the shards in a folder, sorted; none where it holds folders, which are classes then."""
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not entry.name.startswith(".") and entry.name not in SYSTEM_NAMES]
            if any(entry.is_dir(follow_symlinks=False) for entry in entries):
                return []
    except OSError:  # the reader of folders says why
        return []
    return sorted(entry.name for entry in entries if entry.name.casefold().endswith((SHARD, *COMPRESSED)))


def _list_folder(folder: str) -> ShardList:
    names = _tars(folder)
    for name in names:
        _refuse_compressed(os.path.join(folder, name))
    files = [os.path.abspath(os.path.join(folder, name)) for name in names]
    train = [file for file in files if "train" in os.path.basename(file)]
    if not train:
        if others := [name for name in names if re.match(r"(val|valid|validation|test)(?![a-z])", name)]:
            raise GlocalError(
                f"data: expected {printable(os.path.join(folder, 'train-*.tar'))} beside those of other parts, "
                f"got {some(others)}; rename what to learn from to train-*.tar"
            )
        return _listed(folder, files, [], [])
    val = [file for file in _val_beside(train) if file not in train]
    used = {*train, *val}
    return _listed(folder, train, val, [os.path.basename(file) for file in files if file not in used])


def _listed(name: str, train: list[str], val: list[str], unused: list[str]) -> ShardList:
    root = Path(os.path.commonpath([os.path.dirname(file) for file in (*train, *val)]))
    return ShardList(name, root, {"train": train, "val": val} if val else {"": train}, unused)


def _refuse_compressed(name: str) -> None:
    if name.casefold().endswith(COMPRESSED):
        raise GlocalError(
            f"data: expected plain .tar shards, got {printable(name)}: an image in a compressed tar cannot be read "
            f"without all that is before it, and its bytes are compressed already; unpack it to a .tar (gunzip, unxz)"
        )


def _matching(pattern: str) -> list[str]:
    """Files that a path with stars matches; nothing but the star is special."""
    return glob.glob("*".join(glob.escape(piece) for piece in pattern.split("*")))


def _val_beside(train: Iterable[str]) -> list[str]:
    """The shards of val beside those of train: of the same name with val for train, whatever their numbers.

    ``validation`` is how ImageNet's shards of timm have it.
    """
    for part in ("val", "validation"):
        patterns: dict[str, None] = {}
        for file in train:
            folder, name = os.path.split(file)
            before, word, after = name.rpartition("train")
            if word:
                counted = re.sub(r"\d+", "*", after)
                patterns[os.path.join(folder, f"{before}{part}{counted}")] = None
        if found := sorted({file for pattern in patterns for file in _matching(pattern)}):
            return found
    return []


# Labels and classes


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


def _parse_label(extension: str, content: bytes) -> tuple[int | None, str | None, str]:
    """Label, class name and why there is neither, of the bytes of a .cls or .json."""
    if extension == "cls":
        if digits := re.fullmatch(rb"\s*(\d{1,7})\s*", content):
            return _in_range(int(digits[1]))
        return None, None, f"no label (.cls: expected a decimal number, got {printable(repr(content[:20])[1:])})"
    try:
        meta = json.loads(content)
    except (ValueError, RecursionError):  # UnicodeDecodeError is one
        return None, None, "no label (.json: expected JSON, got something else)"
    if not isinstance(meta, dict):
        return None, None, f"no label (.json: expected an object, got {type(meta).__name__})"
    cls = meta.get("class")
    named = isinstance(cls, str) and cls.strip() and _is_text(cls)
    for label in (meta.get("label"), meta.get("cls")):
        if type(label) is int:  # not a bool
            number, _, reason = _in_range(label)
            return number, cls if named and not reason else None, reason
    if named:
        return None, cls, ""
    return None, None, 'no label (.json: expected "label" or "cls" with a number, or "class" with a name)'


def _in_range(label: int) -> tuple[int | None, None, str]:
    if 0 <= label < MOST_LABELS:
        return label, None, ""
    return None, None, f"label out of range ({str(label)[:20]}, expected 0 to {MOST_LABELS - 1:,})"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a pair, which JSON can hold
        return False
    return True


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
            _take_over(indexes[file], of_shard, caches[file])  # shard by shard: Ctrl-C loses one, not all
        with_tasks = {task.file for task in tasks}
        for file in new:
            if file not in with_tasks:
                _remember(caches[file], indexes[file])
    return indexes


def scan_member(task: _Task, *, limits: ImageLimits) -> Scanned:
    """Decode one image of a shard."""
    try:
        content = _read_image(task.name, task.file, task.stamp, task.offset, task.size, limits=limits)
        open_image(content, limits=limits, name=task.name)
    except ImageError as error:
        return Scanned(error.reason)
    return Scanned(None, hashlib.sha256(content).hexdigest())


def _take_over(index: Index, scanned: Iterable[tuple[_Task, Scanned]], cache: Path) -> None:
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


# Bytes


class _Open:
    """A shard open for reading: closed when no one has it any more, so never under a thread that reads from it."""

    descriptor = -1

    def __init__(self, file: str) -> None:
        self.descriptor = os.open(file, os.O_RDONLY)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.descriptor >= 0:
            close(self.descriptor)


@lru_cache(maxsize=OPEN_SHARDS)
def _opened(file: str, size: int, changed: int) -> _Open:
    """The shard, of this size and time of change in ns; forks may share it, as reading at a place moves nothing.

    Raises:
        OSError: if it cannot be opened, with ESTALE if it is another one now.
    """
    shard = _Open(file)
    status = os.fstat(shard.descriptor)
    if (status.st_size, status.st_mtime_ns) != (size, changed):
        raise OSError(errno.ESTALE, "the shard has changed since it was checked")
    return shard


def _read_image(name: str, file: str, stamp: tuple[int, int], offset: int, size: int, *, limits: ImageLimits) -> bytes:
    """The bytes of an image.

    Raises:
        ImageError: if they are too many, or no longer there.
    """
    if size > limits.max_bytes:  # before they are in memory; the gate says the same of a file
        raise ImageError(name, f"has {size / 2**20:.1f} MiB, the limit is {limits.max_bytes / 2**20:.1f} MiB")
    try:
        shard = _opened(file, *stamp)  # held by this name until its bytes are read
        content = read_at(shard.descriptor, offset, size)
    except OSError as error:
        raise ImageError(name, f"cannot be read ({error.strerror})") from None
    if len(content) < size:
        raise ImageError(name, "truncated (the shard ends inside it)")
    return content


def _fill(index: Index, descriptor: int) -> None:
    """Read the members of a shard into an index."""
    members: list[Member] = []
    try:
        for member in read_members(descriptor, os.fstat(descriptor).st_size):
            members.append(member)
    except DamagedError as error:
        index.damage = str(error)
    index.refused += [(member.name, member.reason) for member in members if member.reason is not None]
    for key, group in itertools.groupby(members, key=lambda member: split_name(member.name)[0]):
        if not key:
            index.unused += [member.name for member in group if member.reason is None]
        elif sample := _sample(descriptor, list(group)):
            index.samples.append(sample)


def _sample(descriptor: int, members: list[Member]) -> Sample | None:
    """The sample that members of one key make; None where the index has its image among those that are no files."""
    files = [member for member in members if member.reason is None]
    images = [member for member in files if _kind(member) in IMAGES]
    if not images:
        if not files or any(_kind(member) in IMAGES for member in members):
            return None
        return Sample(files[0].name, 0, 0, None, None, f"no image (only {_names(files)})")
    label, cls, reason = _read_label(descriptor, [member for member in files if _kind(member) in LABELS])
    if len(images) > 1:
        reason = f"several images of one key ({_names(images)}; a key ends at the first dot of the name)"
    return Sample(images[0].name, images[0].offset, images[0].size, label, cls, reason or None)


def _read_label(descriptor: int, members: list[Member]) -> tuple[int | None, str | None, str]:
    """Label, class name and why there is neither; a number in .cls is above one in .json."""
    found = {}
    for kind in LABELS:
        of_kind = [member for member in members if _kind(member) == kind]
        if len(of_kind) > 1:
            return None, None, f"several labels ({_names(of_kind)})"
        if of_kind:
            size = of_kind[0].size
            if size > MOST_LABEL[kind]:
                return None, None, f"no label (.{kind}: expected at most {MOST_LABEL[kind]:,} bytes, got {size:,})"
            found[kind] = _parse_label(kind, read_at(descriptor, of_kind[0].offset, size))
    if "cls" not in found:
        return found.get("json", (None, None, "no label (expected .cls or .json of the same key right beside it)"))
    label, _, reason = found["cls"]
    return label, found["json"][1] if "json" in found else None, reason


def _kind(member: Member) -> str:
    """Last part of the extension: jpg for key.jpg and key.left.jpg."""
    return split_name(member.name)[1].rpartition(".")[2]


def _names(members: list[Member]) -> str:
    more = f" and {len(members) - 3} more" if len(members) > 3 else ""
    return ", ".join(printable(os.path.basename(member.name)) for member in members[:3]) + more
