"""Causal self-attention with normalised queries and keys, for sequences that fit the cache.

    o_i = sum over j <= i of softmax_j(scale norm(q_i) . norm(k_j)) v_j

``norm`` is :func:`torch.nn.functional.layer_norm` without weights. Stock PyTorch copies queries,
keys and values apart, passes over them for the norm, and attends over short sequences at a tenth of
the processor's speed; the kernel (csrc/cpu/causal_attention-inl.h) does it all on a head of a
sequence at a time.

Source: A. Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762; M. Dehghani et al.,
"Scaling vision transformers to 22 billion parameters", 2023, arXiv:2302.05442, for the norm.
"""

import torch
import torch.nn.functional as F

from imgfast.ops import autocast

_forward = torch.ops.imgfast.causal_attention.default
_backward = torch.ops.imgfast.causal_attention_backward.default
_below_autograd = torch._C._AutoDispatchBelowAutograd
_DTYPES = (torch.float32, torch.float64)


def causal_attention(qkv, scale):
    """Attention over whole sequences.

    Args:
        qkv: queries, keys and values side by side, float ``[N, T, 3, H, D]``: sequences, positions,
            heads, numbers of a head.
        scale: of the dot products.

    Returns:
        ``[N, T, H, D]``.

    Note:
        The kernel is for the CPU, float32 and float64, without autocast; all else takes
        :func:`causal_attention_stock`. No second derivatives. Deterministic: the same bits in any
        number of threads.
    """
    if not qkv.is_cpu or qkv.dtype not in _DTYPES or autocast.is_active(qkv):
        return causal_attention_stock(qkv, scale)
    return _CausalAttention.apply(qkv.contiguous(), scale)


def causal_attention_stock(qkv, scale):
    """The same in stock PyTorch."""
    # [3, N, H, T, D]
    parts = qkv.permute(2, 0, 3, 1, 4)
    queries, keys = normalised(parts[:2])
    mixed = F.scaled_dot_product_attention(queries, keys, parts[2], is_causal=True, scale=scale)
    return mixed.transpose(1, 2)


def normalised(heads):
    """``norm`` of queries or keys ``[..., D]``."""
    return F.layer_norm(heads, heads.shape[-1:])


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, scale):
        with _below_autograd():
            out, logsumexp = _forward(qkv, scale)
        ctx.scale = scale
        ctx.save_for_backward(qkv, logsumexp)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        with _below_autograd():
            return _backward(grad_out, *ctx.saved_tensors, ctx.scale), None


@torch.library.register_fake("imgfast::causal_attention")
def _(qkv, scale):
    n, length, _, heads, size = qkv.shape
    return qkv.new_empty(n, length, heads, size), qkv.new_empty(n, heads, length)


@torch.library.register_fake("imgfast::causal_attention_backward")
def _(grad_out, qkv, logsumexp, scale):
    return torch.empty_like(qkv)
