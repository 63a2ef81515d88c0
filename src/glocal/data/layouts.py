"""Which tasks data are laid out for, as far as names of files and folders tell."""

from collections.abc import Callable
from pathlib import Path

from glocal.data import builtin_names, pasted, voc
from glocal.data.coco import find_coco
from glocal.data.folder import read_tree
from glocal.data.segmentation import read_layout
from glocal.data.shard_names import is_shards
from glocal.errors import GlocalError


def tasks_of(data: str) -> tuple[str, ...]:
    """Tasks that can take data by their layout, of ``detection``, ``segmentation`` and ``classification``.

    A folder for detection or segmentation has folders of images, as one of classes has: it counts as none of classes.

    Args:
        data: a folder, a file, or a built-in name, that is there or not.
    """
    root = Path(data)
    found = []
    if pasted.is_pasted(data) or data.endswith(".json") or _holds(lambda: voc.is_voc(root) or find_coco(root)):
        found.append("detection")
    if pasted.is_pasted(data) or _holds(lambda: read_layout(root)):
        found.append("segmentation")
    if not found and (data in builtin_names() or is_shards(data) or _holds(lambda: read_tree(root))):
        found.append("classification")
    return tuple(found)


def _holds(look: Callable[[], object]) -> bool:
    try:
        return bool(look())
    except (GlocalError, OSError):
        return False
