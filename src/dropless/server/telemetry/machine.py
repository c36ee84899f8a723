"""What the machine's processors and memories do."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import psutil
import pynvml

logger = logging.getLogger("dropless.server")


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Percent."""

    busy: float
    memory: float


class Machine:
    """Percentages of the whole machine. GPUs are asked through NVML, NVIDIA's own library; where
    there is none there are no GPUs."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # which counts since it was called last
        self._gpus: list[pynvml.c_nvmlDevice_t] | None = None

    def cpu(self) -> float:
        """Of all cores, since this was asked last."""
        return float(psutil.cpu_percent())

    def memory(self) -> float:
        return float(psutil.virtual_memory().percent)

    def gpus(self) -> list[GpuUse]:
        """In their order. One that does not answer ends the list."""
        found = []
        try:
            if self._gpus is None:
                self._gpus = _gpus()
            for gpu in self._gpus:
                memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
                busy = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
                found.append(GpuUse(float(busy), 100 * memory.used / memory.total))
        except pynvml.NVMLError as error:
            logger.warning("NVML does not tell how busy a GPU is: %s", error)
        return found


def _gpus() -> list[pynvml.c_nvmlDevice_t]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
