"""Output paths of an export: checked before any work, and moved into place only when complete."""

from pathlib import Path

from glocal.errors import CheckpointError, GlocalError
from glocal.export.description import Format, InvalidFileError
from glocal.export.formats import ENDS, companion
from glocal.export.reading import read_file
from glocal.files import printable, publish, sync
from glocal.models.io import WEIGHTS, load_model


def check_target(path: Path, to: Format, overwrite: bool) -> None:
    """Check the output path of an export.

    Raises:
        GlocalError: if its suffix or folder is wrong, or it exists and must not be replaced.
    """
    if not path.parent.is_dir():
        raise GlocalError(
            f"out: expected an existing folder, got {printable(path.parent)}; create it, or choose another --out"
        )
    if to == "safetensors":
        if path.suffix in (".safetensors", *filter(None, ENDS.values())) or (path.exists() and not path.is_dir()):
            raise GlocalError(f"out: expected the name of a folder for safetensors, got {printable(path)}")
    elif path.suffix != ENDS[to] or path.is_dir():
        raise GlocalError(f"out: expected a file that ends in {ENDS[to]} for {to}, got {printable(path)}")
    there = path / WEIGHTS if to == "safetensors" else path
    side = companion(path)
    if not there.exists():
        if side is not None and side.exists():
            raise GlocalError(f"out: {printable(side)} exists without {printable(path)}; choose another --out")
        return
    if not overwrite:
        raise GlocalError(f"out: {printable(there)} already exists; --force replaces it, or choose another --out")
    if (reason := _difference(path, to)) is not None:
        raise GlocalError(
            f"out: {printable(there)} is not replaced: it is not a complete file of `glocal export --to {to}` "
            f"({printable(reason)}); delete it yourself, or choose another --out"
        )


def _difference(path: Path, to: Format) -> str | None:
    """Why the existing file is not an export of this format."""
    try:
        if to == "safetensors":
            load_model(path, "classification")
            return None
        found = read_file(path).description.format
    except (InvalidFileError, CheckpointError, OSError) as error:
        return str(error)
    return None if found == to else f"its format is {found}"


def move_into_place(made: Path, path: Path) -> int:
    """Move the written files into place, companions first.

    Returns:
        Bytes of all files.
    """
    if made.is_dir():
        path.mkdir(exist_ok=True)
        files = [(file, path / file.name) for file in sorted(made.iterdir())]  # config.json first
    else:
        files = [(file, path.parent / file.name) for file in made.parent.iterdir()]
        files.sort(key=lambda pair: pair[1] == path)
    num_bytes = sum(file.stat().st_size for file, _ in files)
    publish(*files)
    stale = companion(path)
    if stale is not None and stale not in [target for _, target in files]:
        stale.unlink(missing_ok=True)  # of the replaced file
        sync(stale.parent)
    return num_bytes
