"""What every node module needs: the host's node API, our socket names, and a schema that any supported host accepts."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

# Sockets are matched by string. A comma joins alternatives: values from the leading packs' loaders fit as well.
FaceAnalysisSocket = io.Custom("LIKENESS_FACE_ANALYSIS,INSIGHTFACE,FACEANALYSIS")
FacesSocket = io.Custom("LIKENESS_FACES")
IdentitySocket = io.Custom("IDENTITY")
AdapterSocket = io.Custom("LIKENESS_ADAPTER,IPADAPTER")
OptionsSocket = io.Custom("LIKENESS_ADAPTER_OPTIONS")
EmbedsSocket = io.Custom("LIKENESS_EMBEDS")
ConceptSocket = io.Custom("LIKENESS_CONCEPT")
DatasetSocket = io.Custom("LIKENESS_DATASET")
RestorerSocket = io.Custom("LIKENESS_RESTORER,FACERESTORE_MODEL,UPSCALE_MODEL")

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**keywords: Any) -> io.Schema:
    """An `io.Schema` with the keywords this host knows; newer ones (search aliases, say) are dropped on older hosts."""
    return io.Schema(**{name: value for name, value in keywords.items() if name in _SCHEMA_FIELDS})


def advanced(widget: Any) -> Any:
    """Mark an input as advanced, in a way that hosts without that keyword ignore."""
    widget.extra_dict = {**(widget.extra_dict or {}), "advanced": True}
    return widget


def share_of_sampling(name: str, default: float, tooltip: str) -> Any:
    """An end of a window of sampling, 0 = before the first step, 1 = after the last."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip)
