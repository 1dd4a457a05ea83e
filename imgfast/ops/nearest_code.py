"""Which vector of a book is nearest to each row, as a quantiser asks.

    code_n = argmin_k |x_n - b_k|^2

Stock PyTorch writes the matrix of all distances to memory and reads it back for the minimum; the
kernel (csrc/cpu/nearest_code-inl.h) compares scores in the registers that they were summed up in.
"""

import torch

from imgfast.ops import autocast

_kernel = torch.ops.imgfast.nearest_code.default
_DTYPES = (torch.float32, torch.float64)
_MOST_CODES = 1 << 24


def nearest_code(rows, book):
    """Number of the nearest code of each row; of several equally near the first.

    Args:
        rows: float ``[N, D]``.
        book: ``[K, D]`` of the same dtype, ``K >= 1``.

    Returns:
        int64 ``[N]``.

    Note:
        Not differentiable. The kernel is for the CPU, float32 and float64, up to 2^24 codes,
        without autocast; all else takes :func:`nearest_code_stock`. Codes that are as near as
        rounding can tell may be either's choice. Deterministic: the same codes in any number of
        threads.
    """
    fits = rows.dtype == book.dtype and rows.dtype in _DTYPES and len(book) <= _MOST_CODES
    if not rows.is_cpu or not fits or autocast.is_active(rows):
        return nearest_code_stock(rows, book)
    return _kernel(rows.detach(), book.detach())


def nearest_code_stock(rows, book):
    """The same in stock PyTorch."""
    return torch.addmm(book.square().sum(1), rows, book.t(), alpha=-2).argmin(1)


@torch.library.register_fake("imgfast::nearest_code")
def _(rows, book):
    return rows.new_empty(len(rows), dtype=torch.int64)
