"""What references cost in a step of the host's Krea 2: `python benchmarks/references.py` (ComfyUI 0.33 or newer).

A shallow network of the host's own class. The ratio of steps does not depend on the number of layers, but on how much
of a layer is attention, tokens / (6 x width): 0.11 for Krea 2 (6144 wide) at 832 x 1216, and about that by default
here. Variants take turns, medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
NONE, NATIVE = "no reference", "ComfyUI's own Reference Latent"


def variants(model: Any, size: tuple[int, int], reference: int) -> dict[str, tuple[Any, list[Any]]]:
    """name -> (MODEL, reference latents in its conditioning)"""
    import torch

    from likeness.adapters.edit_models import positions
    from likeness.adapters.effects import ReferenceTerm, Scope
    from likeness.injection.comfy import apply_effects

    latents = import_module("helpers.references").Latents
    latent = torch.randn(1, 16, 1, reference // 8, reference // 8, generator=torch.Generator().manual_seed(1))
    left = torch.zeros(1, size[0] // 8, size[1] // 8)
    left[..., : size[1] // 16] = 1

    def person(**options: Any) -> tuple[Any, list[Any]]:
        term = ReferenceTerm("x", "x", latents(latent), **{"placement": positions.origin, **options})
        return apply_effects(model, [term]).model, []

    return {
        NONE: (model, []),
        NATIVE: (model, [latent]),
        "ours, strength 1": person(),
        "ours, strength 2": person(strength=2.0),
        "ours, in a region": person(scope=Scope(mask=left)),
        "ours, isolated and kept": person(method="index_timestep_zero", isolated=True),
    }


def measure(cases: dict[str, tuple[Any, list[Any]]], size: tuple[int, int], rounds: int) -> dict[str, list[float]]:
    """Seconds of the second step of a run, by variant: the first one makes what the run keeps."""
    import comfy.sample
    import comfy.samplers
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in cases}
    x = torch.randn(1, 16, 1, size[0] // 8, size[1] // 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 64, 48, generator=torch.Generator().manual_seed(2))

    def two_steps(denoiser: Any, noise: Any, sigmas: Any, extra_args: Any = None, **_: Any) -> Any:
        for sigma in (0.9, 0.5):
            begun = time.perf_counter()
            denoiser(x, torch.tensor([sigma]), **(extra_args or {}))
            two_steps.seconds = time.perf_counter() - begun  # type: ignore[attr-defined]
        return noise

    for _ in range(rounds):
        for name, (model, native) in cases.items():
            told = {"reference_latents": native, "reference_latents_method": "index"} if native else {}
            with torch.inference_mode():
                comfy.sample.sample_custom(
                    model, 0 * x, 1.0, comfy.samplers.KSAMPLER(two_steps), torch.tensor([1.0, 0.0]),
                    [[text, told]], [[text, dict(told)]], 0 * x, disable_pbar=True,
                )  # fmt: skip
            seconds[name].append(two_steps.seconds)  # type: ignore[attr-defined]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--height", type=int, default=432)
    parser.add_argument("--reference", type=int, default=192, help="side of the reference, in pixels")
    parser.add_argument("--features", type=int, default=1024, help="width of the network")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    sys.path.append(str(REPOSITORY / "tests"))
    comfyui = import_module("comfyui")
    host = comfyui.find()
    if host is None or not comfyui.is_at_least(host, "0.33"):
        sys.exit(f"benchmarks/references.py needs ComfyUI 0.33 or newer: {comfyui.HOW_TO_GET_IT}")
    with tempfile.TemporaryDirectory() as base:
        comfyui.import_into_this_process(host, Path(base))
        recipes = import_module("helpers.recipes")
        size = (chosen.height, chosen.width)
        heads = chosen.features // 128
        layout = {**recipes.KREA2_TINY, "features": chosen.features, "heads": heads, "layers": chosen.layers}
        cases = variants(recipes.dit("Krea2", {**layout, "kvheads": max(1, heads // 4)}), size, chosen.reference)
        seconds = measure(cases, size, chosen.rounds)
    plain = statistics.median(seconds[NONE])
    print("| variant | seconds per step | ratio | range |\n| --- | --- | --- | --- |")
    for name, taken in seconds.items():
        ratios = [value / plain for value in taken]
        print(
            f"| {name} | {statistics.median(taken):.3f} | {statistics.median(ratios):.3f} | "
            f"{min(ratios):.3f}–{max(ratios):.3f} |"
        )


if __name__ == "__main__":
    main()
