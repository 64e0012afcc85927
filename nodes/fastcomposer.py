"""What can be set about FastComposer beside strength and window, and images of people in place of identities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io

from ..adapters.fastcomposer import Background, FastComposerOptions, LongPrompts, StepCount, SubjectWords
from ..adapters.image_prep import to_rgb
from ..adapters.photo_crops import PhotoCrop
from ..checks import as_mask, require_painted
from ..errors import LikenessError
from .choices import choices, finite, member, readable
from .node import Node
from .references import Options
from .schema import LARGEST_SEED, OptionsSocket, advanced, options_input, schema

CATEGORY = "likeness/adapters"
TITLE = "FastComposer Options"
NOT_SET = -2  # of `start_step`: start_at counts


class FastComposerOptionsNode(Node):
    """Everything about FastComposer that most graphs leave at its default."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessFastComposerOptions",
            display_name=TITLE,
            category=CATEGORY,
            description="Options of FastComposer, for Identity Prompt, and images of people in place of identities. "
            "With its defaults it changes nothing.",
            search_aliases=["delayed subject conditioning", "alpha", "multi-subject"],
            inputs=[
                io.Combo.Input(
                    "words",
                    options=choices(SubjectWords),
                    default=SubjectWords.MARKER.value,
                    tooltip="What trigger_word of Identity Prompt is. 'behind the noun': a marker, as in 'a man img', "
                    "which is taken out. 'the noun itself': nouns such as 'man, woman', one for each person in order.",
                ),
                io.Combo.Input(
                    "count",
                    options=choices(StepCount),
                    default=StepCount.OFFICIAL.value,
                    tooltip="How start_at is counted; it is 1 - alpha of the official code. 'official steps': with its "
                    "rounding, one step more than the share. 'share of the noise': like ComfyUI's own time ranges, "
                    "whatever the number of steps.",
                ),
                io.Int.Input(
                    "start_step",
                    default=NOT_SET,
                    min=NOT_SET,
                    max=1000,
                    tooltip="The official start_merge_step: the last step without the people, counted from 0; -1 for "
                    "none. -2: start_at decides.",
                ),
                io.String.Input(
                    "strengths",
                    default="",
                    tooltip="Strength of each person in the order of the prompt, such as '1.0, 0.8'; one number for "
                    "all. It multiplies the strength of Identity Prompt. Empty: 1.",
                ),
                io.Combo.Input(
                    "photo",
                    options=choices(PhotoCrop),
                    default=PhotoCrop.HEAD.value,
                    tooltip="Which crop of each photo of an identity is used. FastComposer was trained on whole "
                    "people; 'head' comes closest.",
                ),
                io.Combo.Input(
                    "background",
                    options=choices(Background),
                    default=Background.NOISE.value,
                    tooltip="What stands around a person where a mask is connected: noise as in training, the image's "
                    "own background, or black.",
                ),
                advanced(
                    io.Int.Input(
                        "noise_seed",
                        default=0,
                        min=0,
                        max=LARGEST_SEED,
                        tooltip="Of the noise around a person.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "long_prompts",
                        options=choices(LongPrompts),
                        default=LongPrompts.REFUSE.value,
                        tooltip="Prompts of more than 75 tokens, which training showed none of: refused, read whole as "
                        "in ComfyUI, or truncated as in the official code.",
                    )
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Images of people in place of identities, each image of a batch one person, in the order "
                    "of the prompt. Any size: black bars make them square. Images of several sizes: chain this node.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Which part of each image is the person, in white; soft edges are kept. One for each "
                    "image, or one for all.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="From SplitSigmas (low_sigmas): the people enter at its first sigma, whatever the "
                    "schedule. Wins over start_at.",
                ),
                io.Model.Input(
                    "original_model",
                    optional=True,
                    tooltip="The MODEL of the original SD1.5 checkpoint, to use another checkpoint with FastComposer: "
                    "what FastComposer's UNet adds to it is then added to the MODEL, in place of the whole UNet.",
                ),
                options_input(f"From the {TITLE} before this one: its images come first, its settings do not count."),
            ],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="For Identity Prompt.")],
        )

    @classmethod
    def execute(
        cls,
        words: str,
        count: str,
        start_step: int,
        strengths: str,
        photo: str,
        background: str,
        noise_seed: int,
        long_prompts: str,
        images: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        sigmas: torch.Tensor | None = None,
        original_model: Any = None,
        options: Options | None = None,
    ) -> io.NodeOutput:
        """Collect the options, and put the images behind those that came before."""
        before = Options(FastComposerOptions()) if options is None else options
        if not isinstance(before.reference, FastComposerOptions):
            raise LikenessError(f"The options are those of another system: connect the {TITLE} before this one.")
        images_here, masks_here = _people(images, masks)
        made = FastComposerOptions(
            photo=member(PhotoCrop, photo, "photo"),
            words=member(SubjectWords, words, "words"),
            count=member(StepCount, count, "count"),
            start_step=None if start_step == NOT_SET else start_step,
            start_sigma=_first(sigmas),
            long_prompts=member(LongPrompts, long_prompts, "long_prompts"),
            strengths=_numbers(strengths),
            images=(*before.reference.images, *images_here),
            masks=(*before.reference.masks, *masks_here),
            background=member(Background, background, "background"),
            seed=noise_seed,
            original=_weights_of(original_model),
        )
        return io.NodeOutput(replace(before, reference=made))


def _people(
    images: torch.Tensor | None, masks: torch.Tensor | None
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor | None, ...]]:
    """One image and one mask for each person; no mask where none is connected."""
    if images is None:
        if masks is not None:
            raise LikenessError("The input masks needs images: connect the people's images to the input images.")
        return (), ()
    people = to_rgb(images, "images").split(1)
    if masks is None:
        return people, (None,) * len(people)
    masks = as_mask(masks, "The input masks")
    require_painted(masks, "The input masks")
    if len(masks) not in (1, len(people)):
        raise LikenessError(
            f"There are {len(people)} images and {len(masks)} masks: connect one mask for each image, or one for all."
        )
    return people, masks.expand(len(people), -1, -1).split(1)


def _numbers(text: str) -> tuple[float, ...]:
    readable(strengths=text)
    found = []
    for part in text.split(","):
        if not part.strip():
            continue
        try:
            found.append(float(part))
        except ValueError:
            raise LikenessError(
                f"The strength {part.strip()!r} is not a number: enter one for each person, such as '1.0, 0.8'."
            ) from None
    finite(**{f"strengths ({number})": value for number, value in enumerate(found, 1)})
    return tuple(found)


def _first(sigmas: torch.Tensor | None) -> float | None:
    """The highest of a run's sigmas; LikenessError where there is none."""
    if sigmas is None:
        return None
    if not isinstance(sigmas, torch.Tensor) or sigmas.numel() == 0 or not bool(sigmas.isfinite().all()):
        raise LikenessError("The input sigmas holds no noise level: connect low_sigmas of SplitSigmas.")
    return float(sigmas.flatten()[0])


def _weights_of(model: Any) -> dict[str, torch.Tensor]:
    """A MODEL's own weights by diffusers' name; nothing without one."""
    if model is None:
        return {}
    from ..injection import comfy as binding
    from ..injection.comfy.weights import base_weights

    if not binding.sites_of(model):
        raise LikenessError(
            f"The original MODEL is {binding.model_name(model)}: connect that of the SD1.5 checkpoint itself."
        )
    return base_weights(model, lambda name: True)


NODES = [FastComposerOptionsNode]
