"""Dropless in this process, through `LLM`, greedy, no early end.

Arguments: GGUF file, threads. Prints a line when loaded, then answers each line of JSON
`{"prompts": [[id]], "output_tokens": n}` with one record per prompt, times in seconds from the
start of the batch: `{"records": [{"first_token_s": x, "end_s": y}]}`.
"""

from __future__ import annotations

import json
import sys

from dropless import LLM
from dropless.bench.offline import OfflineRun
from dropless.bench.workload import PlannedRequest, Workload


def main(gguf: str, threads: int) -> None:
    with LLM(gguf, threads=threads) as llm:
        print(json.dumps({"loaded": True}), flush=True)
        for line in sys.stdin:
            batch = json.loads(line)
            planned = [
                PlannedRequest(i, 0.0, ids, len(ids), batch["output_tokens"])
                for i, ids in enumerate(batch["prompts"])
            ]
            workload = Workload("closed", planned, len(planned))
            records = OfflineRun(llm.engine, llm.tokenizer, workload).run()
            answer = [{"first_token_s": r.arrivals[0], "end_s": r.end_s} for r in records]
            print(json.dumps({"records": answer}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
