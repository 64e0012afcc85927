"""The ComfyUI binding: identities enter a MODEL by late binding.

No replace patch is ever registered. Wrappers act at call time instead:

    OUTER_SAMPLE      once per sampling run: what the run needs; keys and values are projected on the first run only
    CALC_COND_BATCH   once per model evaluation: which windows are open, which half and area each conditioning is
    APPLY_MODEL       once per batch of chunks: compose our term with whatever patch is on a site at that moment

What Custom Diffusion learned enters by weight patches and words (`concepts`, imported where it is used).
What rides on a CONDITIONING is put there by `text` (prompt edits) and `control` (a ControlNet with tokens of its own).

So packs compose in any order, the projection weights may leave the GPU while sampling, and a site costs two small
products and no host synchronisation.
"""

from .apply import (
    Applied,
    apply_effects,
    apply_identity,
    count_references,
    dit_of,
    has_timestep_zero,
    model_name,
    request_layout,
    rescale,
    sites_of,
    stack_of,
)
from .encoders import ComfyClipEncoder, ComfyTextEncoder
from .managed import BareAdapter, Managed, ManagedAdapter, ManagedEvaTower
from .text import edited, needs_rider
from .weights import base_weights

__all__ = [
    "Applied",
    "BareAdapter",
    "ComfyClipEncoder",
    "ComfyTextEncoder",
    "Managed",
    "ManagedAdapter",
    "ManagedEvaTower",
    "apply_effects",
    "apply_identity",
    "base_weights",
    "count_references",
    "dit_of",
    "edited",
    "has_timestep_zero",
    "model_name",
    "needs_rider",
    "request_layout",
    "rescale",
    "sites_of",
    "stack_of",
]
