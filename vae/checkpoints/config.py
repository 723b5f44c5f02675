"""Configs of stored models, validated against the config file of their architecture."""

import importlib
from typing import Any

from ml_collections import ConfigDict

AUTOENCODER_KL = "autoencoder_kl"
FUNDUS_VAE = "fundus_vae"
ENHANCER = "enhancer"
PRIOR = "prior"

# The config file that defines the settings of each architecture.
CONFIG_FILES = {
    AUTOENCODER_KL: "vae.configs.fundus256",
    FUNDUS_VAE: "vae.configs.published",
    ENHANCER: "vae.configs.enhance256",
    PRIOR: "vae.configs.prior256",
}
ARCHITECTURES = tuple(CONFIG_FILES)

# Upper limits of the sizes in a stored config, far above those of any model trained here.
LARGEST_SIZE = 1 << 14
LARGEST = {
    "downsample": 64,
    "linear_kernel": 64,
    "encoder_depth": 256,
    "decoder_depth": 256,
    "stages": 256,
    "depths": 256,
}
LONGEST = 16


def reference_config(architecture: str) -> ConfigDict:
    """Returns the default config of an architecture's config file.

    Raises:
      ValueError: The architecture is unknown.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(map(repr, ARCHITECTURES))
        raise ValueError(f"model.architecture={architecture!r} is none of {known}")
    return importlib.import_module(CONFIG_FILES[architecture]).get_config()


def setting_problems(reference: ConfigDict, config: ConfigDict, prefix: str = "") -> list[str]:
    """Lists the unknown, missing and mistyped settings of a config.

    Args:
      reference: All settings, with values of their types; an integer is valid for a float.
      config: The config to check.
      prefix: Prefix of the settings' names in the messages.
    """
    problems = [
        f"unknown key {prefix}{key}; known there: {', '.join(reference)}"
        for key in config
        if key not in reference
    ]
    for key, value in reference.items():
        path = f"{prefix}{key}"
        if key not in config:
            problems.append(f"{path} is missing")
        elif isinstance(value, ConfigDict):
            if isinstance(config[key], ConfigDict):
                problems += setting_problems(value, config[key], f"{path}.")
            else:
                problems.append(f"{path} is a group of settings, got {config[key]!r}")
        else:
            allowed = (int, float) if type(value) is float else (type(value),)
            if type(config[key]) not in allowed:
                problems.append(
                    f"{path}={config[key]!r} is {type(config[key]).__name__}, "
                    f"expected {type(value).__name__}"
                )
    return problems


def from_dict(stored: dict[str, Any]) -> ConfigDict:
    """Returns the config whose `to_dict()` was stored as JSON.

    Raises:
      AttributeError, KeyError, TypeError, ValueError: Its settings are not those of its
        architecture's config file, or its sizes exceed the limits of this module.
    """
    config = ConfigDict(_tuples(stored))
    if problems := setting_problems(reference_config(config.model.architecture), config):
        raise ValueError("; ".join(problems))
    _check_sizes(config)
    return config


def _check_sizes(config: ConfigDict) -> None:
    """Checks the size limits: for huge sizes even the computation of shapes would not end.

    Raises:
      ValueError: A size exceeds its limit; the message names the setting.
    """
    for group, names in (("model", config.model), ("data", ("size", "crop"))):
        for name in names:
            value, most = config[group][name], LARGEST.get(name, LARGEST_SIZE)
            numbers = value if isinstance(value, tuple) else (value,)
            if len(numbers) > LONGEST and name != "labels":
                raise ValueError(f"{group}.{name} has {len(numbers)} numbers, at most {LONGEST}")
            for number in numbers:
                if type(number) in (int, float) and not 1 <= number <= most:
                    raise ValueError(f"{group}.{name}={value}, expected numbers from 1 to {most}")


def _tuples(value: Any) -> Any:
    """Converts JSON's lists to the tuples that configs contain."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value
