"""PyTorch modules of the published layout with weights of the scale of trained ones."""

import numpy as np
import torch
from torch import nn

from vae.convert_torch_checkpoint.torch_module import PublishedVAE
from vae.models import FundusVAE


def images(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Returns float32 [B, S, S, 3] in [0, 1]: coarse squares with fine noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, 4, 4, 3), np.float32).repeat(side // 4, 1).repeat(side // 4, 2)
    return 0.8 * coarse + 0.2 * rng.random((count, side, side, 3), np.float32)


def nchw(x: np.ndarray) -> torch.Tensor:
    """Moves channels from the last to the second axis."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def nhwc(x: torch.Tensor) -> np.ndarray:
    """Moves channels from the second to the last axis."""
    return np.moveaxis(x.detach().numpy(), 1, -1)


def trained_like(model: FundusVAE, batch: int = 8, seed: int = 0) -> PublishedVAE:
    """Returns the twin of `model` in evaluation mode, with weights of a trained network's scale.

    Running statistics are those of a batch, scales are not 1 and shifts not 0, latents have
    deviations of about 1, and reconstructions span [0, 1].
    """
    torch.manual_seed(seed)
    with torch.device("meta"):
        twin = PublishedVAE(model)
    twin.to_empty(device="cpu")
    with torch.no_grad():
        for name, module in twin.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                # Uniform values of the same deviation take a third of the time.
                bound = (6 / module.weight[0].numel()) ** 0.5
                module.weight.uniform_(-bound, bound)
            if isinstance(module, nn.Linear):
                module.bias.normal_(0, 0.1)
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                # In a trained network a block adds little to its shortcut. With larger additions,
                # fifty layers amplify rounding in both frameworks.
                module.weight.uniform_(0.5, 1.5).mul_(0.3 if name.endswith("bn3") else 1.0)
                module.bias.normal_(0, 0.3)
                module.momentum = 1.0
        twin.train()
        latents = torch.cat(twin.encode(nchw(images(batch, model.image_size))))
        twin.autoencoder["encoder"].fc[-1].weight /= latents.std()
        logits = twin.autoencoder["decoder"][:-1](torch.randn(batch, model.latent_size))
        twin.autoencoder["decoder"][-2].weight *= 2 / logits.std()
        for module in twin.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1
                module.num_batches_tracked.fill_(1234)
    return twin.eval()


def without_prefix(twin: PublishedVAE) -> dict[str, torch.Tensor]:
    """Returns the module's state dict as the converter reads it."""
    return {key.removeprefix("autoencoder."): value for key, value in twin.state_dict().items()}
