"""Which images a job is about: files, folders and shards that a person names, in one fixed order."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from glocal.data import ImageError, ImageLimits, ImageSet
from glocal.data.sets import Folder, Store
from glocal.data.shard_index import read_index
from glocal.data.shard_names import SHARD, is_shards, list_shards
from glocal.data.shards import Shards
from glocal.data.transforms import resize_crop
from glocal.data.walk import walk_folder
from glocal.data.workers import WORKER_ERRORS, default_workers, read_in_order, worker_died
from glocal.errors import GlocalError
from glocal.export import height_and_width
from glocal.files import printable


@dataclass(frozen=True, eq=False)
class Inputs:
    """Images in their order.

    Attributes:
        paths: what each image is called.
        stores: where pixels are.
        places: (N, 2) int64, of each image the index of its store and its row there.
    """

    paths: tuple[str, ...]
    stores: tuple[Store, ...]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """The image, RGB.

        Raises:
            GlocalError: if it cannot be decoded.
        """
        store, row = self.places[index].tolist()
        return self.stores[store].image(self.paths[index], row)

    def digest(self) -> str:
        """SHA-256 over the list: names and paths of the images, not their content."""
        digest = hashlib.sha256(b"glocal inputs\n")
        for path, place in zip(self.paths, self.places.tolist(), strict=True):
            digest.update(json.dumps([path, *place]).encode() + b"\n")
        return digest.hexdigest()

    @classmethod
    def of(cls, images: ImageSet) -> "Inputs":
        """The images of a labelled set."""
        return cls(images.paths, (images.store,), np.stack([np.zeros_like(images.rows), images.rows], axis=1))


@dataclass(frozen=True)
class Refused:
    """Images that are known not to be readable: a `Store` of their reasons."""

    reasons: tuple[str, ...]

    def image(self, path: str, row: int) -> Image.Image:
        """Raises ImageError."""
        raise ImageError(path, self.reasons[row])


def list_inputs(names: Sequence[str], *, limits: ImageLimits | None = None) -> Inputs:
    """The images that are named: files as they are, folders with every regular file in them, shards with every image.

    In folders, at any depth, hidden names, links and what Windows and macOS leave behind are passed over; files come in
    the order of their names, folders after the files beside them. A .tar is a shard, wherever it lies; a pattern of
    shards may have ``{000..099}``, ``{a,b}`` or ``*``. What is named twice comes once.

    Raises:
        GlocalError: if an input does not exist, a folder is unreadable, or there is no image.
    """
    limits = limits or ImageLimits()
    listed: dict[str, _Place] = {}
    # a link that a person names is meant; those in folders are not among the files
    files = Folder(Path(), limits, follow_links=True)
    for name in names:
        if not os.path.lexists(name) and is_shards(name):
            for shard in _expanded(name):
                listed |= _images_in(shard, limits)
        elif os.path.lexists(name):
            for path in _files(name) if os.path.isdir(name) else [name]:
                is_shard = os.path.isfile(path) and path.casefold().endswith(SHARD)
                listed |= _images_in(path, limits) if is_shard else {path: _Place(files, 0)}
        else:
            raise GlocalError(f"inputs: expected images, shards or folders, got {printable(name)}, which is not there")
    if not listed:
        shown = ", ".join(printable(name) for name in names) or "no name"
        raise GlocalError(f"inputs: expected images, shards or folders of them, got no file in {shown}")
    stores = tuple({id(place.store): place.store for place in listed.values()}.values())
    number = {id(store): i for i, store in enumerate(stores)}
    places = [(number[id(place.store)], place.row) for place in listed.values()]
    return Inputs(tuple(listed), stores, np.array(places, dtype=np.int64))


class _Place(NamedTuple):
    store: Store
    row: int


def _expanded(pattern: str) -> list[str]:
    """The shards of a pattern, by names as relative as it is."""
    files = next(iter(list_shards(pattern).parts.values()))  # the part that is named, without val beside it
    return files if os.path.isabs(pattern) else [os.path.relpath(file) for file in files]


def _images_in(shard: str, limits: ImageLimits) -> dict[str, _Place]:
    """The images of a shard in their order, labels or not; an unreadable one comes with a reason."""
    index = read_index(shard)
    images, bad = [], dict(index.refused)
    for sample in index.samples:
        if not sample.size or (sample.reason or "").startswith("several images"):
            bad[sample.name] = sample.reason or "empty file"
        else:
            images.append(sample)
    reasons = {f"{shard}/{name}": reason for name, reason in bad.items()}
    if index.damage is not None:
        reasons[shard] = index.damage
    size, changed = (index.stamp or [0, 0])[:2]
    store = Shards(
        files=(os.path.abspath(shard),),
        stamps=((size, changed),),
        shard=np.zeros(len(images), np.int64),
        offset=np.array([image.offset for image in images], np.int64),
        size=np.array([image.size for image in images], np.int64),
        limits=limits,
    )
    refused = Refused(tuple(reasons.values()))
    found = {f"{shard}/{image.name}": _Place(store, row) for row, image in enumerate(images)}
    return found | {path: _Place(refused, row) for row, path in enumerate(reasons) if path not in found}


def _files(folder: str) -> Iterator[str]:
    try:
        for listing in walk_folder(folder):
            yield from (entry.path for entry in listing.files if entry.is_file(follow_symlinks=False))
    except OSError as error:
        at = printable(error.filename or folder)
        raise GlocalError(f"inputs: cannot read the folder {at} ({error.strerror})") from None


class Read(NamedTuple):
    """A batch of images as they were read.

    Attributes:
        start: index of the first.
        pixels: (B, 3, H, W) uint8; black where an image is unreadable, so that the others keep their places.
        errors: of each image, why it is unreadable, or None.
    """

    start: int
    pixels: torch.Tensor
    errors: list[str | None]


class Reader(Dataset[Read]):
    """Batches of inputs, cut at multiples of the batch size whatever is asked for: the same images meet in each run.

    Args:
        inputs: what to read.
        size: side in pixels after `glocal.data.transforms.resize_crop`, or height and width; None for images of their
            own sizes, a batch of one each.
        crop_pct: of `resize_crop`.
        batch_size: images of a batch; the last one may have fewer.
        interpolation: of `resize_crop`.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        size: int | tuple[int, int] | None,
        crop_pct: float = 1.0,
        batch_size: int = 1,
        interpolation: str = "bicubic",
    ) -> None:
        self.inputs, self.crop_pct, self.batch_size, self.interpolation = inputs, crop_pct, batch_size, interpolation
        self.size = None if size is None else height_and_width(size)

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def __getitem__(self, batch: int) -> Read:
        return self._batch(batch, [self.read(index) for index in self.indices(batch)])

    def indices(self, batch: int) -> range:
        """Which images are in a batch."""
        start = batch * self.batch_size
        return range(start, min(start + self.batch_size, len(self.inputs)))

    def read(self, index: int) -> np.ndarray | str:
        """(H, W, 3) uint8, or why the image is unreadable."""
        try:
            if self.size is None:
                return np.array(self.inputs.image(index))
            return resize_crop(self.inputs.image(index), self.size, self.crop_pct, self.interpolation)
        except GlocalError as error:
            return str(getattr(error, "reason", error))

    def read_alone(self, batch: int, start_method: str | None = None) -> Read:
        """A batch in whose company a worker died: each image in a process that may die of it.

        Args:
            batch: its number.
            start_method: of `multiprocessing`; by default the one that workers of the loader are started by.
        """
        found: list[np.ndarray | str] = []
        pool: Any = None
        try:
            for index in self.indices(batch):
                pool = pool or ProcessPoolExecutor(1, mp_context=get_context(start_method))
                try:
                    found.append(pool.submit(self.read, index).result())
                except BrokenProcessPool:
                    found.append("the decoder crashed on it")
                    pool = None
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        return self._batch(batch, found)

    def _batch(self, batch: int, found: list[np.ndarray | str]) -> Read:
        size = self.size or (found[0].shape[:2] if isinstance(found[0], np.ndarray) else (1, 1))
        pixels = np.zeros((len(found), *size, 3), np.uint8)
        for i, image in enumerate(found):
            if isinstance(image, np.ndarray):
                pixels[i] = image
        errors = [image if isinstance(image, str) else None for image in found]
        return Read(batch * self.batch_size, torch.from_numpy(pixels).permute(0, 3, 1, 2), errors)


def read_batches(reader: Reader, start: int = 0, workers: int | None = None) -> Iterator[Read]:
    """The batches from number ``start`` on, in their order, read by processes; one that dies costs only its image.

    Args:
        reader: of the images.
        start: number of the first batch.
        workers: processes; by default one for each processor, at most 8. 0 reads in this one.
    """
    workers = min(default_workers() if workers is None else workers, len(reader) - start)
    while start < len(reader):
        try:
            for read in read_in_order(reader, range(start, len(reader)), max(0, workers)):
                start += 1
                yield read
        except WORKER_ERRORS as error:
            if not worker_died(error):
                raise
            yield reader.read_alone(start)
            start += 1
