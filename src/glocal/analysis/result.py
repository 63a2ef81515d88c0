"""A result as JSON and as arrays."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

SHORT = 256
"""Largest size of an array in the JSON; larger ones are only named there."""


def to_json(result: Any, name: str = "") -> Any:
    """A result as nested dictionaries and lists, long arrays as {"array": name, "shape": [...]}; NaN becomes null."""
    if isinstance(result, np.ndarray):
        return to_json(result.tolist()) if result.size <= SHORT else {"array": name, "shape": [*result.shape]}
    if isinstance(result, np.generic):
        return to_json(result.item())
    if isinstance(result, float):
        return result if np.isfinite(result) else None
    return (
        {key: to_json(value, _joined(name, key)) for key, value in _parts(result)}
        if _is_object(result)
        else ([to_json(value, _joined(name, i)) for i, value in enumerate(result)] if _is_list(result) else result)
    )


def to_arrays(result: Any, name: str = "") -> dict[str, np.ndarray]:
    """All arrays of a result by their dotted names: ``points.3.field``."""
    if isinstance(result, np.ndarray):
        return {name: result}
    parts = _parts(result) if _is_object(result) else enumerate(result) if _is_list(result) else ()
    return {k: v for key, value in parts for k, v in to_arrays(value, _joined(name, key)).items()}


def _is_object(value: Any) -> bool:
    return is_dataclass(value) or isinstance(value, dict)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _parts(value: Any) -> list[tuple[str, Any]]:
    return [*value.items()] if isinstance(value, dict) else [(f.name, getattr(value, f.name)) for f in fields(value)]


def _joined(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
