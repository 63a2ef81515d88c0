"""Decode many files once, in parallel, to find unreadable ones before any work."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import PIL

from glocal.data.images import LOADER_VERSION, ImageError, ImageLimits, open_image
from glocal.data.subprocess_pool import ProcessDiedError, SubprocessPool
from glocal.files import atomic_write_text, lock

FEW = 64  # files decoded in this process; starting workers would take longer
CHUNK = 16
CRASHED = "crashed the decoder"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Scanned:
    """The result of decoding a file.

    Attributes:
        reason: why it is unreadable, or None.
        digest: SHA-256 of its bytes; "" if unreadable.
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
    """Decode every file.

    Readable images are cached in the user's cache folder by size, times and inode, so that a second scan reads only
    changed files. If several processes start at the same time, one scans and the others wait for its result.

    Args:
        root: folder of the paths.
        paths: relative to root.
        limits: of the image loader.
        follow_links: whether links to images are followed.
        progress: show a progress bar on standard error if it is a terminal.
        workers: decoding processes; one per CPU core by default.

    Returns:
        path -> result, in the order of ``paths``.
    """
    file = cache_file(os.fspath(root.resolve()), asdict(limits), follow_links)
    with scan_lock(file, shown=progress) if len(paths) > FEW else nullcontext():
        known = _known_digests(file)
        stamps = {path: stamp(root / path) for path in paths}  # before reading, so that later changes are noticed
        found = {
            path: Scanned(None, known[path][1])
            for path in paths
            if path in known and stamps[path] is not None and known[path][0] == stamps[path]
        }
        missing = [path for path in paths if path not in found]
        scan = partial(scan_file, str(root), limits=limits, follow_links=follow_links)
        found |= scan_all(scan, missing, progress=progress, workers=workers)
        if len(missing) > FEW:
            images = [path for path in paths if found[path].reason is None]
            write_cache(file, {path: [stamps[path], found[path].digest] for path in images})
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
    except OSError as error:  # deleted since it was decoded
        return Scanned(f"unreadable ({error.strerror})")


def scan_all(
    scan: Callable[[Item], Scanned], items: list[Item], *, progress: bool, workers: int | None
) -> Iterator[tuple[Item, Scanned]]:
    """Scan each item, in parallel if there are many, with a progress bar.

    Args:
        scan: of one item; picklable, does not raise.
        items: picklable.
        progress: show a progress bar on standard error if it is a terminal.
        workers: decoding processes; one per CPU core by default.

    Returns:
        Pairs of item and result, in the order of ``items``; an item that kills its process is `CRASHED`.
    """
    with _progress(len(items), shown=progress) as advance:
        for item, scanned in _scan_items(scan, items, workers):
            yield item, scanned
            advance()


def _scan_items(
    scan: Callable[[Item], Scanned], paths: list[Item], workers: int | None
) -> Iterator[tuple[Item, Scanned]]:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = workers or processors or 1
    if len(paths) <= FEW or workers == 1:
        yield from ((path, scan(path)) for path in paths)
        return
    while paths:
        done = 0
        try:
            with SubprocessPool(workers) as pool:
                for path, scanned in zip(paths, pool.map(scan, paths, chunksize=CHUNK), strict=True):
                    yield path, scanned
                    done += 1
        except ProcessDiedError:  # a decoder killed its process: find the file in the first missing chunk
            for path in paths[done : done + CHUNK]:
                try:
                    with SubprocessPool(1) as pool:
                        [scanned] = pool.map(scan, [path])
                        yield path, scanned
                except ProcessDiedError:
                    yield path, Scanned(CRASHED)
            done += CHUNK
        paths = paths[done:]


@contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("Checking images", total=total)
        yield lambda: bar.advance(task)


def _known_digests(file: Path) -> dict[str, tuple[list[int], str]]:
    """Path -> stamp and digest of the images of one folder."""
    known = read_cache(file)
    if not isinstance(known, dict):
        return {}
    return {
        path: (entry[0], entry[1])
        for path, entry in known.items()
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
    }


def stamp(path: str | Path) -> list[int] | None:
    """Size, times and inode of a file, which identify its version; None if it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def cache_file(*key: object) -> Path:
    """The cache file of scans that depend on the image loader, Pillow and ``key`` (JSON values)."""
    text = json.dumps([*key, LOADER_VERSION, PIL.__version__])
    return cache_folder() / "scans" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def read_cache(file: Path) -> object:
    """The cached value; None if the file is missing or unreadable."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_cache(file: Path, content: object) -> None:
    """Write a JSON value to the cache, if that is writable."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(file, json.dumps(content))


@contextmanager
def scan_lock(file: Path, *, shown: bool) -> Iterator[None]:
    """Lock a cache file, so that one process scans and the next ones read its result.

    torchrun starts one process per GPU at once, and each loads the data. If the cache is not writable or its file
    system has no locks, each process scans for itself.

    Args:
        file: of the cache; the lock is on a file beside it and is released when its process ends.
        shown: show a status on standard error, if it is a terminal, while waiting.
    """
    with ExitStack() as held:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = held.enter_context(open(file.with_suffix(".lock"), "ab"))
            try:
                lock(beside)
            except BlockingIOError:
                with _waiting(shown=shown):
                    lock(beside, wait=True)
        yield


@contextmanager
def _waiting(*, shown: bool) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if shown and console.is_terminal:
        with console.status("Waiting for another process that is checking these images"):
            yield
    else:
        yield


def cache_folder() -> Path:
    """The cache folder of glocal: ``$GLOCAL_CACHE``, or ``glocal`` in the user's cache folder."""
    own = os.environ.get("GLOCAL_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glocal"
