"""cross_entropy composed of torch's operators: for what has no kernel."""

import torch
import torch.nn.functional as F


def run(
    input,
    targets,
    lam,
    weight,
    *,
    ignore_index,
    reduction,
    label_smoothing,
    z_loss,
    return_lse,
    return_correct,
):
    """A list of the loss and what else is asked for, as :func:`imgfast.cross_entropy` has it.
    ``targets`` holds one target, or the two of a pair with ``lam``."""

    def loss_of(target):
        loss = F.cross_entropy(
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        if z_loss != 0:
            loss = (loss + z_loss * squares_of(target)).to(loss.dtype)
        return loss

    def squares_of(target):
        lse = _logsumexp(input)
        counts = torch.ones_like(lse, dtype=torch.bool)
        if target.shape != input.shape:
            counts = target != ignore_index
        squares = torch.where(counts, lse.square(), 0)
        if reduction == "none":
            return squares
        return squares.sum() / (counts.sum() if reduction == "mean" else 1)

    if len(targets) == 1:
        results = [loss_of(targets[0])]
    else:
        results = [lam * loss_of(targets[0]) + (1 - lam) * loss_of(targets[1])]
    if return_lse:
        results.append(_logsumexp(input))
    if return_correct:
        target, dim = targets[0], _class_dim(input)
        finite = input.sum(dim).isnan().logical_not()
        results.append((input.argmax(dim) == target) & (target != ignore_index) & finite)
    return results


def _logsumexp(input):
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    return torch.logsumexp(input.to(wide), _class_dim(input))


def _class_dim(input):
    return 1 if input.dim() > 1 else 0
