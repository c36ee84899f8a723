"""The mathematics: one op = one signature + one PyTorch reference; fast versions beside it.

Importing any op registers the fast versions of all of them.
"""

from importlib.util import find_spec

from dropless.ops.cpu import attention, elementwise, invariant  # noqa: F401

if find_spec("triton") is not None:  # it comes with PyTorch for GPUs
    from dropless.ops.triton import attention as _attention  # noqa: F401
    from dropless.ops.triton import combine as _combine  # noqa: F401
    from dropless.ops.triton import elementwise as _elementwise  # noqa: F401
    from dropless.ops.triton import fp8 as _fp8  # noqa: F401
    from dropless.ops.triton import linear as _linear  # noqa: F401
    from dropless.ops.triton import moe as _moe  # noqa: F401
    from dropless.ops.triton import norm as _norm  # noqa: F401
    from dropless.ops.triton import norm_linear as _norm_linear  # noqa: F401
    from dropless.ops.triton import router as _router  # noqa: F401
