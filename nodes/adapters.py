"""Loading an identity adapter, applying it to a MODEL, and everything that can be set about it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from comfy_api.latest import io

from ..errors import LikenessError, logger
from .adapter_files import adapter_choices, find_adapter, folder_of
from .choices import finite, in_order, must_exist, named
from .companions import find_eva, parse_aligned
from .node import Node
from .schema import (
    AdapterSocket,
    IdentitySocket,
    advanced,
    lora_strength_input,
    mask_input,
    options_input,
    schema,
    strength_input,
    window_inputs,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..adapters.effects import Effect
    from ..adapters.system import Request
    from ..faces import Identity
    from ..injection.comfy import Applied

log = logger("likeness")

CATEGORY = "likeness/adapters"
BY_CONTENT = "by content"
_PLUS_VERSIONS = {"by file name": None, "1": 1, "2": 2}


def _title(choice: str) -> str | None:
    """The system of a choice, None for the one that the content tells. LikenessError for anything else."""
    from ..adapters import SYSTEMS

    titles = [kind.title for kind in SYSTEMS]
    if choice not in (BY_CONTENT, *titles):
        raise LikenessError(f"The system {choice!r} does not exist: choose one of {', '.join([BY_CONTENT, *titles])}.")
    return None if choice == BY_CONTENT else choice


@must_exist(adapter_file=find_adapter)  # alone: the host says the sentence once for every input named here
class LoadIdentityAdapter(Node):
    """A file of `models/ipadapter`, or of another system's folder, as a LIKENESS_ADAPTER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..adapters import SYSTEMS

        return schema(
            node_id="LikenessLoadIdentityAdapter",
            display_name="Load Identity Adapter",
            category=CATEGORY,
            description="Loads an identity adapter: any IP-Adapter file, FaceID variants included, or that of another "
            "system. What it is, and which base model it was made for, is read from the file itself, so it may have "
            "any name.",
            search_aliases=[
                *("FaceID", "IP-Adapter", "IPAdapter Model Loader"),
                *("InstantID", "StoryMaker", "PuLID", "PhotoMaker", "FastComposer", "BLIP-Diffusion", "PhotoVerse"),
                "适配器",
            ],
            inputs=[
                io.Combo.Input(
                    "adapter_file",
                    options=adapter_choices(),
                    tooltip="A file in models/ipadapter, or in a system's own folder such as models/instantid, "
                    ".safetensors or .bin; folders that extra_model_paths.yaml adds count. FaceID and "
                    "StoryMaker files bring their own LoRA; no second file is needed. The last choice is for Load "
                    "Miniature and needs no download.",
                ),
                advanced(
                    io.Combo.Input(
                        "plus_version",
                        options=list(_PLUS_VERSIONS),
                        default="by file name",
                        tooltip="Only for FaceID-Plus, whose versions 1 and 2 cannot be told apart by their content.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "system",
                        options=[BY_CONTENT, *(kind.title for kind in SYSTEMS)],
                        default=BY_CONTENT,
                        optional=True,
                        tooltip="Only for files that two systems can read: InstantID's adapter and FaceID Portrait "
                        "(raw embedding) have the same content. 'by content' also considers the file's name and "
                        "folder.",
                    )
                ),
            ],
            outputs=[AdapterSocket.Output(display_name="adapter", tooltip="For Apply Identity.")],
        )

    @classmethod
    def fingerprint_inputs(
        cls, adapter_file: str | None, plus_version: str = "by file name", system: str = BY_CONTENT
    ) -> Any:
        """The file's time and size, so that a file replaced on disk is read again."""
        try:
            stat = find_adapter(named(adapter_file, "adapter_file")).stat()
        except (LikenessError, OSError):
            return (adapter_file, plus_version, system)
        return (adapter_file, plus_version, system, stat.st_mtime_ns, stat.st_size)

    @classmethod
    def execute(cls, adapter_file: str, plus_version: str = "by file name", system: str = BY_CONTENT) -> io.NodeOutput:
        """Read the file and put its weights into the care of the memory manager."""
        from ..adapters import load
        from ..injection.comfy import ManagedAdapter

        if plus_version not in _PLUS_VERSIONS:
            raise LikenessError(f"The plus version {plus_version!r} does not exist: choose one from the list.")
        path = find_adapter(named(adapter_file, "adapter_file"))
        adapter = load(path, _PLUS_VERSIONS[plus_version], _title(named(system, "system")), folder_of(adapter_file))
        log.info("[likeness] %s: %s for %s", adapter_file, adapter.title, adapter.needs.base.title)
        return io.NodeOutput(ManagedAdapter(adapter))


class ApplyIdentity(Node):
    """MODEL and identity to MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessApplyIdentity",
            display_name="Apply Identity",
            category=CATEGORY,
            description="Applies a person (or a reference image) to a MODEL. For several people chain this node and "
            "give each a mask; nodes of other packs may come before or after it.",
            search_aliases=[
                *("portrait", "person", "face reference", "consistent character", "人像", "人物", "人脸一致性"),
                *("IPAdapter FaceID", "IPAdapter Advanced", "InstantID", "PuLID", "StoryMaker"),
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The base model that the adapter was made for: SD1.5, SDXL, FLUX or an edit model."
                ),
                AdapterSocket.Input("adapter", tooltip="From Load Identity Adapter or Reference Adapter."),
                strength_input(
                    "1 is the official default (StoryMaker: 0.8); 0.5 to 0.8 leaves more to the prompt; 0 is "
                    "exactly off.",
                    name="weight",
                    least=-2.0,
                    most=5.0,
                ),
                *window_inputs(
                    "Fraction of the sampling after which the identity takes effect; a later start keeps the prompt's "
                    "layout.",
                    "Fraction of the sampling after which the identity stops acting.",
                ),
                lora_strength_input(
                    0.6,
                    "FaceID and StoryMaker files bring a LoRA that changes the MODEL itself. 1.0 is official for "
                    "FaceID, 0.8 for StoryMaker; 0.6 keeps more of the checkpoint's style, 0 disables it. Other "
                    "files ignore this setting.",
                ),
                IdentitySocket.Input(
                    "identity",
                    optional=True,
                    tooltip="The person. Needed by all FaceID files; others can use an image through the options.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Needed by adapters that look at images: all but FaceID and Portrait.",
                ),
                mask_input(
                    "Where in the image the person may appear; any size, soft edges allowed. A batch of "
                    "masks goes with a batch of images."
                ),
                options_input("From IP-Adapter Options, PuLID Options, or StoryMaker Character."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The MODEL with the identity applied."),
                io.String.Output(display_name="report", tooltip="What was applied, and to how much of the MODEL."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        adapter: Any,
        weight: float,
        start_at: float,
        end_at: float,
        lora_strength: float,
        identity: Any = None,
        clip_vision: Any = None,
        attn_mask: torch.Tensor | None = None,
        options: Any = None,
    ) -> io.NodeOutput:
        """Check, encode once, and hand over to the injection."""
        from ..adapters.effects import Scope
        from ..adapters.system import Request
        from ..checks import as_mask
        from ..injection import comfy as binding
        from ..injection.plan import check_fit
        from ..weights.families import OTHER, of_host
        from .adapter_socket import as_managed
        from .references import Options

        finite(strength=weight, start_at=start_at, end_at=end_at, lora_strength=lora_strength)
        in_order(start_at, end_at)
        adapter, options = as_managed(adapter), options or Options()
        if adapter.needs.trigger_word is not None:
            raise LikenessError(
                f"The adapter {adapter.name!r} works through the prompt: connect it to Identity Prompt, not to Apply "
                "Identity."
            )
        if not (adapter.needs.grounded and adapter.needs.base is OTHER):  # or the MODEL decides
            check_fit(adapter, binding.sites_of(model), binding.model_name(model), adapter.needs.base)
        layout, attention = binding.request_layout(model)
        mask = None if attn_mask is None else as_mask(attn_mask, "The mask 'attn_mask'")
        request = Request(
            layout=layout,
            attention=attention,
            strength=weight,
            scope=Scope(start_at, end_at, mask, options.mask_resize),
            identity=identity,
            encoder=binding.ComfyClipEncoder(clip_vision) if clip_vision is not None else None,
            options=options.reference,
            weight_strength=lora_strength,
            seen_by=embedded_by,
            dit=binding.dit_of(model),
            find_eva=partial(find_eva, adapter),
            parse=parse_aligned,
            family=of_host(binding.model_name(model)),
            timestep_zero=binding.has_timestep_zero(model),
            references=binding.count_references(model),
        )
        effects = adapter.effects(request)
        applied = binding.apply_effects(model, effects)
        report = " ".join(
            [_report(adapter, request, effects, applied, binding.sites_of(model)), *adapter.adapter.notes(request)]
        )
        log.info("[likeness] %s", report)
        return io.NodeOutput(applied.model, report)


# Identities that a second recogniser has seen, as long as they live: the same crops are embedded once.
_seen: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def embedded_by(identity: Identity, recogniser: str) -> Identity:
    """The identity with the embeddings of one more recogniser, where its pack is installed and crops were kept.

    So a method that reads antelopev2 takes an identity made with buffalo_l. Otherwise it is returned as it is.
    """
    from ..faces import load_pack
    from ..models_download import find_insightface_pack, list_insightface_packs

    known = _seen.get(identity, identity)
    if recogniser in known.recognisers or not len(known.aligned) or recogniser not in list_insightface_packs():
        return known
    analysis = load_pack(find_insightface_pack(recogniser))
    if analysis.recogniser is None or analysis.recogniser.name != recogniser:
        return known
    log.info("[likeness] %r is embedded again by %s, from the face crops it carries.", identity.name, recogniser)
    _seen[identity] = known.seen_again(analysis.recogniser)
    return _seen[identity]


def _report(adapter: Any, request: Request, effects: Sequence[Effect], applied: Applied, sites: Any) -> str:
    """One line that answers 'why does it have no effect?'."""
    from ..adapters.effects import AttentionTerm, BlockTerm, ReferenceTerm, WeightDelta

    who = repr(request.identity.name) if request.identity is not None else "the reference"
    acting_kinds = AttentionTerm | BlockTerm | ReferenceTerm | WeightDelta
    reasons = [effect.why_never for effect in effects if isinstance(effect, acting_kinds)]
    if all(reasons):
        return f"{adapter.name}: {who} has no effect, because {reasons[0]}."
    window = f"from {request.scope.start:g} to {request.scope.end:g} of the sampling"
    if references := [effect for effect in effects if isinstance(effect, ReferenceTerm)]:
        first, count = request.references + 1, sum(len(term.photos) for term in references)
        numbers = f"reference {first}" if count == 1 else f"references {first} to {first + count - 1}"
        changes = "The MODEL carries LoRA weights." if applied.model.patches else "The MODEL carries no LoRA."
        scheme = references[0].scheme
        return f"{scheme}: {who} as {numbers}, strength {request.strength:g}, {window}. {changes}"
    terms = [effect for effect in effects if isinstance(effect, AttentionTerm)]
    acting = [term for term in terms if term.why_never is None]
    reached = {site.slot for term in acting for site in sites if term.weight_at(site.transformer).strength != 0}
    blocks = [effect for effect in effects if isinstance(effect, BlockTerm)]
    distinct = {id(term.tokens): term.tokens for term in (*terms, *blocks)}
    tokens = sum(shared.cond.shape[1] for shared in distinct.values())
    where = f"at {len(reached)} of {len(sites)} sites" if terms else ""
    if blocks:
        where = f"behind {len({block for term in blocks for block in term.numbers})} blocks"
    lora = f", LoRA {request.weight_strength:g} on {applied.changed} weights" if applied.changed else ""
    text = f"{adapter.adapter.title} ({adapter.name}): {who} as {tokens} tokens {where}, {window}{lora}."
    if applied.present:
        text += " The MODEL has the adapter's LoRA from another node; it was not added a second time."
    return text


class ScaleIdentities(Node):
    """All identities of a MODEL, stronger or weaker."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessScaleIdentities",
            display_name="Scale Identities",
            category=CATEGORY,
            description="Multiplies the strength of every identity a MODEL carries, without applying them again.",
            search_aliases=["adapter strength", "IPAdapter weight"],
            inputs=[
                io.Model.Input("model", tooltip="A MODEL that went through Apply Identity."),
                io.Float.Input(
                    "factor",
                    default=1.0,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    tooltip="1 changes nothing, 0 removes all identities. LoRAs keep their strength.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The MODEL with scaled identities.")],
        )

    @classmethod
    def execute(cls, model: Any, factor: float) -> io.NodeOutput:
        """A clone with every strength multiplied."""
        from ..injection.comfy import rescale, stack_of

        if stack_of(model) is None:
            raise LikenessError("The MODEL carries no identity to scale: connect it after Apply Identity.")
        return io.NodeOutput(rescale(model, factor))


NODES = [LoadIdentityAdapter, ApplyIdentity, ScaleIdentities]
