"""Descriptions of models, read from their variables and configs."""

import math
from typing import Any

import jax
import numpy as np

from vae.checkpoints.loading import CHECKPOINTS, variables_hash
from vae.checkpoints.modules import make_model
from vae.checkpoints.safetensors_io import SavedModel
from vae.inference.codec import latent_shape
from vae.models.posterior import ACTIVE_VARIANCE

_LOSS = ("likelihood", "beta", "ssim_weight")


def describe(saved: SavedModel) -> dict[str, Any]:
    """Describes an autoencoder in values for JSON.

    Returns:
      path, kind ("checkpoint of a run" or "exported file"), name, preset, architecture, step, hash,
      version (that trained it, None if unknown), parameters (number of learned values), bytes (of
      all variables as float32), tile (side of its training tiles, pixels), tile_only (True if it
      takes no other size), latents (shape for one tile), latent_values, ratio (input values /
      latent values), sigma (standard deviation of the likelihood, grey levels), reach (pixels that
      a latent depends on around its own patch, latent positions that a pixel depends on around its
      own; None if unbounded), latent (mean and std per channel, active: number of channels with a
      variance above 0.01), trained (what is known about the run).
    """
    module, config = make_model(saved.config), saved.config
    side = module.tile_size or config.data.size
    shape = latent_shape(module, saved.variables, (side, side, 3))
    values = math.prod(shape)
    std = np.sqrt(np.asarray(saved.latent_var, np.float64))
    log_scale = module.apply(saved.variables, method="log_scale")
    return _described(saved) | {
        "preset": preset(saved),
        "tile": side,
        "tile_only": module.tile_size is not None,
        "latents": list(shape),
        "latent_values": values,
        "ratio": 3 * side**2 / values,
        "sigma": float(np.exp(log_scale) * 127.5),
        "reach": None
        if module.tile_size
        else {"encoder_pixels": module.encoder_halo, "decoder_positions": module.decoder_halo},
        "latent": {
            "mean": np.round(np.asarray(saved.latent_mean, np.float64), 5).tolist(),
            "std": np.round(std, 5).tolist(),
            "active": int(np.sum(std**2 > ACTIVE_VARIANCE)),
        },
    }


def describe_enhancer(saved: SavedModel) -> dict[str, Any]:
    """Describes an enhancer in values for JSON.

    Returns:
      path, kind, name, architecture, step, hash, version, parameters and bytes as for an
      autoencoder, tile (side of its training tiles, pixels), reach (pixels that a pixel of the
      detail stage depends on around its own), sigma (standard deviation of the likelihood, grey
      levels), trained (what is known about the run).
    """
    module = make_model(saved.config)
    log_scale = module.apply(saved.variables, method="log_scale")
    return _described(saved) | {
        "tile": saved.config.data.size,
        "reach": module.detail_halo,
        "sigma": float(np.exp(log_scale) * 127.5),
    }


def describe_prior(saved: SavedModel) -> dict[str, Any]:
    """Describes a prior in values for JSON.

    Returns:
      path, kind, name, architecture, step, hash, version, parameters and bytes as for an
      autoencoder, autoencoder (name and hash of the one it was trained for), latents (shape for one
      tile), labels, sample_steps, trained (what is known about the run).
    """
    config, model = saved.config, saved.config.model
    return _described(saved) | {
        "autoencoder": {
            "name": config.prior.autoencoder,
            "hash": saved.provenance.get("autoencoder"),
        },
        "latents": [model.latent_side, model.latent_side, model.latent_channels],
        "labels": list(model.labels),
        "sample_steps": config.prior.sample_steps,
    }


def preset(saved: SavedModel) -> str:
    """Returns the short name of a model by its latent: f8c32, or the length of its vector."""
    model = saved.config.model
    if "downsample" in model:
        return f"f{model.downsample}c{model.latent_channels}"
    return f"{model.latent_size} values a tile"


def _described(saved: SavedModel) -> dict[str, Any]:
    """Returns the values that the descriptions of all models contain."""
    return {
        "path": str(saved.path),
        "kind": f"checkpoint of a run ({CHECKPOINTS}/{saved.path.name})"
        if saved.path.parent.name == CHECKPOINTS
        else "exported file",
        "name": saved.config.name,
        "architecture": saved.config.model.architecture,
        "step": saved.step,
        "hash": variables_hash(saved.variables),
        "version": saved.provenance.get("version"),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(saved.variables["params"])),
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(saved.variables)),
        "trained": _trained(saved),
    }


def _trained(saved: SavedModel) -> dict[str, Any]:
    config, made = saved.config, saved.provenance
    return {
        "fingerprint": made.get("fingerprint"),
        "command": made.get("command"),
        "data": config.data.dir or config.data.source or None,
        "crop": config.data.crop,
        "batch_size": config.batch_size,
        "learning_rate": config.optimizer.learning_rate,
        "ema_decay": config.train.ema_decay,
        **{name: config.loss[name] for name in _LOSS if "loss" in config},  # priors have no loss
    }
