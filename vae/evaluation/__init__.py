"""Evaluation of a model on a split: metrics, tables and pictures."""

from vae.evaluation.evaluate import Evaluation, evaluate
from vae.evaluation.photographs import PhotographEvaluation, whole_photographs
from vae.evaluation.table import format_table, results, write_results, write_tiles
from vae.evaluation.tile_pictures import (
    pick_examples,
    reconstruct_examples,
    reconstruction_figure,
)

__all__ = [
    "Evaluation",
    "PhotographEvaluation",
    "evaluate",
    "format_table",
    "pick_examples",
    "reconstruct_examples",
    "reconstruction_figure",
    "results",
    "whole_photographs",
    "write_results",
    "write_tiles",
]
