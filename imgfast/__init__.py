"""Fused image operators for PyTorch: ``pool(activation(conv2d(x)))`` and cross-entropy in one pass.

``imgfast.nn`` holds the layers; ``imgfast.conv_relu_pool``, ``imgfast.upsample_conv_relu``,
``imgfast.cross_entropy`` and ``imgfast.linear_cross_entropy`` are the functions,
``imgfast.dispatch_info`` tells which code runs.
``imgfast`` on the command line trains and uses an image classifier.
"""

import torch  # noqa: F401  its libraries must be loaded before the extension's

try:
    from imgfast import _C
except ImportError as error:
    raise ImportError(
        f"imgfast's compiled part cannot be loaded ({error}). Run `pip install .` in its source "
        "folder with the torch that you use, and start Python outside of that folder."
    ) from error

from imgfast import nn
from imgfast.ops.conv_relu_pool import conv_relu_pool, dispatch_info
from imgfast.ops.cross_entropy import cross_entropy
from imgfast.ops.linear_cross_entropy import linear_cross_entropy
from imgfast.ops.margin_loss import arcface_loss, cosface_loss
from imgfast.ops.upsample_conv_relu import upsample_conv_relu, upsample_dispatch_info

# As torch.backends.cudnn.benchmark: whether conv_relu_pool times its routes the first time it meets
# a configuration, and remembers the fastest, in place of a fixed rule. It is asked at every call.
benchmark = False

__version__ = _C.build_info()["version"]
__all__ = [
    "arcface_loss",
    "conv_relu_pool",
    "cosface_loss",
    "cross_entropy",
    "dispatch_info",
    "linear_cross_entropy",
    "nn",
    "upsample_conv_relu",
    "upsample_dispatch_info",
]
