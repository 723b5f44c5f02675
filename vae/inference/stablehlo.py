"""Export of a model as two StableHLO programs with the weights inside, which need only JAX."""

import json
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from vae.checkpoints.modules import make_model
from vae.checkpoints.provenance import portable, portable_text, provenance
from vae.checkpoints.safetensors_io import SavedModel
from vae.data.errors import DataError
from vae.inference import codec
from vae.inference.describe import describe
from vae.inference.new_folder import require_new, write_folder

ENCODE, DECODE = "encode.stablehlo", "decode.stablehlo"
ABOUT, README = "about.json", "README.txt"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# A program is one message of a format limited to 2 GiB, and loading takes several times its size.
MAX_BYTES = 1 << 30

_README = """\
{name}, step {step}, model {hash}; written by fundus-vae {version}

Two programs with the weights inside. They need jax (written by {jax}) and nothing else, on
{platforms}:

    import jax, numpy as np
    from jax import export
    encode = jax.jit(export.deserialize(open("{encode}", "rb").read()).call)
    decode = jax.jit(export.deserialize(open("{decode}", "rb").read()).call)
    mean, log_var = encode(images)       # {images} -> two arrays {latents}
    images = np.asarray(decode(mean))    # {latents} -> {images}

{encode}   images in sRGB, 0..255 -> mean and log-variance of the posterior
{decode}   latents (a mean, or mean + exp(log_var / 2) * noise) -> images
{sizes}
Not for diagnosis: a reconstruction is not the photograph.
"""


def write_stablehlo(out: str | os.PathLike, saved: SavedModel) -> dict[str, int]:
    """Writes `encode.stablehlo`, `decode.stablehlo`, `about.json` and `README.txt`.

    The programs take any number of images, and any image size that the model takes.

    Args:
      out: Output folder, new or empty; it is written whole or not at all.
      saved: The model.

    Returns:
      Size of each file in bytes, by name.

    Raises:
      UsageError: `out` is a file or not empty.
      DataError: The model is too large for this format.
    """
    require_new(out)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(saved.variables))
    if size > MAX_BYTES:
        raise DataError(
            f"{saved.path}: {size / 2**30:.1f} GiB of weights, and a StableHLO file takes "
            f"{MAX_BYTES / 2**30:.0f} GiB; export it with --out FILE.safetensors"
        )
    made = provenance()
    about = {
        "model": describe(portable(saved)) | {"path": saved.path.name},
        "written_by": {
            "version": made["version"],
            "command": portable_text(made["command"]),
            "jax": jax.__version__,
        },
        "platforms": PLATFORMS,
    }
    programs, shapes = _programs(saved)
    about["programs"] = shapes
    files = {ENCODE: programs[0].serialize(), DECODE: programs[1].serialize()}
    files[ABOUT] = (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode()
    files[README] = _readme(about).encode()
    return write_folder(out, files)


def _programs(saved: SavedModel) -> tuple[list[export.Exported], dict[str, Any]]:
    """Exports encoder and decoder, and describes the shapes of their inputs and outputs."""
    module, variables = make_model(saved.config), jax.device_get(saved.variables)

    def encode(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        posterior = codec.encode(module, variables, images)
        return posterior.mean, posterior.log_var

    def decode(latents: jax.Array) -> jax.Array:
        return codec.decode(module, variables, latents)

    if side := module.tile_size:
        (n,) = export.symbolic_shape("n")
        images, latents = (n, side, side, 3), (n, module.latent_size)
    else:
        n, h, w = export.symbolic_shape("n, h, w")
        f = module.downsample
        images, latents = (n, f * h, f * w, 3), (n, h, w, module.latent_channels)
    specs = (
        jax.ShapeDtypeStruct(images, jnp.uint8),
        jax.ShapeDtypeStruct(latents, jnp.float32),
    )
    files = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, files)
    # Without it the programs name the source files of this installation.
    jax.config.update(files, ".*")
    try:
        programs = [
            export.export(jax.jit(function), platforms=PLATFORMS)(spec)
            for function, spec in zip((encode, decode), specs, strict=True)
        ]
    finally:
        jax.config.update(files, before)
    shapes = {
        "encode": {"images": _words("uint8", images), "mean, log_var": _words("float32", latents)},
        "decode": {"latents": _words("float32", latents), "images": _words("uint8", images)},
    }
    return programs, shapes


def _words(dtype: str, shape: tuple) -> str:
    return f"{dtype} [{', '.join(map(str, shape))}]"


def _readme(about: dict[str, Any]) -> str:
    model, shapes = about["model"], about["programs"]["encode"]
    sizes = "Images of another size are refused.\n"
    if not model["tile_only"]:
        sizes = (
            "Height and width must be divisible by the factor; extend other images by their edge "
            "pixels.\nA whole photograph at once takes much memory; the package uses windows "
            "instead.\n"
        )
    return _README.format(
        **{key: model[key] for key in ("name", "step", "hash")},
        version=about["written_by"]["version"],
        jax=about["written_by"]["jax"],
        platforms=", ".join(PLATFORMS),
        encode=ENCODE,
        decode=DECODE,
        images=shapes["images"],
        latents=shapes["mean, log_var"],
        sizes=sizes,
    )
