"""Our checkpoints for Lightning's own Trainer: ``Trainer(plugins=[FolderCheckpointIO()])``."""

import os
from pathlib import Path
from typing import Any

from lightning_fabric.plugins import CheckpointIO

from glocal.run_dir import remove
from glocal.training.checkpoint import load_checkpoint, save_checkpoint


class FolderCheckpointIO(CheckpointIO):
    """Checkpoints as atomically written folders, for any LightningModule."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """See `glocal.training.checkpoint.save_checkpoint`; ``storage_options`` are texts by file name."""
        save_checkpoint(path, checkpoint, storage_options)

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See `glocal.training.checkpoint.load_checkpoint`."""
        return load_checkpoint(path, map_location or "cpu")

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        """Delete a checkpoint; it is first renamed, so that a partly deleted one is never used."""
        remove(Path(path))
