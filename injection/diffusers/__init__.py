"""The diffusers binding: effects enter a UNet2DConditionModel or FluxTransformer2DModel in place, and leave it again.

    with apply_effects(unet, effects, run=SamplingRun.of(scheduler)) as applied:
        for step, t in enumerate(scheduler.timesteps):
            applied.at_step(step)
            noise = unet(latents, t, text).sample

What acts, and in which steps, is the same as in ComfyUI. `unet` and `dit` hold what training needs of it: terms with
gradients, that are set anew before each step.
"""

from .apply import Applied, apply_effects
from .control import ControlNet, control_residuals
from .dit import InjectedDit, dit_of
from .place import DiscreteLevels, SamplingRun
from .unet import InjectedUNet, inject

__all__ = [
    "Applied",
    "ControlNet",
    "DiscreteLevels",
    "InjectedDit",
    "InjectedUNet",
    "SamplingRun",
    "apply_effects",
    "control_residuals",
    "dit_of",
    "inject",
]
