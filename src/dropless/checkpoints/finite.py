"""A weight that is NaN or infinite makes every answer NaN; it is found while it is read."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from dropless.errors import CheckpointError


def check_finite(values: Tensor, name: str, path: Path) -> None:
    """Look at every value of a part of the tensor `name`, in the dtype that the model uses.

    Raises:
        CheckpointError: one is NaN or infinite; names the tensor and what it holds.
    """
    if values.numel() == 0:
        return
    low, high = (value.item() for value in torch.aminmax(values))  # both NaN if any value is
    if math.isfinite(low) and math.isfinite(high):
        return
    what = "NaN" if math.isnan(low) else "infinity"
    cause = (
        "the file is damaged or was saved from a broken model: fetch it again, or use another"
        " checkpoint of the model"
    )
    if values.dtype == torch.float16 and what == "infinity":
        limit = torch.finfo(torch.float16).max
        what = f"infinity, or a number beyond ±{limit:.0f}, the limit of float16"
        cause = f"set quantization to 'none'; if that does not help, {cause}"
    raise CheckpointError(
        f"tensor {name} of {path} holds {what}, with which every answer would be NaN; {cause}"
    )
