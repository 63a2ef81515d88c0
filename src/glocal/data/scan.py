"""Decode many files once, in parallel, to know before any work which of them are images."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from glocal.data.images import ImageError, ImageLimits, open_image
from glocal.files import atomic_write_text

FEW = 64  # files that are decoded here and now; starting workers would take longer
CHUNK = 16


@dataclass(frozen=True)
class Scanned:
    """What the scan found of a file.

    Attributes:
        reason: why it is no image, or None.
        size: bytes.
        digest: SHA-256 of its bytes; "" where it could not be read.
    """

    reason: str | None
    size: int
    digest: str


def scan_files(
    root: Path,
    paths: list[str],
    limits: ImageLimits,
    *,
    follow_links: bool = False,
    progress: bool = True,
    workers: int | None = None,
) -> dict[str, Scanned]:
    """Decode every file whole.

    A verdict is kept in the user's cache under the file's size, times and inode, so that a second scan of a large
    folder reads only what has changed.

    Args:
        root: folder of the paths.
        paths: relative to root.
        limits: of the gate.
        follow_links: whether a link to an image is an image.
        progress: show a progress bar on standard error, where it is a terminal.
        workers: processes; as many as there are processors by default.

    Returns:
        path -> what was found, in the order of ``paths``.
    """
    cache = _Cache(root, limits, follow_links)
    found = {path: known for path in paths if (known := cache.get(path)) is not None}
    missing = [path for path in paths if path not in found]
    look = partial(scan_file, str(root), limits=limits, follow_links=follow_links)
    with _progress(len(missing), shown=progress) as advance:
        for path, scanned in _scan(look, missing, workers):
            found[path] = scanned
            advance()
    cache.put({path: found[path] for path in missing})
    return {path: found[path] for path in paths}


def scan_file(root: str, path: str, *, limits: ImageLimits, follow_links: bool) -> Scanned:
    """Decode one file; never raises."""
    full = os.path.join(root, path)
    try:
        open_image(full, limits=limits, follow_links=follow_links, name=path)
    except ImageError as error:
        return Scanned(error.reason, 0, "")
    with open(full, "rb") as file:
        return Scanned(None, os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _scan(look: "partial[Scanned]", paths: list[str], workers: int | None) -> Iterator[tuple[str, Scanned]]:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = workers or processors or 1
    if len(paths) <= FEW or workers == 1:
        yield from ((path, look(path)) for path in paths)
        return
    done = 0
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's threads
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            for path, scanned in zip(paths, pool.map(look, paths, chunksize=CHUNK), strict=True):
                yield path, scanned
                done += 1
    except BrokenProcessPool:  # a decoder killed its process: find the file, each in a process of its own
        for path in paths[done:]:
            try:
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    yield path, pool.submit(look, path).result()
            except BrokenProcessPool:
                yield path, Scanned("the decoder crashed on it", 0, "")


@contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("Checking images", total=total)
        yield lambda: bar.advance(task)


class _Cache:
    """Verdicts on the files of one folder; a file that cannot be read or written is no cache, nothing more."""

    def __init__(self, root: Path, limits: ImageLimits, follow_links: bool):
        self.root = root.resolve()
        key = json.dumps([2, os.fspath(self.root), asdict(limits), follow_links])
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        self.file = cache_folder() / "scans" / f"{name}.json"
        try:
            self.known = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}
        if not isinstance(self.known, dict):
            self.known = {}

    def get(self, path: str) -> Scanned | None:
        match self.known.get(self._key(path)):
            case [stamp, str() | None as reason, int(size), str(digest)] if stamp == self._stamp(path):
                return Scanned(reason, size, digest)
        return None

    def put(self, found: dict[str, Scanned]) -> None:
        if len(found) <= FEW:
            return
        for path, scanned in found.items():
            self.known[self._key(path)] = [self._stamp(path), scanned.reason, scanned.size, scanned.digest]
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.file, json.dumps(self.known))
        except OSError:
            pass

    def _key(self, path: str) -> str:
        return os.fsencode(path).decode("utf-8", "backslashreplace")

    def _stamp(self, path: str) -> list[int] | None:
        try:
            status = os.stat(self.root / path)
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def cache_folder() -> Path:
    """Where glocal keeps what it can make again: ``$GLOCAL_CACHE``, or ``glocal`` in the user's cache folder."""
    own = os.environ.get("GLOCAL_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glocal"
