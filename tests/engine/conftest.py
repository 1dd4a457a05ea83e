"""Pictures and a trained model that the tests of the engine share."""

import pytest
import torch

from imgfast.data import ImageSet, load_data
from imgfast.engine import RunFolder, TrainConfig, TrainResult, train


@pytest.fixture(scope="session")
def pictures() -> ImageSet:
    """1,000 real pictures of all ten classes."""
    return load_data("fashion-mnist").subset(torch.arange(1000))


@pytest.fixture(scope="session")
def trained(tmp_path_factory, pictures) -> tuple[RunFolder, TrainResult]:
    """A short run on them."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "short")
    return run, train(pictures, TrainConfig(epochs=4, optimizer="adamw", shift=1), run)


@pytest.fixture(scope="session")
def run(trained) -> RunFolder:
    return trained[0]


@pytest.fixture(scope="session")
def result(trained) -> TrainResult:
    return trained[1]
