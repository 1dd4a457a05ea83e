"""Training in several processes, each with a share of every batch, as ``torchrun`` starts them.

The random numbers of a batch are drawn for the whole of it in every process, so that the training
is that of one process, whatever their number, to the rounding of sums. Batch norm is the exception:
its statistics are those of a process's own share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from imgfast.data import ImageSet
from imgfast.engine.evaluate import Evaluation, evaluate, score
from imgfast.engine.predict import predict_probabilities
from imgfast.models import Classifier


@dataclass(frozen=True)
class Processes:
    """The processes of a training run.

    Args:
        rank: number of this one, in ``[0, size)``.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` items, in order, are this process's: sizes differ by 1 at most."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over the processes; changes the tensor."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def copy_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's buffers, as batch norm's running statistics."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def evaluate(self, model: Classifier, data: ImageSet) -> Evaluation:
        """Scores on all pictures of a set; each process predicts its share, every picture once."""
        if self.size == 1:
            return evaluate(model, data)
        share = self.share(len(data))
        device = next(model.parameters()).device
        predicted = torch.zeros(len(data), dtype=torch.int64, device=device)
        images = data.images[share.start : share.stop]
        predicted[share.start : share.stop] = predict_probabilities(model, images).argmax(1)
        dist.all_reduce(predicted)  # a sum of which all terms but one are zero
        return score(predicted.cpu(), data.labels, data.classes)


def current() -> Processes:
    """What ``torchrun`` has told this process; one of one where it has not."""
    return Processes(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def local_device(device: torch.device) -> torch.device:
    """The device of this process: each process of a machine has a GPU of its own."""
    if device.type == "cuda" and current().size > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    return device


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """Connect the processes, by gloo on CPUs and NCCL on GPUs; all have arrived when it begins."""
    processes = current()
    started = processes.size > 1 and not dist.is_initialized()
    if started:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend)
        dist.barrier()
    try:
        yield processes
    finally:
        if started:
            dist.destroy_process_group()
