"""What arrives on a LIKENESS_ADAPTER socket: our own adapter, or one that another pack has loaded."""

from __future__ import annotations

from typing import Any

from ..errors import LikenessError
from ..injection.comfy import BareAdapter, ManagedAdapter


def as_managed(value: Any) -> ManagedAdapter | BareAdapter:
    """Our own adapter, or what the IPADAPTER socket of the leading pack carries: weights in groups, in two forms.

    Raises LikenessError for anything else.
    """
    from ..adapters import build

    if isinstance(value, ManagedAdapter | BareAdapter):
        return value
    groups = value if isinstance(value, dict) else {}
    if "ipadapter" in groups:
        groups = (groups["ipadapter"] or {}).get("model") or {}
    if not {"image_proj", "ip_adapter"} <= set(groups):
        raise LikenessError("The input 'adapter' is not an IP-Adapter: connect Load Identity Adapter.")
    weights = {f"{group}.{key}": t for group in ("image_proj", "ip_adapter") for key, t in groups[group].items()}
    name = "unnorm adapter" if groups.get("portraitunnorm") else "adapter from another pack"
    return ManagedAdapter(build(weights, name, 2 if groups.get("faceidplusv2") else 1))
