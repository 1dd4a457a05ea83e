"""Asks an installed imgfast whether it works, and whether it was built as it should be.

usage: smoke.py FOLDER yes|no|any    where it must come from, and whether it has CUDA kernels
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import imgfast
from imgfast import info


def main(folder: str, cuda: str) -> None:
    place = Path(imgfast.__file__).resolve()
    assert place.is_relative_to(Path(folder).resolve()), f"{place} is not in {folder}"
    facts = info.collect()
    for name, value in facts.items():
        print(f"  {name}: {value}")
    assert cuda == "any" or facts["cuda_built"] == (cuda == "yes"), facts["cuda_reason"]
    registered = torch._C._dispatch_has_kernel_for_dispatch_key("imgfast::cuda_probe", "CUDA")
    assert registered == facts["cuda_built"]

    torch.manual_seed(0)
    x = torch.randn(2, 3, 13, 10, dtype=torch.float64)
    weight = torch.randn(8, 3, 3, 3, dtype=torch.float64)
    bias = torch.randn(8, dtype=torch.float64)
    stock = F.max_pool2d(F.relu(F.conv2d(x, weight, bias, padding=1)), 2)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        ours = imgfast.conv_relu_pool(x.to(dtype), weight.to(dtype), bias.to(dtype), padding=1)
        torch.testing.assert_close(ours.double(), stock, rtol=tolerance, atol=tolerance)
    print("  conv_relu_pool equals stock PyTorch")


if __name__ == "__main__":
    main(*sys.argv[1:])
