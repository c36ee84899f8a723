"""How much a text reads like a prompt injection. Installed with `dropless[guardrails]`.

The score of `prompt-guardrail`, a logistic regression on n-grams; how well it does is measured by
`benchmarks/guardrails.py`.
"""

from __future__ import annotations

from guardify.guardrails.logistic_regression import LogisticRegressionGuardrail


class InjectionScorer:
    """Loads the package's own model, without network."""

    def __init__(self) -> None:
        self._model = LogisticRegressionGuardrail()

    def score(self, text: str) -> float:
        """0 to 1."""
        found = self._model.predict(text)  # of the likelier label
        likelier = float(found["score"])
        return likelier if found["label"] == "injection" else 1.0 - likelier
