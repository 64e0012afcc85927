"""Restoration in one process, as ratios: super-resolution beside ComfyUI's own node, faces in batches and one by one.

    make bench                              both, after the overhead of identities; about three minutes
    python benchmarks/restoration.py        these alone

Networks of published architectures with random weights, at reduced width where the published one takes minutes; CPU,
one thread. Both sides run once per round in random order; reported are the median of process times and of the ratios
paired by round. Beside the time stand the pixels that the network sees: no load on the machine can change them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from overhead import quartiles, start_host

SIDES = [(640, 512), (1024, 1024), (832, 1216)]  # of images


class Pair(NamedTuple):
    """Two ways to do the same, the second the one to beat. more: rounds for each one asked for, where both take nearly
    the same time and the noise of a few would decide."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    work: str  # ours over theirs, counted
    more: int = 1


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    with torch.inference_mode():
        call()
    return time.process_time() - start


def measure(pair: Pair, rounds: int) -> tuple[list[float], list[float]]:
    """Process times of both, after one run each that is not counted."""
    shuffle, ours, theirs = random.Random(0), [], []
    for call in (pair.ours, pair.theirs):
        seconds(call)
    for _ in range(rounds):
        for call, times in shuffle.sample([(pair.ours, ours), (pair.theirs, theirs)], 2):
            times.append(seconds(call))
    return ours, theirs


def compact() -> Any:
    """realesr-general-x4v3's architecture with half its layers, as Load Upscale Model gives it."""
    from comfy.model_management import get_torch_device, unet_offload_device
    from comfy.model_patcher import ModelPatcher
    from spandrel.architectures.Compact import Compact

    from likeness.restoration.spandrel_files import described

    torch.manual_seed(0)
    weights = Compact(num_in_ch=3, num_out_ch=3, num_feat=32, num_conv=8, upscale=4).state_dict()
    descriptor = described(weights, "the benchmark's network").eval()
    descriptor.patcher = ModelPatcher(descriptor.model, get_torch_device(), unet_offload_device())
    return descriptor


def upscaling() -> list[Pair]:
    """Upscale Portrait beside Upscale Image (using Model), on images that are one tile or several."""
    from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel

    from likeness.nodes.restoration import UpscalePortrait
    from likeness.restoration import upscale
    from likeness.restoration.tiles import OVERLAP, TILE, tiles_of

    network = compact()
    upscaler = upscale.adopted_upscaler(network)

    def seen(height: int, width: int, tile: tuple[int, int]) -> int:
        return sum(one.height * one.width for one in tiles_of(height, width, tile, OVERLAP))

    pairs = []
    for height, width in SIDES:
        image = torch.rand(1, height, width, 3)
        pairs.append(
            Pair(
                f"{width}x{height}, four times as large",
                lambda image=image: UpscalePortrait.execute(image=image, upscale_model=network, scale_by=4.0),
                lambda image=image: ImageUpscaleWithModel.execute(network, image),
                f"{seen(height, width, upscaler.tile_of(height, width)) / seen(height, width, (TILE, TILE)):.3f}",
            )
        )
    return pairs


def restoring() -> list[Pair]:
    """Four faces through GFPGAN at an eighth of its width, asked for at once beside one at a time."""
    from spandrel.architectures.GFPGAN import GFPGAN

    from likeness.nodes.restorers import ManagedRestorer
    from likeness.restoration.restorers import Wishes, restorer_of

    torch.manual_seed(0)
    build: Any = GFPGAN
    restorer = restorer_of(build(out_size=256, channel_multiplier=2, narrow=0.125, num_style_feat=64).state_dict(), "x")
    faces, managed, wishes = torch.rand(4, 3, restorer.side, restorer.side), ManagedRestorer(restorer), Wishes()

    def by(count: int) -> Callable[[], Any]:
        return lambda: [managed.restore(part, wishes) for part in faces.split(count)]

    return [Pair("4 faces at once over one at a time", by(4), by(1), f"{1 / 4:.3f} of the calls", more=8)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start_host()
    print("| what | ours | beside it | time, paired median | quartiles | pixels seen |")
    print("| --- | --- | --- | --- | --- | --- |")
    for pair in [*upscaling(), *restoring()]:
        ours, theirs = measure(pair, arguments.rounds * pair.more)
        low, middle, high = quartiles([a / b for a, b in zip(ours, theirs, strict=True)])
        times = f"{statistics.median(ours):.2f} s | {statistics.median(theirs):.2f} s"
        print(f"| {pair.name} | {times} | {middle:.3f} | {low:.3f}–{high:.3f} | {pair.work} |", flush=True)


if __name__ == "__main__":
    main()
