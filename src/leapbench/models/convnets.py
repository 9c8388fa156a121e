"""Networks for images that `transformers` does not have, at any width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn


@dataclass(frozen=True)
class Output:
    """What a network of `transformers` would return, as far as it is used here."""

    logits: Tensor


class FCN(nn.Module):
    """A fully convolutional classifier: 3 x 3 convolution, batch norm, ReLU and a halving per entry of `channels`, then
    a 1 x 1 convolution to the classes and the mean over positions. PDT, OpenReview zSTgrLkpRi.

    Args:
        num_channels, num_labels: of the images.
        channels: width of each convolution.
    """

    def __init__(self, num_channels: int, num_labels: int, channels: Sequence[int] = (64, 128, 256, 512, 512)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip([num_channels, *channels], channels, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        self.convolutions = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(channels[-1], num_labels, 1)

    def features(self, pixel_values: Tensor) -> Tensor:
        """What the classifier sees of images (B, C, H, W), mean over positions: (B, d)."""
        return self.convolutions(pixel_values).mean((2, 3))

    def forward(self, pixel_values: Tensor) -> Output:
        """Images (B, C, H, W) -> logits (B, classes)."""
        return Output(logits=self.classifier(self.convolutions(pixel_values)).mean((2, 3)))


class AlexNet(nn.Module):
    """AlexNet in torchvision's shape: five convolutions, three poolings, two hidden layers behind dropout.

    Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997.

    Args:
        num_channels, num_labels: of the images.
        channels: width of each of the five convolutions.
        kernel, stride, padding: of the first one, pixels; the second has kernel 5, the others 3.
        pooled: positions per side that the classifier sees.
        hidden: width of the two hidden layers.
        dropout: share of features left out while training.
        he: whether to start from He's initial weights, arXiv:1502.01852, which keep the signal's size through eight
            layers without normalisation, instead of PyTorch's, which take a long run to grow it.
    """

    def __init__(
        self,
        num_channels: int,
        num_labels: int,
        channels: Sequence[int] = (64, 192, 384, 256, 256),
        kernel: int = 11,
        stride: int = 4,
        padding: int = 2,
        pooled: int = 6,
        hidden: int = 4096,
        dropout: float = 0.5,
        he: bool = False,
    ) -> None:
        super().__init__()
        a, b, c, d, e = channels
        self.convolutions = nn.Sequential(
            nn.Conv2d(num_channels, a, kernel, stride, padding), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(b, c, 3, padding=1), nn.ReLU(),
            nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
            nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.AdaptiveAvgPool2d(pooled), nn.Flatten(),
        )  # fmt: skip
        self.hidden = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(e * pooled * pooled, hidden), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(hidden, num_labels)
        for module in self.modules() if he else ():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))

    def features(self, pixel_values: Tensor) -> Tensor:
        """What the classifier sees of images (B, C, H, W): (B, hidden)."""
        return self.hidden(self.convolutions(pixel_values))

    def forward(self, pixel_values: Tensor) -> Output:
        """Images (B, C, H, W) -> logits (B, classes)."""
        return Output(logits=self.classifier(self.features(pixel_values)))


class MLP(nn.Module):
    """Linear layers with ReLU between them, of an image that is averaged down to `pooled` x `pooled` pixels first.

    Args:
        num_channels, num_labels: of the images.
        pooled: pixels per side that the first layer sees.
        hidden: width of each hidden layer.
    """

    def __init__(self, num_channels: int, num_labels: int, pooled: int = 8, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(pooled), nn.Flatten()]
        for inputs, outputs in zip([num_channels * pooled * pooled, *hidden], hidden, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(hidden[-1], num_labels)

    def features(self, pixel_values: Tensor) -> Tensor:
        """What the classifier sees of images (B, C, H, W): (B, the last hidden width)."""
        return self.hidden(pixel_values)

    def forward(self, pixel_values: Tensor) -> Output:
        """Images (B, C, H, W) -> logits (B, classes)."""
        return Output(logits=self.classifier(self.features(pixel_values)))
