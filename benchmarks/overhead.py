"""Sampling time with an identity over sampling time without, in one process, as ratios.

    make bench                                      all layouts, about ten minutes
    python benchmarks/overhead.py --layout sdxl     one of them
    LIKENESS_PEERS=~/packs make bench               the leading pack beside ours, when that folder holds it

Networks of the real topology at reduced width, random weights, CPU, one thread; each module of `variants/` applies the
adapters of a system to them. For UNets the text's width and the token counts are the real ones; FLUX has 256 tokens of
an image and 32 of a text, in the proportion of 1024 x 1024 pixels. All variants run once per round in random
order; reported are the ratio of medians of process time and the median and quartiles of the ratios paired by round.
Beside them stand the tensor operations of a step over those without, which no other load on the machine can change.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
SIDE = 32  # of the latent


class Layout(NamedTuple):
    """A UNet in the host's terms, and how its heads are given."""

    config: dict[str, Any]
    num_heads: int
    num_head_channels: int
    pooled: int | None

    base, channels, cfg = "unet", 4, 5.0

    def model(self, recipes: ModuleType) -> Any:
        """It as a MODEL."""
        return recipes.unet(self.config, num_heads=self.num_heads, num_head_channels=self.num_head_channels)

    def prompt(self, recipes: ModuleType, seed: int) -> Any:
        """Random states of a text."""
        return recipes.conditioning(self.config["context_dim"], pooled=self.pooled, seed=seed)

    def places(self, model: Any) -> str:
        """Where identities can act, in words."""
        from likeness.injection.comfy import sites_of

        return f"{len(sites_of(model))} sites"


class FluxLayout(NamedTuple):
    """FLUX.1's blocks and heads, with tokens of this width. Its guidance is part of the prompt, so that cfg is 1."""

    width: int

    base, channels, cfg = "flux", 16, 1.0

    def model(self, recipes: ModuleType) -> Any:
        """It as a MODEL."""
        return recipes.tiny_flux(
            hidden_size=self.width, num_heads=self.width // 128, axes_dim=[16, 56, 56], mlp_ratio=4.0, depth=19,
            depth_single_blocks=38, vec_in_dim=768, context_in_dim=4096,
        )  # fmt: skip

    def prompt(self, recipes: ModuleType, seed: int) -> Any:
        """Random states of a text."""
        return recipes.conditioning(4096, pooled=768, tokens=32, seed=seed, guidance=4.0)

    def places(self, model: Any) -> str:
        """Where identities can act, in words."""
        net = model.model.diffusion_model
        return f"{len(net.double_blocks)} + {len(net.single_blocks)} blocks"


_COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
UNETS = {
    "sd15": Layout(
        {
            **_COMMON,
            "model_channels": 96,
            "channel_mult": [1, 2, 4, 4],
            "num_res_blocks": [2] * 4,
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1] * 9 + [0] * 3,
            "transformer_depth_middle": 1,
            "context_dim": 768,
            "use_linear_in_transformer": False,
            "adm_in_channels": None,
        },
        num_heads=8,
        num_head_channels=-1,
        pooled=None,
    ),
    "sdxl": Layout(
        {
            **_COMMON,
            "model_channels": 64,
            "channel_mult": [1, 2, 4],
            "num_res_blocks": [2] * 3,
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "transformer_depth_middle": 10,
            "context_dim": 2048,
            "use_linear_in_transformer": True,
            "adm_in_channels": 2816,
            "num_classes": "sequential",
        },
        num_heads=-1,
        num_head_channels=64,
        pooled=1280,
    ),
}
LAYOUTS: dict[str, Layout | FluxLayout] = {**UNETS, "flux": FluxLayout(384)}


def comfyui_of_the_tests() -> ModuleType:
    """The tests' module that finds ComfyUI; their helpers can be imported afterwards."""
    sys.path.append(str(REPOSITORY / "tests"))
    return import_module("comfyui")


def start_host() -> ModuleType:
    """Import the real ComfyUI into this process; returns the tests' recipes for small models."""
    comfyui = comfyui_of_the_tests()
    host = comfyui.find()
    if host is None:
        sys.exit(f"The benchmark {comfyui.HOW_TO_GET_IT}.")
    comfyui.import_into_this_process(host, Path(tempfile.mkdtemp(prefix="likeness_bench_")))
    return import_module("helpers.recipes")


Variant = tuple[Any, Any, Any]  # MODEL, positive and negative prompt


def variants(
    base: str, model: Any, positive: Any, negative: Any, recipes: ModuleType
) -> tuple[dict[str, Variant], set[str]]:
    """name -> MODEL and prompts, for every module of `variants/`; and the names of those that change nothing.

    A module gives MODELs as `variants`; one that changes the prompts as well, gives all three as `on_prompts`. Its
    `BASE` says for which networks it is, "unet" unless it has one.
    """
    modules = [import_module(f"variants.{path.stem}") for path in sorted((HERE / "variants").glob("*.py"))]
    modules = [module for module in modules if getattr(module, "BASE", "unet") == base]
    found: dict[str, Variant] = {"no adapter": (model, positive, negative)}
    for module in modules:
        found |= {name: (variant, positive, negative) for name, variant in module.variants(model).items()}
        if hasattr(module, "on_prompts"):
            found |= module.on_prompts(model, positive, negative, recipes)
    return found, {"no adapter", *(name for module in modules for name in module.SILENT)}


# Measuring ------------------------------------------------------------------------------------------------------------


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def seconds_per_step(sampling: Callable[..., Any]) -> float:
    """Process time of a step. The first one is left out: the host moves models and fills caches in it."""
    ends: list[float] = []
    sampling(callback=lambda *_: ends.append(time.process_time()))
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def measure(timed: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What every variant takes in every round, the order shuffled each time."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    order, shuffle = list(timed), random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            times[name].append(timed[name]())
    return times


def compared(values: list[float], base: list[float]) -> str:
    """Cells of a table: the ratio of medians, the median of the ratios paired by round, and their quartiles."""
    low, middle, high = quartiles([a / b for a, b in zip(values, base, strict=True)])
    return f"{statistics.median(values) / statistics.median(base):.3f} | {middle:.3f} | {low:.3f}–{high:.3f}"


class Counter(TorchDispatchMode):
    """Counts the tensor operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def operations(sampling: Callable[..., Any]) -> int:
    """Tensor operations of a call; unlike time, no other load can change them. A call before it brings the MODEL's own
    weights into place, which is not counted."""
    sampling()
    with Counter() as counter:
        sampling()
    return counter.operations


def run(layout_name: str, rounds: int, steps: int, recipes: ModuleType, only: str = "") -> str:
    """One layout's table, as Markdown. only: a regular expression for the variants' names."""
    layout = LAYOUTS[layout_name]
    model = layout.model(recipes)
    positive, negative = (layout.prompt(recipes, seed) for seed in (1, 2))
    shape = (1, layout.channels, SIDE, SIDE)

    def sampling(variant: Variant, n: int = steps + 1) -> Callable[..., torch.Tensor]:
        return lambda **options: recipes.sample(*variant, shape=shape, steps=n, cfg=layout.cfg, **options)

    with torch.inference_mode():
        models, silent = variants(layout.base, model, positive, negative, recipes)
    models = {name: made for name, made in models.items() if name == "no adapter" or re.search(only, name)}
    plain = sampling(models["no adapter"], 1)()
    for name, variant in models.items():
        changed = not torch.equal(plain, sampling(variant, 1)())
        if changed is (name in silent):
            raise SystemExit(f"{layout_name}: '{name}' {'changes' if changed else 'does not change'} the image")
    counted = {name: operations(sampling(variant, 1)) for name, variant in models.items()}
    times = measure({name: partial(seconds_per_step, sampling(variant)) for name, variant in models.items()}, rounds)
    base = times["no adapter"]
    millions = sum(p.numel() for p in model.model.diffusion_model.parameters()) / 1e6
    lines = [
        f"### {layout_name}: {millions:.1f} M parameters, {layout.places(model)}, "
        f"{statistics.median(base):.2f} s per step, {rounds} rounds x {steps} steps",
        "",
        "| variant | ratio of medians | paired median | quartiles | tensor operations |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, values in times.items():
        share = counted[name] / counted["no adapter"]
        lines.append(f"| {name} | {compared(values, base)} | {share:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=[*LAYOUTS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--only", default="", help="a regular expression for the variants' names, such as PuLID")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipes = start_host()
    for name in LAYOUTS if arguments.layout == "all" else [arguments.layout]:
        print(run(name, arguments.rounds, arguments.steps, recipes, arguments.only), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
