"""What a model is and what it was found to be worth, as `fundus-vae info` tells it."""

import json
import textwrap
from pathlib import Path
from typing import Any

from vae.checkpoints.config import PRIOR
from vae.checkpoints.exported import SavedModel
from vae.checkpoints.reading import CHECKPOINTS
from vae.evaluation.run import RESULTS
from vae.inference.describe import describe, describe_prior

_WIDTH = 100
_UNKNOWN = "unknown"


def about_model(saved: SavedModel) -> dict[str, Any]:
    """The description of a model (`vae.inference.describe`) and its figures.

    Returns:
      Plain values; `figures` holds split, tiles, patients, ssim, psnr, bytes and pca (ssim, psnr)
      of the results.json beside the model, or NAME.json beside NAME.safetensors; None where there
      is none or it is of another model. A prior's description has none (`describe_prior`).
    """
    if saved.config.model.architecture == PRIOR:
        return describe_prior(saved)
    about = describe(saved)
    return about | {"figures": _figures(saved, about["hash"])}


def format_about(about: dict[str, Any]) -> str:
    """A description as lines of text."""
    if about["architecture"] == PRIOR:
        return _format_prior(about)
    trained, latent, figures = about["trained"], about["latent"], about["figures"]
    shape = " x ".join(map(str, about["latents"]))
    reach = about["reach"]
    lines = [
        ("model", f"{about['name']} ({about['preset']}, {about['architecture']}), "
         f"step {about['step']:,d}"),
        ("hash", about["hash"]),
        ("file", f"{about['path']}, {about['kind']}"),
        ("parameters", f"{about['parameters']:,d}, {about['bytes'] / 1e6:,.1f} MB in memory"),
        ("images", f"{about['tile']} x {about['tile']} pixels only" if about["tile_only"]
         else f"any size; made for tiles of {about['tile']} x {about['tile']} pixels"),
        ("latent", f"{shape} = {about['latent_values']:,d} values a tile, ratio "
         f"{about['ratio']:.4g}:1"),
        ("", f"{latent['active']} of {len(latent['std'])} channels active; deviations "
         f"{min(latent['std']):.3g} to {max(latent['std']):.3g}, means {min(latent['mean']):.2g} "
         f"to {max(latent['mean']):.2g}"),
        ("reach", "every value sees the whole tile" if reach is None else
         f"a latent sees {reach['encoder_pixels']} pixels around its own patch, a pixel "
         f"{reach['decoder_positions']} latent positions around its own"),
        ("likelihood", f"{trained['likelihood']}, deviation {about['sigma']:.3g} grey levels, "
         f"beta {trained['beta']:g}, SSIM weight {trained['ssim_weight']:g}"),
        ("trained on", f"{trained['data'] or _UNKNOWN}, fingerprint "
         f"{trained['fingerprint'] or _UNKNOWN}"),
        ("", f"crops of {trained['crop']} pixels, batch {trained['batch_size']}, learning rate "
         f"{trained['learning_rate']:g}, EMA {trained['ema_decay']:g}"),
        ("by", f"fundus-vae {about['version'] or '(version unknown)'}: "
         f"{trained['command'] or 'command unknown'}"),
        ("figures", "none measured: `fundus-vae evaluate --model M --data DIR`"
         if figures is None else _figure_words(figures)),
    ]  # fmt: skip
    return "\n".join(_line(name, text) for name, text in lines)


def _format_prior(about: dict[str, Any]) -> str:
    trained, its = about["trained"], about["autoencoder"]
    lines = [
        ("model", f"{about['name']} (a prior over latents), step {about['step']:,d}"),
        ("hash", about["hash"]),
        ("file", about["path"]),
        ("parameters", f"{about['parameters']:,d}, {about['bytes'] / 1e6:,.1f} MB in memory"),
        ("for", f"the autoencoder {its['name']}, {its['hash'] or _UNKNOWN}; latents "
         + " x ".join(map(str, about["latents"]))),
        ("labels", ", ".join(about["labels"]) or "none"),
        ("trained on", f"{trained['data'] or _UNKNOWN}, fingerprint "
         f"{trained['fingerprint'] or _UNKNOWN}"),
        ("by", f"fundus-vae {about['version'] or '(version unknown)'}: "
         f"{trained['command'] or 'command unknown'}"),
        ("figures", "`fundus-vae evaluate-samples --model M --data DIR`"),
    ]  # fmt: skip
    return "\n".join(_line(name, text) for name, text in lines)


def _line(name: str, text: str) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=f"{name:12}", subsequent_indent=" " * 12,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _figure_words(figures: dict[str, Any]) -> str:
    words = (
        f"split {figures['split']}, {figures['tiles']:,d} tiles of {figures['patients']:,d} "
        f"patients: SSIM {figures['ssim']:.4f}, {figures['psnr']:.2f} dB, "
        f"{figures['bytes'] / 1000:.2f} kB a tile"
    )
    if figures["pca"]:
        words += f" (PCA {figures['pca']['ssim']:.4f}, {figures['pca']['psnr']:.2f} dB)"
    return words


def _figures(saved: SavedModel, model_hash: str) -> dict[str, Any] | None:
    path = Path(saved.path)
    folder = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
    beside = path.with_suffix(".json")  # where several models share a folder
    path = beside if beside.exists() else folder / RESULTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["model"] != model_hash:
            return None
        rows = {row["name"]: row for row in content["rows"]}
        pca = rows.get("pca")
        return {
            "split": content["split"],
            "tiles": content["counts"]["tiles"],
            "patients": content["counts"]["patients"],
            **{key: rows["model"][key] for key in ("ssim", "psnr", "bytes")},
            "pca": pca and {key: pca[key] for key in ("ssim", "psnr")},
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None  # A description must not fail for a file that only accompanies the model.
