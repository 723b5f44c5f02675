"""A model as a folder for the Hugging Face Hub: config.json, model.safetensors and a card."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import vae
from vae import weights
from vae.checkpoints.config import ENHANCER, PRIOR
from vae.checkpoints.provenance import portable
from vae.checkpoints.safetensors_io import MODEL_FILE, SavedModel, write_safetensors
from vae.evaluation.info import format_info, model_info
from vae.inference.new_folder import require_new, write_folder

CARD, CONFIG = "README.md", "config.json"
LIMITS = (
    "Research only, not for diagnosis: an output is not the photograph, and small lesions can be "
    "weakened or invented. Expect lower figures on cameras that were not in the training data."
)
# Of the bundled weights; `vae/weights/README.md` has the details.
BUNDLED_LICENSE = "apache-2.0"
BUNDLED_DATA = "HRF, FIVES, CHASE_DB1 and IDRiD (46 photographs, all CC BY 4.0)"

_CARD = """\
---
{metadata}
---

# {name}

A model of fundus-vae {version}, for colour photographs of the retinal fundus. {limits}

```python
import vae

model = vae.{load}("hf://OWNER/NAME")
```

Needs `pip install 'fundus-vae[hub]'`. The commands take `--model hf://OWNER/NAME`, too.

```
{info}
```
"""


def write_hub(
    out: str | os.PathLike,
    saved: SavedModel,
    license_id: str | None = None,
    *,
    dtype: str = "float32",
) -> dict[str, int]:
    """Writes `config.json`, `model.safetensors` and the card `README.md`.

    The card holds licence, data, figures and limits as YAML metadata. No file names a folder of
    this machine.

    Args:
      out: Output folder, new or empty; it is written whole or not at all.
      saved: A model of any kind.
      license_id: The licence, as the hub spells it; None for apache-2.0 if the model is bundled,
        else "other".
      dtype: As for `write_safetensors`.

    Returns:
      Size of each file in bytes, by name.

    Raises:
      UsageError: `out` is a file or not empty.
    """
    require_new(out)
    bundled = Path(saved.path).parent == weights.FOLDER
    license_id = license_id or (BUNDLED_LICENSE if bundled else "other")
    metrics = model_info(saved)["metrics"]  # of the file, which stands beside its results
    saved = portable(saved)
    info = model_info(saved) | {"path": MODEL_FILE, "metrics": metrics}
    if bundled:
        info["trained"]["data"] = BUNDLED_DATA
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(Path(folder, MODEL_FILE), saved, dtype=dtype)
        model = Path(folder, MODEL_FILE).read_bytes()
    config = {
        "model_type": "fundus-vae",
        "fundus_vae_version": vae.__version__,
        "hash": info["hash"],
        "step": saved.step,
        **saved.config.to_dict(),
    }
    files = {
        MODEL_FILE: model,
        CONFIG: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
        CARD: _card(info, license_id).encode(),
    }
    return write_folder(out, files)


def _card(info: dict[str, Any], license_id: str) -> str:
    load = {ENHANCER: "load_enhancer", PRIOR: "load_sampler"}
    figures = [
        {"type": name, "name": name.upper(), "value": value}
        for name, value in (info["metrics"] or {}).items()
        if isinstance(value, float)
    ]
    result = {
        "task": {"type": "image-to-image"},
        "dataset": {
            "type": "fundus-photographs",
            "name": f"split {(info['metrics'] or {}).get('split')}",
        },
        "metrics": figures,
    }
    metadata = {
        "license": license_id,
        "library_name": "fundus-vae",
        "pipeline_tag": "image-to-image",
        "tags": ["jax", "retina", "fundus", "vae", info["architecture"]],
        "training_data": info["trained"],
        "limits": LIMITS,
        "model-index": [{"name": info["name"], "results": [result] if figures else []}],
    }
    # Every JSON value is YAML, too.
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata.items())
    return _CARD.format(
        metadata="\n".join(lines),
        name=info["name"],
        version=vae.__version__,
        limits=LIMITS,
        load=load.get(info["architecture"], "load_model"),
        info=format_info(info),
    )
