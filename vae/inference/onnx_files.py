"""Export of an autoencoder as two ONNX files, for onnxruntime in Python, JavaScript and others."""

import json
import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from vae.checkpoints.config import AUTOENCODER_KL
from vae.checkpoints.modules import make_model
from vae.checkpoints.provenance import provenance
from vae.checkpoints.safetensors_io import SavedModel
from vae.data.errors import DataError
from vae.data.extras import require_extra
from vae.inference import codec
from vae.inference.describe import describe
from vae.inference.new_folder import require_new, write_folder

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
ABOUT, README = "about.json", "README.md"
OPSET = 18  # onnxruntime 1.14 and newer, also in browsers

_README = """\
# {name}, step {step}, model {hash}

Written by fundus-vae {version} with ONNX opset {opset}. Two files with the weights inside:

* `encoder.onnx`: `images`, uint8 [n, 8*h, 8*w, 3], sRGB, channels last -> `mean` and `log_var` of
  the posterior, float32 [n, h, w, {channels}].
* `decoder.onnx`: `latents`, float32 [n, h, w, {channels}] (a mean, or a mean +
  exp(log_var / 2) * noise) -> `images`, float32 [n, 8*h, 8*w, 3], from 0 to 255, not rounded.

Batch, height and width are free. Height and width must be divisible by {factor}; extend other
images by their edge pixels. A whole photograph at once takes much memory; the package uses windows
instead.
**Not for diagnosis**: a reconstruction is not the photograph.

Python, with `pip install onnxruntime`:

```python
import numpy as np
import onnxruntime
encoder, decoder = map(onnxruntime.InferenceSession, ["encoder.onnx", "decoder.onnx"])
mean, log_var = encoder.run(None, {{"images": images}})
(decoded,) = decoder.run(None, {{"latents": mean}})
decoded = np.rint(decoded).astype(np.uint8)
```

JavaScript, with `npm install onnxruntime-web`, in browsers and in Node.js:

```javascript
const ort = require("onnxruntime-web");
async function reconstruct(rgb, n, height, width) {{  // rgb: Uint8Array of n * height * width * 3
  const encoder = await ort.InferenceSession.create("encoder.onnx");
  const decoder = await ort.InferenceSession.create("decoder.onnx");
  const images = new ort.Tensor("uint8", rgb, [n, height, width, 3]);
  const {{ mean }} = await encoder.run({{ images }});
  const decoded = (await decoder.run({{ latents: mean }})).images;
  return Uint8ClampedArray.from(decoded.data);  // rounds
}}
```
"""


def write_onnx(out: str | os.PathLike, saved: SavedModel) -> dict[str, int]:
    """Writes `encoder.onnx`, `decoder.onnx`, `about.json` and `README.md`.

    The files take any number of images, and any size divisible by the factor of the model.

    Args:
      out: Output folder, new or empty; it is written whole or not at all.
      saved: An autoencoder with a spatial latent.

    Returns:
      Size of each file in bytes, by name.

    Raises:
      UsageError: `out` is a file or not empty, or the extra [onnx] is missing.
      DataError: The model is of another architecture.
    """
    require_new(out)
    if saved.config.model.architecture != AUTOENCODER_KL:
        raise DataError(
            f"{saved.path}: jax2onnx cannot convert the convolutions of the published "
            "architecture; --stablehlo exports it"
        )
    require_extra("onnx", "--onnx", "jax2onnx", "onnx")
    about = {
        "model": describe(saved),
        "written_by": {**provenance(), "jax": jax.__version__},
        "opset": OPSET,
    }
    encoder, decoder = _programs(saved)
    model = about["model"]
    readme = _README.format(
        **{key: model[key] for key in ("name", "step", "hash")},
        version=about["written_by"]["version"],
        opset=OPSET,
        channels=model["latents"][-1],
        factor=saved.config.model.downsample,
    ).replace("8*", f"{saved.config.model.downsample}*")
    files = {
        ENCODER: encoder.SerializeToString(),
        DECODER: decoder.SerializeToString(),
        ABOUT: (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode(),
        README: readme.encode(),
    }
    return write_folder(out, files)


def _programs(saved: SavedModel) -> tuple[Any, Any]:
    """Returns encoder and decoder as ONNX models (`onnx.ModelProto`)."""
    import jax2onnx

    module, variables = make_model(saved.config), jax.device_get(saved.variables)
    f, channels = module.downsample, module.latent_channels

    def encode(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
        n, h, _, w, _, _ = patches.shape
        posterior = codec.encode(module, variables, patches.reshape(n, h * f, w * f, 3))
        return posterior.mean, posterior.log_var

    def decode(latents: jax.Array) -> jax.Array:
        image = module.apply(variables, latents, method="decode")
        return jnp.clip((image + 1) * 127.5, 0, 255)

    def convert(function, shape, dtype, name, inputs, outputs):
        spec = jax.ShapeDtypeStruct(export.symbolic_shape(shape), dtype)
        return jax2onnx.to_onnx(
            function, [spec], model_name=name, opset=OPSET, input_names=[inputs],
            output_names=outputs,
        )  # fmt: skip

    # It warns of each value whose type the converter leaves to the runtime.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    shape = f"n, h, {f}, w, {f}, 3"
    encoder = convert(encode, shape, jnp.uint8, "encoder", "patches", ["mean", "log_var"])
    decoder = convert(decode, f"n, h, w, {channels}", jnp.float32, "decoder", "latents", ["images"])
    _take_images(encoder, f)
    for axis, letter in ((1, "h"), (2, "w")):
        side = decoder.graph.output[0].type.tensor_type.shape.dim[axis]
        side.dim_param = f"{f}*{letter}"
    return encoder, decoder


def _take_images(encoder: Any, f: int) -> None:
    """Makes the encoder take images [n, f*h, f*w, 3] instead of their rows of patches.

    jax2onnx needs a name for each dimension of the input, and does not accept f*h as one.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = encoder.graph
    del graph.input[:]
    shape = ["n", f"{f}*h", f"{f}*w", 3]
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, shape))
    for name, value in (("factor", f), ("colours", 3)):
        graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    node = helper.make_node
    reshape = [
        *(
            node("Shape", ["images"], [name], start=axis, end=axis + 1)
            for axis, name in enumerate(("count", "height", "width"))
        ),
        node("Div", ["height", "factor"], ["rows"]),
        node("Div", ["width", "factor"], ["columns"]),
        node(
            "Concat", ["count", "rows", "factor", "columns", "factor", "colours"], ["grid"], axis=0
        ),
        node("Reshape", ["images", "grid"], ["patches"]),
    ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*reshape, *rest])
