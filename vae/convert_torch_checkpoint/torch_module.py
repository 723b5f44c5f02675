"""The published model in PyTorch, the reference for a converted file.

Its encoder is torchvision's ResNet-50 (BSD 3-Clause), rewritten with the same names, so that the
state dict has the published keys: `autoencoder.encoder.*` and `autoencoder.decoder.*`.
"""

import itertools

import torch
from torch import nn

from vae.models import FundusVAE


class PublishedVAE(nn.Module):
    """The PyTorch equivalent of a `FundusVAE`.

    Args:
      model: Model with the same sizes.
    """

    def __init__(self, model: FundusVAE):
        super().__init__()
        self.image_size = model.image_size
        self.autoencoder = nn.ModuleDict({"encoder": ResNet(model), "decoder": decoder(model)})

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes images [B, 3, S, S] in [0, 1] to mean [B, L] and log-variance [B, L]."""
        mean, log_var = self.autoencoder["encoder"](x).chunk(2, dim=1)
        return mean, log_var

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Decodes latents [B, L] to images [B, 3, S, S] in [0, 1]."""
        return self.autoencoder["decoder"](z).view(-1, 3, self.image_size, self.image_size)


def decoder(model: FundusVAE) -> nn.Sequential:
    """Builds the decoder: latents [B, L] -> images, channels first, [B, 3*S*S] in [0, 1]."""
    widths = (model.latent_size, *reversed(model.head), model.decoder_width)
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    layers += [nn.Linear(widths[-1], 3 * model.image_size**2), nn.Sigmoid()]
    return nn.Sequential(*layers)


class ResNet(nn.Module):
    """The encoder: [B, 3, S, S] in [0, 1] -> [B, 2L]; `fc` consists of three linear layers."""

    def __init__(self, model: FundusVAE):
        super().__init__()
        width = model.width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = width
        self.depth = len(model.stages)
        for stage, blocks in enumerate(model.stages):
            outputs = Bottleneck.EXPANSION * width * 2**stage
            layer = [Bottleneck(inputs, width * 2**stage, stride=2 if stage else 1)]
            layer += [Bottleneck(outputs, width * 2**stage) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
            inputs = outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        widths = (inputs, *model.head, 2 * model.latent_size)
        self.fc = nn.Sequential(*map(nn.Linear, widths, widths[1:]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(self.depth):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 (with the stride), 1x1 to four times the width, and a shortcut."""

    EXPANSION = 4

    def __init__(self, inputs: int, width: int, stride: int = 1):
        super().__init__()
        outputs = self.EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        return self.relu(h + (x if self.downsample is None else self.downsample(x)))
