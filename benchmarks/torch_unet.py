"""The benchmarks' U-Net in PyTorch, as its users write it; as a program, its training steps.

    python benchmarks/torch_unet.py --precision=bfloat16 --norm

`steps_per_second.py --peers torch` starts it, in a process of its own, since the libraries of
PyTorch and TensorFlow do not get on in one. It trains with AdamW on binary cross entropy from one
batch that lies in memory, in channels-last memory, in bfloat16 and float16 by autocast, on the GPU
if there is one. It says "ready" after the first steps, and then, for each line that it reads,
trains `--steps` steps and writes the seconds that they took.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import pathlib
import sys
import time
from collections.abc import Callable

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from unet_core.runs import process


class UNet(torch.nn.Module):
    """[B, 1, H, W] -> one logit for each pixel.

    Args:
        depth: Number of poolings.
        base_filters: Channels of the first level, doubled by each pooling.
        norm: Whether each 3x3 convolution is followed by batch norm.
        padding: Of the 3x3 convolutions; 0 is the paper's, whose skips are cropped.
    """

    def __init__(self, depth: int, base_filters: int, *, norm: bool = False, padding: int = 1):
        super().__init__()
        self.depth, self.norm, self.padding = depth, norm, padding
        self.parts = torch.nn.ModuleDict()
        width = base_filters
        self._add_level("down0", 1, width)
        for number in range(1, depth):
            self._add_level(f"down{number}", width, 2 * width)
            width *= 2
        self._add_level("bottom", width, 2 * width)
        for number in reversed(range(depth)):
            self.parts[f"up{number}_grow"] = torch.nn.ConvTranspose2d(2 * width, width, 2, 2)
            self._add_level(f"up{number}", 2 * width, width)
            width //= 2
        self.parts["head"] = torch.nn.Conv2d(base_filters, 1, 1)

    def _add_level(self, name: str, before: int, after: int) -> None:
        for number, channels in ((1, before), (2, after)):
            convolution = torch.nn.Conv2d(
                channels, after, 3, padding=self.padding, bias=not self.norm
            )
            self.parts[f"{name}_conv{number}"] = convolution
            if self.norm:
                self.parts[f"{name}_norm{number}"] = torch.nn.BatchNorm2d(after)

    def _level(self, x, name: str):
        for number in (1, 2):
            x = self.parts[f"{name}_conv{number}"](x)
            if self.norm:
                x = self.parts[f"{name}_norm{number}"](x)
            x = torch.relu_(x)
        return x

    def forward(self, x):
        skips = []
        for number in range(self.depth):
            skips.append(self._level(x, f"down{number}"))
            x = torch.nn.functional.max_pool2d(skips[-1], 2)
        x = self._level(x, "bottom")
        for number in reversed(range(self.depth)):
            grown = self.parts[f"up{number}_grow"](x)
            skip = _cropped(skips[number], grown.shape[2])
            x = self._level(torch.cat([skip, grown], 1), f"up{number}")
        return self.parts["head"](x)


def _cropped(x, size: int):
    margin = (x.shape[2] - size) // 2
    return x[:, :, margin : margin + size, margin : margin + size] if margin else x


def make_step(args: argparse.Namespace, device: str):
    """Returns a function that trains one step."""
    model = UNet(args.depth, args.base_filters, norm=args.norm, padding=0 if args.valid else 1)
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    drawn = torch.Generator().manual_seed(0)
    shape = (args.batch, 1, args.size, args.size)
    images = torch.randint(0, 256, shape, generator=drawn, dtype=torch.uint8)
    images = images.to(device, memory_format=torch.channels_last)
    masks = (images > 127).float()
    mixed: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    if args.precision != "float32":
        mixed = functools.partial(torch.autocast, device, getattr(torch, args.precision))
    scaler = torch.amp.GradScaler(device, enabled=args.precision == "float16")

    def step() -> None:
        with mixed():
            logits = model(images.float() * (4 / 255) - 2)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits.float(), _cropped(masks, logits.shape[2])
        )
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def make_rounds(args: argparse.Namespace) -> Callable[[], float]:
    """Returns a function that trains `args.steps` steps and returns the seconds that they took."""
    # As the other side does.
    process.keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    step = make_step(args, device)

    def train() -> float:
        start = time.perf_counter()
        for _ in range(args.steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return train


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), default="float32"
    )
    parser.add_argument("--norm", action="store_true", help="batch norm")
    parser.add_argument("--valid", action="store_true", help="valid padding, the paper's")
    parser.add_argument("--steps", type=int, default=4, help="steps for each line that is read")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--base_filters", type=int, default=32)
    args = parser.parse_args(argv)
    train = make_rounds(args)
    train()
    print("ready", torch.__version__, flush=True)
    for _ in sys.stdin:
        print(train(), flush=True)


if __name__ == "__main__":
    main()
