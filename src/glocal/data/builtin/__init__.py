"""Built-in data: a small subset of Fashion-MNIST shipped with the package, and the whole of it.

Fashion-MNIST: Xiao, Rasul and Vollgraf 2017, https://arxiv.org/abs/1708.07747, MIT licence (LICENSE-fashion-mnist).
"""

import gzip
import hashlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from glocal.data.scan import cache_folder
from glocal.data.sets import Array, DataSource, ImageSet
from glocal.errors import GlocalError
from glocal.files import printable

CLASSES = (
    "T-shirt or top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MINI = {"train": 1000, "val": 200}  # images of each class
SIDE = 28


def pick_mini(labels: np.ndarray, per_class: int) -> np.ndarray:
    """The images of fashion-mini: the first ``per_class`` images of each class, in the order of the whole set."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(len(CLASSES))]))


def fashion_mini() -> DataSource:
    """10,000 training and 2,000 test images of Fashion-MNIST, 1,000 and 200 of each class, shipped with the package."""
    folder = Path(__file__).parent
    parts = {}
    for part in FILES:
        with Image.open(folder / f"fashion-mini-{part}.png", formats=("PNG",)) as sheet:
            pixels = np.asarray(sheet).reshape(-1, SIDE, SIDE)
        labels = np.frombuffer((folder / f"fashion-mini-{part}.labels").read_bytes(), dtype=np.uint8)
        parts[part] = (pixels, labels)
    return _source(
        "fashion-mini", parts, "1,000 and 200 images of each class, from Fashion-MNIST's train and test sets"
    )


def fashion_mnist(folder: str | None = None) -> DataSource:
    """The whole of Fashion-MNIST: 60,000 training and 10,000 test images.

    Args:
        folder: holds the four idx files, plain or gzipped. By default searched in ``$GLOCAL_DATA``, Debian's package
            and the user's cache, else downloaded into the cache.

    Raises:
        GlocalError: if a file is missing or damaged, or the download fails.
    """
    parts = {}
    root = Path(folder) if folder else _find()
    for part, (images, labels) in FILES.items():
        pixels, targets = read_idx(_file(root, images)), read_idx(_file(root, labels))
        if pixels.ndim != 3 or targets.shape != pixels.shape[:1]:
            got = f"images {pixels.shape} and labels {targets.shape}"
            raise GlocalError(
                f"fashion-mnist: expected a label for each image of {part} in {printable(root)}, got {got}"
            )
        if not set(np.unique(targets)) == set(range(len(CLASSES))):
            raise GlocalError(f"fashion-mnist: expected labels 0 to 9 in {part} of {printable(root)}, got others")
        parts[part] = (pixels, targets)
    return _source("fashion-mnist", parts, "Fashion-MNIST's train and test sets")


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file (http://yann.lecun.com/exdb/mnist) of unsigned bytes, plain or gzipped.

    Raises:
        GlocalError: if it is damaged or of another type.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        zero, kind, ndim = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{ndim}I", content[4 : 4 + 4 * ndim])
        if zero != 0 or kind != 8:
            raise ValueError("not an idx file of unsigned bytes")
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise GlocalError(f"expected an idx file, got {printable(path)}: {error}") from None


def _file(root: Path, name: str) -> Path:
    if found := _variants(root, name):
        return found[0]
    raise GlocalError(f"fashion-mnist: expected {name} or {name}.gz in {printable(root)}, got neither")


def _variants(root: Path, name: str) -> list[Path]:
    return [path for path in (root / name, root / f"{name}.gz") if path.is_file()]


def _find() -> Path:
    given = os.environ.get("GLOCAL_DATA")
    downloaded = cache_folder() / "FashionMNIST" / "raw"
    places = [*([Path(given), Path(given) / "fashion-mnist"] if given else []), DEBIAN_FOLDER, downloaded]
    whole = [place for place in places if all(_variants(place, name) for names in FILES.values() for name in names)]
    return whole[0] if whole else _download(places)


def _download(places: list[Path]) -> Path:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(os.fspath(cache_folder()), download=True)  # with torchvision's progress bar
    except Exception as error:  # torchvision raises RuntimeError, URLError, OSError and others
        searched = ", ".join(printable(place) for place in places)
        raise GlocalError(
            f"fashion-mnist: not found in {searched}, and the download failed ({error}). Install Debian's package "
            f"dataset-fashion-mnist, or pass the folder of the four files: fashion-mnist:/path/to/folder"
        ) from None
    return cache_folder() / "FashionMNIST" / "raw"


def _source(name: str, parts: dict[str, tuple[np.ndarray, np.ndarray]], split: str) -> DataSource:
    digest = hashlib.sha256("\n".join(CLASSES).encode())
    sets = {}
    for part, (pixels, labels) in parts.items():
        digest.update(pixels.tobytes())
        digest.update(labels.tobytes())
        paths = tuple(f"{name}/{part}/{row:05d}" for row in range(len(pixels)))
        rows = np.arange(len(pixels))
        sets[part] = ImageSet(part, CLASSES, labels.astype(np.int64), paths, Array(pixels), rows)
    return DataSource(name, sets["train"], sets["val"], CLASSES, (), (), split, digest.hexdigest())


def write_mini(source: DataSource, folder: Path) -> None:
    """Write the files of fashion-mini from the whole set (benchmarks/make_fashion_mini.py)."""
    for part, images in (("train", source.train), ("val", source.val)):
        assert isinstance(images.store, Array)
        picked = pick_mini(images.labels, MINI[part])
        sheet = Image.fromarray(images.store.pixels[picked].reshape(-1, SIDE))
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG", optimize=True)
        (folder / f"fashion-mini-{part}.png").write_bytes(buffer.getvalue())
        (folder / f"fashion-mini-{part}.labels").write_bytes(images.labels[picked].astype(np.uint8).tobytes())
