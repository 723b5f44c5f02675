"""Models on the Hugging Face Hub: hf://owner/name[@revision]."""

import re
from pathlib import Path

from vae.checkpoints.safetensors_io import MODEL_FILE
from vae.data.errors import DataError, one_line
from vae.data.extras import require_extra

PREFIX = "hf://"
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def download(name: str) -> Path:
    """Returns the model file of a repository, from the cache of huggingface_hub if it is there.

    Args:
      name: hf://owner/name, or hf://owner/name@revision for a branch, a tag or a commit.

    Raises:
      UsageError: The extra [hub] is missing.
      DataError: The name is malformed, or there is no such repository, revision or model file, or
        neither the network nor the cache has it.
    """
    if not (match := _NAME.fullmatch(name)):
        raise DataError(f"{name}: expected hf://owner/name or hf://owner/name@revision")
    require_extra("hub", PREFIX, "huggingface_hub")
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(match[1], MODEL_FILE, revision=match[2]))
    except Exception as error:  # of the hub, of the network, of the disk
        reason = one_line(error).partition(". ")[0]
        raise DataError(f"{name}: no {MODEL_FILE} from the hub or its cache: {reason}") from error
