"""Train, evaluate, predict, compare: what the command line runs, as functions."""

from imgfast.engine.abstention import (
    Abstention,
    AbstentionError,
    calibrate,
    load_abstention,
    ood_auroc,
    save_abstention,
)
from imgfast.engine.attack import AttackCurve, attack_curve
from imgfast.engine.checkpoint import (
    Checkpoint,
    CheckpointError,
    GeneratorCheckpoint,
    checkpoint_kind,
    load_checkpoint,
    load_generator,
    save_checkpoint,
)
from imgfast.engine.compare import Comparison, compare
from imgfast.engine.evaluate import Evaluation, evaluate, evaluate_checkpoint
from imgfast.engine.generation.train import GeneratorResult, train_generator
from imgfast.engine.generation.train_config import GeneratorTrainConfig
from imgfast.engine.predict import Prediction, predict_files, predict_probabilities
from imgfast.engine.run_folder import RunFolder, RunFolderError
from imgfast.engine.train import TrainError, TrainResult, train
from imgfast.engine.train_config import TrainConfig

__all__ = [
    "Abstention",
    "AbstentionError",
    "AttackCurve",
    "Checkpoint",
    "CheckpointError",
    "Comparison",
    "Evaluation",
    "GeneratorCheckpoint",
    "GeneratorResult",
    "GeneratorTrainConfig",
    "Prediction",
    "RunFolder",
    "RunFolderError",
    "TrainConfig",
    "TrainError",
    "TrainResult",
    "attack_curve",
    "calibrate",
    "checkpoint_kind",
    "compare",
    "evaluate",
    "evaluate_checkpoint",
    "load_abstention",
    "load_checkpoint",
    "load_generator",
    "ood_auroc",
    "predict_files",
    "predict_probabilities",
    "save_abstention",
    "save_checkpoint",
    "train",
    "train_generator",
]
