"""Runtime errors during training, as messages: what happened and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from glocal.data.workers import WORKER_ERRORS, worker_died
from glocal.training.errors import TrainingError

if TYPE_CHECKING:
    from glocal.training.trainer import Trainer


@contextmanager
def explained(run: "Trainer") -> Iterator[None]:
    """Turn out-of-memory errors, dead data-loading workers and lost processes into TrainingError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrainingError(_out_of_memory(run)) from error
    except ValueError as error:  # and whatever else is one, as it is
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            "BatchNorm needs more than 1 value per channel in training, got one image with a 1x1 map in step "
            f"{run.state.step + 1}; raise batch_size or image_size, lower --devices or grad_accum_steps, or choose a "
            "model without BatchNorm"
            f"{run.last_good()}"
        ) from error
    except WORKER_ERRORS as error:
        step, text = run.state.step, str(error) or type(error).__name__
        if "can't allocate memory" in text or "out of memory" in text:
            raise TrainingError(_out_of_memory(run)) from error
        if worker_died(error):
            raise TrainingError(
                f"a data-loading worker died after step {step}, probably out of memory ({text.splitlines()[0]}); "
                f"try fewer --workers{run.last_good()}"
            ) from error
        lost = any(word in text for word in ("Connection", "gloo", "NCCL", "timed out", "peer"))
        if run.config.hardware.world_size > 1 and lost:
            raise TrainingError(
                f"rank {run.rank} lost another process after step {step} ({text.splitlines()[0][:200]}); "
                f"--resume continues{run.last_good()}"
            ) from error
        raise


def _out_of_memory(run: "Trainer") -> str:
    batch_size, accum = run.config.data.batch_size, run.config.optimizer.grad_accum_steps
    at_a_time = -(-batch_size // (run.config.hardware.world_size * accum))
    advice = (
        f"grad_accum_steps={2 * accum} keeps it and takes {-(-at_a_time // 2)} at a time, or lower batch_size"
        if at_a_time > 1
        else "try a smaller image_size"
    )
    peak = f" (peak {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB)" if torch.cuda.is_available() else ""
    return (
        f"out of memory{peak} with a batch_size of {batch_size}, {at_a_time} images at a time on each device: "
        f"{advice}{run.last_good()}"
    )
