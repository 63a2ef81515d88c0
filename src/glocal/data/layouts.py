"""The tasks of a data set, from its file and folder names."""

from collections.abc import Callable
from pathlib import Path

from glocal.data import builtin_names, pasted, voc
from glocal.data.coco import find_coco
from glocal.data.folder import read_tree
from glocal.data.segmentation import read_layout
from glocal.data.shard_names import is_shards
from glocal.errors import GlocalError


def tasks_of(data: str) -> tuple[str, ...]:
    """Tasks whose layout the data has: ``detection``, ``segmentation`` or ``classification``.

    Folders for detection and segmentation also look like class folders, so they do not count as classification.

    Args:
        data: a folder, a file or a built-in name, existing or not.
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


def _holds(find: Callable[[], object]) -> bool:
    try:
        return bool(find())
    except (GlocalError, OSError):
        return False
