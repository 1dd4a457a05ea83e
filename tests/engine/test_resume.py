"""A run that was killed and resumed ends with the bytes of one that never stopped."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from imgfast.engine import CheckpointError, RunFolder, RunFolderError, TrainConfig, train

# IMGFAST_KILLS=20 kills more often than the suite has time for.
KILLS = int(os.environ.get("IMGFAST_KILLS", 3))


@pytest.fixture(scope="module")
def few(pictures):
    return pictures.subset(torch.arange(200))


def metrics(run):
    """The lines of metrics.jsonl without the seconds, which no two runs share."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: line[name] for name in line if name != "train_seconds"} for line in lines]


def files(run):
    """What two runs of the same training must agree in."""
    return run.last.read_bytes(), run.best.read_bytes(), metrics(run)


def interrupt_in(epoch):
    def on_step(step, steps, figures):
        if figures.get("epoch", 0) == epoch - 1:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "sgd", "amp": "bf16"},
        {"optimizer": "adamw", "accumulate": 3},
        {"mixup": 0.4, "cutmix": 1.0, "ema": 0.9, "deterministic": True},
        {"layers": "stock", "ema": 0.99, "patience": 50},
    ],
)
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path, few, options):
    config = TrainConfig(epochs=4, batch_size=48, seed=3, **options)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    train(few, config, whole)
    for epoch in (1, 3):  # before there is a state, and after two epochs
        with pytest.raises(KeyboardInterrupt):
            train(few, config, parts, interrupt_in(epoch), resume=epoch > 1)
    assert len(metrics(parts)) == 2
    result = train(few, config, parts, resume=True)
    assert files(parts) == files(whole)
    # Done is done: the same result again, and nothing changes.
    again = train(few, config, parts, lambda *_: pytest.fail("a step"), resume=True)
    assert again.evaluation == result.evaluation
    assert again.best_accuracy == result.best_accuracy
    assert files(parts) == files(whole)


def test_lines_after_the_state_are_dropped(tmp_path, few):
    """A kill between the line of an epoch and its state, and one in the middle of a line."""
    config = TrainConfig(epochs=3, batch_size=80)
    run = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(few, config, run, interrupt_in(3))
    with run.metrics.open("a") as file:
        file.write('{"epoch": 3, "loss": 9.0}\n{"epo')
    run.last.write_bytes(b"of the epoch that is to be repeated")
    train(few, config, run, resume=True)
    assert [line["epoch"] for line in metrics(run)] == [1, 2, 3]
    train(few, config, RunFolder(tmp_path / "whole"))
    assert files(run) == files(RunFolder(tmp_path / "whole", overwrite=True))


def test_a_state_of_another_run_or_damaged_is_refused(tmp_path, few, pictures):
    config = TrainConfig(epochs=2, batch_size=80)
    run = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(few, config, run, interrupt_in(2))
    other = pictures.subset(torch.arange(200, 400))
    for data, changed in ((few, TrainConfig(epochs=3, batch_size=80)), (other, config)):
        with pytest.raises(CheckpointError, match="settings and pictures, it is of another"):
            train(data, changed, run, resume=True)
    state = run.state.read_bytes()
    for damaged in (state[:-1], state[:9000] + b"\1\2\3" + state[9003:], b"", state[:100]):
        run.state.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state\.safetensors: "):
            train(few, config, run, resume=True)
    run.state.write_bytes(run.last.read_bytes())
    with pytest.raises(CheckpointError, match="must be a checkpoint that imgfast wrote"):
        train(few, config, run, resume=True)
    # A new run in the folder forgets the state before it does anything else.
    with pytest.raises(KeyboardInterrupt):
        train(few, config, RunFolder(run.path, overwrite=True), interrupt_in(1))
    assert not run.state.exists()


def test_only_the_folder_of_a_run_can_be_resumed(tmp_path, run):
    with pytest.raises(RunFolderError, match="must be the folder of a run, it has no"):
        RunFolder.existing(tmp_path)
    for text, rule in (("[", "must be JSON"), ("{}", "must hold the settings of a run")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RunFolderError, match=rule):
            RunFolder.existing(tmp_path).settings()
    assert RunFolder.existing(run.path).settings()["epochs"] == 4


def test_kill_at_any_moment_and_resume(tmp_path):
    """Trainers are killed with SIGKILL at random moments; every file they leave is whole."""
    # The trainers are forked from one process that has no threads yet and has imported what they
    # need: no import per kill.
    script = textwrap.dedent(
        """
        import os, random, signal, sys, time
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        import matplotlib.pyplot
        import torch._dynamo
        import torch.utils.tensorboard
        import torchmetrics.classification
        from imgfast.data import load_data
        from imgfast.engine import RunFolder, TrainConfig, load_checkpoint, train
        from imgfast.engine import training_state

        data = load_data("fashion-mnist").subset(torch.arange(200))
        config = TrainConfig(epochs=8, batch_size=40, mixup=0.3, cutmix=1.0, ema=0.9)

        def trainer(path, resume):
            process = os.fork()
            if process == 0:
                train(data, config, RunFolder(path, overwrite=resume), resume=resume)
                os._exit(0)
            return process

        def files(path):
            lines = (path / "metrics.jsonl").read_text().splitlines()
            assert len(lines) == 8
            return [
                (path / "last.safetensors").read_bytes(),
                (path / "best.safetensors").read_bytes(),
                [line[: line.index('"train_seconds"')] for line in lines],
            ]

        root, kills, dice = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)
        started = time.perf_counter()
        assert os.waitpid(trainer(root / "whole", False), 0)[1] == 0
        seconds = time.perf_counter() - started
        whole = files(root / "whole")

        def epochs(path):
            done = path / "metrics.jsonl"
            return done.read_text().count("\\n") if done.exists() else -1

        reached = []
        for number in range(kills):
            path = root / str(number)
            # A kill in each part of the run and none after the last epoch but one: the first run's
            # time says little of the next one's on a busy machine.
            process = trainer(path, False)
            while epochs(path) < 7 * number // kills - (number == 0):
                time.sleep(0.001)
            latest = time.perf_counter() + seconds / 8 * dice.random()
            while time.perf_counter() < latest and epochs(path) < 7:
                time.sleep(0.001)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            for name in ("last", "best"):
                if (path / f"{name}.safetensors").exists():
                    load_checkpoint(path / f"{name}.safetensors")
            if (path / "state.safetensors").exists():
                training_state._read(path / "state.safetensors")
            reached.append(epochs(path))
            if (path / "config.json").exists():
                assert os.waitpid(trainer(path, True), 0)[1] == 0
                assert files(path) == whole, number
        print(reached)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(KILLS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60 + 20 * KILLS,
    )
    assert done.returncode == 0, done.stderr
    reached = json.loads(done.stdout)
    assert len(reached) == KILLS
    # Some of the kills did fall into the training.
    assert any(0 < epochs < 8 for epochs in reached), reached
