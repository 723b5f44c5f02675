"""Agreement of vessel maps of photographs and of their reconstructions, by preset and codec.

    python benchmarks/vessel_agreement.py PHOTOGRAPHS... --weights vessels.safetensors

Each photograph is reduced to 1,024 pixels, reconstructed, and segmented before and after
(`vae.evaluation.vessels`, with weights that the user gives). The table shows the Dice coefficient
of the two maps: mean and lowest over the photographs. JPEG and blur are there for comparison.
"""

import argparse

import cv2
import numpy as np
import simplejpeg

import vae
from vae.data.failures import Failure
from vae.data.inputs import open_inputs
from vae.evaluation.vessels import dice, load_segmentation
from vae.inference.pictures import reduced

SIDE = 1024
PRESETS = ("f8c4", "f8c8", "f8c16", "f8c32", "f8c48")


def jpeg(image: np.ndarray) -> np.ndarray:
    """Encodes and decodes as JPEG of quality 90, with the full resolution of colours."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), 90, colorsubsampling="444")
    return simplejpeg.decode_jpeg(data)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", nargs="+", help="photographs, or folders of them")
    parser.add_argument("--weights", required=True, help="weights of the vessel network")
    parser.add_argument("--models", nargs="*", default=PRESETS, help="bundled presets or runs")
    options = parser.parse_args()

    vessels = load_segmentation(options.weights)
    methods = {name: vae.load_model(name).reconstruct for name in options.models}
    methods["JPEG, quality 90, 4:4:4"] = jpeg
    methods["blur, sigma 2"] = lambda image: cv2.GaussianBlur(image, (0, 0), 2)
    found: dict[str, list[float]] = {name: [] for name in methods}
    for item in open_inputs(options.photographs).read():
        if isinstance(item, Failure):
            raise SystemExit(f"error: {item.reason}")
        image = reduced(item.inside(), SIDE)
        fov = item.fov.scaled(min(SIDE / max(item.image.shape[:2]), 1))
        clean = vessels(image, fov)
        for name, method in methods.items():
            found[name].append(dice(clean, vessels(method(image), fov)))
    print(f"Dice of vessel maps, {len(found['blur, sigma 2'])} photographs: mean, lowest")
    for name, values in found.items():
        print(f"{name:<26}{np.mean(values):.3f}  {min(values):.3f}")


if __name__ == "__main__":
    main()
