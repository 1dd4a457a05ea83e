"""The folder of one training run: configuration, environment, metrics and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imgfast import info
from imgfast.engine.checkpoint import write_atomically


class RunFolderError(ValueError):
    """A run folder that must not or cannot be written: the folder, the rule, the remedy."""


class RunFolder:
    """Files of one run.

    ``config.json``      every setting, defaults resolved
    ``environment.json`` what :func:`imgfast.info.collect` says
    ``metrics.jsonl``    one line of JSON an epoch
    ``last.safetensors`` after the latest epoch
    ``best.safetensors`` after the epoch with the best held-out accuracy

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
        try:
            used = self.path.exists() and any(self.path.iterdir())
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

    def start(self, config: dict[str, Any]) -> None:
        """Make the folder, record the settings and the environment, begin the metrics anew."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name, values in (("config", config), ("environment", info.collect())):
            text = json.dumps(values, indent=2) + "\n"
            write_atomically(self.path / f"{name}.json", text.encode())
        (self.path / "metrics.jsonl").write_bytes(b"")

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")
