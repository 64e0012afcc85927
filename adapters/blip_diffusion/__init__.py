"""BLIP-Diffusion for SD1.5 (arXiv 2305.14720; weights of Salesforce/blipdiffusion and of LAVIS).

    image, "dog" ──Q-Former──▶ 16 vectors ──▶ "a [16 vectors] dog swimming" ──CLIP's text encoder──▶ UNet

The vectors stand among the token embeddings of the prompt, before its positions are added; nothing else is changed.
`networks` is the subject encoder, `words` its vocabulary, `files` the published layouts, `prompt` the insertion,
`subject` what a user gives, `adapter` all of it together.
"""

from .adapter import SYSTEM, TRIGGER, BlipDiffusion
from .subject import Background, BlipDiffusionOptions

__all__ = ["SYSTEM", "TRIGGER", "Background", "BlipDiffusion", "BlipDiffusionOptions"]
