"""transformers: the GGUF in float32, a static batch through `generate`, greedy, no early end.

Arguments: GGUF file, threads. Prints a line when loaded, then answers each line of JSON
`{"prompts": [[id]], "output_tokens": n}` with `{"first_token_s": x, "end_s": y}`, seconds from the
start of the batch: all sequences of a static batch move together.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from dropless.checkpoints.open import open_checkpoint


class StepTimes(StoppingCriteria):  # type: ignore[misc]
    """Asked after each token; stops nothing, notes the time."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def generate(model: Any, prompts: list[list[int]], output_tokens: int) -> dict[str, float]:
    longest = max(map(len, prompts))
    # Left padding, so that every sequence's next token is at the right end.
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    steps = StepTimes()
    start = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=output_tokens,
        min_new_tokens=output_tokens,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([steps]),
    )
    end = time.perf_counter()
    if out.shape[1] != longest + output_tokens:
        raise RuntimeError(f"asked for {output_tokens} tokens, got {out.shape[1] - longest}")
    return {"first_token_s": steps.times[0] - start, "end_s": end - start}


def load(gguf: Path) -> Any:
    """The GGUF's numbers in transformers' own model; float32."""
    checkpoint = open_checkpoint(gguf)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**checkpoint.config)).eval()
    place = {"dtype": torch.float32, "device": torch.device("cpu")}
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors = {name: checkpoint.read(name, shapes[name], **place) for name in checkpoint.names()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = {"lm_head.weight"} if checkpoint.config["tie_word_embeddings"] else set()
    if unexpected or set(missing) - tied:
        raise RuntimeError(f"{gguf} does not fit: missing {missing}, unexpected {unexpected}")
    return model


def main(gguf: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    model = load(gguf)
    print(json.dumps({"loaded": True}), flush=True)
    for line in sys.stdin:
        batch = json.loads(line)
        print(json.dumps(generate(model, batch["prompts"], batch["output_tokens"])), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
