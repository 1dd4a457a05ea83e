"""Who races in a row: imgfast, eager torch and torch.compile, each in NCHW and in channels_last.

The engines that join them for inference are in engines.py.

``CL`` in a contender's name is channels_last, of the input and of the weights.
"""

import torch

LAYOUTS = {" CL": torch.channels_last, "": torch.contiguous_format}  # imgfast's best first
OPPONENTS = ("eager", "compile", "chunked", "composition", "onnxruntime", "openvino")
SIDES = ("imgfast", *OPPONENTS)
BOUNDS = ("products",)  # a part of the work that nobody can leave out


def lineup(make, ours, stock, *, layouts=LAYOUTS, compiler=None):
    """The contenders of one row, imgfast first.

    Args:
        make: ``make(op, wrap, memory_format)`` returns a call without arguments that gives a tuple,
            the output and then the gradients. ``wrap`` goes around what torch.compile may compile.
        ours, stock: the operator that imgfast offers, and its stock equal.
        layouts: those of :data:`LAYOUTS` that the row has.
        compiler: what compiles stock, or None to leave torch.compile out.

    Returns:
        A dict from name to call.
    """
    sides = {"imgfast": (ours, _as_it_is), "eager": (stock, _as_it_is)}
    if compiler is not None:
        sides["compile"] = (stock, compiler)
    return {
        side + suffix: make(op, wrap, LAYOUTS[suffix])
        for side, (op, wrap) in sides.items()
        for suffix in layouts
    }


def inductor(threads, *, freezing=False):
    """torch.compile at its best: shapes and number of threads fixed, ``freezing`` packs weights."""
    options = {"cpp.threads": threads, "freezing": freezing}

    def compiler(function):
        return torch.compile(function, fullgraph=True, dynamic=False, options=options)

    return compiler


def _as_it_is(function):
    return function


def check_equal(results, tolerance, grad_tolerance):
    """Raise AssertionError unless all contenders computed what eager NCHW did.

    The error is the norm of the difference by the norm of the reference, per tensor. Element by
    element no bound on the gradients would hold: of two maxima that differ by a rounding only, each
    side may choose its own, and then sends that window's whole gradient elsewhere.

    Args:
        results: dict from name to the tuple ``(output, *gradients)``.
        tolerance, grad_tolerance: bounds on the error of the output and of each gradient.
    """
    for name, tensors in results.items():
        for i, (got, want) in enumerate(zip(tensors, results["eager"], strict=True)):
            what = f"gradient {i}" if i else "output"
            assert got.shape == want.shape, f"{name}: {what} is {got.shape}, eager's {want.shape}"
            got, want = got.detach().float(), want.detach().float()
            error = torch.linalg.vector_norm(got - want) / torch.linalg.vector_norm(want)
            bound = grad_tolerance if i else tolerance
            assert error <= bound, f"{name}: {what} is off by {error:.1e} of eager's norm"
