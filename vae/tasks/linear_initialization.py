"""The linear codec that initializes autoencoders and enhancers, fitted to training tiles."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vae.checkpoints.modules import LinearFit, abstract_fit
from vae.data.pipeline import Dataset, first_tiles
from vae.metrics import SSIM_WINDOW
from vae.models import fit_overlapping_ppca, fit_pca
from vae.models.augment import shrink
from vae.multihost import by_first_process

MAX_FIT_VALUES = 5000  # their covariance takes 200 MB
# With beta = 0 a linear VAE has no unique optimum: the scale of the latents is arbitrary.
MIN_BETA = 0.01


def fit_linear(config: ConfigDict, read: Callable[[], Iterable[np.ndarray]]) -> LinearFit:
    """Fits the linear codec on process 0; all processes get bitwise the same result.

    Args:
      config: Config of the run.
      read: Returns batches of training tiles, uint8 [b, S, S, 3], the same at every call.
    """

    def fit():
        downsample = config.model.downsample
        tiles = functools.partial(_at_scales, read, config.data.scales, downsample)
        pca = fit_pca(tiles(), config.model.latent_channels, downsample)
        beta = max(config.loss.beta, MIN_BETA)
        return pca, fit_overlapping_ppca(tiles(), pca, config.model.linear_kernel, beta)

    return by_first_process(fit, abstract_fit(config))


def training_tiles(
    config: ConfigDict, dataset: Dataset, balance: float = 0.0
) -> Callable[[], Iterable[np.ndarray]]:
    """Returns a function that reads the first `data.fit_tiles` training tiles, always the same."""
    return functools.partial(
        first_tiles,
        dataset,
        size=config.data.size,
        seed=config.seed,
        count=config.data.fit_tiles,
        balance=balance,
    )


def check_linear_model(config: ConfigDict, problems: Any) -> None:
    """Adds problems of the sizes of a model with a linear path to a `Problems`."""
    problems.not_negative(config, "optimizer.linear_multiplier")
    model, data_size = config.model, config.data.size
    levels = len(model.encoder_depth)
    problems.require(
        levels == len(model.decoder_depth) and model.downsample == 4 * 2 ** (levels - 1),
        f"model.downsample={model.downsample} needs one depth for each resolution from 1/4 to "
        f"1/{model.downsample}, got encoder_depth={model.encoder_depth} and "
        f"decoder_depth={model.decoder_depth}",
    )
    problems.require(
        model.latent_channels <= 3 * model.downsample**2,
        f"model.latent_channels={model.latent_channels} is more than the "
        f"{3 * model.downsample**2} values of a patch (model.downsample={model.downsample})",
    )
    smallest = data_size // max(config.data.scales)
    problems.require(
        model.linear_kernel % 2 == 1 and model.linear_kernel * model.downsample <= smallest,
        f"model.linear_kernel={model.linear_kernel} must be odd, and that many patches of "
        f"{model.downsample} pixels must fit into data.size={data_size} divided by each of "
        f"data.scales={config.data.scales}",
    )
    # The fit holds the float64 covariance of all values that the kernel covers.
    values = 3 * (model.downsample * model.linear_kernel) ** 2
    problems.require(
        values <= MAX_FIT_VALUES or bool(config.init_from),
        f"model.linear_kernel={model.linear_kernel} at model.downsample={model.downsample} reaches "
        f"over {values} values, and the fit takes at most {MAX_FIT_VALUES}; set "
        "model.linear_kernel=1",
    )
    for path, side in (("data.size", data_size), ("data.crop", config.data.crop)):
        problems.require(
            side % model.downsample == 0 and side >= SSIM_WINDOW,
            f"{path}={side} must be a multiple of model.downsample={model.downsample} and at least"
            f" {SSIM_WINDOW}, the SSIM window",
        )


def _at_scales(
    read: Callable[[], Iterable[np.ndarray]], scales: tuple[int, ...], downsample: int
) -> Iterator[np.ndarray]:
    """Yields every batch at every scale, the smallest images first."""
    for images in read():
        for scale in sorted(set(scales), reverse=True):
            unit = downsample * scale
            height, width = (side // unit * unit for side in images.shape[1:3])
            yield shrink(images[:, :height, :width], scale)
