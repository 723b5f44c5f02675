"""Draws quality against size from the results.json of a report: the README's figure.

fundus-vae evaluate --model f8c32 --beside f8c4 f8c8 f8c16 f8c48 --data dataset --limit 256 \\
  --report report
python benchmarks/rate_distortion.py report/results.json --out docs/figures/rate_distortion.png
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# codec: (colour, marker, name)
CODECS = {
    "bicubic": ("#8a4b8f", "^", "bicubic, reduced 8, 4, 2 times"),
    "jpeg": ("#00785a", "s", "JPEG, 4:2:0"),
    "pca": ("#0063a8", "o", "PCA of 8 x 8 patches"),
    "model": ("#c4420a", "D", "f8c4, f8c8, f8c16, f8c32, f8c48"),
}


def draw(content: dict, out: pathlib.Path) -> None:
    """Four panels: SSIM and PSNR against latent values and against kB."""
    points = content["curves"]["points"]
    figure, panels = plt.subplots(2, 2, figsize=(10, 7), sharey="row")
    for row, (kind, label) in enumerate((("ssim", "SSIM"), ("psnr", "PSNR, dB"))):
        for column, size in enumerate(("latents", "bytes")):
            axes = panels[row][column]
            for codec, (colour, marker, name) in CODECS.items():
                # A posterior mean has no finite rate: bytes belong to samples.
                suffix = "_sampled" if size == "bytes" and codec in ("pca", "model") else ""
                curve = sorted(
                    (point[size], point[kind + suffix])
                    for point in points
                    if point["codec"] == codec and point[size]
                )
                if curve:
                    axes.plot(*zip(*curve, strict=True), color=colour, marker=marker, label=name)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.3g}k")
            axes.grid(alpha=0.3)
            axes.set_ylabel(label + (" of posterior samples" if column else " of posterior means"))
        # The coarsest points are far below all else.
        models = [point[kind] for point in points if point["codec"] == "model"]
        span = max(models) - min(models)
        panels[row][0].set_ylim(min(models) - 0.5 * span, max(models) + 0.15 * span)
    panels[1][0].set_xlabel("latent values of a 256 x 256 tile")
    panels[1][1].set_xlabel("bytes a tile (KL / 8; JPEG: file)")
    for axes in panels[0]:
        axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    draw(json.loads(options.results.read_text()), options.out)


if __name__ == "__main__":
    main()
