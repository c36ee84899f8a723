"""Trains the safety head: a linear one on the embedding model's vectors, for each category.

    python -m benchmarks.train_safety DATA

DATA holds openai-moderation; the half that `moderation_data` gives for it is trained on, the other
is never read here. Logistic regression, both classes of equal weight in all, `PENALTY` times half
the squared weights. A prompt that nobody judged in a category counts as safe there if it is safe
everywhere, and is left out if it is not. A category's threshold is the lowest score at which
`PRECISION` of those above it are unsafe in any category, when each fifth of the half is scored by a
head trained on the rest. Writes src/dropless/encoder/safety_head.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from benchmarks.moderation_data import CATEGORIES, Prompt, read_halves
from torch import Tensor

import dropless.encoder
from dropless.checkpoints.resolve import resolve
from dropless.encoder.client import EMBEDDING_MODEL
from dropless.encoder.minilm import MiniLM
from dropless.encoder.safety import CategoryHead
from dropless.encoder.word_pieces import WordPieces

HEAD = Path(dropless.encoder.__file__).parent / "safety_head.json"
PENALTY = 1.0
PRECISION = 0.8
FOLDS = 5
DIGITS = 5  # significant ones that are kept of a weight


def vectors(texts: Sequence[str]) -> Tensor:
    """[texts, depths * hidden] of each text's first window."""
    folder = resolve(EMBEDDING_MODEL)
    pieces, model = WordPieces(folder), MiniLM(folder)
    return torch.cat([model([pieces.windows(text)[0]]).flatten(1) for text in texts])


def train(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [numbers] and bias of the logistic regression of y [texts], 0 or 1, on x."""
    counts = torch.bincount(y, minlength=2)
    importance = (len(y) / (2 * counts))[y]
    weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights, bias], max_iter=1000, line_search_fn="strong_wolfe")
    inputs, targets = x.double(), y.double()

    def loss() -> Tensor:
        solver.zero_grad()
        logits = inputs @ weights + bias
        errors = F.binary_cross_entropy_with_logits(logits, targets, importance, reduction="sum")
        total = errors + PENALTY / 2 * weights.square().sum()
        total.backward()
        return total

    solver.step(loss)
    return weights.detach(), bias.detach()


def targets(prompts: Sequence[Prompt], category: str | None) -> Tensor:
    """1, 0, or -1 for those to leave out: [prompts]. None is any category."""

    def target(prompt: Prompt) -> int:
        judged = prompt.is_unsafe if category is None else prompt.is_in(category)
        if judged is None:
            return -1 if prompt.is_unsafe else 0
        return int(judged)

    return torch.tensor([target(prompt) for prompt in prompts])


def held_out_scores(x: Tensor, y: Tensor) -> Tensor:
    """The score of each text by a head that has not seen it: [texts]."""
    scores = torch.empty(len(x), dtype=torch.float64)
    fold = torch.arange(len(x)) % FOLDS
    for number in range(FOLDS):
        chosen = (fold != number) & (y >= 0)
        weights, bias = train(x[chosen], y[chosen])
        scores[fold == number] = (x[fold == number].double() @ weights + bias).sigmoid()
    return scores


def threshold(scores: Tensor, unsafe: Tensor) -> float:
    """The lowest score from which on enough are unsafe [texts]."""
    order = scores.argsort(descending=True)
    precision = unsafe[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    last = int((precision >= PRECISION).nonzero().max())
    return float(scores[order[last]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    prompts, _ = read_halves(parser.parse_args().data)
    x = vectors([prompt.text for prompt in prompts])
    unsafe = torch.tensor([prompt.is_unsafe for prompt in prompts])
    heads = {}
    for category in CATEGORIES:
        y = targets(prompts, category)
        weights, bias = train(x[y >= 0], y[y >= 0])
        heads[category] = CategoryHead(
            bias=float(bias),
            threshold=round(threshold(held_out_scores(x, y), unsafe), 3),
            weights=[float(f"{weight:.{DIGITS}g}") for weight in weights.tolist()],
        )
        print(
            f"{category}: {int((y == 1).sum())} unsafe of {int((y >= 0).sum())}, "
            f"threshold {heads[category].threshold}"
        )
    HEAD.write_bytes(msgspec.json.encode(heads) + b"\n")


if __name__ == "__main__":
    main()
