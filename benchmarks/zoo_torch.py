"""Torch modules of every construct, for both exporters of torch.

Each builder returns a module with random weights and its inputs: name -> (shape with names for
free dimensions, dtype, high), where ``high`` bounds integer inputs.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = dict[str, tuple[list[int | str], str, int]]

Built = tuple[nn.Module, Inputs]
IMAGE: Inputs = {"x": (["N", 3, 16, 16], "float32", 2)}
ROWS: Inputs = {"x": (["N", 24], "float32", 2)}
TOKENS: Inputs = {"x": (["N", 10, 32], "float32", 2)}
IDS: Inputs = {"ids": (["N", 10], "int64", 50)}


class Of(nn.Module):
    """A module whose forward is a function of its parts and of x."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.of = forward

    def forward(self, x: Tensor) -> Any:
        return self.of(self.parts, x)


def _norm(width: int, kind: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """Build a BatchNorm with the statistics of a trained one."""
    norm: Any = kind(width)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, std=0.2)
    nn.init.normal_(norm.running_mean, std=0.2)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return norm


def conv1d() -> Built:
    net = nn.Sequential(
        nn.Conv1d(8, 16, 5, 2, 2), _norm(16, nn.BatchNorm1d), nn.ReLU(),
        nn.Conv1d(16, 8, 3, dilation=2),
    )  # fmt: skip
    return net, {"x": (["N", 8, 64], "float32", 2)}


def conv2d() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), _norm(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 16, 3, padding="same"), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(), nn.Linear(16, 5),
    )  # fmt: skip
    return net, IMAGE


def conv3d() -> Built:
    net = nn.Sequential(
        nn.Conv3d(4, 8, 3, padding=1), _norm(8, nn.BatchNorm3d), nn.ReLU(), nn.Conv3d(8, 8, 3)
    )
    return net, {"x": (["N", 4, 8, 12, 12], "float32", 2)}


def grouped() -> Built:
    net = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1, groups=4), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), _norm(32), nn.ReLU6(),
        nn.Conv2d(32, 8, 1),
    )  # fmt: skip
    return net, {"x": (["N", 16, 14, 14], "float32", 2)}


def conv_padding_modes() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate"), nn.ReLU(),
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 4, 3, 2),
    )  # fmt: skip
    return net, IMAGE


def conv_transpose() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 40, 2, 2), nn.ReLU(),
        nn.ConvTranspose2d(40, 16, 3, 2, 1, output_padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(16, 4, 3),
    )  # fmt: skip
    return net, IMAGE


def conv_transpose_1d() -> Built:
    net = nn.Sequential(nn.ConvTranspose1d(8, 40, 4, 2, 1), nn.ReLU(), nn.Conv1d(40, 4, 3))
    return net, {"x": (["N", 8, 20], "float32", 2)}


def linear() -> Built:
    net = nn.Sequential(
        nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32, bias=False), nn.Tanh(), nn.Linear(32, 5)
    )
    return net, ROWS


def matmul_forms() -> Built:
    net = Of(lambda p, x: p["b"](torch.matmul(p["a"].weight, x.unsqueeze(-1)).squeeze(-1)),
             a=nn.Linear(24, 16), b=nn.Linear(16, 5))  # fmt: skip
    return net, ROWS


def addmm() -> Built:
    net = Of(
        lambda p, x: torch.addmm(p["b"].bias, F.relu(p["a"](x)), p["b"].weight.t(), beta=2.0),
        a=nn.Linear(24, 16), b=nn.Linear(16, 5),
    )  # fmt: skip
    return net, ROWS


def bilinear() -> Built:
    net = Of(lambda p, x: p["c"](p["b"](p["a"](x), x)),
             a=nn.Linear(24, 8), b=nn.Bilinear(8, 24, 16), c=nn.Linear(16, 5))  # fmt: skip
    return net, ROWS


def einsum() -> Built:
    net = Of(lambda p, x: torch.einsum("bij,kj->bik", p["a"](x), p["b"].weight),
             a=nn.Linear(32, 32), b=nn.Linear(32, 8))  # fmt: skip
    return net, TOKENS


def lstm() -> Built:
    net = Of(lambda p, x: p["head"](p["rnn"](x)[0]),
             rnn=nn.LSTM(32, 40, 2, batch_first=True), head=nn.Linear(40, 6))  # fmt: skip
    return net, TOKENS


def gru() -> Built:
    net = Of(lambda p, x: p["head"](p["rnn"](x)[0]),
             rnn=nn.GRU(32, 40, bidirectional=True, batch_first=True),
             head=nn.Linear(80, 6))  # fmt: skip
    return net, TOKENS


def rnn() -> Built:
    net = Of(lambda p, x: p["head"](p["rnn"](x)[1][-1]),
             rnn=nn.RNN(32, 40, nonlinearity="relu", batch_first=True),
             head=nn.Linear(40, 6))  # fmt: skip
    return net, TOKENS


def lstm_cell() -> Built:
    def steps(p: Any, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 24)
        for k in range(4):
            h, c = p["cell"](x[:, k], (h, c))
        output: Tensor = p["head"](h)
        return output

    return Of(steps, cell=nn.LSTMCell(32, 24), head=nn.Linear(24, 6)), TOKENS


def attention() -> Built:
    net = Of(lambda p, x: p["head"](p["mix"](x, x, x, need_weights=False)[0] + x),
             mix=nn.MultiheadAttention(32, 4, batch_first=True), head=nn.Linear(32, 6))  # fmt: skip
    return net, TOKENS


class Block(nn.Module):
    """A transformer block with a mask, written with scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.place = nn.Parameter(torch.randn(1, 10, 32) / 3)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 6)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids) + self.place
        shape = (x.shape[0], 10, 3, 4, 8)
        q, k, v = self.qkv(self.norm1(x)).view(shape).permute(2, 0, 3, 1, 4)
        bias = -4.0 * mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        output: Tensor = self.head(x)
        return output


def transformer_block() -> Built:
    return Block(), {**IDS, "mask": (["N", 10], "int64", 2)}


def encoder_layer() -> Built:
    layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(32, 6)), TOKENS


def embedding_bag() -> Built:
    net = nn.Sequential(nn.Embedding(50, 24, padding_idx=0), nn.Flatten(), nn.Linear(240, 8))
    return net, IDS


def layer_norm() -> Built:
    return nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 6)), TOKENS


def rms_norm() -> Built:
    return nn.Sequential(nn.Linear(32, 32), nn.RMSNorm(32), nn.SiLU(), nn.Linear(32, 6)), TOKENS


def group_norm() -> Built:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 8, 3))
    return net, IMAGE


def instance_norm() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16, affine=True), nn.LeakyReLU(0.1),
        nn.Conv2d(16, 8, 3),
    )  # fmt: skip
    return net, IMAGE


def upsample() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 4, 3),
    )  # fmt: skip
    return net, IMAGE


def interpolate() -> Built:
    def forward(p: Any, x: Tensor) -> Tensor:
        small = F.relu(p["a"](x))
        up = F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=True)
        output: Tensor = p["b"](torch.cat([x, up], 1))
        return output

    return Of(forward, a=nn.Conv2d(3, 8, 3, 2, 1), b=nn.Conv2d(11, 4, 1)), IMAGE


def pixel_shuffle() -> Built:
    net = nn.Sequential(
        nn.PixelUnshuffle(2), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2),
        nn.Conv2d(4, 4, 3),
    )  # fmt: skip
    return net, IMAGE


def _activated(*activations: nn.Module) -> Built:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3)]
    for activation in activations:
        layers += [activation, nn.Conv2d(8, 8, 3)]
    return nn.Sequential(*layers), IMAGE


def prelu() -> Built:
    return _activated(nn.PReLU(), nn.PReLU(8))


def hard_activations() -> Built:
    return _activated(nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(-1, 2))


def smooth_activations() -> Built:
    return _activated(nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish())


def other_activations() -> Built:
    return _activated(nn.ELU(), nn.Sigmoid(), nn.Softplus(), nn.LeakyReLU())


def squeeze_excite() -> Built:
    def forward(p: Any, x: Tensor) -> Tensor:
        x = F.relu(p["a"](x))
        output: Tensor = p["d"](x * torch.sigmoid(p["c"](F.relu(p["b"](x.mean((2, 3), True))))))
        return output

    parts = {"a": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(16, 4, 1), "c": nn.Conv2d(4, 16, 1)}
    return Of(forward, **parts, d=nn.Conv2d(16, 8, 1)), IMAGE


def residual() -> Built:
    def forward(p: Any, x: Tensor) -> Tensor:
        x = F.relu(p["a"](x))
        x = F.relu(p["bn"](p["b"](x)) + x)
        left, right = x.chunk(2, 1)
        output: Tensor = p["c"](torch.cat([F.avg_pool2d(left, 2), F.max_pool2d(right, 2)], 1))
        return output

    return Of(
        forward, a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 16, 3, padding=1, bias=False),
        bn=_norm(16), c=nn.Conv2d(16, 8, 1),
    ), IMAGE  # fmt: skip


class Several(nn.Module):
    """Floats, whole numbers and truth values in; a mapping out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 8)
        self.c, self.d = nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, a: Tensor, b: Tensor, mask: Tensor) -> dict[str, Tensor]:
        y = (self.a(a) + self.b(b.float())) * mask
        return {"scores": self.c(y), "share": self.d(y).sigmoid()}


def several_inputs_and_outputs() -> Built:
    return Several(), {
        "a": (["N", 12], "float32", 2), "b": (["N", 8], "int32", 9), "mask": (["N", 8], "bool", 2),
    }  # fmt: skip


def shared_weights() -> Built:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), conv, nn.ReLU(), conv, nn.ReLU(), conv)
    return net, IMAGE


class Tied(nn.Module):
    """Language models read and write by one table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(80, 16), nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(F.gelu(self.mix(self.embed(ids))), self.embed.weight)


def tied_embedding() -> Built:
    return Tied(), IDS


def dynamic_shapes() -> Built:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    return net, {"x": (["N", 3, "H", "W"], "float32", 2)}


def dynamic_length() -> Built:
    net = Of(lambda p, x: p["head"](F.gelu(p["conv"](x.transpose(1, 2))).transpose(1, 2)),
             conv=nn.Conv1d(32, 24, 3, padding=1), head=nn.Linear(24, 6))  # fmt: skip
    return net, {"x": (["N", "T", 32], "float32", 2)}


def fixed_batch() -> Built:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 5))
    return net, {"x": ([4, 3, 16, 16], "float32", 2)}


def float16() -> Built:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3, groups=4)).half()
    return net, {"x": (["N", 3, 16, 16], "float16", 2)}


def bfloat16_inside() -> Built:
    inner = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3, groups=4)).bfloat16()
    return Of(lambda p, x: p["inner"](x.bfloat16()).float(), inner=inner), IMAGE


def branch() -> Built:
    def forward(p: Any, x: Tensor) -> Tensor:
        x = F.relu(p["a"](x))
        y = torch.cond(x.mean() > 0, lambda t: p["b"](t), lambda t: 2 * p["c"](t), (x,))
        output: Tensor = p["d"](y)
        return output

    parts = {"a": nn.Linear(24, 16), "b": nn.Linear(16, 8), "c": nn.Linear(16, 8)}
    return Of(forward, **parts, d=nn.Linear(8, 4)), ROWS


class Loop(nn.Module):
    """A loop whose length is known to the compiler of TorchScript only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(24, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for _ in range(x.shape[1] // 5):
            x = torch.tanh(self.b(x)) + x
        output: Tensor = self.c(x)
        return output


def scripted_loop() -> Built:
    return torch.jit.script(Loop()), ROWS


def weight_norm() -> Built:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    return nn.Sequential(normed, nn.ReLU(), nn.Conv2d(8, 4, 3)), IMAGE


def grid_sample() -> Built:
    def forward(p: Any, x: Tensor) -> Tensor:
        shift = 0.1 * torch.tanh(p["a"](x)).permute(0, 2, 3, 1)
        eye = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]).expand(x.shape[0], 2, 3)
        grid = F.affine_grid(eye, [x.shape[0], 3, 16, 16], align_corners=False)
        output: Tensor = p["b"](F.grid_sample(x, grid + shift, align_corners=False))
        return output

    return Of(forward, a=nn.Conv2d(3, 2, 3, padding=1), b=nn.Conv2d(3, 8, 3)), IMAGE


MODULES: dict[str, Callable[[], Built]] = {
    f.__name__: f
    for f in (
        conv1d, conv2d, conv3d, grouped, conv_padding_modes, conv_transpose, conv_transpose_1d,
        linear, matmul_forms, addmm, bilinear, einsum, lstm, gru, rnn, lstm_cell, attention,
        transformer_block, encoder_layer, embedding_bag, layer_norm, rms_norm, group_norm,
        instance_norm, upsample, interpolate, pixel_shuffle, prelu, hard_activations,
        smooth_activations, other_activations, squeeze_excite, residual,
        several_inputs_and_outputs, shared_weights, tied_embedding, dynamic_shapes, dynamic_length,
        fixed_batch, float16, bfloat16_inside, branch, scripted_loop, weight_norm, grid_sample,
    )
}  # fmt: skip
