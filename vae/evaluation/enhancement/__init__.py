"""Evaluation of an enhancer on degraded tiles, next to doing nothing and classical methods."""

from vae.evaluation.enhancement.cases import CASES, Case, Tile, degrade_case, pick_tiles
from vae.evaluation.enhancement.run import evaluate_enhancement, evaluate_enhancer, quick_scores
from vae.evaluation.enhancement.table import format_table

__all__ = [
    "CASES",
    "Case",
    "Tile",
    "degrade_case",
    "evaluate_enhancement",
    "evaluate_enhancer",
    "format_table",
    "pick_tiles",
    "quick_scores",
]
