"""Texts in, vectors and verdicts out: one small process beside the engine's."""
