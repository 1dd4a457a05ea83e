"""Training: it learns, it is reproducible, and its folder says what happened."""

import json

import pytest
import torch

from imgfast.engine import (
    RunFolder,
    RunFolderError,
    TrainConfig,
    TrainError,
    load_checkpoint,
    train,
)
from imgfast.engine.picture import save_prediction_grid


def weights(path):
    return load_checkpoint(path).model.state_dict()


def test_a_short_run_learns(result):
    # 800 pictures, 4 epochs; guessing gives 0.1.
    assert result.evaluation.accuracy > 0.5
    assert result.evaluation.pictures == len(result.held_out)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path, pictures):
    few = pictures.subset(torch.arange(400))
    runs = {}
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        torch.rand(5)  # the global random state has no say
        run = RunFolder(tmp_path / name)
        train(few, TrainConfig(epochs=2, seed=seed), run)
        runs[name] = weights(run.last)
    for key, value in runs["first"].items():
        assert torch.equal(value, runs["again"][key])
    assert not torch.equal(runs["first"]["head.weight"], runs["other"]["head.weight"])


def test_fused_and_stock_layers_learn_alike(tmp_path, pictures):
    few = pictures.subset(torch.arange(300))
    found = {}
    for layers in ("imgfast", "stock"):
        run = RunFolder(tmp_path / layers)
        train(few, TrainConfig(epochs=1, batch_size=60, layers=layers), run)
        found[layers] = weights(run.last)
    for key, value in found["imgfast"].items():
        torch.testing.assert_close(value, found["stock"][key], rtol=0, atol=2e-3)


def test_the_folder_says_what_happened(run, result):
    config = json.loads((run.path / "config.json").read_text())
    assert config["epochs"] == 4 and config["lr"] == TrainConfig().lr
    assert config["classifier"]["widths"] == [32, 64, 128]
    assert "torch" in json.loads((run.path / "environment.json").read_text())
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["accuracy"] == result.evaluation.accuracy
    best = load_checkpoint(run.best).training
    assert best["accuracy"] == max(line["accuracy"] for line in lines) == result.best_accuracy
    assert load_checkpoint(run.last).training["epoch"] == 4


def test_a_used_folder_is_left_alone_unless_asked(tmp_path, run, pictures):
    with pytest.raises(RunFolderError, match="already exists; choose another or use --overwrite"):
        RunFolder(run.path)
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="is not a run folder"):
        RunFolder(tmp_path, overwrite=True)
    with pytest.raises(RunFolderError, match="must be a folder"):
        RunFolder(tmp_path / "letters.txt")
    assert RunFolder.unused("run", tmp_path) == tmp_path / "run"
    (tmp_path / "run").mkdir()
    assert RunFolder.unused("run", tmp_path) == tmp_path / "run-2"


def test_an_interrupt_leaves_the_checkpoints_of_the_epochs_before(tmp_path, pictures):
    few = pictures.subset(torch.arange(200))
    run = RunFolder(tmp_path / "run")

    def interrupt(step, steps, figures):
        if figures.get("epoch") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(few, TrainConfig(epochs=50, batch_size=80), run, interrupt)
    assert load_checkpoint(run.last).training["epoch"] == 2
    # A new run in the same folder keeps the old checkpoint until it has one of its own.
    with pytest.raises(KeyboardInterrupt):
        train(few, TrainConfig(epochs=1), RunFolder(run.path, overwrite=True), raise_interrupt)
    assert load_checkpoint(run.last).training["epoch"] == 2


def raise_interrupt(*_):
    raise KeyboardInterrupt


def test_a_diverged_run_stops_and_keeps_what_was_good(tmp_path, pictures):
    run = RunFolder(tmp_path / "run")
    few = pictures.subset(torch.arange(200))
    config = TrainConfig(epochs=40, batch_size=20, lr=10.0, weight_decay=10.0)
    with pytest.raises(TrainError, match="use a lower --lr"):
        train(few, config, run)
    kept = load_checkpoint(run.last).training if run.last.exists() else {"loss": 0.0}
    assert kept["loss"] < float("inf")


@pytest.mark.parametrize(
    "change, rule",
    [
        ({"epochs": 0}, r"epochs must lie in \[1, 100000\], got 0"),
        ({"lr": float("nan")}, "lr must lie in"),
        ({"seed": -1}, "seed must lie in"),
        ({"label_smoothing": 1.5}, "label_smoothing must lie in"),
        ({"model": "huge"}, "model must be one of tiny, base, wide, got 'huge'"),
        ({"layers": "none"}, "layers must be one of imgfast, stock"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda"),
    ],
)
def test_settings_are_checked(change, rule):
    with pytest.raises(ValueError, match=rule):
        TrainConfig(**change)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has the device that is asked for"
)
def test_an_absent_device_is_an_error(tmp_path, pictures):
    with pytest.raises(ValueError, match="torch sees no CUDA device; use --device cpu"):
        train(pictures, TrainConfig(device="cuda"), RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_picture_of_predictions_shows_the_pictures(tmp_path, result):
    from PIL import Image

    path = tmp_path / "grid.png"
    save_prediction_grid(path, result.model, result.held_out, rows=2, columns=3)
    with Image.open(path) as image:
        assert image.format == "PNG" and not image.info
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        width, height = image.size
    cell = pixels.view(height, width, 3)[8:120, 8:120].float().mean().item()
    # The first cell holds the first held-out picture, enlarged.
    assert cell == pytest.approx(result.held_out.images[0].float().mean().item(), abs=4)


@pytest.mark.parametrize("count, epochs", [(30, 1), (30, 2), (60, 1), (60, 5)])
def test_a_handful_of_pictures_is_enough(tmp_path, pictures, count, epochs):
    """One step in all, or one an epoch: no schedule may divide by their number less one."""
    chosen = torch.cat(
        [(pictures.labels == c).nonzero().flatten()[: count // 10] for c in range(10)]
    )
    config = TrainConfig(epochs=epochs, batch_size=1000)
    found = train(pictures.subset(chosen), config, RunFolder(tmp_path / "run"))
    assert found.evaluation.pictures == 10 * max(1, round(count // 10 * 0.2))
