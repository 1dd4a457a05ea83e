"""Metrics as TensorBoard events, where the package ``tensorboard`` is installed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from imgfast.engine import interrupts


def version() -> str:
    """Of the package ``tensorboard``, or that it is missing."""
    try:
        return importlib.metadata.version("tensorboard")
    except importlib.metadata.PackageNotFoundError:
        return "not installed, no events are written"


class EventLog:
    """Writes every metric of an epoch as a scalar; does nothing without ``tensorboard``.

    Args:
        folder: where the event file goes.
        epoch: the first epoch to come. TensorBoard is told to forget what an interrupted run wrote
            of it and of later ones.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.writer = None
        else:
            with interrupts.held_back():  # it has a thread, and locks
                self.writer = SummaryWriter(str(folder), purge_step=epoch)

    def log(self, metrics: dict[str, Any]) -> None:
        """Write the metrics of ``metrics["epoch"]``."""
        if self.writer is not None:
            with interrupts.held_back():
                for name, value in metrics.items():
                    if name != "epoch":
                        self.writer.add_scalar(name, value, metrics["epoch"])

    def close(self) -> None:
        """Write out what is still in memory."""
        if self.writer is not None:
            with interrupts.held_back():
                self.writer.close()
