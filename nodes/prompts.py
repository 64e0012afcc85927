"""Systems that work through the prompt: a text in which words stand for people, and what can be set about it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..errors import LikenessError, logger
from .adapter_socket import as_managed
from .choices import choices, finite, in_order, member, readable
from .companions import find_vocabulary
from .node import Node
from .schema import (
    AdapterSocket,
    IdentitySocket,
    OptionsSocket,
    advanced,
    lora_strength_input,
    options_input,
    schema,
    strength_input,
    window_inputs,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..adapters.effects import Effect
    from ..adapters.system import Request
    from ..injection.comfy import Applied

log = logger("likeness")

CATEGORY = "likeness/adapters"
MOST_PEOPLE = 4
NOT_SET = -2  # of `merge_step`: the share counts


class IdentityPrompt(Node):
    """A text and the people its words stand for to CONDITIONING, and the MODEL that goes with it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessIdentityPrompt",
            display_name="Identity Prompt",
            category=CATEGORY,
            description="Encodes a prompt in which a word stands for a person, for adapters that work through the "
            "prompt (PhotoMaker, FastComposer, BLIP-Diffusion, PhotoVerse), or one that the text encoder reads "
            "together with the people's photos (Reference Adapter). Takes the place of CLIP Text Encode.",
            search_aliases=[
                *("PhotoMaker Encode", "trigger word", "PhotoMaker", "PhotoVerse", "ELITE", "pseudo-word"),
                *("FastComposer", "BLIP-Diffusion", "TextEncodeQwenImageEditPlus", "Krea 2"),
            ],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="From the checkpoint the adapter was made for; LoRAs on it count. For edit models: the "
                    "text encoder with its vision part.",
                ),
                AdapterSocket.Input("adapter", tooltip="From Load Identity Adapter or Reference Adapter."),
                io.String.Input(
                    "text",
                    default="portrait photo of a woman img, soft light",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt. PhotoMaker: write the trigger word right behind the word for the person, as "
                    "in 'a woman img'. PhotoVerse: in its place, as in 'a photo of S*'. Weights such as (woman "
                    "img:1.2), embeddings and long prompts are understood.",
                ),
                strength_input(
                    "Strength of the person in the word's embedding, and in PhotoVerse's image branch. 1 is official, "
                    "0 leaves the person out.",
                    most=3.0,
                ),
                *window_inputs(
                    "Fraction of the steps that use the plain prompt before the person is added: PhotoMaker's style "
                    "strength, FastComposer's 1 - alpha. Lower values give more likeness, higher values more of the "
                    "prompt's style. 0: from the first step, as PhotoVerse was trained.",
                    "Fraction of the sampling after which the plain prompt is used again.",
                    start=0.2,
                    step=0.01,
                ),
                lora_strength_input(
                    1.0,
                    "PhotoMaker and PhotoVerse files bring a LoRA that changes the MODEL itself, in all steps. 1 is "
                    "official; below 0.5 little of PhotoMaker's likeness is left. FastComposer files bring a whole "
                    "UNet: 1 replaces the MODEL's, 0 keeps it.",
                ),
                io.String.Input(
                    "trigger_word",
                    default="img",
                    tooltip="The word that follows the person in the prompt, or with PhotoVerse is the person. Where "
                    "it stands several times, the first is the first identity, and so on. Several words, separated by "
                    "commas, each stand for one identity in that order, however often they are written.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The MODEL to sample with. Adapters that bring a LoRA need it. With Reference Adapter: the "
                    "MODEL of the last Apply Identity, whose people are shown in its order.",
                ),
                IdentitySocket.Input("identity", optional=True, tooltip="The person, or the first of several."),
                *(
                    IdentitySocket.Input(
                        f"identity_{number}",
                        optional=True,
                        tooltip=f"Person number {number}, for the next trigger word of the prompt.",
                    )
                    for number in range(2, MOST_PEOPLE + 1)
                ),
                options_input("From the adapter's own options node, such as PhotoMaker Options."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Needed by PhotoVerse: CLIP ViT-L/14. PhotoMaker files bring their own.",
                ),
                advanced(
                    io.Int.Input(
                        "grounding_size",
                        default=768,
                        min=0,
                        max=2048,
                        step=32,
                        optional=True,
                        tooltip="Only for Krea 2 Identity Edit: longest side at which the text encoder sees the "
                        "photos, 0 for as they are. Lower follows the prompt more, higher keeps likeness more; 1024 "
                        "is good for people.",
                    )
                ),
                io.Image.Input(
                    "scene",
                    optional=True,
                    tooltip="Only with Reference Adapter: the image of a Reference Latent before the people, such as "
                    "the scene they are put into. The text encoder sees it first.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="The prompt with the people in it, as a positive for a sampler.",
                ),
                io.Model.Output(display_name="model", tooltip="The MODEL that goes with it; sample with this one."),
                io.String.Output(
                    display_name="report", tooltip="Which person stands at which word, and from which step."
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="An empty prompt that goes with it; with Reference Adapter it shows the same photos, as a "
                    "CFG above 1 needs.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        adapter: Any,
        text: str,
        strength: float,
        start_at: float,
        end_at: float,
        lora_strength: float,
        trigger_word: str,
        model: Any = None,
        identity: Any = None,
        identity_2: Any = None,
        identity_3: Any = None,
        identity_4: Any = None,
        options: Any = None,
        clip_vision: Any = None,
        grounding_size: int = 768,
        scene: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        """Check, encode once, and hand over to the injection."""
        from ..adapters.effects import Scope
        from ..adapters.system import Request
        from ..adapters.text_encoder import encode_tokens
        from ..adapters.trigger_words import words_in
        from ..injection import comfy as binding
        from ..injection.plan import check_fit, layout_of
        from .adapters import embedded_by
        from .companions import parse_aligned

        finite(strength=strength, start_at=start_at, end_at=end_at, lora_strength=lora_strength)
        in_order(start_at, end_at)
        readable(text=text, trigger_word=trigger_word)
        adapter = as_managed(adapter)
        if adapter.needs.grounded:
            return cls._grounded(clip, model, text, grounding_size, scene)
        if adapter.needs.trigger_word is None:
            raise LikenessError(
                f"The adapter {adapter.name!r} does not work through the prompt: connect it to Apply Identity, and the "
                "prompt to CLIP Text Encode."
            )
        encoder = binding.ComfyTextEncoder(clip)
        layout, attention = layout_of(()), {}
        if model is not None:
            needs = adapter.needs
            check_fit(adapter, binding.sites_of(model), binding.model_name(model), needs.base, needs.text_width)
            layout, attention = binding.request_layout(model)
        people = [person for person in (identity, identity_2, identity_3, identity_4) if person is not None]
        request = Request(
            layout=layout,
            attention=attention,
            strength=strength,
            scope=Scope(start_at, end_at),
            identity=people[0] if people else None,
            encoder=None if clip_vision is None else binding.ComfyClipEncoder(clip_vision),
            options=None if options is None else options.reference,
            weight_strength=lora_strength,
            seen_by=embedded_by,
            parse=parse_aligned,
            find_vocabulary=find_vocabulary,
            text=text,
            text_encoder=encoder,
            trigger_words=words_in(trigger_word),
            others=tuple(people[1:]),
        )
        if model is not None:
            request = replace(request, base_weights=partial(binding.base_weights, model))
        effects = adapter.effects(request)
        plain = encode_tokens(encoder, encoder.tokenize(text))
        conditioning = binding.edited(encoder.conditioning(plain), effects)
        applied = None if model is None else binding.apply_effects(model, effects)
        if applied is None and binding.needs_rider(conditioning):
            raise LikenessError("This adapter acts in the MODEL as well: connect the MODEL to Identity Prompt.")
        report = " ".join([_report(adapter, request, effects, applied), *adapter.adapter.notes(request)])
        log.info("[likeness] %s", report)
        negative = encoder.conditioning(encode_tokens(encoder, encoder.tokenize("")))
        return io.NodeOutput(
            [[states, told] for states, told in conditioning],
            None if applied is None else applied.model,
            report,
            [[states, told] for states, told in negative],
        )

    @classmethod
    def _grounded(cls, clip: Any, model: Any, text: str, longest: int, scene: Any) -> io.NodeOutput:
        """The prompt with the people that the MODEL has already."""
        from .edit_models import grounded

        if model is None:
            raise LikenessError(
                "Identity Prompt shows the people of a MODEL to the text encoder, and the input 'model' is empty: "
                "connect the MODEL of Apply Identity."
            )
        found = grounded(clip, model, text, longest, scene)
        log.info("[likeness] %s", found.report)
        return io.NodeOutput(found.positive, model, found.report, found.negative)


def _report(adapter: Any, request: Request, effects: Sequence[Effect], applied: Applied | None) -> str:
    """One line that answers 'why does it have no effect?'."""
    from ..adapters.effects import WeightDelta

    what = f"{adapter.adapter.title} ({adapter.name})"
    if request.strength == 0 or request.scope.why_never:
        return f"{what} has no effect, because {request.scope.why_never or 'the strength is 0'}."
    deltas = [effect for effect in effects if isinstance(effect, WeightDelta) and effect.why_never is None]
    text = f"{what}: through the prompt, from {request.scope.start:g} to {request.scope.end:g} of the sampling"
    change = "UNet" if any("conv_in" in delta.changes for delta in deltas) else "LoRA"
    if deltas and applied is None:
        return f"{text}. Its {change} is not applied: connect the MODEL to Identity Prompt."
    if applied is not None and applied.present:
        return f"{text}. The MODEL has the adapter's LoRA from another node; it was not added a second time."
    if deltas and applied is not None:
        text += f", {change} {request.weight_strength:g} on {applied.changed} weights"
    return f"{text}."


class PhotoMakerOptionsNode(Node):
    """Everything about PhotoMaker that most graphs leave at its default."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..adapters.photomaker import LongPrompts, MergeTiming, PhotoCrop

        return schema(
            node_id="LikenessPhotoMakerOptions",
            display_name="PhotoMaker Options",
            category=CATEGORY,
            description="Options of PhotoMaker, for Identity Prompt. With its defaults it changes nothing.",
            search_aliases=["style strength", "start merge step", "delayed merge"],
            inputs=[
                io.Combo.Input(
                    "merge",
                    options=choices(MergeTiming),
                    default=MergeTiming.OFFICIAL.value,
                    tooltip="How start_at is counted. 'official steps': as in the demos, at most 30 steps, plus one. "
                    "'share of the steps': as in the paper. 'share of the noise': like ComfyUI's own time ranges, "
                    "whatever the number of steps.",
                ),
                io.Int.Input(
                    "merge_step",
                    default=NOT_SET,
                    min=NOT_SET,
                    max=1000,
                    tooltip="The official start_merge_step: the last step without the person, counted from 0; -1 for "
                    "none. -2: start_at decides.",
                ),
                io.Combo.Input(
                    "photo",
                    options=choices(PhotoCrop),
                    default=PhotoCrop.HEAD.value,
                    tooltip="Which crop of each photo of an identity is used. 'head' is what PhotoMaker was trained "
                    "on.",
                ),
                advanced(
                    io.Combo.Input(
                        "long_prompts",
                        options=choices(LongPrompts),
                        default=LongPrompts.WINDOWS.value,
                        tooltip="Prompts of more than 75 tokens: read whole as in ComfyUI, or truncated as in the "
                        "official code.",
                    )
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Images to use in place of the first identity's crops; v1 needs no identity then. Each is "
                    "cropped to its middle square, so give portraits. v2 reads one image for each photo of the "
                    "identity.",
                ),
            ],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="For Identity Prompt.")],
        )

    @classmethod
    def execute(
        cls, merge: str, merge_step: int, photo: str, long_prompts: str, images: torch.Tensor | None = None
    ) -> io.NodeOutput:
        """Collect the options."""
        from ..adapters import photomaker
        from ..adapters.image_prep import to_rgb
        from .references import Options

        return io.NodeOutput(
            Options(
                photomaker.PhotoMakerOptions(
                    photo=member(photomaker.PhotoCrop, photo, "photo"),
                    merge=member(photomaker.MergeTiming, merge, "merge"),
                    merge_step=None if merge_step == NOT_SET else merge_step,
                    long_prompts=member(photomaker.LongPrompts, long_prompts, "long_prompts"),
                    images=() if images is None else (to_rgb(images, "images"),),
                )
            )
        )


NODES = [IdentityPrompt, PhotoMakerOptionsNode]
