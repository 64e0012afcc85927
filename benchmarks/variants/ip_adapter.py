"""IP-Adapter: FaceID (4 tokens) and Plus (16 tokens), ours and the leading pack's."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

SILENT = ("FaceID, strength 0", "FaceID, outside its window")  # those that change nothing
CLIP_TOKENS, CLIP_HIDDEN = 257, 1280
PEER_FOLDER = "ComfyUI_IPAdapter_plus"
_KEYPOINTS = np.array([[90, 110], [166, 110], [128, 150], [96, 190], [160, 190]], np.float32)


def official_weights(sites: Any, kind: str) -> dict[str, dict[str, torch.Tensor]]:
    """FaceID (4 tokens), Plus or InstantID (16 tokens) in official layout with random weights that fit the sites."""
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
        "proj_in.weight": normal(inner, 512 if kind == "instantid" else CLIP_HIDDEN),
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


def variants(model: Any) -> dict[str, Any]:
    """name -> MODEL with the adapter."""
    from likeness.injection.comfy import sites_of

    return {**_ours(model), **_peer(model, sites_of(model))}


def _ours(model: Any) -> dict[str, Any]:
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


def _peer(model: Any, sites: Any) -> dict[str, Any]:
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
