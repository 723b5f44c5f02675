"""The description of a model and its metrics, as `fundus-vae info` prints them."""

import textwrap
from pathlib import Path
from typing import Any

from vae.checkpoints.config import PRIOR
from vae.checkpoints.loading import CHECKPOINTS
from vae.checkpoints.safetensors_io import SavedModel
from vae.data.errors import DataError
from vae.data.schema import TEXT, number, parse_json, whole
from vae.evaluation.run import RESULTS
from vae.inference.describe import describe, describe_prior

_WIDTH = 100
_UNKNOWN = "unknown"
# Enough of results.json to print its line.
_RESULTS = {
    "model": TEXT,
    "split": TEXT,
    "counts": {"tiles": whole(), "patients": whole()},
    "rows": [{"name": TEXT, **dict.fromkeys(("ssim", "psnr", "bytes"), (None, number()))}],
}


def model_info(saved: SavedModel) -> dict[str, Any]:
    """Returns the description of a model (`vae.inference.describe`) and its metrics.

    Returns:
      Plain values. `metrics` holds split, tiles, patients, ssim, psnr, bytes and pca (ssim, psnr)
      from results.json in the model's folder or NAME.json next to NAME.safetensors; None if there
      is no such file or it is of another model. A prior has no `metrics` (`describe_prior`).
    """
    if saved.config.model.architecture == PRIOR:
        return describe_prior(saved)
    info = describe(saved)
    return info | {"metrics": _metrics(saved, info["hash"])}


def format_info(info: dict[str, Any]) -> str:
    """Formats a description as lines of text."""
    if info["architecture"] == PRIOR:
        return _format_prior(info)
    trained, latent, scores = info["trained"], info["latent"], info["metrics"]
    shape = " x ".join(map(str, info["latents"]))
    reach = info["reach"]
    lines = [
        ("model", f"{info['name']} ({info['preset']}, {info['architecture']}), "
         f"step {info['step']:,d}"),
        ("hash", info["hash"]),
        ("file", f"{info['path']}, {info['kind']}"),
        ("parameters", f"{info['parameters']:,d}, {info['bytes'] / 1e6:,.1f} MB in memory"),
        ("images", f"{info['tile']} x {info['tile']} pixels only" if info["tile_only"]
         else f"any size; made for tiles of {info['tile']} x {info['tile']} pixels"),
        ("latent", f"{shape} = {info['latent_values']:,d} values a tile, ratio "
         f"{info['ratio']:.4g}:1"),
        ("", f"{latent['active']} of {len(latent['std'])} channels active; deviations "
         f"{min(latent['std']):.3g} to {max(latent['std']):.3g}, means {min(latent['mean']):.2g} "
         f"to {max(latent['mean']):.2g}"),
        ("reach", "every value sees the whole tile" if reach is None else
         f"a latent sees {reach['encoder_pixels']} pixels around its own patch, a pixel "
         f"{reach['decoder_positions']} latent positions around its own"),
        ("likelihood", f"{trained['likelihood']}, deviation {info['sigma']:.3g} grey levels, "
         f"beta {trained['beta']:g}, SSIM weight {trained['ssim_weight']:g}"),
        ("trained on", _data(trained)),
        ("", f"crops of {trained['crop']} pixels, batch {trained['batch_size']}, learning rate "
         f"{trained['learning_rate']:g}, EMA {trained['ema_decay']:g}"),
        ("by", _command(info)),
        ("metrics", "none measured: `fundus-vae evaluate --model M --data DIR`"
         if scores is None else _metric_words(scores)),
    ]  # fmt: skip
    return "\n".join(_line(name, text) for name, text in lines)


def _format_prior(info: dict[str, Any]) -> str:
    trained, its = info["trained"], info["autoencoder"]
    lines = [
        ("model", f"{info['name']} (a prior over latents), step {info['step']:,d}"),
        ("hash", info["hash"]),
        ("file", info["path"]),
        ("parameters", f"{info['parameters']:,d}, {info['bytes'] / 1e6:,.1f} MB in memory"),
        ("for", f"the autoencoder {its['name']}, {its['hash'] or _UNKNOWN}; latents "
         + " x ".join(map(str, info["latents"]))),
        ("labels", ", ".join(info["labels"]) or "none"),
        ("trained on", _data(trained)),
        ("by", _command(info)),
        ("metrics", "`fundus-vae evaluate-samples --model M --data DIR`"),
    ]  # fmt: skip
    return "\n".join(_line(name, text) for name, text in lines)


def _data(trained: dict[str, Any]) -> str:
    return f"{trained['data'] or _UNKNOWN}, fingerprint {trained['fingerprint'] or _UNKNOWN}"


def _command(info: dict[str, Any]) -> str:
    version = info["version"] or "(version unknown)"
    return f"fundus-vae {version}: {info['trained']['command'] or 'command unknown'}"


def _line(name: str, text: str) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=f"{name:12}", subsequent_indent=" " * 12,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _metric_words(scores: dict[str, Any]) -> str:
    words = (
        f"split {scores['split']}, {scores['tiles']:,d} tiles of {scores['patients']:,d} "
        f"patients: SSIM {scores['ssim']:.4f}, {scores['psnr']:.2f} dB, "
        f"{scores['bytes'] / 1000:.2f} kB a tile"
    )
    if scores["pca"]:
        words += f" (PCA {scores['pca']['ssim']:.4f}, {scores['pca']['psnr']:.2f} dB)"
    return words


def _metrics(saved: SavedModel, model_hash: str) -> dict[str, Any] | None:
    path = Path(saved.path)
    folder = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
    json_file = path.with_suffix(".json")  # for several models in one folder
    path = json_file if json_file.exists() else folder / RESULTS
    try:
        content = parse_json(path.read_bytes(), path, _RESULTS, remedy="evaluate again")
    except (OSError, DataError):
        return None  # The description does not depend on the results file.
    rows = {row["name"]: row for row in content["rows"]}
    if content["model"] != model_hash or "model" not in rows:
        return None
    pca = rows.get("pca")
    return {
        "split": content["split"],
        "tiles": content["counts"]["tiles"],
        "patients": content["counts"]["patients"],
        **{key: rows["model"][key] for key in ("ssim", "psnr", "bytes")},
        "pca": pca and {key: pca[key] for key in ("ssim", "psnr")},
    }
