"""What sampled tiles are worth: how near their distribution is to real tiles', and whether any are
copies."""

from vae.evaluation.samples.run import evaluate_prior, evaluate_samples, sheet

__all__ = ["evaluate_prior", "evaluate_samples", "sheet"]
