"""Evaluation of sampled tiles: distance of their distribution from real tiles, and copies."""

from vae.evaluation.samples.run import evaluate_prior, evaluate_samples, sheet

__all__ = ["evaluate_prior", "evaluate_samples", "sheet"]
