"""What torch's modes and settings ask of an operator."""

import torch


def constant(function):
    """As torch.compiler.assume_constant_result, which imports the whole compiler for this mark."""
    function._dynamo_marked_constant = True
    return function


@constant
def allows_tf32() -> bool:
    """Whether torch lets convolutions on CUDA round float32 factors to tf32."""
    conv = getattr(torch.backends.cudnn, "conv", None)  # from torch 2.9 on
    if conv is None:
        return torch.backends.cudnn.allow_tf32
    return conv.fp32_precision == "tf32"


def needs_grad(x, weight, bias) -> bool:
    """Whether a gradient of any of these will be asked for; ``bias`` may be None."""
    return torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: they need stock ops."""
    return (
        torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    )
