"""Sampling time with an identity over sampling time without, in one process, as ratios.

    make bench                                      both layouts, about eight minutes
    python benchmarks/overhead.py --layout sdxl     one of them
    LIKENESS_PEERS=~/packs make bench               the leading pack beside ours, when that folder holds it

UNets of the real topology at reduced width (text width and token counts are the real ones), random weights, CPU, one
thread. All variants run once per round in random order; reported are the ratio of medians of process time and the
median and quartiles of the ratios paired by round. Beside them stand the tensor operations of a step over those
without, which no other load on the machine can change.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

REPOSITORY = Path(__file__).resolve().parents[1]
CFG, SIDE = 5.0, 32  # guidance, side of the latent
CLIP_TOKENS, CLIP_HIDDEN = 257, 1280
PEER_FOLDER = "ComfyUI_IPAdapter_plus"


class Layout(NamedTuple):
    """A UNet in the host's terms, and how its heads are given."""

    config: dict[str, Any]
    num_heads: int
    num_head_channels: int
    pooled: int | None


_COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
LAYOUTS = {
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


def load_module(name: str, path: Path) -> ModuleType:
    """Import a file under a fixed name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def start_host() -> ModuleType:
    """Import the real ComfyUI into this process; returns the tests' recipes for small models."""
    comfyui = load_module("likeness_comfyui", REPOSITORY / "tests" / "comfyui.py")
    host = comfyui.find()
    if host is None:
        sys.exit(f"The benchmark {comfyui.HOW_TO_GET_IT}.")
    comfyui.import_into_this_process(host, Path(tempfile.mkdtemp(prefix="likeness_bench_")))
    return load_module("likeness_host_recipes", REPOSITORY / "tests" / "host" / "recipes.py")


# Adapters -------------------------------------------------------------------------------------------------------------


def official_weights(sites: Any, kind: str) -> dict[str, dict[str, torch.Tensor]]:
    """FaceID (4 tokens) or Plus (16 tokens) in official layout with random weights that fit the sites."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    dim = sites[0].context_dim
    ip_adapter = {f"{site.slot}.to_{half}_ip.weight": normal(site.width, dim) for site in sites for half in ("k", "v")}
    if kind == "faceid":
        # One LoRA pair is how the peer recognises FaceID; at zero it changes nothing.
        ip_adapter["0.to_q_lora.down.weight"] = torch.zeros(1, sites[0].width)
        ip_adapter["0.to_q_lora.up.weight"] = torch.zeros(sites[0].width, 1)
        proj = {
            "proj.0.weight": normal(1024, 512),
            "proj.0.bias": torch.zeros(1024),
            "proj.2.weight": normal(4 * dim, 1024),
            "proj.2.bias": torch.zeros(4 * dim),
            "norm.weight": torch.ones(dim),
            "norm.bias": torch.zeros(dim),
        }
        return {"image_proj": proj, "ip_adapter": ip_adapter}
    inner = 1280 if dim == 2048 else 768
    proj = {
        "latents": normal(1, 16, inner),
        "proj_in.weight": normal(inner, CLIP_HIDDEN),
        "proj_in.bias": torch.zeros(inner),
        "proj_out.weight": normal(dim, inner),
        "proj_out.bias": torch.zeros(dim),
        "norm_out.weight": torch.ones(dim),
        "norm_out.bias": torch.zeros(dim),
    }
    for i in range(4):
        for name, shape in {
            "0.to_q": (inner, inner),
            "0.to_kv": (2 * inner, inner),
            "0.to_out": (inner, inner),
        }.items():
            proj[f"layers.{i}.{name}.weight"] = normal(*shape)
        proj[f"layers.{i}.1.1.weight"], proj[f"layers.{i}.1.3.weight"] = (
            normal(4 * inner, inner),
            normal(inner, 4 * inner),
        )
        for norm in ("0.norm1", "0.norm2", "1.0"):
            proj[f"layers.{i}.{norm}.weight"], proj[f"layers.{i}.{norm}.bias"] = torch.ones(inner), torch.zeros(inner)
    return {"image_proj": proj, "ip_adapter": ip_adapter}


def our_variants(model: Any) -> dict[str, Any]:
    """name -> MODEL with our adapters."""
    from likeness.adapters import Evidence, build
    from likeness.adapters.effects import AttentionTerm, Scope
    from likeness.adapters.ip_adapter.embeds import join_tokens
    from likeness.adapters.types import IdentityTokens
    from likeness.injection.comfy import ManagedAdapter, apply_identity, sites_of
    from likeness.injection.plan import uniform

    sites = sites_of(model)
    generator = torch.Generator().manual_seed(1)
    ids = torch.nn.functional.normalize(torch.randn(1, 512, generator=generator), dim=-1)
    hidden = torch.randn(1, CLIP_TOKENS, CLIP_HIDDEN, generator=generator)
    evidence = {"faceid": Evidence(id_embeds=ids), "plus": Evidence(None, hidden, torch.zeros_like(hidden))}
    adapters = {}
    for kind in evidence:
        groups = official_weights(sites, kind)
        flat = {f"{group}.{key}": value for group, part in groups.items() for key, value in part.items()}
        adapters[kind] = ManagedAdapter(build(flat, kind))

    def applied(kind: str, strength: float = 1.0, **scope: Any) -> Any:
        made = adapters[kind].adapter.encode(evidence[kind])
        tokens = IdentityTokens(join_tokens(made.cond), made.uncond[:1])
        return apply_identity(
            model, [AttentionTerm(adapters[kind], tokens, uniform(strength, sites), scope=Scope(**scope))]
        )

    return {
        "FaceID": applied("faceid"),
        "Plus": applied("plus"),
        "Plus + mask": applied("plus", mask=torch.rand(1, 256, 256, generator=generator)),
        "FaceID, strength 0": applied("faceid", strength=0.0),
        "FaceID, outside its window": applied("faceid", start=0.999),
    }


def peer_variants(model: Any, sites: Any) -> dict[str, Any]:
    """name -> MODEL with the leading pack's adapters, when LIKENESS_PEERS names a folder that holds it."""
    folder = Path(os.environ.get("LIKENESS_PEERS", "")).expanduser() / PEER_FOLDER
    if not os.environ.get("LIKENESS_PEERS") or not (folder / "IPAdapterPlus.py").is_file():
        return {}
    package = importlib.util.spec_from_file_location(
        "likeness_peer", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert package and package.loader
    sys.modules["likeness_peer"] = importlib.util.module_from_spec(package)
    package.loader.exec_module(sys.modules["likeness_peer"])
    module = sys.modules["likeness_peer.IPAdapterPlus"]
    execute = module.ipadapter_execute
    # It shows even FaceID's crops to CLIP and then drops the result; only sampling is measured here.
    vars(module)["encode_image_masked"] = lambda *_, **__: SimpleNamespace(image_embeds=torch.zeros(1, 1024))
    generator = torch.Generator().manual_seed(1)
    embedding = torch.nn.functional.normalize(torch.randn(512, generator=generator), dim=0).numpy()
    face = SimpleNamespace(normed_embedding=embedding, embedding=embedding, kps=_KEYPOINTS, bbox=None)

    class Analysis:
        det_model = type("Detector", (), {"input_size": (640, 640)})()

        def get(self, _image: Any) -> list[Any]:
            return [face]

    image = torch.rand(1, 256, 256, 3, generator=generator)
    hidden = torch.randn(1, CLIP_TOKENS, CLIP_HIDDEN, generator=generator)
    mask = torch.rand(1, 256, 256, generator=generator)
    faceid, plus = official_weights(sites, "faceid"), official_weights(sites, "plus")
    common = {"pos_embed": hidden, "neg_embed": torch.zeros_like(hidden)}
    return {
        "peer FaceID": execute(model.clone(), faceid, None, insightface=Analysis(), image=image)[0],
        "peer Plus": execute(model.clone(), plus, None, **common)[0],
        "peer Plus + mask": execute(model.clone(), plus, None, attn_mask=mask, **common)[0],
    }


_KEYPOINTS = np.array([[90, 110], [166, 110], [128, 150], [96, 190], [160, 190]], np.float32)


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


def measure(variants: dict[str, Callable[..., Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds per step of every variant in every round, the order shuffled each time."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    order, shuffle = list(variants), random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            times[name].append(seconds_per_step(variants[name]))
    return times


class Counter(TorchDispatchMode):
    """Counts the tensor operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def operations(sampling: Callable[..., Any]) -> int:
    """Tensor operations of a call; unlike time, no other load can change them."""
    with Counter() as counter:
        sampling()
    return counter.operations


def run(layout_name: str, rounds: int, steps: int, recipes: ModuleType) -> str:
    """One layout's table, as Markdown."""
    layout = LAYOUTS[layout_name]
    model = recipes.unet(layout.config, num_heads=layout.num_heads, num_head_channels=layout.num_head_channels)
    width = layout.config["context_dim"]
    positive = recipes.conditioning(width, pooled=layout.pooled, seed=1)
    negative = recipes.conditioning(width, pooled=layout.pooled, seed=2)

    def sampling(variant: Any, n: int = steps + 1) -> Callable[..., torch.Tensor]:
        shape = (1, 4, SIDE, SIDE)
        return lambda **options: recipes.sample(variant, positive, negative, shape=shape, steps=n, cfg=CFG, **options)

    from likeness.injection.comfy import sites_of

    with torch.inference_mode():
        models = {"no adapter": model, **our_variants(model), **peer_variants(model, sites_of(model))}
    plain = sampling(model, 1)()
    for name, variant in models.items():
        changed = not torch.equal(plain, sampling(variant, 1)())
        should = name not in ("no adapter", "FaceID, strength 0", "FaceID, outside its window")
        if changed is not should:
            raise SystemExit(f"{layout_name}: '{name}' {'changes' if changed else 'does not change'} the picture")
    counted = {name: operations(sampling(variant, 1)) for name, variant in models.items()}
    times = measure({name: sampling(variant) for name, variant in models.items()}, rounds)
    base = times["no adapter"]
    millions = sum(p.numel() for p in model.model.diffusion_model.parameters()) / 1e6
    lines = [
        f"### {layout_name}: {millions:.1f} M parameters, {len(sites_of(model))} sites, "
        f"{statistics.median(base):.2f} s per step, {rounds} rounds x {steps} steps",
        "",
        "| variant | ratio of medians | paired median | quartiles | tensor operations |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, values in times.items():
        low, middle, high = quartiles([a / b for a, b in zip(values, base, strict=True)])
        ratio = statistics.median(values) / statistics.median(base)
        share = counted[name] / counted["no adapter"]
        lines.append(f"| {name} | {ratio:.3f} | {middle:.3f} | {low:.3f}–{high:.3f} | {share:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=[*LAYOUTS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipes = start_host()
    for name in LAYOUTS if arguments.layout == "all" else [arguments.layout]:
        print(run(name, arguments.rounds, arguments.steps, recipes), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
