"""What Databricks published of DBRX on eight H100s (16 bits, tensor parallel 8, about 2000 tokens
in and 256 out), read from its pictures: references, never mixed with what we measure."""

from __future__ import annotations

# Output tokens a second at 100 ms a token.
AT_100_MS = {"dbrx": 1600.0, "dense-132b": 790.0, "llama2-70b": 590.0}
# Speed-up over the dense model of 132B. The picture goes from 1 to 200 users with nine points; that
# they double in between is our reading.
USERS = (1, 2, 4, 8, 16, 32, 64, 128, 200)
SPEED_UPS = {
    "dbrx": (2.59, 2.24, 2.07, 2.09, 2.05, 2.25, 2.53, 2.39, 1.97),
    "llama2-70b": (1.64, 1.66, 1.65, 1.63, 1.59, 1.28, 1.27, 1.32, 1.20),
}
# DBRX's advantage over each model: tokens a second under 30 ms a token, latency with few users,
# throughput of large batches.
INTERACTIVE = {"dense-132b": 8.0, "llama2-70b": 3.0}
FEW_USERS = {"dense-132b": 2.2, "llama2-70b": 1.3}
LARGE_BATCHES = {"dense-132b": 2.5, "llama2-70b": 1.8}
