"""Where a race is run: on the CPU with some threads, or on a GPU.

On a GPU a call is captured into a CUDA graph and replayed, so that what is timed is the device's
own work; with --no-graph it is called from Python, and small calls take as long as their launches.
A turn ends when the device has done what it was given. float32 convolutions round their factors to
tf32 there, as torch does unless told otherwise.
"""

import itertools
from typing import NamedTuple

import torch

DTYPES = ("float32", "bfloat16", "float16")


class Place(NamedTuple):
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    threads: int = 1
    graph: bool = False

    def __str__(self):
        dtype = str(self.dtype).removeprefix("torch.")
        if self.device == "cuda":
            name = f"{torch.cuda.get_device_name()}, {dtype}"
            return name if self.graph else f"{name}, called from Python"
        text = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return text if self.dtype is torch.float32 else f"{text}, {dtype}"

    @property
    def replays(self):
        return self.device == "cuda" and self.graph

    @property
    def rounding(self):
        """The relative error of one factor of a convolution's products."""
        if self.dtype is torch.float32:
            return 2**-11 if self.device == "cuda" else 2**-24
        return 2**-8 if self.dtype is torch.bfloat16 else 2**-11

    def put(self, t):
        """``t`` on the device; numbers that are no indices in the dtype."""
        return t.to(self.device, self.dtype if t.is_floating_point() else t.dtype)


CPU = Place()


def replayed(call):
    """``call`` as the replay of a graph that was captured of it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # not the default one, as the capture asks
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def waiting(call, turn):
    """``call``, which at every ``turn``-th time waits until the device has done all of them."""
    places = itertools.cycle(range(1, turn + 1))

    def run():
        call()
        if next(places) == turn:
            torch.cuda.synchronize()

    return run
