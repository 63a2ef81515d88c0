"""JSON held against the types of `glocal.schema`."""

from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict


def parts_of(hint: Any) -> list[Any]:
    """The TypedDicts in the type of a field, whether it is one, a list of them, or may be null."""
    if is_typeddict(hint):
        return [hint]
    return [part for arg in get_args(hint) for part in parts_of(arg)]


def faults(value: Any, hint: Any, where: str = "") -> list[str]:
    """Fields that a JSON value has and its type has not, and the other way round."""
    if get_origin(hint) in (Union, UnionType):  # with null
        return [] if value is None else faults(value, get_args(hint)[0], where)
    if get_origin(hint) is list:
        return [fault for i, one in enumerate(value) for fault in faults(one, get_args(hint)[0], f"{where}[{i}]")]
    if not is_typeddict(hint):
        return []
    hints = get_type_hints(hint)
    found = [f"{where}.{name}: unknown" for name in value.keys() - hints.keys()]
    found += [f"{where}.{name}: missing" for name in hint.__required_keys__ - value.keys()]
    shared = [name for name in hints if name in value]
    return found + [fault for name in shared for fault in faults(value[name], hints[name], f"{where}.{name}")]
