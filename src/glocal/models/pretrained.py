"""Where pretrained weights are: a file, a folder, the cache that timm downloads to, or the network.

timm asks the hub again and again where there is no network, for a minute and more per model. Here all models together
get one attempt with a deadline, and cached weights are given as their file, which loads without asking the hub.
"""

import contextlib
import http.client
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache

from glocal.errors import first_line
from glocal.models.creation import check_model, has_weights
from glocal.models.names import parse_model

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names that timm tries for weights on the hub, in this order."""
_OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_NUM_THREADS = 16
_LINKED_SIZE = "X-Linked-Size"
"""Header of the hub with the size of the file to which it redirects."""


class FoundWeights(NamedTuple):
    """Weights of one model.

    Attributes:
        model: its name, as it was asked for.
        where: they were found.
        weights: what `glocal.models.creation.create` takes; None if there are none.
        num_bytes: size of the file, or of the download; None if unknown.
        reason: why there are none.
    """

    model: str
    where: Literal["file", "folder", "cache", "network", "none"]
    weights: Path | Literal["pretrained"] | None
    num_bytes: int | None = None
    reason: str | None = None


def find_weights(
    models: Sequence[str],
    files: Mapping[str, Path] = {},
    folder: Path | None = None,
    *,
    timeout: float = 5.0,
) -> dict[str, FoundWeights]:
    """Find the pretrained weights of models: given file, then ``folder``, then cache, then network.

    Nothing is downloaded, and only what is not on this machine is asked for, once.

    Args:
        models: registered with timm, with keywords or without (`parse_model`).
        files: the file of a model, or a folder with its ``model.safetensors`` or ``pytorch_model.bin``.
        folder: has ``MODEL.safetensors``, ``.pth``, ``.pt`` or ``.bin``, or a folder ``MODEL`` as above. MODEL is the
            name with its tag; without it, too, if that is the default tag.
        timeout: of all requests together, in seconds of wall-clock time.

    Returns:
        The weights by model, in the order of ``models``.

    Raises:
        GlocalError: for an unknown model.
    """
    found: dict[str, FoundWeights | None] = {}
    for model in dict.fromkeys(models):
        check_model(model, with_keywords=True)
        found[model] = _find_locally(model, files, folder)
    asked = {model: _urls(model) for model, weights in found.items() if weights is None}
    answers = _ask(asked, timeout)
    return {model: weights or answers[model] for model, weights in found.items()}


def _find_locally(model: str, files: Mapping[str, Path], folder: Path | None) -> FoundWeights | None:
    """Weights on this machine, or the reason why asking elsewhere is useless; None if the network may have them."""
    if model in files:
        path = _file_at(files[model])
        if path is None:
            return _none(model, f"expected a file of weights, got {files[model]}, which is none; give another file")
        return _at(model, "file", path)
    if folder is not None and (path := _in_folder(model, folder)) is not None:
        return _at(model, "folder", path)
    if not has_weights(model):
        return _none(model, f"it has no released weights; {_help(model)}")
    if (path := _cached(model)) is not None:
        return _at(model, "cache", path)
    if not _urls(model):
        return _none(model, f"the file of its configuration is missing; {_help(model)}")
    if constants.HF_HUB_OFFLINE:
        return _none(model, f"not cached, and HF_HUB_OFFLINE forbids to download them; unset it, or {_help(model)}")
    return None


def _at(model: str, where: Literal["file", "folder", "cache"], path: Path) -> FoundWeights:
    return FoundWeights(model, where, path, path.stat().st_size)


def _none(model: str, reason: str) -> FoundWeights:
    return FoundWeights(model, "none", None, None, reason)


def _help(model: str) -> str:
    return f"put {parse_model(model)[0]}.safetensors into --weights-dir"


# Files.


def _file_at(path: Path) -> Path | None:
    """The file, or the weights in a folder that was saved or downloaded as a whole."""
    return next((one for one in (path, *(path / name for name in _HUB_FILES)) if one.is_file()), None)


def _in_folder(model: str, folder: Path) -> Path | None:
    for name in _file_names(model):
        files = (folder / f"{name}{suffix}" for suffix in _SUFFIXES)
        if path := next((file for file in files if file.is_file()), None) or _file_at(folder / name):
            return path
    return None


def _file_names(model: str) -> list[str]:
    """The name as given and, if the tag is the default, the same with or without it."""
    name, _ = parse_model(model)
    architecture = name.partition(".")[0]
    default: Any = timm.get_pretrained_cfg(architecture)
    if default is None or not default.tag:
        return [name]
    full = f"{architecture}.{default.tag}"
    return [*dict.fromkeys((name, architecture, full))] if name in (architecture, full) else [name]


# What timm would download, and where to.


def _hub_files(filename: str | None) -> tuple[str, ...]:
    """Names that timm tries on the hub: first the safetensors beside a pickle."""
    for names in (_HUB_FILES, _OPEN_CLIP_FILES):
        if filename in (None, names[-1]):
            return names
    stem, suffix = os.path.splitext(filename or "")
    return (f"{stem}.safetensors", f"{stem}.bin") if suffix == ".bin" else (filename or "",)


def _cached(model: str) -> Path | None:
    """The file that timm would load had it downloaded it before."""
    cfg: Any = timm.get_pretrained_cfg(parse_model(model)[0])
    if cfg.file:
        return _file_at(Path(cfg.file))
    if not cfg.hf_hub_id:
        path = Path(torch.hub.get_dir()) / "checkpoints" / _source(cfg.url)[1]
        return path if path.is_file() else None
    repo, _, revision = cfg.hf_hub_id.partition("@")
    for filename in _hub_files(cfg.hf_hub_filename):
        path_or_not = try_to_load_from_cache(
            repo, filename, cache_dir=constants.HF_HUB_CACHE, revision=revision or None
        )
        if isinstance(path_or_not, str):
            return Path(path_or_not)
    return None


def _source(url: str | tuple[str, str]) -> tuple[str, str]:
    """Address and name of the file, as timm takes them from a configuration."""
    if isinstance(url, str):
        return url, os.path.basename(urlsplit(url).path)
    return url[0], url[1]


def _urls(model: str) -> list[str]:
    """Addresses to try, in order."""
    cfg: Any = timm.get_pretrained_cfg(parse_model(model)[0])
    if not cfg.hf_hub_id:
        return [_source(cfg.url)[0]] if cfg.url else []
    repo, _, revision = cfg.hf_hub_id.partition("@")
    return [hf_hub_url(repo, filename, revision=revision or None) for filename in _hub_files(cfg.hf_hub_filename)]


# Network.


class _UnreachableError(Exception):
    """A host that does not answer at all, as opposed to one that answers no."""


class _HeadRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects stay HEAD requests, and take no token to another host; the hub's to its storage are not followed."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if _LINKED_SIZE in headers:
            return None  # HTTPError with these headers
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = "HEAD"
            if urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
                request.remove_header("Authorization")
        return request


def _ask(urls: Mapping[str, Sequence[str]], timeout: float) -> dict[str, FoundWeights]:
    """Ask for all models at once; a host that cannot be reached is not asked again.

    The threads are daemons: looking up a host's name has no timeout, and must not keep the process from ending.
    """
    deadline = time.monotonic() + timeout
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers: queue.SimpleQueue[FoundWeights] = queue.SimpleQueue()
    unreachable: dict[str, str] = {}

    def work() -> None:
        while time.monotonic() < deadline:
            try:
                model = todo.get_nowait()
            except queue.Empty:
                return
            with contextlib.suppress(TimeoutError):
                answers.put(_ask_for(model, urls[model], deadline, unreachable))

    for model in urls:
        todo.put(model)
    for _ in range(min(_NUM_THREADS, len(urls))):
        threading.Thread(target=work, daemon=True, name="glocal-weights").start()
    found: dict[str, FoundWeights] = {}
    while len(found) < len(urls):
        try:
            answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[answer.model] = answer
    for model in [model for model in urls if model not in found]:
        host = _host(urls[model][0])
        reason = unreachable.get(host, f"no answer from {host} within {timeout:g} s")
        found[model] = _none(model, f"{reason}; {_help(model)}")
    return found


def _ask_for(model: str, urls: Sequence[str], deadline: float, unreachable: dict[str, str]) -> FoundWeights:
    """Ask for one model at each of its addresses until one has it.

    Args:
        model: to be asked for.
        urls: of its weights.
        deadline: by `time.monotonic`.
        unreachable: hosts that cannot be reached, and why; a new one is added.

    Raises:
        TimeoutError: without an answer until then.
    """
    reason = ""
    for url in urls:
        host = _host(url)
        if host in unreachable:
            reason = unreachable[host]
            break
        try:
            status, num_bytes = _head(url, max(0.01, deadline - time.monotonic()))
        except _UnreachableError as error:
            reason = unreachable[host] = f"{host} cannot be reached ({error})"
            break
        if status < 300:
            return FoundWeights(model, "network", "pretrained", num_bytes)
        reason = f"{host} answers {_said(status)} for {urlsplit(url).path.lstrip('/')}"
        if status != 404:
            break
    return _none(model, f"{reason}; {_help(model)}")


def _head(url: str, timeout: float) -> tuple[int, int | None]:
    """Status of an address, and the size of its file.

    Raises:
        TimeoutError: without an answer in time.
        _UnreachableError: without a connection.
    """
    headers = {"User-Agent": "glocal", "Accept-Encoding": "identity"}  # sizes are those of the files
    if url.startswith(f"{constants.ENDPOINT}/") and (token := get_token()):
        headers["Authorization"] = f"Bearer {token}"
    opener = urllib.request.build_opener(_HeadRedirects)
    try:
        with opener.open(urllib.request.Request(url, headers=headers, method="HEAD"), timeout=timeout) as response:
            return response.status, _size(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            return (200 if _LINKED_SIZE in error.headers and error.code < 400 else error.code), _size(error.headers)
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            raise TimeoutError from error
        text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        raise _UnreachableError(first_line(Exception(text or type(cause).__name__))) from error


def _size(headers: Any) -> int | None:
    text = headers.get(_LINKED_SIZE) or headers.get("Content-Length") or ""
    return int(text) if text.isdecimal() else None


def _said(status: int) -> str:
    """A status with what it means to the user."""
    if status in (401, 403):
        return f"{status} (no such repository, or it asks for a token: HF_TOKEN)"
    return f"{status} (no such file)" if status == 404 else str(status)


def _host(url: str) -> str:
    return urlsplit(url).netloc
