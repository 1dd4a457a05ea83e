"""The folder of one training run: configuration, environment, metrics and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imgfast import info
from imgfast.data.atomic import write_atomically
from imgfast.engine import event_log


class RunFolderError(ValueError):
    """A run folder that must not or cannot be written: the folder, the rule, the remedy."""


class RunFolder:
    """Files of one run.

    ``config.json``       every setting, defaults resolved
    ``environment.json``  what :func:`imgfast.info.collect` says, and whether events are written
    ``metrics.jsonl``     one line of JSON an epoch
    ``events.out.*``      the same for TensorBoard, where ``tensorboard`` is installed
    ``curves.png``        loss, accuracy and learning rate, at the end
    ``samples``           of a generator: a sheet of pictures, ``epoch-001.png``, an epoch
    ``lr.png``            of the learning-rate range test, where one was made
    ``last.safetensors``  after the latest epoch
    ``best.safetensors``  after the epoch with the best held-out accuracy; of a generator, loss
    ``state.safetensors`` what resuming needs, see :mod:`imgfast.engine.training_state`

    Args:
        path: the folder; it and its parents are made by :meth:`start`.
        overwrite: allow a folder that holds an earlier run. Its checkpoints stay until the new
            run's first ones take their place.

    Raises:
        RunFolderError: the folder is not empty, or with ``overwrite`` is not a run folder.
    """

    def __init__(self, path: str | Path, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.last = self.path / "last.safetensors"
        self.best = self.path / "best.safetensors"
        self.state = self.path / "state.safetensors"
        self.metrics = self.path / "metrics.jsonl"
        self.curves = self.path / "curves.png"
        self.lr_curve = self.path / "lr.png"
        self.samples = self.path / "samples"
        try:
            # A range test that came first does not make the folder a used one.
            used = self.path.exists() and any(f != self.lr_curve for f in self.path.iterdir())
        except OSError as error:
            raise RunFolderError(f"{self.path}: must be a folder: {error.strerror}") from error
        if used and not overwrite:
            raise RunFolderError(f"{self.path}: already exists; choose another or use --overwrite")
        if used and not (self.path / "config.json").is_file():
            raise RunFolderError(f"{self.path}: is not a run folder, it will not be overwritten")

    @staticmethod
    def unused(stem: str, parent: str | Path = "runs") -> Path:
        """``parent/stem``, or with the first number that is free behind it."""
        path, number = Path(parent, stem), 2
        while path.exists():
            path, number = Path(parent, f"{stem}-{number}"), number + 1
        return path

    @staticmethod
    def existing(path: str | Path) -> RunFolder:
        """The folder of a run that was started before.

        Raises:
            RunFolderError: it is not there or holds no run.
        """
        if not Path(path, "config.json").is_file():
            raise RunFolderError(f"{path}: must be the folder of a run, it has no config.json")
        return RunFolder(path, overwrite=True)

    def settings(self) -> dict[str, Any]:
        """What :meth:`start` recorded in ``config.json``.

        Raises:
            RunFolderError: it is not valid any more.
        """
        path = self.path / "config.json"
        try:
            settings = json.loads(path.read_text())
        except ValueError as error:
            raise RunFolderError(f"{path}: must be JSON: {error}") from error
        known = settings if isinstance(settings, dict) else {}
        network = known.get("classifier", known.get("generator"))
        if not isinstance(network, dict) or "image_size" not in network:
            raise RunFolderError(
                f"{path}: must hold the settings of a run, with its classifier or generator"
            )
        return settings

    def start(self, settings: dict[str, Any]) -> None:
        """Make the folder, record the settings and the environment, begin the metrics anew."""
        self.path.mkdir(parents=True, exist_ok=True)
        # First of all: the state of an earlier run must not be taken for this one's.
        self.state.unlink(missing_ok=True)
        sheets = self.samples.glob("epoch-*.png")
        for earlier in [self.curves, *sheets, *self.path.glob("events.out.*")]:
            earlier.unlink(missing_ok=True)
        environment = {**info.collect(), "tensorboard": event_log.version()}
        for name, values in (("config", settings), ("environment", environment)):
            text = json.dumps(values, indent=2) + "\n"
            write_atomically(self.path / f"{name}.json", text.encode())
        self.write_metrics([])

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def write_metrics(self, metrics: list[dict[str, Any]]) -> None:
        """Replace the lines of ``metrics.jsonl``."""
        text = "".join(json.dumps(line) + "\n" for line in metrics)
        write_atomically(self.metrics, text.encode())
