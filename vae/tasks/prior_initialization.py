"""The initialization of a prior: its autoencoder, and the best Gaussian of the latents."""

from collections.abc import Callable, Iterable

import numpy as np
from ml_collections import ConfigDict

from vae.checkpoints.config import AUTOENCODER_KL
from vae.checkpoints.loading import load_saved
from vae.checkpoints.modules import abstract_model
from vae.checkpoints.safetensors_io import SavedModel
from vae.data.errors import DataError, UsageError
from vae.data.pipeline import Dataset
from vae.models import Spectrum
from vae.multihost import by_first_process
from vae.tasks.flow import spectrum_of

# Upper limit of the number of labels; more names are probably not classes.
MOST_LABELS = 1000


def load_autoencoder(config: ConfigDict) -> SavedModel:
    """Loads the model that `prior.autoencoder` names.

    Raises:
      DataError: There is no such model, or it is not an `AutoencoderKL`.
    """
    name = config.prior.autoencoder
    saved = load_saved(name)
    if saved.config.model.architecture != AUTOENCODER_KL:
        raise DataError(
            f"prior.autoencoder={name} has the architecture {saved.config.model.architecture}; a "
            "prior is trained on latents of models of configs/fundus256.py (for the published "
            "architecture `fundus-vae sample` draws latents from N(0, I))"
        )
    return saved


def for_latents(config: ConfigDict, autoencoder: SavedModel, dataset: Dataset) -> ConfigDict:
    """Completes the config of a prior with settings from its autoencoder and its dataset.

    Args:
      config: The config as the user gave it.
      autoencoder: Result of `load_autoencoder`.
      dataset: Training dataset.

    Returns:
      A copy with `model.latent_channels`, `model.latent_side` and, if `prior.conditional`,
      `model.labels`.

    Raises:
      UsageError: The latents of `data.crop` are too small or not divisible for the model's levels,
        or the labels are too many, unknown or set with `prior.conditional=False`.
    """
    config, its = config.copy_and_resolve_references(), autoencoder.config.model
    model = config.model
    side, rest = divmod(config.data.crop, its.downsample)
    smallest = 2 ** (len(model.widths) - 1)
    # The coarsest level needs two positions a side: one position has only a mean.
    if rest or side % smallest or side < 2 * smallest:
        raise UsageError(
            f"data.crop={config.data.crop} has latents of {config.data.crop / its.downsample:g} "
            f"positions a side with {config.prior.autoencoder}, expected a multiple of {smallest}, "
            f"at least {2 * smallest}, for the {len(model.widths)} levels of "
            f"model.widths={tuple(model.widths)}"
        )
    model.latent_channels, model.latent_side = its.latent_channels, side
    if config.prior.conditional and not model.labels:
        model.labels = tuple(
            sorted({row.label for row in dataset.photographs() if row.split == "train"})
        )
    if len(model.labels) > MOST_LABELS:
        raise UsageError(
            f"the dataset has {len(model.labels)} labels, expected at most {MOST_LABELS}; select "
            'labels with --config.model.labels=\'("a", "b")\', or set '
            "--config.prior.conditional=False"
        )
    if not config.prior.conditional and model.labels:
        raise UsageError(
            f"model.labels={tuple(model.labels)} contradicts prior.conditional=False; drop one"
        )
    if unknown := set(config.prior.always_labelled) - set(model.labels):
        raise UsageError(
            f"prior.always_labelled has {sorted(unknown)}, expected labels of {tuple(model.labels)}"
        )
    return config


def fit_prior(
    config: ConfigDict, autoencoder: SavedModel, read: Callable[[], Iterable[np.ndarray]]
) -> Spectrum:
    """Fits the best Gaussian on process 0; all processes get bitwise the same result.

    Args:
      config: Result of `for_latents`.
      autoencoder: Model that defines the latents.
      read: Returns batches of training tiles, uint8 [b, T, T, 3].
    """
    blank = abstract_model(config)[0]["spectrum"]["fit"]
    return by_first_process(lambda: spectrum_of(autoencoder, read(), config.data.crop), blank)
