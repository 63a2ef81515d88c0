"""Decode many files once, in parallel, to know before any work which of them are images."""

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import PIL

from glocal.data.images import GATE_VERSION, ImageError, ImageLimits, open_image
from glocal.files import atomic_write_text

FEW = 64  # files that are decoded here and now; starting workers would take longer
CHUNK = 16


@dataclass(frozen=True)
class Scanned:
    """What the scan found of a file.

    Attributes:
        reason: why it is no image, or None.
        digest: SHA-256 of its bytes; "" where it is no image.
    """

    reason: str | None
    digest: str = ""


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

    What was found to be an image is remembered in the user's cache by the file's size, times and inode, so that a
    second scan of a large folder reads only what has changed.

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
    stamps = {path: _stamp(root / path) for path in paths}  # before reading: a later change is then noticed
    found = {path: Scanned(None, digest) for path in paths if (digest := cache.digest(path, stamps[path]))}
    missing = [path for path in paths if path not in found]
    look = partial(scan_file, str(root), limits=limits, follow_links=follow_links)
    with _progress(len(missing), shown=progress) as advance:
        for path, scanned in _scan(look, missing, workers):
            found[path] = scanned
            advance()
    if len(missing) > FEW:
        cache.write({path: [stamps[path], found[path].digest] for path in paths if found[path].reason is None})
    return {path: found[path] for path in paths}


def scan_file(root: str, path: str, *, limits: ImageLimits, follow_links: bool) -> Scanned:
    """Decode one file; never raises."""
    full = os.path.join(root, path)
    try:
        open_image(full, limits=limits, follow_links=follow_links, name=path)
        with open(full, "rb") as file:
            return Scanned(None, hashlib.file_digest(file, "sha256").hexdigest())
    except ImageError as error:
        return Scanned(error.reason)
    except OSError as error:  # gone since it was decoded
        return Scanned(f"cannot be read ({error.strerror})")


def _scan(look: Callable[[str], Scanned], paths: list[str], workers: int | None) -> Iterator[tuple[str, Scanned]]:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = workers or processors or 1
    if len(paths) <= FEW or workers == 1:
        yield from ((path, look(path)) for path in paths)
        return
    while paths:
        done = 0
        try:
            with _pool(workers) as pool:
                for path, scanned in zip(paths, pool.map(look, paths, chunksize=CHUNK), strict=True):
                    yield path, scanned
                    done += 1
        except BrokenProcessPool:  # a decoder killed its process: look for the file in the first chunk that is missing
            for path in paths[done : done + CHUNK]:
                try:
                    with _pool(1) as pool:
                        yield path, pool.submit(look, path).result()
                except BrokenProcessPool:
                    yield path, Scanned("the decoder crashed on it")
            done += CHUNK
        paths = paths[done:]


def _pool(workers: int) -> ProcessPoolExecutor:
    """Processes that leave Ctrl-C to their parent; not forks, which would copy the locks of torch's threads."""
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=ignore)


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
    """Digests of the images of one folder; a file that cannot be read or written is no cache, nothing more."""

    def __init__(self, root: Path, limits: ImageLimits, follow_links: bool):
        key = json.dumps([os.fspath(root.resolve()), asdict(limits), follow_links, GATE_VERSION, PIL.__version__])
        self.file = cache_folder() / "scans" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        try:
            known = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
        self.known = known if isinstance(known, dict) else {}

    def digest(self, path: str, stamp: list[int] | None) -> str | None:
        match self.known.get(path):
            case [known, str(digest)] if known == stamp:
                return digest
        return None

    def write(self, images: dict[str, list[object]]) -> None:
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.file, json.dumps(images))


def _stamp(path: Path) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def cache_folder() -> Path:
    """Where glocal keeps what it can make again: ``$GLOCAL_CACHE``, or ``glocal`` in the user's cache folder."""
    own = os.environ.get("GLOCAL_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glocal"
