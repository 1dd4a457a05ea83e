"""When a classifier should rather say nothing: calibrated probabilities and a threshold on them.

Temperature scaling divides the logits by one number, chosen so that the probabilities fit the
held-out pictures best (Guo 2017, arXiv:1706.04599). The classes predicted stay the same. A picture
whose largest probability is below a threshold is then refused (selective classification, Geifman &
El-Yaniv 2017, arXiv:1705.08500).

The two numbers belong to one checkpoint, and lie beside it in ``abstention.json`` with the SHA-256
of its file.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from imgfast.data import ImageSet
from imgfast.data.atomic import write_atomically
from imgfast.engine.checkpoint import checkpoint_file
from imgfast.engine.predict import predict_logits, predict_probabilities
from imgfast.models import Classifier

FORMAT = "imgfast-abstention-1"
_MAX_FILE_BYTES = 1 << 16
# Where every held-out picture is classified right the best temperature is 0, where they are
# classified at random it is infinite.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 100.0


class AbstentionError(ValueError):
    """A threshold that cannot be found or used: the file or figure, the rule, the remedy."""


@dataclass(frozen=True)
class Abstention:
    """When to say nothing.

    Args:
        temperature: what the logits are divided by, in [0.05, 100].
        threshold: predictions whose largest probability is below it are refused, in [0, 1].
        accuracy: on the held-out pictures that are kept.
        coverage: share of the held-out pictures that are kept.
        pictures: number of held-out pictures.
        mirror: the logits are means with those of mirrored pictures, see
            :func:`~imgfast.engine.predict.predict_logits`.

    Raises:
        AbstentionError: a value outside its range.
    """

    temperature: float
    threshold: float
    accuracy: float
    coverage: float
    pictures: int
    mirror: bool = False

    def __post_init__(self) -> None:
        if type(self.mirror) is not bool:
            raise AbstentionError(
                f"abstention: mirror must be true or false, got {str(self.mirror)[:100]}"
            )
        ranges = dict.fromkeys(("threshold", "accuracy", "coverage"), (0.0, 1.0)) | {
            "temperature": (_MIN_TEMPERATURE, _MAX_TEMPERATURE),
            "pictures": (1, math.inf),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            number = (int,) if name == "pictures" else (int, float)
            # A bool is an int to Python; NaN fails every comparison.
            if type(value) not in number or not low <= value <= high:
                rule = f"a number in [{low:g}, {high:g}]" if high < math.inf else "1 or more"
                raise AbstentionError(f"abstention: {name} must be {rule}, got {str(value)[:100]}")

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Abstention:
        """From what :meth:`to_dict` gave and JSON carried.

        Raises:
            AbstentionError: a key is missing or unknown, or a value has the wrong type or range.
        """
        known = {field.name for field in fields(Abstention)}
        if not isinstance(values, dict) or set(values) != known:
            raise AbstentionError(f"abstention: must hold exactly {sorted(known)}")
        return Abstention(**values)


def calibrate(
    model: Classifier, held_out: ImageSet, accuracy: float = 0.99, mirror: bool = False
) -> Abstention:
    """The temperature, and the smallest threshold that keeps only a wanted share of mistakes.

    The temperature T minimises the mean of ``cross_entropy(logits / T, labels)``. The threshold is
    as small as it may be so that of the pictures kept at least ``accuracy`` are classified right.
    It lies midway between the least certain picture that is kept and the most certain one that is
    not, so that rounding moves neither across it; where all are kept, at the least certain one.

    Args:
        model: the classifier; it is put in eval mode.
        held_out: labelled pictures that the model was not trained on.
        accuracy: wanted of the pictures that are kept, in (0, 1].
        mirror: as in :func:`~imgfast.engine.predict.predict_logits`.

    Raises:
        AbstentionError: no pictures, an accuracy outside its range, or one that no threshold
            reaches.
        ValueError: pictures that are not the model's.

    Note:
        The held-out pictures serve both for the threshold and for the accuracy and coverage that
        are reported, so both figures are a little flattering, the more so the fewer pictures. They
        promise nothing about pictures of another kind; :func:`ood_auroc` measures some.
    """
    if not 0 < accuracy <= 1:
        raise AbstentionError(f"abstention: accuracy must lie in (0, 1], got {accuracy}")
    if not len(held_out):
        raise AbstentionError("abstention: there must be at least 1 held-out picture, got 0")
    logits = predict_logits(model, held_out.images, mirror)
    temperature = _fit_temperature(logits, held_out.labels)
    certainty, predicted = (logits / temperature).softmax(1).max(1)
    order = certainty.argsort(descending=True, stable=True)
    sorted_certainty = certainty[order].double()
    right = (predicted == held_out.labels)[order].cumsum(0).double()
    count = len(order)
    kept = torch.arange(1, count + 1, dtype=torch.float64)
    # Equal certainties are kept or refused together: a cut is possible where the next is smaller.
    cut = torch.ones(count, dtype=torch.bool)
    cut[:-1] = sorted_certainty[:-1] > sorted_certainty[1:]
    accuracies = right / kept
    good = (cut & (accuracies >= accuracy)).nonzero().flatten()
    if not len(good):
        raise AbstentionError(
            f"abstention: no threshold reaches an accuracy of {accuracy:.2%} on {count} held-out "
            f"pictures, the best reaches {accuracies[cut].max():.2%}; train the model for longer, "
            "or ask for less"
        )
    last = int(good[-1])
    lowest = sorted_certainty[last].item()
    below = sorted_certainty[last + 1].item() if last + 1 < count else lowest
    return Abstention(
        temperature=temperature,
        threshold=(lowest + below) / 2,
        accuracy=accuracies[last].item(),
        coverage=(last + 1) / count,
        pictures=count,
        mirror=mirror,
    )


def save_abstention(path: str | Path, abstention: Abstention) -> Path:
    """Write ``abstention.json`` beside a checkpoint, atomically, tied to the checkpoint's bytes.

    Args:
        path: the checkpoint or its run folder. The folder has one such file: it belongs to the
            checkpoint that was calibrated last.
        abstention: what to store.

    Returns:
        The file written.
    """
    checkpoint = checkpoint_file(path)
    values = {
        "format": FORMAT,
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": _sha256(checkpoint),
        "abstention": abstention.to_dict(),
    }
    stored = checkpoint.with_name("abstention.json")
    write_atomically(stored, (json.dumps(values, indent=2) + "\n").encode())
    return stored


def load_abstention(path: str | Path) -> Abstention:
    """What :func:`save_abstention` stored for a checkpoint.

    Args:
        path: the checkpoint or its run folder.

    Raises:
        AbstentionError: nothing is stored, it is not valid, or belongs to another checkpoint.
    """
    checkpoint = checkpoint_file(path)
    stored = checkpoint.with_name("abstention.json")
    remedy = f"run `imgfast evaluate --checkpoint {checkpoint} --abstain`"
    try:
        with stored.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise AbstentionError(
            f"{stored}: cannot be read: {error.strerror or error}; {remedy}"
        ) from error
    try:
        values = json.loads(content) if len(content) <= _MAX_FILE_BYTES else None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise AbstentionError(f"must say {FORMAT}")
        abstention = Abstention.from_dict(values.get("abstention"))
    except (ValueError, RecursionError) as error:
        raise AbstentionError(f"{stored}: is not valid: {error}; {remedy}") from error
    found = _sha256(checkpoint)
    if values.get("checkpoint_sha256") != found:
        raise AbstentionError(
            f"{stored}: must belong to {checkpoint.name} of SHA-256 {found[:16]}..., "
            f"but was made for other bytes; {remedy}"
        )
    return abstention


def ood_auroc(
    model: Classifier,
    inside: torch.Tensor,
    outside: torch.Tensor,
    temperature: float = 1.0,
) -> float:
    """How well the largest probability tells familiar pictures from foreign ones.

    The area under the ROC curve: the chance that a picture of ``inside`` gets a larger one than a
    picture of ``outside``, a tie counting one half. 0.5 is guessing, 1 is perfect (Hendrycks &
    Gimpel 2017, arXiv:1610.02136).

    Args:
        model: the classifier; it is put in eval mode.
        inside: uint8 ``[N, C, S, S]``, held-out pictures of the kind it was trained on.
        outside: uint8 ``[M, C, S, S]``, pictures of another kind, or noise.
        temperature: as in :func:`~imgfast.engine.predict_probabilities`.

    Raises:
        ValueError: pictures of another dtype or shape, or none.
    """
    from torchmetrics.functional.classification import binary_auroc  # slow to import

    if not len(inside) or not len(outside):
        raise ValueError(
            f"ood_auroc: there must be pictures on both sides, got {len(inside)} and {len(outside)}"
        )
    familiar, foreign = (
        predict_probabilities(model, images, temperature).amax(1) for images in (inside, outside)
    )
    truth = torch.cat([torch.ones(len(familiar)), torch.zeros(len(foreign))]).long()
    return binary_auroc(torch.cat([familiar, foreign]), truth).item()


def _fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The T of the lowest mean cross-entropy of ``logits / T``, within its bounds."""
    logits = logits.double()
    # The logarithm of T: it has no bound that a step could cross.
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        bounded = log_t.clamp(math.log(_MIN_TEMPERATURE), math.log(_MAX_TEMPERATURE))
        loss = cross_entropy(logits / bounded.exp(), labels)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return min(max(math.exp(log_t.item()), _MIN_TEMPERATURE), _MAX_TEMPERATURE)


def _sha256(path: Path) -> str:
    """Of a file's bytes."""
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    except OSError as error:
        raise AbstentionError(f"{path}: cannot be read: {error.strerror or error}") from error
    return total.hexdigest()
