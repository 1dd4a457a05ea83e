"""A sweep trains what it says, and its rows carry each network's own size and accuracy."""

import json

import torch
from PIL import Image

from imgfast.engine import TrainConfig, load_checkpoint
from imgfast.engine.sweep import describe, save_plot, sweep
from imgfast.models import cost


def test_a_row_for_each_network(tmp_path, pictures):
    few = pictures.subset(torch.arange(300))
    variants = [{"widths": (4, 8)}, {"widths": (8,), "norm": "batch", "activation": "tanh"}]
    seen = []
    rows = sweep(few, TrainConfig(epochs=1), tmp_path, variants, seen.append)
    assert seen == rows
    for row, variant in zip(rows, variants, strict=True):
        run = tmp_path / row.name.replace(" ", "_")
        config = load_checkpoint(run).config
        assert config.widths == variant["widths"] and config.norm == variant.get("norm", "none")
        assert row.parameters == cost(config).parameters and row.pictures_a_second > 0
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        assert row.accuracy == last["accuracy"]
    save_plot(tmp_path / "sweep.png", rows)
    assert Image.open(tmp_path / "sweep.png").size == (900, 600)


def test_networks_have_short_names():
    variant = {"widths": (8, 16), "convolutions": 2, "norm": "batch", "activation": "gelu"}
    assert describe(variant) == "8-16 x2 batch gelu"
