"""ResNets with random weights whose activations stay in range: for speed, size and bits."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

WIDTHS = ((64, 1), (128, 2), (256, 2), (512, 2))


def _shortcut(before: int, after: int, stride: int) -> nn.Sequential:
    """Build a 1 x 1 convolution where the shape changes, else nothing."""
    if stride == 1 and before == after:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for _ in range(2))
        self.short = _shortcut(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.one(x)))
        return torch.relu(self.norms[1](self.two(y)) + self.short(x))


class Bottleneck(nn.Module):
    """Convolutions 1 x 1, 3 x 3 and 1 x 1 to four times the width, and a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.one = nn.Conv2d(before, width, 1, bias=False)
        self.two = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.three = nn.Conv2d(width, after, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (width, width, after))
        self.short = _shortcut(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.one(x)))
        y = torch.relu(self.norms[1](self.two(y)))
        return torch.relu(self.norms[2](self.three(y)) + self.short(x))


# Depth -> block, channels that it makes of each width, and blocks of each width.
DEPTHS = {18: (Block, 1, (2, 2, 2, 2)), 50: (Bottleneck, 4, (3, 4, 6, 3))}


def resnet(depth: int = 18, seed: int = 0) -> nn.Module:
    """Build He et al. 2016, table 1, with BatchNorm statistics of one batch of noise."""
    torch.manual_seed(seed)
    block, expansion, counts = DEPTHS[depth]
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)]
    layers += [nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for (width, stride), count in zip(WIDTHS, counts, strict=True):
        for k in range(count):
            layers.append(block(before, width, 1 if k else stride))
            before = expansion * width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net(torch.randn(16, 3, 224, 224))
    return net.eval()


def write(path: Path, depth: int = 18) -> Path:
    """Write the network as an ONNX file with an open batch size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            resnet(depth),
            (torch.randn(1, 3, 224, 224),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "N"}, "output": {0: "N"}},
        )
    return path
