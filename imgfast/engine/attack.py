"""How accuracy falls when every pixel may be changed a little against the classifier.

The attacks know the model (white box) and are limited in the L-infinity norm: no pixel, scaled to
[0, 1], moves by more than ``eps``. With ``L`` the cross-entropy of the true label:

    FGSM   x' = clip(x + eps sign(grad L(x)))                 Goodfellow 2015, arXiv:1412.6572
    PGD    x0 uniform in the ball, then ``steps`` times
           x <- clip(x + 2.5 eps / steps sign(grad L(x)))     Madry 2018, arXiv:1706.06083

where ``clip`` goes back into the ball and into [0, 1]. The accuracy under an attack is an upper
bound on the accuracy under the worst change: a stronger attack may find more.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from imgfast.data import ImageSet, normalise
from imgfast.data.decode import Progress
from imgfast.engine.figure import new_figure, save_figure
from imgfast.models import Classifier

METHODS = ("fgsm", "pgd")
_BATCH = 256


@dataclass(frozen=True)
class AttackCurve:
    """Accuracy under one attack at several sizes.

    Args:
        method: ``fgsm`` or ``pgd``.
        eps: largest change of a pixel, in [0, 1]; 0 is the clean picture.
        accuracy: under the attack of each size.
        pictures: how many were attacked.
        seed: of the random starts; FGSM has none.
        steps: gradient steps; FGSM takes 1.
    """

    method: str
    eps: tuple[float, ...]
    accuracy: tuple[float, ...]
    pictures: int
    seed: int
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def attack_curve(
    model: Classifier,
    data: ImageSet,
    method: str = "fgsm",
    eps: Sequence[float] = (0, 1 / 255, 2 / 255, 4 / 255, 8 / 255),
    steps: int = 10,
    seed: int = 0,
    max_pictures: int = 1000,
    on_picture: Progress | None = None,
) -> AttackCurve:
    """Accuracy on attacked pictures, for each size of the attack.

    Args:
        model: the classifier; a copy in eval mode is attacked, the model stays as it is.
        data: labelled pictures of the model's classes and size, none of which it was trained on.
        method: ``fgsm`` or ``pgd``.
        eps: largest change of a pixel scaled to [0, 1]; each in [0, 1].
        steps: of PGD.
        seed: of PGD's random starts, which are the same at every ``eps`` but for their size.
        max_pictures: of a larger set, so many spread evenly over it.
        on_picture: called with (done so far, all) after each batch; a picture counts once for
            every ``eps``.

    Raises:
        ValueError: an empty set, or a value outside its range.

    Note:
        The same seed, device and number of threads give the same curve.
    """
    if not len(data) or max_pictures < 1:
        raise ValueError(
            f"attack: there must be at least 1 picture, got {len(data)} of which at most "
            f"{max_pictures} are wanted"
        )
    for size in eps:
        _check(method, size, steps)
    count = min(max_pictures, len(data))
    chosen = data.subset(torch.linspace(0, len(data) - 1, count).round().long())
    frozen = _frozen(model)
    device = next(frozen.parameters()).device
    accuracies = []
    for index, size in enumerate(eps):
        generator = torch.Generator().manual_seed(seed)
        right = 0
        for start in range(0, count, _BATCH):
            x = chosen.images[start : start + _BATCH].to(device).float() / 255
            labels = chosen.labels[start : start + _BATCH].to(device)
            attacked = _attack(frozen, x, labels, size, method, steps, generator)
            with torch.no_grad():
                right += int((_logits(frozen, attacked).argmax(1) == labels).sum())
            if on_picture is not None:
                on_picture(index * count + start + len(x), len(eps) * count)
        accuracies.append(right / count)
    sizes = tuple(float(size) for size in eps)
    return AttackCurve(
        method, sizes, tuple(accuracies), count, seed, 1 if method == "fgsm" else steps
    )


def adversarial(
    model: Classifier,
    x: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    method: str = "fgsm",
    steps: int = 10,
    seed: int = 0,
) -> torch.Tensor:
    """Pictures changed so that the loss of their true label grows; see the top of this file.

    Args:
        model: the classifier; a copy in eval mode is attacked, the model stays as it is.
        x: float32 ``[N, C, S, S]``, pixels in [0, 1], not normalised, on the model's device.
        labels: int64 ``[N]``, the true classes.
        eps, method, steps, seed: as in :func:`attack_curve`.

    Returns:
        float32 ``[N, C, S, S]`` in [0, 1], within ``eps`` of ``x``.

    Raises:
        ValueError: pixels that are not float32 in [0, 1], or a value outside its range.
    """
    _check(method, eps, steps)
    # Written so that NaN fails too.
    if x.dtype != torch.float32 or not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(f"attack: x must be float32 in [0, 1], got {x.dtype}; divide by 255")
    generator = torch.Generator().manual_seed(seed)
    return _attack(_frozen(model), x.detach(), labels, eps, method, steps, generator)


def save_plot(path: str | Path, curves: Sequence[AttackCurve]) -> None:
    """Plot accuracy over the size of the attack, one line a curve, as PNG; replaced atomically."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    for curve in curves:
        label = curve.method.upper() + (f", {curve.steps} steps" if curve.steps > 1 else "")
        axes.plot([255 * size for size in curve.eps], curve.accuracy, marker=".", label=label)
    axes.set(xlabel="largest change of a pixel, of 255", ylabel="accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def _attack(
    model: Classifier,
    x: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    method: str,
    steps: int,
    generator: torch.Generator,
) -> torch.Tensor:
    if eps == 0:
        return x
    low, high = (x - eps).clamp_(min=0), (x + eps).clamp_(max=1)
    if method == "fgsm":
        return (x + eps * _gradient(model, x, labels).sign()).clamp(low, high)
    # Drawn on the CPU: the same start for the same seed on every device.
    start = torch.rand(x.shape, generator=generator).mul_(2).sub_(1).to(x.device)
    attacked = (x + eps * start).clamp(low, high)
    step = 2.5 * eps / steps  # of Madry's repository: the far side of the ball is in reach
    for _ in range(steps):
        attacked = (attacked + step * _gradient(model, attacked, labels).sign()).clamp(low, high)
    return attacked


def _gradient(model: Classifier, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of the summed loss for the pixels: what a picture gets does not depend on its batch."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        loss = cross_entropy(_logits(model, x), labels, reduction="sum")
        return torch.autograd.grad(loss, x)[0]


def _logits(model: Classifier, x: torch.Tensor) -> torch.Tensor:
    """Of pixels in [0, 1]; normalised with the arithmetic that training and prediction use."""
    x = normalise(x * 255, model.config.mean, model.config.std)
    return model(x.contiguous(memory_format=torch.channels_last))


def _frozen(model: Classifier) -> Classifier:
    """A copy in eval mode: no gradients of weights to work out, nothing of the model's to undo."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def _check(method: str, eps: float, steps: int) -> None:
    if method not in METHODS:
        raise ValueError(f"attack: method must be one of {', '.join(METHODS)}, got {method!r}")
    if not 0 <= eps <= 1:
        raise ValueError(f"attack: eps must lie in [0, 1], got {eps}; 8/255 is a usual size")
    if steps < 1:
        raise ValueError(f"attack: steps must be at least 1, got {steps}")
