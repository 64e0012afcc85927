"""What every node module needs: the host's node API, our socket names, and a schema that any supported host accepts."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..faces.identity import OUTLIER_COSINE

# Sockets are matched by string. A comma joins alternatives: values from the leading packs' loaders fit as well.
FaceAnalysisSocket = io.Custom("LIKENESS_FACE_ANALYSIS,INSIGHTFACE,FACEANALYSIS")
FacesSocket = io.Custom("LIKENESS_FACES")
IdentitySocket = io.Custom("IDENTITY")
AdapterSocket = io.Custom("LIKENESS_ADAPTER,IPADAPTER")
OptionsSocket = io.Custom("LIKENESS_ADAPTER_OPTIONS")
EmbedsSocket = io.Custom("LIKENESS_EMBEDS")
ConceptSocket = io.Custom("LIKENESS_CONCEPT")
SubjectSocket = io.Custom("LIKENESS_SUBJECT")
DatasetSocket = io.Custom("LIKENESS_DATASET")
RestorerSocket = io.Custom("LIKENESS_RESTORER,FACERESTORE_MODEL,UPSCALE_MODEL")

LARGEST_SEED = 2**64 - 1  # ComfyUI's own
_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**keywords: Any) -> io.Schema:
    """An `io.Schema` with the keywords this host knows; newer ones (search aliases, say) are dropped on older hosts."""
    return io.Schema(**{name: value for name, value in keywords.items() if name in _SCHEMA_FIELDS})


def advanced(widget: Any) -> Any:
    """Mark an input as advanced, in a way that hosts without that keyword ignore."""
    widget.extra_dict = {**(widget.extra_dict or {}), "advanced": True}
    return widget


# --- inputs that several nodes have: what they are called, and which values they take, stands here alone


def share_input(name: str, default: float, tooltip: str) -> Any:
    """How much of something there is, 0..1."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.05, tooltip=tooltip)


def strength_input(
    tooltip: str,
    *,
    most: float,
    name: str = "strength",
    default: float = 1.0,
    least: float = 0.0,
    step: float = 0.05,
) -> Any:
    """How strongly a method acts; 0 is exactly off. Whatever it is called in files, users read "strength"."""
    shown = {} if name == "strength" else {"display_name": "strength"}
    return io.Float.Input(name, default=default, min=least, max=most, step=step, tooltip=tooltip, **shown)


def lora_strength_input(default: float, tooltip: str) -> Any:
    """How strongly the LoRA acts that an adapter's file brings."""
    return io.Float.Input("lora_strength", default=default, min=0.0, max=1.5, step=0.05, tooltip=tooltip)


def window_inputs(start_tooltip: str, end_tooltip: str, *, start: float = 0.0, step: float = 0.001) -> tuple[Any, Any]:
    """Both ends of a window of sampling, 0 = before the first step, 1 = after the last."""
    return (
        io.Float.Input("start_at", default=start, min=0.0, max=1.0, step=step, tooltip=start_tooltip),
        io.Float.Input("end_at", default=1.0, min=0.0, max=1.0, step=step, tooltip=end_tooltip),
    )


def mask_input(tooltip: str) -> Any:
    """Where in the image a method acts."""
    return io.Mask.Input("attn_mask", optional=True, display_name="mask", tooltip=tooltip)


def region_input(tooltip: str) -> Any:
    """What of the image counts, or may change."""
    return io.Mask.Input("region", optional=True, tooltip=tooltip)


def options_input(tooltip: str) -> Any:
    """What a system's own options node made."""
    return OptionsSocket.Input("options", optional=True, tooltip=tooltip)


def any_recogniser_input(which: str) -> Any:
    """Whether an identity of `which` recogniser is accepted."""
    return advanced(
        io.Boolean.Input(
            "any_recogniser",
            default=False,
            tooltip=f"Accepts an identity of {which}. The result will show another face; for experiments.",
        )
    )


def outlier_threshold_input(tooltip: str) -> Any:
    """The cosine below which a photo is somebody else's."""
    return advanced(
        io.Float.Input("outlier_threshold", default=OUTLIER_COSINE, min=-1.0, max=1.0, step=0.01, tooltip=tooltip)
    )


def training_seed_input(tooltip: str) -> Any:
    """A seed that stays after a run, so that the same graph queued again finds its training: it resumes, or is done.

    The control stays beside it, because saved graphs hold its value; hosts that let a node say where it starts are told
    "fixed".
    """
    control = "fixed" if hasattr(io, "ControlAfterGenerate") else None
    return io.Int.Input("seed", default=0, min=0, max=2**32 - 1, control_after_generate=control, tooltip=tooltip)  # pyright: ignore[reportArgumentType]


def seed_input(tooltip: str) -> Any:
    """A seed with ComfyUI's control after generate."""
    return io.Int.Input("seed", default=0, min=0, max=LARGEST_SEED, control_after_generate=True, tooltip=tooltip)
