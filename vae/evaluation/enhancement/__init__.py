"""Evaluation of an enhancer on degraded photographs, next to classical methods."""

from vae.evaluation.enhancement.cases import CASES, Photograph, degraded, read_photograph
from vae.evaluation.enhancement.run import evaluate_enhancement, evaluate_enhancer, quick_scores
from vae.evaluation.enhancement.table import format_table

__all__ = [
    "CASES",
    "Photograph",
    "degraded",
    "evaluate_enhancement",
    "evaluate_enhancer",
    "format_table",
    "quick_scores",
    "read_photograph",
]
