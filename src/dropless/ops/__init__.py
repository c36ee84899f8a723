"""The mathematics: one op = one signature + one PyTorch reference; fast versions beside it.

Importing any op registers the fast versions of all of them.
"""

from dropless.ops.cpu import attention, elementwise  # noqa: F401
