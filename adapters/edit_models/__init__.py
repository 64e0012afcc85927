"""Edit models: a DiT that attends to clean latents of a person's photos, beside the target it paints.

sequence   [text | target | reference 1 | … | reference n], attention softmax(q kᵀ/√d + log W) v

`schemes`    what each model was trained on, a row each
`sizes`      which size a photo has as a reference, and as what the text encoder sees
`positions`  where the tokens lie
`grounding`  the text, with the photos in front of it
`adapter`    identity → photos → `effects.ReferenceTerm`; W is in `injection.references`
"""

from .adapter import NUMBERED, EncodedPhotos, Photo, Picture, Reach, ReferenceAdapter, ReferenceOptions
from .schemes import LORAS, SCHEMES, Scheme, titled

__all__ = [
    "LORAS",
    "NUMBERED",
    "SCHEMES",
    "EncodedPhotos",
    "Photo",
    "Picture",
    "Reach",
    "ReferenceAdapter",
    "ReferenceOptions",
    "Scheme",
    "titled",
]
