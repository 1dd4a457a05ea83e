"""cross_entropy composed of torch's operators: for what has no kernel."""

import torch
import torch.nn.functional as F


def run(
    input,
    targets,
    weight,
    *,
    lam,
    ignore_index,
    reduction,
    label_smoothing,
    z_loss,
    return_lse,
    return_correct,
):
    """The loss, and what else is asked for, as :func:`imgfast.cross_entropy` has it.
    ``targets`` holds one target, or the two of a pair with ``lam``."""
    losses = [
        F.cross_entropy(
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        for target in targets
    ]
    lse = logsumexp(input) if return_lse or z_loss != 0 else None
    if z_loss != 0:
        for i, target in enumerate(targets):
            counts = torch.ones_like(lse, dtype=torch.bool)
            if target.shape != input.shape:
                counts = target != ignore_index
            square = torch.where(counts, lse.square(), 0)
            if reduction != "none":
                square = square.sum() / (counts.sum() if reduction == "mean" else 1)
            losses[i] = (losses[i] + z_loss * square).to(losses[i].dtype)

    results = [losses[0] if len(losses) == 1 else lam * losses[0] + (1 - lam) * losses[1]]
    if return_lse:
        results.append(lse)
    if return_correct:
        target, dim = targets[0], class_dim(input)
        finite = input.sum(dim).isnan().logical_not()
        results.append((input.argmax(dim) == target) & (target != ignore_index) & finite)
    return tuple(results) if len(results) > 1 else results[0]


def logsumexp(input, keepdim=False):
    return torch.logsumexp(input.to(wide_dtype(input)), class_dim(input), keepdim)


def wide_dtype(input):
    """Of what is accumulated."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def class_dim(input):
    return 1 if input.dim() > 1 else 0


def rows_of(input):
    """The shape of ``input`` without its classes."""
    return input.shape[:1] + input.shape[2:] if input.dim() > 1 else ()
