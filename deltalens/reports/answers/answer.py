"""The questions that the reader of a report has, and what an answer to one consists of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from deltalens.reports.wording import number

__all__ = ["QUESTIONS", "UNKNOWN", "Answer", "over_examples"]

QUESTIONS: Mapping[str, str] = {
    "redundant": "How much of the fine-tune is redundant?",
    "where": "Which part, and which layers, carry it?",
    "gradients": "What did the gradients look like?",
    "methods": "Did a sparse method do better?",
    "sharp": "How sharp is the loss there?",
    "best": "Which model is best?",
    "salience": "Which weights would sparse tuning train?",
    "cost": "What does a method cost per step?",
    "training": "Where did the training get to?",
}
"""Key of a question -> the question, in the order in which a report answers them."""
UNKNOWN = "–"
"""The number of an answer that has none."""


@dataclass(frozen=True)
class Answer:
    """The answer of one study, run or training to one question."""

    question: str
    """A key of `QUESTIONS`."""
    number: str
    """The number that answers it, as text; `UNKNOWN` if it cannot be answered."""
    sentence: str
    """The answer in plain words."""
    uncertainty: str
    """How far to trust the number: an error, a spread, or why neither is known."""

    def __str__(self) -> str:
        return f"{self.sentence.removesuffix('.')} ({self.uncertainty})"


def over_examples(error: float, n: int) -> str:
    """Word the standard error of a metric.

    Args:
        error: NaN if unknown.
        n: examples that it was measured on; 0 if that does not apply.

    Returns:
        A phrase.

    Example:
        >>> over_examples(0.01, 1319)
        'standard error 0.0100 over 1,319 examples'
    """
    if not math.isfinite(error):
        return "no standard error was recorded"
    return f"standard error {number(error)}" + (f" over {n:,} examples" if n else "")
