"""What upsample_conv_relu equals, by torch's operators: reference, and route without a kernel."""

import torch.nn.functional as F

from imgfast.ops.conv_relu_pool_stock import ACTIVATIONS


def upsample_conv_relu_stock(x, weight, bias, spec):
    """By torch's operators, of the arguments in a Spec of upsample_conv_relu_route.py."""
    images = x.unsqueeze(0) if x.dim() == 3 else x
    upsampled = F.interpolate(images, scale_factor=spec.scale_factor, mode="nearest")
    y = F.conv2d(upsampled, weight, bias, padding=spec.padding, groups=spec.groups)
    y = ACTIVATIONS[spec.activation](y)
    return y.squeeze(0) if x.dim() == 3 else y
