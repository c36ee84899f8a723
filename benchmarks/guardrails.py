"""How well guardrails judge: precision, recall and AUROC on labelled texts, and false alarms.

    python -m benchmarks.guardrails DATA
    python -m benchmarks.guardrails DATA --only pii

DATA holds openai-moderation, presidio-pii, mmlu and the folders of ordinary prompts named below.
Everything is judged as the server judges it, through `TextJudge` and the encoder process.

safety: the half of openai-moderation that `train_safety` does not read. A category is measured on
the prompts that somebody judged in it; "any" on all. AUROC of "any" ranks prompts by the highest
score relative to its threshold. `by sentence` judges each prompt as an answer that is streamed.
`ordinary prompts` are in no way chosen to be unsafe: what is flagged of them is a false alarm.

alternatives: trains, on the training half, what the safety head could be instead;
alt-profanity-check is among them where it is installed.

pii: an entity is found if something that was found overlaps it; a finding is right if it overlaps
any labelled entity. Kinds are mapped as in `PII_KINDS`.

injection: what reads as a prompt injection, by threshold: of our own injections.txt, which was
written without looking at scores, and of the ordinary prompts.

topics: 20 questions of each of MMLU's 57 subjects, the subject's name being the only valid topic.

Writes results/guardrails.json beside this script.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from benchmarks.moderation_data import CATEGORIES, Prompt, read_halves
from benchmarks.train_safety import targets, train, vectors
from torch import Tensor

from dropless.checkpoints.resolve import resolve
from dropless.encoder.client import EMBEDDING_MODEL, EncoderClient
from dropless.encoder.entities import DEFAULT_ENTITIES, ENTITIES
from dropless.encoder.messages import Needs
from dropless.encoder.safety import category_heads
from dropless.encoder.word_pieces import WordPieces
from dropless.server.guardrails.findings import (
    INJECTION_THRESHOLD,
    TOPIC_THRESHOLD,
    Findings,
)
from dropless.server.guardrails.judge import CONTEXT_CHARACTERS, TextJudge, VerdictMemory
from dropless.server.guardrails.sentences import pieces
from dropless.server.guardrails.settings import GuardrailParameters, PiiSettings

RESULTS = Path(__file__).parent / "results" / "guardrails.json"
INJECTIONS = Path(__file__).with_name("injections.txt")
SENTENCE_CHARACTERS = 200
PII_KINDS: Mapping[str, str | None] = {
    "STREET_ADDRESS": "LOCATION",
    "ADDRESS": "LOCATION",
    "GPE": "LOCATION",
    "ZIP_CODE": "LOCATION",
    "DOMAIN_NAME": "URL",
    "TITLE": None,
    "PREFIX": None,
    "AGE": None,
}

Report = dict[str, Any]


def auroc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """The chance that a text with the label scores above one without, ties counting half."""
    order = sorted(range(len(scores)), key=scores.__getitem__)
    rank_sum, place = 0.0, 0
    while place < len(order):
        end = place
        while end < len(order) and scores[order[end]] == scores[order[place]]:
            end += 1
        middle = (place + end + 1) / 2
        rank_sum += middle * sum(labels[i] for i in order[place:end])
        place = end
    positive = sum(labels)
    negative = len(labels) - positive
    return (rank_sum - positive * (positive + 1) / 2) / (positive * negative)


def quality(flagged: Sequence[bool], labels: Sequence[bool]) -> Report:
    right = sum(f and label for f, label in zip(flagged, labels, strict=True))
    return {
        "texts": len(labels),
        "positive": sum(labels),
        "flagged": sum(flagged),
        "precision": _round(right / sum(flagged)) if any(flagged) else None,
        "recall": _round(right / sum(labels)),
    }


class Bench:
    def __init__(self, data: Path) -> None:
        self.data = data
        self.encoder = EncoderClient(threads=1)

    def judge(self, rules: GuardrailParameters) -> TextJudge:
        """One that remembers nothing."""
        return TextJudge(self.encoder, VerdictMemory(size=0), "", rules, safety=False)

    async def safety(self) -> Report:
        _, prompts = read_halves(self.data)
        judge = self.judge(GuardrailParameters(safety=True))
        whole = await judge.judge([prompt.text for prompt in prompts])
        return {
            "whole": _safety_quality(prompts, whole),
            "by sentence": _safety_quality(
                prompts, [await _by_sentence(judge, prompt.text) for prompt in prompts]
            ),
            "ordinary prompts": {
                name: {"texts": len(texts), "flagged": _flagged(await judge.judge(texts))}
                for name, texts in ordinary(self.data).items()
            },
        }

    async def alternatives(self) -> Report:
        return alternatives(*read_halves(self.data))

    async def injection(self) -> Report:
        judge = self.judge(GuardrailParameters(prompt_injection=True))
        attacks = INJECTIONS.read_text().splitlines()
        texts = {"injections.txt": attacks, **ordinary(self.data)}
        scores = {
            name: [found.injection or 0.0 for found in await judge.judge(each)]
            for name, each in texts.items()
        }
        plain = [score for name in scores if name != "injections.txt" for score in scores[name]]
        labels = [True] * len(attacks) + [False] * len(plain)
        return {
            "threshold": INJECTION_THRESHOLD,
            "AUROC": _round(auroc(scores["injections.txt"] + plain, labels)),
            **{
                name: {
                    "texts": len(found),
                    **{
                        f"{threshold} and more": sum(score >= threshold for score in found)
                        for threshold in (0.2, 0.3, 0.4, 0.5, 0.6)
                    },
                }
                for name, found in scores.items()
            },
        }

    async def pii(self) -> Report:
        return {
            f"{name}, {file}": await self._pii(file, kinds)
            for file in ("synth_dataset_v2", "generated_large")
            for name, kinds in (("default", DEFAULT_ENTITIES), ("all", ENTITIES))
        }

    async def _pii(self, file: str, kinds: tuple[str, ...]) -> Report:
        rows = json.loads((self.data / "presidio-pii" / f"{file}.json").read_text())
        judge = self.judge(GuardrailParameters(pii=PiiSettings(behavior="MASK", entities=kinds)))
        await judge.judge(["warm up"])
        began = self._encoder_s()
        findings = await judge.judge([row["full_text"] for row in rows])
        seconds = self._encoder_s() - began
        counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
        for row, found in zip(rows, findings, strict=True):
            spans = [
                (
                    PII_KINDS.get(s["entity_type"], s["entity_type"]),
                    s["start_position"],
                    s["end_position"],
                )
                for s in row["spans"]
            ]
            for kind, start, end in spans:
                if kind in counts:
                    hit = any(e.start < end and e.end > start for e in found.entities)
                    counts[kind]["labelled"] += 1
                    counts[kind]["found"] += hit
            for entity in found.entities:
                right = any(entity.start < end and entity.end > start for _, start, end in spans)
                counts[entity.kind]["findings"] += 1
                counts[entity.kind]["right"] += right
        total = sum(counts.values(), Counter())
        return {
            "texts": len(rows),
            "processor ms per text": _round(seconds / len(rows) * 1e3),
            **{name: _pii_quality(count) for name, count in [("all", total), *counts.items()]},
        }

    async def topics(self) -> Report:
        questions: dict[str, list[str]] = {}
        for path in sorted((self.data / "mmlu" / "test").glob("*.csv")):
            subject = path.stem.removesuffix("_test").replace("_", " ")
            with path.open(encoding="utf-8", newline="") as file:
                questions[subject] = [row["question"] for row in csv.DictReader(file)][:20]
        topics = await self._embed(list(questions))
        texts = [text for asked in questions.values() for text in asked]
        owner = torch.tensor([n for n, asked in enumerate(questions.values()) for _ in asked])
        similarity = await self._embed(texts) @ topics.T  # [texts, topics]
        on = owner[:, None] == torch.arange(len(questions))
        by_subject = [
            auroc(similarity[:, n].tolist(), on[:, n].tolist()) for n in range(len(questions))
        ]
        kept = similarity >= TOPIC_THRESHOLD
        return {
            "mean AUROC of a subject": _round(sum(by_subject) / len(by_subject)),
            "threshold": TOPIC_THRESHOLD,
            "kept on topic": _round(float(kept[on].float().mean())),
            "kept off topic": _round(float(kept[~on].float().mean())),
        }

    async def _embed(self, texts: Sequence[str]) -> Tensor:
        """[texts, hidden], of each text's first window."""
        pieces = WordPieces(resolve(EMBEDDING_MODEL))
        encoded = await self.encoder.embed([pieces.windows(text)[0] for text in texts])
        return torch.stack([torch.frombuffer(bytearray(v), dtype=torch.float32) for v in encoded])

    def _encoder_s(self) -> float:
        assert self.encoder.pid is not None
        times = psutil.Process(self.encoder.pid).cpu_times()
        return float(times.user + times.system)


async def _by_sentence(judge: TextJudge, text: str) -> Findings:
    """All that is found when it is judged as it would be streamed."""
    whole = Findings()
    for start, end in pieces(text, 0, SENTENCE_CHARACTERS):
        context = text[max(0, start - CONTEXT_CHARACTERS) : start]
        found = await judge.judge_next(context, text[start:end])
        for name, score in found.scores.items():
            whole.scores[name] = max(score, whole.scores.get(name, 0.0))
        whole.unsafe |= found.unsafe
    return whole


def _safety_quality(prompts: Sequence[Prompt], findings: Sequence[Findings]) -> Report:
    thresholds = {name: head.threshold for name, head in category_heads().items()}

    def margin(found: Findings) -> float:
        return max(_logit(s) - _logit(thresholds[name]) for name, s in found.scores.items())

    unsafe = [prompt.is_unsafe for prompt in prompts]
    report = {
        "any": {
            **quality([bool(found.unsafe) for found in findings], unsafe),
            "AUROC": _round(auroc([margin(found) for found in findings], unsafe)),
        }
    }
    for category in CATEGORIES:
        judged = [
            (found, label)
            for prompt, found in zip(prompts, findings, strict=True)
            if (label := prompt.is_in(category)) is not None
        ]
        labels = [label for _, label in judged]
        report[category] = {
            **quality([category in found.unsafe for found, _ in judged], labels),
            "AUROC": _round(auroc([found.scores[category] for found, _ in judged], labels)),
            "threshold": thresholds[category],
        }
    return report


def alternatives(training: Sequence[Prompt], held_out: Sequence[Prompt]) -> Report:
    """AUROC of "any" for other heads, and the processor time of one text."""
    unsafe = [prompt.is_unsafe for prompt in held_out]
    y = targets(training, None)
    began = time.process_time()
    seen, new = (vectors([p.text for p in half]) for half in (training, held_out))
    each_ms = (time.process_time() - began) / (len(seen) + len(new)) * 1e3
    last = slice(-384, None)
    inputs = {
        "all kept depths, the one that is used": (seen, new, each_ms),
        "the embedding alone": (seen[:, last], new[:, last], each_ms),
    }
    try:
        from profanity_check import predict_prob
    except ImportError:
        pass
    else:
        began = time.process_time()
        seen_p, new_p = (
            torch.from_numpy(predict_prob([p.text for p in half])).float()[:, None]
            for half in (training, held_out)
        )
        extra_ms = (time.process_time() - began) / (len(seen) + len(new)) * 1e3
        inputs["alt-profanity-check alone"] = (seen_p, new_p, extra_ms)
        both = (torch.cat([seen, seen_p], 1), torch.cat([new, new_p], 1), each_ms + extra_ms)
        inputs["all kept depths and alt-profanity-check"] = both
    report = {}
    for name, (a, b, ms) in inputs.items():
        weights, bias = train(a, y)
        scores = (b.double() @ weights + bias).tolist()
        report[name] = {"AUROC": _round(auroc(scores, unsafe)), "processor ms": _round(ms)}
    return report


def ordinary(data: Path) -> dict[str, list[str]]:
    """Texts of which none is meant to be unsafe."""

    def lines(name: str) -> Iterable[Any]:
        path = data / name
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return map(json.loads, raw.splitlines())

    chats = [
        *lines("mt-bench/mt_bench_question.jsonl"),
        *lines("mt-bench/vicuna_bench_question.jsonl"),
    ]
    wiki = (data / "wikitext-2" / "test.txt").read_text(encoding="utf-8").splitlines()
    return {
        "MT-Bench and Vicuna questions": [turn for row in chats for turn in row["turns"]],
        "MT-Bench reference answers": [
            turn
            for row in lines("mt-bench/mt_bench_reference_gpt-4.jsonl")
            for turn in row["choices"][0]["turns"]
        ],
        "GSM8K questions": [row["question"] for row in lines("gsm8k/test.jsonl.gz")][:500],
        "HumanEval prompts": [row["prompt"] for row in lines("humaneval/HumanEval.jsonl.gz")],
        "NQ-Open questions": [row["question"] for row in lines("nq_open/NQ-open.dev.jsonl")][:500],
        "WikiText paragraphs": [line.strip() for line in wiki if len(line) > 200][:500],
    }


def _flagged(findings: Sequence[Findings]) -> int:
    return sum(bool(found.unsafe) for found in findings)


def _pii_quality(count: Counter[str]) -> Report:
    labelled, findings = count["labelled"], count["findings"]
    return {
        "labelled": labelled,
        "recall": _round(count["found"] / labelled) if labelled else None,
        "findings": findings,
        "precision": _round(count["right"] / findings) if findings else None,
    }


def _logit(score: float) -> float:
    kept = min(max(score, 1e-9), 1 - 1e-9)
    return math.log(kept / (1 - kept))


def _round(value: float) -> float:
    return round(value, 3)


async def measure(data: Path, only: str | None) -> None:
    bench = Bench(data)
    await bench.encoder.prepare(Needs(embeddings=True, pii=True, names=True, injection=True))
    parts: dict[str, Callable[[], Any]] = {
        "safety": bench.safety,
        "alternatives": bench.alternatives,
        "injection": bench.injection,
        "pii": bench.pii,
        "topics": bench.topics,
    }
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    try:
        for name, part in parts.items():
            if only in (None, name):
                report[name] = {"when": datetime.now(UTC).isoformat("T", "minutes"), **await part()}
                print(name, json.dumps(report[name], indent=2), flush=True)
    finally:
        await bench.encoder.stop()
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", choices=("safety", "alternatives", "injection", "pii", "topics"))
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.data, arguments.only))


if __name__ == "__main__":
    main()
