"""The published training loss in PyTorch."""

import torch
from torch.nn.functional import conv2d

from vae.metrics import SSIM_WINDOW

SSIM_SIGMA = 1.5


def published_loss(
    x: torch.Tensor, image: torch.Tensor, mean: torch.Tensor, log_var: torch.Tensor
) -> torch.Tensor:
    """Computes the published training loss: sum of squares + KL + (1 - SSIM) of each tile.

    Args:
      x: Tiles [B, 3, S, S] in [0, 1].
      image: Reconstructions from a posterior sample, [B, 3, S, S] in [0, 1].
      mean: Posterior mean, [B, L].
      log_var: Posterior log-variance, [B, L].

    Returns:
      float32 [B].
    """
    squares = (image - x).square().sum(dim=(1, 2, 3))
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(dim=1)
    return squares + kl + 1 - ssim(image, x)


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Computes SSIM (Wang et al., 2004) of images [B, 3, H, W] in [0, 1]: float32 [B]."""
    offsets = torch.arange(SSIM_WINDOW) - (SSIM_WINDOW - 1) / 2
    window = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    window = (window / window.sum()).expand(3, 1, 1, -1)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return conv2d(conv2d(x, window, groups=3), window.transpose(2, 3), groups=3)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (var_a + var_b + 0.03**2)
    return (luminance * structure).mean(dim=(1, 2, 3))
