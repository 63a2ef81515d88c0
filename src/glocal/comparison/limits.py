"""Limits on the cost of the model to take: time per image in a runtime, parameters, size of the file, memory.

A model meets a limit on time if the median of its passes does. Where the limit lies between the first and the third
quartile, the model is at the limit: another measurement might judge it differently.
"""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from glocal.comparison.cheapest import RANGE
from glocal.comparison.units import COUNTS, SIZES, TIMES, parse_quantity
from glocal.errors import GlocalError, check_choice
from glocal.formatting import few, listed
from glocal.schema import LimitsResults

RuntimeName = Literal["eager", "onnxruntime", "openvino"]
RUNTIMES: dict[RuntimeName, tuple[str, ...]] = {
    "eager": (), "onnxruntime": ("onnxscript", "onnxruntime"), "openvino": ("onnxscript", "openvino")
}  # fmt: skip
"""What a trained model can run in, and the packages of the extra ``export`` that each needs."""
FILE, MEMORY, PARAMS, ERROR = "file_bytes", "peak_memory_mib", "params", "runtime_error"
"""Keys of measured costs; a model that does not run in the runtime has the reason as `ERROR` instead."""
MIB = 2**20


@dataclass(frozen=True)
class CostLimits:
    """The most that the model to take may cost; None is no limit.

    Attributes:
        latency_ms: time of a forward pass of ``batch_size`` images in the runtime, in milliseconds.
        params: number of parameters.
        file_bytes: size of the saved model: ``model.safetensors`` for ``eager``, else the exported files.
        memory_mib: peak memory of a training step in MiB, that of ``--cost memory``; not of inference.
        runtime: where the model will run; others than ``eager`` (PyTorch) run on the CPU.
        batch_size: images per pass.

    Raises:
        GlocalError: for a limit that is not a positive number, or an unknown runtime.
    """

    latency_ms: float | None = None
    params: float | None = None
    file_bytes: float | None = None
    memory_mib: float | None = None
    runtime: RuntimeName = "eager"
    batch_size: int = 1

    def __post_init__(self) -> None:
        check_choice("runtime", self.runtime, list(RUNTIMES))
        if not (isinstance(self.batch_size, int) and self.batch_size >= 1):
            raise GlocalError(f"batch: expected 1 or more, got {self.batch_size!r}")
        for what, value in (
            ("max-latency", self.latency_ms),
            ("max-params", self.params),
            ("max-file", self.file_bytes),
            ("max-memory", self.memory_mib),
        ):
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise GlocalError(f"{what}: expected a positive number, or None for no limit; got {value!r}")

    @classmethod
    def parse(
        cls,
        *,
        max_latency: str | None = None,
        max_params: str | None = None,
        max_file: str | None = None,
        max_memory: str | None = None,
        runtime: str = "eager",
    ) -> "CostLimits":
        """From the options of the command line; each number needs its unit (`parse_quantity`).

        Args:
            max_latency: such as ``10ms``, ``0.5s``; at batch 1.
            max_params: such as ``20M``.
            max_file: such as ``40MB``, ``40MiB``.
            max_memory: such as ``500MB``.
            runtime: ``eager``, ``onnxruntime`` or ``openvino``.

        Raises:
            GlocalError: for an invalid value, or a runtime that is unknown or not installed.
        """

        def quantity(option: str, text: str | None, units: Mapping[str, float]) -> float | None:
            return None if text is None else parse_quantity(option, text, units)

        memory = quantity("max-memory", max_memory, SIZES)
        limits = cls(
            latency_ms=quantity("max-latency", max_latency, TIMES),
            params=quantity("max-params", max_params, COUNTS),
            file_bytes=quantity("max-file", max_file, SIZES),
            memory_mib=None if memory is None else memory / MIB,
            runtime=runtime,  # type: ignore[arg-type]  # checked
        )
        check_runtime(limits.runtime)
        return limits

    @property
    def latency_key(self) -> str:
        """Key of the time in measured costs: for ``eager`` that of every comparison."""
        suffix = "" if self.runtime == "eager" else f"_{self.runtime}"
        return f"latency_ms_b{self.batch_size}{suffix}"

    @property
    def needs_runtime(self) -> bool:
        """Whether a model that cannot be exported has no value for one of the limits."""
        return self.runtime != "eager" and (self.latency_ms is not None or self.file_bytes is not None)

    @property
    def needs_deployment(self) -> bool:
        """Whether costs are needed that are not measured in every comparison."""
        elsewhere = self.runtime != "eager" or self.batch_size != 1
        return self.file_bytes is not None or (self.latency_ms is not None and elsewhere)

    @property
    def place(self) -> str:
        """Where the model will run: key of the costs measured there."""
        return f"{self.runtime}-b{self.batch_size}"

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return bool(_limited(self))


def check_runtime(runtime: RuntimeName) -> None:
    """Check that a runtime is installed.

    Raises:
        GlocalError: if a package is missing.
    """
    for package in RUNTIMES[runtime]:
        if importlib.util.find_spec(package) is None:
            raise GlocalError(
                f"runtime: {runtime} needs {package}, which is not installed; pip install 'glocal[export]'"
            )


def meets(limits: CostLimits, costs: Mapping[str, Any]) -> list[str]:
    """Why a model does not meet the limits; nothing if it does.

    Args:
        limits: of the comparison.
        costs: measured: `CostLimits.latency_key`, `FILE`, `MEMORY`, `PARAMS`, as far as they are limited.

    Returns:
        Such as "12.3 ms per image in onnxruntime, above 10 ms".
    """
    reasons = []
    if ERROR in costs and limits.needs_runtime:
        reasons.append(f"does not run in {limits.runtime}: {costs[ERROR]}")
    for limit in _limited(limits):
        value = costs.get(limit.key) if ERROR in costs else costs[limit.key]
        if value is None or value <= limit.most:
            continue
        reason = f"{limit.text(value)}, above {limit.unit.format(_plain(limit.most / limit.scale))}"
        if limit.key == limits.latency_key and at_limit(limits, costs):
            low, high = (apart(bound, limit.most) for bound in costs[f"{limit.key}{RANGE}"])
            reason += f" but at the limit: half of the passes took {low} to {high} ms"
        reasons.append(reason)
    return reasons


def margins(limits: CostLimits, costs: Mapping[str, Any]) -> list[str]:
    """By how much a model meets each of the limits.

    Args:
        limits: of the comparison.
        costs: of a model that meets them; see `meets`.

    Returns:
        Such as "8.90 ms per image in onnxruntime, 11 % below 10 ms".
    """
    texts = []
    for limit in _limited(limits):
        value, most = costs[limit.key], limit.unit.format(_plain(limit.most / limit.scale))
        text = f"{limit.text(value)}, {100 * (1 - value / limit.most):.0f} % below {most}"
        if limit.key == limits.latency_key and at_limit(limits, costs):
            low, high = (apart(bound, limit.most) for bound in costs[f"{limit.key}{RANGE}"])
            text += f" but at the limit: half of the passes took {low} to {high} ms"
        texts.append(text)
    return texts


def at_limit(limits: CostLimits, costs: Mapping[str, Any]) -> bool:
    """Whether the limit on time lies between the first and the third quartile: it is met, or not, by a hair."""
    if limits.latency_ms is None or ERROR in costs:
        return False
    low, high = costs.get(f"{limits.latency_key}{RANGE}") or (costs[limits.latency_key],) * 2
    return bool(low <= limits.latency_ms <= high)


def nearest_model(limits: CostLimits, costs: Mapping[str, Mapping[str, Any]]) -> str:
    """The model that is the least above the limits, by the limit that it misses most.

    Args:
        limits: of the comparison.
        costs: of each model; see `meets`.

    Returns:
        Such as "nearest: resnet18, 12.3 ms per image in onnxruntime, 1.23 times the limit".
    """
    ratios = {}
    for name, measured in costs.items():
        if ERROR not in measured or not limits.needs_runtime:
            ratios[name] = max((measured[limit.key] / limit.most, limit) for limit in _limited(limits))
    if not ratios:
        reasons = [f"{name}: {measured[ERROR]}" for name, measured in costs.items()]
        return f"none of them runs in {limits.runtime} ({few(reasons, 3, '; ')})"
    name = min(ratios, key=lambda name: ratios[name][0])
    ratio, limit = ratios[name]
    return f"nearest: {name}, {limit.text(costs[name][limit.key])}, {apart(ratio, 1.0)} times the limit"


def none_meets(limits: CostLimits, costs: Mapping[str, Mapping[str, Any]]) -> str:
    """What to say where no model meets the limits."""
    asked = listed([limit.what.format(_plain(limit.most / limit.scale)) for limit in _limited(limits)])
    return (
        f"limits: expected a model of at most {asked}, got none among {len(costs)}; {nearest_model(limits, costs)}; "
        "allow more, or name smaller models with --models"
    )


def limits_in_words(limits: LimitsResults) -> str:
    """Sentences for the verdict: who is above the limits, and whether the chosen model holds them after training."""
    outside = [f"{one['model']} ({'; '.join(one['reasons'])})" for one in limits["models"] if one["reasons"]]
    text = f" Not within the limits: {few(outside, 3)}." if outside else ""
    confirmed = limits["confirmed"]
    if confirmed is None:
        return text
    if confirmed["reasons"]:
        return f"{text} Measured again after training, {confirmed['model']} no longer holds the limits: " + (
            f"{'; '.join(confirmed['reasons'])}."
        )
    what = "the limits" if len(confirmed["margins"]) > 1 else "the limit"
    return f"{text} Measured again after training, {confirmed['model']} holds {what}: {listed(confirmed['margins'])}."


def limits_caveats(limits: LimitsResults) -> list[str]:
    """What to do if the chosen model no longer holds the limits."""
    confirmed = limits["confirmed"]
    if confirmed is None or not confirmed["reasons"]:
        return []
    return [
        f"{confirmed['model']} was within the limits before training and is not any more. If the machine was busy, "
        "--resume measures again; otherwise allow more, or set a lower limit, which leaves it out."
    ]


def apart(value: float, other: float) -> str:
    """A value with three significant digits, or as many as tell it from the other."""
    for digits in range(3, 12):
        text = _digits(value, digits)
        if value == other or text != _digits(other, digits):
            break
    return text


class _Limit(NamedTuple):
    """One limit.

    Attributes:
        key: of the value in measured costs.
        most: in the unit of the measured value.
        scale: of the unit it is shown in, in that unit.
        unit: format of a value with its unit.
        what: with what it is, too.
    """

    key: str
    most: float
    scale: float
    unit: str
    what: str

    def text(self, value: float) -> str:
        """A measured value, to be told from the limit."""
        return self.what.format(apart(value / self.scale, self.most / self.scale))


def _limited(limits: CostLimits) -> list[_Limit]:
    """The limits that are set."""
    found = []
    if limits.latency_ms is not None:
        where = "PyTorch" if limits.runtime == "eager" else limits.runtime
        images = "image" if limits.batch_size == 1 else f"{limits.batch_size} images"
        found.append(_Limit(limits.latency_key, limits.latency_ms, 1, "{} ms", f"{{}} ms per {images} in {where}"))
    if limits.params is not None:
        found.append(_Limit(PARAMS, limits.params, 1e6, "{}M", "{}M parameters"))
    if limits.file_bytes is not None:
        size, unit = _shown_in(limits.file_bytes)
        found.append(_Limit(FILE, limits.file_bytes, size, f"{{}} {unit}", f"{{}} {unit} on the disk"))
    if limits.memory_mib is not None:
        size, unit = _shown_in(limits.memory_mib * MIB)
        memory = f"{{}} {unit} of memory in training"
        found.append(_Limit(MEMORY, limits.memory_mib, size / MIB, f"{{}} {unit}", memory))
    return found


def _shown_in(num_bytes: float) -> tuple[float, str]:
    """The unit in which a limit was most likely given: MiB if it is a whole number of them."""
    return (MIB, "MiB") if num_bytes % MIB == 0 else (1e6, "MB")


def _digits(value: float, digits: int) -> str:
    """Significant digits without an exponent, those before the point in full."""
    before = math.floor(math.log10(abs(value))) + 1 if value else 1
    return f"{value:,.{max(0, digits - before)}f}"


def _plain(value: float) -> str:
    """At most six digits after the point, without zeros at the end."""
    return f"{value:,.6f}".rstrip("0").rstrip(".")
