"""Figures by matplotlib, written as PNG, atomically and without a date."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from imgfast.data.atomic import write_atomically


def new_figure(width: float, height: float) -> Any:
    """An empty ``matplotlib.figure.Figure`` of that many inches."""
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    return Figure((width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure; a file of that name is replaced."""
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=100, metadata={"Software": None})
    write_atomically(Path(path), encoded.getvalue())
