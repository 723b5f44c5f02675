"""The description of a model and its metrics, as `fundus-vae info` prints them."""

import textwrap
from pathlib import Path
from typing import Any

from vae.checkpoints.config import ENHANCER, PRIOR
from vae.checkpoints.loading import CHECKPOINTS
from vae.checkpoints.safetensors_io import SavedModel
from vae.data.errors import DataError
from vae.data.schema import TEXT, number, parse_json, whole
from vae.evaluation.run import RESULTS
from vae.inference.describe import describe, describe_enhancer, describe_prior

_WIDTH = 100
_UNKNOWN = "unknown"
_NUMBER = (None, number())
# Enough of the results files to print their line.
_RESULTS = {
    "model": TEXT,
    "split": TEXT,
    "counts": {"tiles": whole(), "patients": whole()},
    "rows": [{"name": TEXT, **dict.fromkeys(("ssim", "psnr", "bytes"), _NUMBER)}],
}
_ENHANCEMENT = {
    "model": TEXT,
    "split": TEXT,
    "rows": [
        {
            "case": TEXT,
            "method": TEXT,
            **dict.fromkeys(("photographs", "patients"), whole()),
            **dict.fromkeys(("psnr", "ssim"), _NUMBER),
        }
    ],
}
_SAMPLES = {
    "prior": TEXT,
    "split": TEXT,
    "count": whole(),
    "rows": [{"name": TEXT, **dict.fromkeys(("swd", "precision", "recall", "copies"), _NUMBER)}],
}


def model_info(saved: SavedModel) -> dict[str, Any]:
    """Returns the description of a model (`vae.inference.describe`) and its metrics.

    Returns:
      Plain values. `metrics` is from results.json in the model's folder or NAME.json next to
      NAME.safetensors; None if there is no such file or it is of another model. For an autoencoder
      it holds split, tiles, patients, ssim, psnr, bytes and pca (ssim, psnr); for an enhancer
      split, photographs, patients, the PSNR `before` and `after` under several degradations, and
      the SSIM `clean` of photographs without; for a prior `tiles`, and the values of samples and
      held-out tiles.
    """
    kind = saved.config.model.architecture
    describe_it, schema, metrics = {
        ENHANCER: (describe_enhancer, _ENHANCEMENT, _enhancer_metrics),
        PRIOR: (describe_prior, _SAMPLES, _prior_metrics),
    }.get(kind, (describe, _RESULTS, _metrics))
    info = describe_it(saved)
    file = _results_file(saved)
    try:
        content = parse_json(file.read_bytes(), file, schema, remedy="evaluate again")
        ours = content["prior" if kind == PRIOR else "model"] == info["hash"]
        return info | {"metrics": metrics(content) if ours else None}
    except (OSError, DataError, KeyError):
        return info | {"metrics": None}  # The description does not depend on the results file.


def format_info(info: dict[str, Any]) -> str:
    """Formats a description as lines of text."""
    lines = {ENHANCER: _enhancer_lines, PRIOR: _prior_lines}.get(
        info["architecture"], _autoencoder_lines
    )(info)
    return "\n".join(_line(name, text) for name, text in lines)


def format_presets(presets: dict[str, str]) -> str:
    """Formats the bundled models, their names and uses, as lines of text."""
    lines = [_line(name, use) for name, use in presets.items()]
    return "\n".join([*lines, "", "`fundus-vae info NAME` describes one; --model takes the name."])


def _autoencoder_lines(info: dict[str, Any]) -> list[tuple[str, str]]:
    trained, latent, scores = info["trained"], info["latent"], info["metrics"]
    shape = " x ".join(map(str, info["latents"]))
    reach = info["reach"]
    return [
        ("model", f"{info['name']} ({info['preset']}, {info['architecture']}), "
         f"step {info['step']:,d}"),
        *_file_lines(info),
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


def _enhancer_lines(info: dict[str, Any]) -> list[tuple[str, str]]:
    trained, scores = info["trained"], info["metrics"]
    return [
        ("model", f"{info['name']} (an enhancer of photographs), step {info['step']:,d}"),
        *_file_lines(info),
        ("images", f"any size; trained on tiles of {info['tile']} x {info['tile']} pixels"),
        ("stages", "tone: light, haze and colour of the whole photograph; sharpening: one filter "
         f"for it; detail: each pixel from the {info['reach']} pixels around it"),
        ("likelihood", f"{trained['likelihood']}, deviation {info['sigma']:.3g} grey levels, "
         f"beta {trained['beta']:g}, SSIM weight {trained['ssim_weight']:g}"),
        ("trained on", _data(trained)),
        ("by", _command(info)),
        ("metrics", "none measured: `fundus-vae evaluate --model M --data DIR`" if scores is None
         else f"split {scores['split']}, {scores['photographs']:,d} photographs of "
         f"{scores['patients']:,d} patients: several degradations {scores['before']:.2f} dB before "
         f"and {scores['after']:.2f} dB after; SSIM of clean ones {scores['clean']:.4f}"),
    ]  # fmt: skip


def _prior_lines(info: dict[str, Any]) -> list[tuple[str, str]]:
    trained, its, scores = info["trained"], info["autoencoder"], info["metrics"]
    return [
        ("model", f"{info['name']} (a prior over latents), step {info['step']:,d}"),
        *_file_lines(info),
        ("for", f"the autoencoder {its['name']}, {its['hash'] or _UNKNOWN}; latents "
         + " x ".join(map(str, info["latents"]))),
        ("labels", ", ".join(info["labels"]) or "none"),
        ("trained on", _data(trained)),
        ("by", _command(info)),
        ("metrics", "none measured: `fundus-vae evaluate-samples --model M --data DIR`"
         if scores is None else
         f"{scores['tiles']:,d} samples: sliced Wasserstein distance {scores['prior']['swd']:.2f} "
         f"(held-out tiles {scores['held out']['swd']:.2f}), precision "
         f"{scores['prior']['precision']:.2f}, recall {scores['prior']['recall']:.2f}"),
    ]  # fmt: skip


def _file_lines(info: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("hash", info["hash"]),
        ("file", f"{info['path']}, {info['kind']}"),
        ("parameters", f"{info['parameters']:,d}, {info['bytes'] / 1e6:,.1f} MB in memory"),
    ]


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


def _results_file(saved: SavedModel) -> Path:
    path = Path(saved.path)
    folder = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
    json_file = path.with_suffix(".json")  # for several models in one folder
    return json_file if json_file.exists() else folder / RESULTS


def _metrics(content: dict[str, Any]) -> dict[str, Any]:
    rows = {row["name"]: row for row in content["rows"]}
    pca = rows.get("pca")
    return {
        "split": content["split"],
        "tiles": content["counts"]["tiles"],
        "patients": content["counts"]["patients"],
        **{key: rows["model"][key] for key in ("ssim", "psnr", "bytes")},
        "pca": pca and {key: pca[key] for key in ("ssim", "psnr")},
    }


def _enhancer_metrics(content: dict[str, Any]) -> dict[str, Any]:
    rows = {(row["case"], row["method"]): row for row in content["rows"]}
    several = rows["several", "enhance"]
    return {
        "split": content["split"],
        "photographs": several["photographs"],
        "patients": several["patients"],
        "before": rows["several", "do_nothing"]["psnr"],
        "after": several["psnr"],
        "clean": rows["clean", "enhance"]["ssim"],
    }


def _prior_metrics(content: dict[str, Any]) -> dict[str, Any]:
    rows = {row["name"]: row for row in content["rows"]}
    values = {
        name: {key: rows[name][key] for key in ("swd", "precision", "recall", "copies")}
        for name in ("prior", "held out")
    }
    return {"split": content["split"], "tiles": content["count"], **values}
