"""Markdown tables of the results.json of several runs.

python benchmarks/results_table.py runs/f8c32 runs/f8c16
python benchmarks/results_table.py --presets vae/weights/*.json
"""

import argparse
import json
import pathlib

ROWS = ("mean_colour", "bicubic_x4", "jpeg", "pca", "model", "pca_sampled", "model_sampled")


def codec_table(results: dict) -> str:
    """Formats the table of codecs: SSIM and PSNR with intervals, size and rate."""
    rows = {row["name"]: row for row in results["rows"]}
    lines = [
        "| codec | SSIM | 95% | PSNR dB | 95% | values / latents | kB a tile |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ROWS:
        row = rows[name]
        interval = row["interval"] or {}
        ratio = f"{row['ratio']:,.0f}:1" if row["ratio"] else ""
        # Only posterior samples have a rate, posterior means have none.
        rate = "" if name in ("pca", "model") else f"{row['bytes'] / 1000:.1f}"
        lines.append(
            f"| `{name}` | {row['ssim']:.4f} | {_span(interval.get('ssim'), 4)} "
            f"| {row['psnr']:.2f} | {_span(interval.get('psnr'), 2)} | {ratio} | {rate} |"
        )
    return "\n".join(lines)


def label_table(results: dict) -> str:
    """Formats the table of model and PCA by label (the photographs' folder)."""
    lines = [
        "| label | patients | tiles | `pca` SSIM / dB | `model` SSIM / dB | gain "
        "| before rounding, dB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["labels"]:
        lines.append(
            f"| {row['label']} | {row['patients']} | {row['tiles']} {_beside_pca(row)} "
            f"| {row['psnr_unrounded']:.2f}, {_gain_before_rounding(row)} |"
        )
    return "\n".join(lines)


def presets_table(runs: list[dict]) -> str:
    """Formats the table of several models and PCA of the same size, by label."""
    lines = [
        "| preset | values / latents | set | PCA SSIM / dB | model SSIM / dB | gain SSIM / dB "
        "| before rounding, dB |",
        "|---|---|---|---|---|---|---|",
    ]
    for results in runs:
        rows = {row["name"]: row for row in results["rows"]}
        preset = results["config"].rpartition("_")[2]
        ratio = f"{rows['model']['ratio']:.0f}:1"
        for row in results["labels"]:
            lines.append(
                f"| `{preset}` | {ratio} | {row['label']} {_beside_pca(row)} "
                f"| {_gain_before_rounding(row)} |"
            )
        lines.append(
            f"| `{preset}` | {ratio} | **all** "
            f"| {rows['pca']['ssim']:.4f} / {rows['pca']['psnr']:.2f} "
            f"| **{rows['model']['ssim']:.4f} / {rows['model']['psnr']:.2f}** "
            f"| {rows['model']['ssim'] - rows['pca']['ssim']:+.4f} / "
            f"{rows['model']['psnr'] - rows['pca']['psnr']:+.2f} | |"
        )
    return "\n".join(lines)


def rates_table(runs: list[dict]) -> str:
    """Formats the table of posterior samples of several models, and of PCA and JPEG."""
    lines = [
        "| preset | kB a tile | sampled, SSIM / dB | JPEG of that size | PCA sampled, its kB |",
        "|---|---|---|---|---|",
    ]
    for results in runs:
        rows = {row["name"]: row for row in results["rows"]}
        cells = [
            f"{rows[name]['ssim']:.4f} / {rows[name]['psnr']:.2f}"
            for name in ("model_sampled", "jpeg", "pca_sampled")
        ]
        cells[2] += f", {rows['pca_sampled']['bytes'] / 1000:.1f}"
        lines.append(
            f"| `{results['config'].rpartition('_')[2]}` "
            f"| {rows['model_sampled']['bytes'] / 1000:.1f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _beside_pca(row: dict) -> str:
    """Formats three cells of a label: PCA, the model, and the model's gain."""
    return (
        f"| {row['pca_ssim']:.4f} / {row['pca_psnr']:.2f} | {row['ssim']:.4f} / {row['psnr']:.2f} "
        f"| {row['ssim'] - row['pca_ssim']:+.4f} / {row['psnr'] - row['pca_psnr']:+.2f}"
    )


def _gain_before_rounding(row: dict) -> str:
    return f"{row['psnr_unrounded'] - row['pca_psnr_unrounded']:+.2f}"


def _span(interval: list[float] | None, digits: int) -> str:
    return " .. ".join(f"{value:.{digits}f}" for value in interval) if interval else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", nargs="+", type=pathlib.Path, help="results.json, or a folder with one"
    )
    parser.add_argument(
        "--presets", action="store_true", help="one table of all runs by label, and one of rates"
    )
    options = parser.parse_args()
    paths = (path / "results.json" if path.is_dir() else path for path in options.results)
    runs = [json.loads(path.read_text()) for path in paths]
    if options.presets:
        print(f"{presets_table(runs)}\n\n{rates_table(runs)}")
        return
    for results in runs:
        counts = results["counts"]
        print(
            f"### {results['config']}, {results['step']} steps\n\nSplit `{results['split']}`: "
            f"{counts['tiles']} tiles of {counts['photographs']} photographs, "
            f"{counts['patients']} patients.\n\n{codec_table(results)}\n"
        )
        if len(results["labels"]) > 1:
            print(f"{label_table(results)}\n")
        photographs = results["photographs"]
        if photographs and photographs["rows"]:
            means = photographs["means"]
            print(
                f"Whole photographs ({len(photographs['rows'])}): SSIM {means['ssim']:.4f} / "
                f"{means['psnr']:.2f} dB; the means of their tiles {means['tile_ssim']:.4f} / "
                f"{means['tile_psnr']:.2f} dB.\n"
            )


if __name__ == "__main__":
    main()
