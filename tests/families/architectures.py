"""Networks that ``transformers`` does not have, small, as their papers draw them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


class SqueezeExcite(nn.Module):
    """Channels weighted by what is in the whole image (Hu et al., 2018), gated as MobileNetV3 does."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool, self.down, self.up = (
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.Conv2d(squeezed, channels, 1),
        )
        self.relu, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x):
        return x * self.gate(self.up(self.relu(self.down(self.pool(x)))))


class InvertedResidual(nn.Module):
    """A block of MobileNetV3 (Howard et al., 2019)."""

    def __init__(
        self, given: int, wide: int, made: int, kernel: int, stride: int, squeeze: bool, act: type[nn.Module]
    ) -> None:
        super().__init__()
        layers = [nn.Conv2d(given, wide, 1, bias=False), nn.BatchNorm2d(wide, eps=1e-3), act()]
        layers += [
            nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide, eps=1e-3),
            act(),
        ]
        layers += [SqueezeExcite(wide, 8)] if squeeze else []
        layers += [nn.Conv2d(wide, made, 1, bias=False), nn.BatchNorm2d(made, eps=1e-3)]
        self.layers, self.residual = nn.Sequential(*layers), stride == 1 and given == made

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


def mobilenet_v3() -> nn.Module:
    """The first and last layers of MobileNetV3 with a block of each kind."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16, eps=1e-3),
        nn.Hardswish(),
        InvertedResidual(16, 16, 16, 3, 1, True, nn.ReLU),
        InvertedResidual(16, 32, 24, 3, 2, False, nn.ReLU),
        InvertedResidual(24, 48, 24, 5, 1, True, nn.Hardswish),
        nn.Conv2d(24, 48, 1, bias=False),
        nn.BatchNorm2d(48),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Linear(48, 64),
        nn.Hardswish(),
        nn.Linear(64, 10),
    )


class CRNN(nn.Module):
    """Text recognition by convolutions, a bidirectional LSTM and scores per column (Shi et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()

        def block(given: int, made: int, pool: Any) -> list[nn.Module]:
            return [nn.Conv2d(given, made, 3, 1, 1), nn.BatchNorm2d(made), nn.ReLU(), nn.MaxPool2d(pool)]

        self.features = nn.Sequential(*block(1, 16, 2), *block(16, 24, 2), *block(24, 32, (4, 1)))
        self.first, self.second = nn.LSTM(32, 16, bidirectional=True), nn.LSTM(32, 16, bidirectional=True)
        self.scores = nn.Linear(32, 37)

    def forward(self, x):
        columns = self.features(x).squeeze(2).permute(2, 0, 1)
        columns = self.second(self.first(columns)[0])[0]
        return torch.log_softmax(self.scores(columns), dim=2)


class DiffusionBlock(nn.Module):
    """One level of a latent diffusion U-Net (Rombach et al., 2022): residual block, attention and GEGLU, and up."""

    def __init__(self, channels: int = 32, context: int = 24) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, channels))
        self.enter = nn.Conv2d(4, channels, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(8, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm3 = nn.GroupNorm(8, channels, eps=1e-6)
        self.ln1, self.ln2, self.ln3 = (nn.LayerNorm(channels) for _ in range(3))
        self.q1, self.k1, self.v1 = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.q2 = nn.Linear(channels, channels, bias=False)
        self.k2, self.v2 = nn.Linear(context, channels, bias=False), nn.Linear(context, channels, bias=False)
        self.out1, self.out2 = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.gate, self.down = nn.Linear(channels, 128), nn.Linear(64, channels)
        self.leave = nn.Conv2d(channels, 4, 3, padding=1)

    def attend(self, x, context, q, k, v, out):
        def heads(t):
            return t.unflatten(-1, (4, -1)).transpose(1, 2)

        mixed = nn.functional.scaled_dot_product_attention(heads(q(x)), heads(k(context)), heads(v(context)))
        return out(mixed.transpose(1, 2).flatten(2))

    def forward(self, sample, timestep, context):
        angles = timestep[:, None].float() * torch.exp(-math.log(10000.0) * torch.arange(8, dtype=torch.float32) / 8)
        time = self.time(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))
        x = self.enter(sample)
        inner = self.conv1(nn.functional.silu(self.norm1(x))) + time[:, :, None, None]
        x = x + self.conv2(nn.functional.silu(self.norm2(inner)))
        batch, channels, height, width = x.shape
        y = self.norm3(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        n = self.ln1(y)
        y = y + self.attend(n, n, self.q1, self.k1, self.v1, self.out1)
        y = y + self.attend(self.ln2(y), context, self.q2, self.k2, self.v2, self.out2)
        value, gate = self.gate(self.ln3(y)).chunk(2, dim=-1)
        y = y + self.down(value * nn.functional.gelu(gate))
        x = x + y.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return self.leave(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
