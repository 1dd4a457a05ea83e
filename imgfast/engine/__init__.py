"""Train, evaluate, predict, compare: what the command line runs, as functions."""

from imgfast.engine.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from imgfast.engine.compare import Comparison, compare
from imgfast.engine.evaluate import Evaluation, evaluate, evaluate_checkpoint
from imgfast.engine.predict import Prediction, predict_files, predict_probabilities
from imgfast.engine.run_folder import RunFolder, RunFolderError
from imgfast.engine.train import TrainError, TrainResult, train
from imgfast.engine.train_config import TrainConfig

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Comparison",
    "Evaluation",
    "Prediction",
    "RunFolder",
    "RunFolderError",
    "TrainConfig",
    "TrainError",
    "TrainResult",
    "compare",
    "evaluate",
    "evaluate_checkpoint",
    "load_checkpoint",
    "predict_files",
    "predict_probabilities",
    "save_checkpoint",
    "train",
]
