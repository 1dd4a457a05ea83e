"""Export a classifier for other programs: torch.export (``.pt2``) or ONNX, checked before it is
written.

What is exported is the twin in stock layers with the normalisation inside, so that the graph has
no operator of imgfast's: pixels in [0, 1] go in, logits come out, and neither this package nor the
training set's mean is needed to use the file.

Safety: ``torch.export.load`` unpickles parts of a file without ``weights_only`` (sample inputs, and
weights and constants where the file says so), so that a ``.pt2`` from somebody else can run code.
Imgfast loads none but the one it has just made. An ONNX file holds no code.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import imgfast
from imgfast.data import DataError, load_data
from imgfast.data.atomic import write_atomically
from imgfast.engine.checkpoint import Checkpoint
from imgfast.engine.evaluate import evaluation_set
from imgfast.engine.predict import predict_probabilities
from imgfast.engine.stock_twin import stock_twin
from imgfast.models import Classifier, ClassifierConfig

FORMATS = {"torch-export": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-4  # of a probability: float32 sums in another order differ by far less
METADATA_PREFIX = "imgfast."

_CHECKED = 256  # pictures
_MAX_BATCH = 1024

Run = Callable[[torch.Tensor], torch.Tensor]


class ExportError(ValueError):
    """An export that cannot be made or does not agree with the model."""


@dataclass(frozen=True)
class ExportReport:
    """A file that was written and how well it agrees with the fused model.

    Args:
        path: the file.
        format: key of ``FORMATS``.
        batch: pictures in one call, ``dynamic`` for any number.
        bytes, sha256: of the file.
        data, pictures: what it was checked on.
        max_difference: largest absolute difference of a probability.
        agreement: share of pictures with the same most probable class.
    """

    path: str
    format: str
    batch: str
    bytes: int
    sha256: str
    data: str
    pictures: int
    max_difference: float
    agreement: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


class PixelClassifier(nn.Module):
    """``model((pixels - mean) / std)`` in stock layers.

    Args:
        model: the classifier, in either kind of layers.

    Shape:
        float32 ``[N, C, S, S]`` in [0, 1], red, green, blue or grey, to logits ``[N, classes]``.
    """

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.classifier = stock_twin(model)
        for name, values in (("mean", model.config.mean), ("std", model.config.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.classifier((pixels - self.mean) / self.std)


def export_classifier(
    checkpoint: Checkpoint,
    path: str | Path,
    file_format: str | None = None,
    batch: str = "dynamic",
    overwrite: bool = False,
) -> ExportReport:
    """Export a checkpoint, check the result on real pictures, and write it atomically.

    Beside the graph the file says, as text (``metadata_props`` in ONNX, extra files in ``.pt2``),
    ``imgfast.classes``, ``imgfast.config``, ``imgfast.checkpoint_sha256`` of the checkpoint's file,
    ``imgfast.input`` and ``imgfast.version``. It names no path of this machine.

    Args:
        checkpoint: of :func:`imgfast.engine.load_checkpoint`.
        path: the file to write.
        file_format: key of ``FORMATS``; ``None`` goes by the end of the file's name.
        batch: ``dynamic``, or the number of pictures that every call will have.
        overwrite: replace a file that is there.

    Raises:
        ExportError: the file exists, an unknown format, a library that is not installed, or
            probabilities more than ``TOLERANCE`` from the model's: then nothing is written.
    """
    path = Path(path)
    file_format = _checked_format(file_format, path)
    size = _batch_size(batch)
    if path.exists() and not overwrite:
        raise ExportError(f"{path}: already exists; choose another --out or use --overwrite")
    if not path.parent.is_dir():
        raise ExportError(f"{path}: its folder must exist; make it or choose another --out")
    metadata = _metadata(checkpoint)
    module = PixelClassifier(checkpoint.model)
    if file_format == "onnx":
        data, run = _to_onnx(module, checkpoint.config, size, metadata)
    else:
        data, run = _to_torch_export(module, checkpoint.config, size, metadata)
    name, images = check_pictures(checkpoint)
    difference, agreement = compare_probabilities(checkpoint.model, run, images, size)
    if not difference <= TOLERANCE:  # a NaN fails, too
        raise ExportError(
            f"{path}: probabilities must be within {TOLERANCE} of the model's, "
            f"differ by {difference:.3g}; nothing was written"
        )
    write_atomically(path, data)
    return ExportReport(
        path=str(path),
        format=file_format,
        batch=batch,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        data=name,
        pictures=len(images),
        max_difference=difference,
        agreement=agreement,
    )


def check_pictures(checkpoint: Checkpoint, count: int = _CHECKED) -> tuple[str, torch.Tensor]:
    """The set's name and uint8 ``[count, C, S, S]`` of it, spread evenly.

    Held-out pictures of the training set where it is still there and unchanged, else pictures of
    the package, resized.
    """
    config = checkpoint.config
    try:
        data = evaluation_set(checkpoint)
    except DataError:
        data = load_data("fashion-mnist")
    images = data.images[torch.linspace(0, len(data) - 1, min(count, len(data))).long()]
    shape = (config.image_size, config.image_size)
    if tuple(images.shape[-2:]) != shape:
        images = F.interpolate(images.float(), shape, mode="bilinear").round().to(torch.uint8)
    return data.name, images.expand(-1, config.channels, -1, -1)


def compare_probabilities(
    model: Classifier, run: Run, images: torch.Tensor, size: int | None = None
) -> tuple[float, float]:
    """Largest difference of a probability, and the share of equal labels.

    Args:
        model: the classifier.
        run: float pixels ``[N, C, S, S]`` in [0, 1] to logits.
        images: uint8 ``[N, C, S, S]``.
        size: pictures in a call of ``run``; ``None`` tries batches of several sizes.
    """
    count = len(images)
    if size is None:
        batches = torch.arange(count).split([1, *_split_sizes(count - 1)])
    else:  # the last batch is filled up from the start
        batches = (torch.arange(-(-count // size) * size) % count).split(size)
    expected = predict_probabilities(model, images)
    difference, equal = 0.0, torch.zeros(count, dtype=torch.bool)
    for batch in batches:
        found = run(images[batch].float() / 255).float().softmax(1)
        gap = (found - expected[batch]).abs().max()
        difference = float(torch.maximum(gap, torch.tensor(difference)))  # keeps a NaN
        equal[batch] = found.argmax(1) == expected[batch].argmax(1)
    return difference, equal.float().mean().item()


def _split_sizes(count: int, size: int = 32) -> list[int]:
    return [size] * (count // size) + [count % size] * (count % size > 0)


def _to_torch_export(
    module: PixelClassifier, config: ClassifierConfig, size: int | None, metadata: dict[str, str]
) -> tuple[bytes, Run]:
    """The bytes of a ``.pt2``, and the program that they hold, loaded back."""
    program = torch.export.export(
        module, (_example(config, size),), dynamic_shapes=_dynamic_shapes(size), strict=False
    )
    for node in program.graph.nodes:
        if getattr(node.target, "namespace", "aten") != "aten":
            raise ExportError(f"export: the graph must have stock operators, has {node.target}")
        node.meta.pop("stack_trace", None)  # paths of this machine
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(metadata))
    data = buffer.getvalue()
    return data, torch.no_grad()(torch.export.load(io.BytesIO(data)).module())


def _to_onnx(
    module: PixelClassifier, config: ClassifierConfig, size: int | None, metadata: dict[str, str]
) -> tuple[bytes, Run]:
    """The bytes of an ONNX file, and a session of ONNX Runtime on them."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"export: onnx needs {error.name}; pip install 'imgfast[export]'"
        ) from error

    proto = torch.onnx.export(
        module,
        (_example(config, size),),
        dynamo=True,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=_dynamic_shapes(size),
        verbose=False,
    ).model_proto
    foreign = {node.domain for node in proto.graph.node} - {""}
    if foreign or proto.functions:
        raise ExportError(f"export: the graph must have ONNX's own operators, has {foreign}")
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces: paths of this machine
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto, full_check=True)
    data = proto.SerializeToString()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return data, lambda pixels: torch.from_numpy(
        session.run(["logits"], {"pixels": pixels.numpy()})[0]
    )


def _example(config: ClassifierConfig, size: int | None) -> torch.Tensor:
    # Two pictures where the batch is free: torch.export takes a size of 1 for a constant.
    generator = torch.Generator().manual_seed(0)
    side = config.image_size
    return torch.rand(size or 2, config.channels, side, side, generator=generator)


def _dynamic_shapes(size: int | None) -> tuple[dict[int, Any]] | None:
    return ({0: torch.export.Dim("batch", min=1)},) if size is None else None


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    config = checkpoint.config
    channels = "red, green, blue" if config.channels == 3 else "grey"
    values = {
        "classes": json.dumps(config.classes),
        "config": json.dumps(config.to_dict(), sort_keys=True),
        "checkpoint_sha256": hashlib.sha256(checkpoint.path.read_bytes()).hexdigest(),
        "input": f"float32 [N, {config.channels}, {config.image_size}, {config.image_size}], "
        f"{channels} in [0, 1]; output: logits in the order of the classes",
        "version": imgfast.__version__,
    }
    return {METADATA_PREFIX + key: value for key, value in values.items()}


def _checked_format(file_format: str | None, path: Path) -> str:
    if file_format is None:
        by_suffix = {suffix: name for name, suffix in FORMATS.items()}
        if path.suffix not in by_suffix:
            raise ExportError(f"{path}: must end in {' or '.join(by_suffix)}, or give --format")
        return by_suffix[path.suffix]
    if file_format not in FORMATS:
        raise ExportError(f"export: format must be one of {', '.join(FORMATS)}, got {file_format}")
    return file_format


def _batch_size(batch: str) -> int | None:
    if batch == "dynamic":
        return None
    if not (batch.isdecimal() and len(batch) < 6 and 1 <= int(batch) <= _MAX_BATCH):
        raise ExportError(f"export: batch must be dynamic or 1 to {_MAX_BATCH}, got {batch!r}")
    return int(batch)
