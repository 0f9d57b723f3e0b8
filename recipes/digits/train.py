"""Train the network of this folder on the digits and export it as digits.onnx (under a minute).

A small residual CNN of plain and depthwise-separable 3 x 3 convolutions, BatchNorm after
every convolution, global average pooling, one linear layer. BatchNorm is kept in the file, so that
the recipe has something to fold.

Source of the block: Howard et al. 2017, "MobileNets", arXiv:1704.04861; He et al. 2016, "Deep
Residual Learning", arXiv:1512.03385.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from prepare import prepare
from torch import Tensor, nn

HERE = Path(__file__).parent
MEAN, STD = 0.3, 0.3  # the same numbers stand in int8.yaml


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and BatchNorm, image size kept at stride 1."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Separable(nn.Module):
    """Depthwise 3 x 3, pointwise 1 x 1; the input is added where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.depthwise = conv(inputs, inputs, 3, stride, groups=inputs)
        self.pointwise = conv(inputs, outputs, 1)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Compute [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        y = self.pointwise(torch.relu(self.depthwise(x)))
        return torch.relu(x + y if self.residual else y)


class Dense(nn.Module):
    """A full 3 x 3 convolution, and the input added: most of the network's work is here."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Compute [N, width, H, W] -> the same shape."""
        return torch.relu(x + self.conv(x))


class DigitsNet(nn.Module):
    """[N, 1, 32, 32] -> ten scores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 32, 3)
        self.reduce = conv(32, 64, 3, stride=2)
        self.blocks = nn.Sequential(
            Separable(64, 64), Dense(64), Separable(64, 96, stride=2), Separable(96, 96)
        )
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the scores [N, 10] of images [N, 1, 32, 32]."""
        x = self.blocks(torch.relu(self.reduce(torch.relu(self.stem(x)))))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def read_images(folder: Path) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 32, 32], normalized, and labels [N], from class folders."""
    paths = sorted(folder.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(path), np.float32) for path in paths])
    labels = torch.tensor([int(path.parent.name) for path in paths])
    return torch.from_numpy((pixels / 255 - MEAN) / STD)[:, None], labels


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to three pixels; the border is background."""
    side = x.shape[-1]
    padded = nn.functional.pad(x, (3, 3, 3, 3), value=-MEAN / STD)
    rows, columns = torch.randint(0, 7, (2, len(x), 1), generator=generator) + torch.arange(side)
    return padded[torch.arange(len(x))[:, None, None], 0, rows[:, :, None], columns[:, None]][
        :, None
    ]


def initialise(net: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight from ``generator``; biases are 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def train(
    net: nn.Module, x: Tensor, labels: Tensor, epochs: int, generator: torch.Generator
) -> None:
    """AdamW with a one-cycle learning rate, batches of 64."""
    batches = len(x) // 64
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=epochs * batches)
    net.train()
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for pick in order[: batches * 64].view(batches, 64):
            loss = nn.functional.cross_entropy(
                net(shifted(x[pick], generator)), labels[pick], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}: loss {loss.item():.3f}", flush=True)


def export(net: nn.Module, path: Path) -> None:
    """Write ONNX, opset 17, any batch, BatchNorm kept (PRESERVE in eval mode does not fold it)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter announces its age
        torch.onnx.export(
            net, (torch.zeros(1, 1, 32, 32),), str(path), dynamo=False, opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
            input_names=["image"], output_names=["scores"],
            dynamic_axes={"image": {0: "N"}, "scores": {0: "N"}},
        )  # fmt: skip


def main() -> None:
    """Train, evaluate on the test part, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "digits.onnx")
    options = parser.parse_args()
    prepare(HERE / "data")
    generator = torch.Generator().manual_seed(options.seed)
    net = DigitsNet()
    initialise(net, generator)
    train(net, *read_images(HERE / "data" / "train"), options.epochs, generator)
    net.eval()
    x, labels = read_images(HERE / "data" / "test")
    with torch.no_grad():
        right = int((net(x).argmax(1) == labels).sum())
    export(net, options.out)
    print(f"{right} of {len(x)} right ({100 * right / len(x):.2f} %), {options.out} written")


if __name__ == "__main__":
    main()
