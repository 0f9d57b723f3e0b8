"""Torch networks as users keep them: a module of their own, and the files torch saves."""

from pathlib import Path

from qtool.loading.pytorch.loader import TensorInput, TorchSource

NETS = '''
import torch
from torch import nn

from blocks import Block

print("nets.py is being imported")


class Net(nn.Module):
    """A stem with a stride, two residual blocks, a mean, a linear layer."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU())
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.fc = nn.Linear(8, 4)

    def forward(self, image):
        return self.fc(self.layer1(self.stem(image)).mean((2, 3)))


def net():
    print("the factory prints")
    torch.manual_seed(0)
    made = Net()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.running_mean, std=0.1)
    return made


def raising():
    raise ValueError("no such width")


def leaving():
    raise SystemExit(0)


def number():
    return 3


constant = 7
'''
BLOCKS = """
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(self.bn1(self.conv1(x)) + x)
"""
INPUTS = (TensorInput("image", ("N", 3, 8, 8)),)


def write_nets(folder: Path) -> Path:
    """Write the module and what it imports; returns the folder."""
    (folder / "nets.py").write_text(NETS)
    (folder / "blocks.py").write_text(BLOCKS)
    return folder


def source(folder: Path, name: str = "net", weights: Path | None = None) -> TorchSource:
    """The network of that module."""
    return TorchSource(f"nets:{name}", weights, INPUTS, folder)
