"""DBRX cut to some of its 40 layers on one GPU, generated weights: step time against its limit.

    python benchmarks/dbrx_layers.py --layers 8 --batches 1,8,64,256

Prompts of 512 random token ids, 128 output tokens, greedy, prefix cache off, through `LLM`; step
time = (time for 129 tokens - time for 1) / 128, prefill = prompt tokens / time for 1. The limit is
the time to read at measured bandwidth what a step must read once: all weights outside the experts,
the experts that a batch hits on average if routing is even, and the keys and values in the middle
of the run. Writes results/dbrx_layers.json beside this script.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton

from dropless import LLM, SamplingParams
from dropless.checkpoints.resolve import resolve

RESULTS = Path(__file__).parent / "results"
INPUT, OUTPUT = 512, 128
BYTES = 2  # of a bfloat16


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a large copy; the best of several."""
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return 2 * source.nbytes / min(times)


def step_bytes(config: dict[str, Any], batch: int) -> float:
    """What one decoding step must read."""
    hidden, ffn, attention = config["d_model"], config["ffn_config"], config["attn_config"]
    kv_size = attention["kv_n_heads"] * hidden // config["n_heads"]
    experts, top_k = ffn["moe_num_experts"], ffn["moe_top_k"]
    hit = experts * (1.0 - (1.0 - top_k / experts) ** batch)
    dense = hidden * (hidden + 2 * kv_size) + hidden * hidden + experts * hidden
    layer = dense + hit * 3 * hidden * ffn["ffn_hidden_size"]
    cache = batch * (INPUT + OUTPUT // 2) * 2 * kv_size
    return BYTES * (config["n_layers"] * (layer + cache) + config["vocab_size"] * hidden)


def seconds(llm: LLM, batch: int, tokens: int) -> float:
    prompts = [[random.randrange(100_000) for _ in range(INPUT)] for _ in range(batch)]
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    started = time.perf_counter()
    results = llm.generate(prompts, params)
    taken = time.perf_counter() - started
    assert all(len(result.token_ids) == tokens for result in results)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batches", default="1,8,64,256")
    parser.add_argument("--out", type=Path, default=RESULTS / "dbrx_layers.json")
    arguments = parser.parse_args()
    bandwidth = copy_bandwidth()
    torch.cuda.empty_cache()
    shape = json.loads((resolve("dbrx", allow_shapes=True) / "config.json").read_text())
    config = {**shape, "n_layers": arguments.layers}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        settings: dict[str, Any] = {"weights": "random", "device": "cuda", "prefix_caching": False}
        with LLM(folder, max_model_len=2048, **settings) as llm:
            print(
                f"loaded in {llm.ready.load_seconds:.1f} s; copies at {bandwidth / 1e12:.2f} TB/s"
            )
            for batch in map(int, arguments.batches.split(",")):
                seconds(llm, batch, 2)
                first = min(seconds(llm, batch, 1) for _ in range(2))
                step_ms = (seconds(llm, batch, OUTPUT + 1) - first) / OUTPUT * 1e3
                limit_ms = step_bytes(config, batch) / bandwidth * 1e3
                row = {
                    "batch": batch,
                    "step_ms": step_ms,
                    "limit_ms": limit_ms,
                    "limit_over_step": limit_ms / step_ms,
                    "prefill_tokens_per_s": batch * INPUT / first,
                }
                rows.append(row)
                print(
                    f"batch {batch:4d}: step {step_ms:6.2f} ms, limit {limit_ms:6.2f} ms,"
                    f" {limit_ms / step_ms:4.0%}; prefill {row['prefill_tokens_per_s']:,.0f} tok/s",
                    flush=True,
                )
            load_seconds = llm.ready.load_seconds
    document = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "layers": arguments.layers,
        "dtype": "bfloat16",
        "copy_tb_s": bandwidth / 1e12,
        "load_seconds": load_seconds,
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
