"""Concepts of Custom Diffusion: loaded from any file, applied, merged, compressed, saved."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..errors import LikenessError, logger
from .choices import choices, finite, member, must_exist, named, readable
from .files import Shelf
from .node import Node
from .schema import ConceptSocket, advanced, schema, strength_input

if TYPE_CHECKING:
    from ..weights.concepts import Concept

log = logger("likeness")

CATEGORY = "likeness/concepts"
KIND = "custom_diffusion"
CONCEPTS = Shelf(KIND, KIND, "The concept", (".safetensors", ".bin", ".ckpt", ".pt"))
DELTAS = Shelf(KIND, KIND, "The concept", (".bin",))
NO_CONCEPTS = "(no file in models/custom_diffusion)"
MOST_CONCEPTS = 4
MOST_GROWTH = 5.0  # of a merge, from which it is worth a warning


def find_concept(name: str) -> Path:
    """The file of this name; LikenessError when it is not there."""
    if name == NO_CONCEPTS:
        raise LikenessError(
            "There is no file in models/custom_diffusion: train one, or put a delta.bin or "
            "pytorch_custom_diffusion_weights file there and reload the page."
        )
    return CONCEPTS.find_or_explain(name)


def as_concept(value: Any, name: str) -> Concept:
    """What came in at a concept's socket; LikenessError for whatever else."""
    from ..weights.concepts import Concept

    if not isinstance(value, Concept):
        raise LikenessError(f"The input {name} holds a {type(value).__name__}: connect Load Concept.")
    return value


def _words(concept: Concept) -> str:
    return ", ".join(concept.tokens) or "none"


@must_exist(file=find_concept)
class LoadConcept(Node):
    """A file to a concept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessLoadConcept",
            display_name="Load Concept",
            category=CATEGORY,
            description="Loads a concept trained with Custom Diffusion, by any trainer: delta.bin, compressed deltas, "
            "CompVis checkpoints, Hugging Face's attention processors, and files that hold only words.",
            search_aliases=["Custom Diffusion Loader", "delta.bin", "pytorch_custom_diffusion_weights"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=CONCEPTS.names() or [NO_CONCEPTS],
                    tooltip="A file in models/custom_diffusion. Its layout is detected and reported.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words by which prompts call the concept, in place of the file's own, separated by "
                    "spaces: needed when two files both use <new1>. Empty: the file's own words.",
                ),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concept", tooltip="For Apply Concept or Merge Concepts."),
                io.String.Output(display_name="report", tooltip="The file's layout, its words and what it changes."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, words: str = "") -> str:
        """Changes when the file does."""
        return CONCEPTS.fingerprint(file)

    @classmethod
    def execute(cls, file: str, words: str = "") -> io.NodeOutput:
        """Read and check."""
        from ..weights.concepts import load_concept

        readable(words=words)
        concept = load_concept(find_concept(named(file, "file")))
        if words.split():
            concept = concept.called(words.split())
        layouts = ", ".join(layout.value for layout in concept.layouts)
        report = f"{file}: {layouts}; words: {_words(concept)}; {len(concept.weights)} weights."
        log.info("[likeness] %s", report)
        return io.NodeOutput(concept, report)


class ApplyConcept(Node):
    """A concept to MODEL and CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessApplyConcept",
            display_name="Apply Concept",
            category=CATEGORY,
            description="Applies a concept to MODEL and CLIP: its words work in CLIP Text Encode. For several concepts "
            "in one image use Merge Concepts, because concepts applied one after the other interfere.",
            search_aliases=["Custom Diffusion"],
            inputs=[
                io.Model.Input("model", tooltip="The base model that the concept was trained on."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                ConceptSocket.Input("concept", tooltip="From Load Concept or Merge Concepts."),
                strength_input(
                    "Strength of the weights: 1 is as trained, 0 leaves the MODEL unchanged. The words work at any "
                    "strength.",
                    least=-2.0,
                    most=3.0,
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The MODEL with the concept."),
                io.Clip.Output(display_name="clip", tooltip="The CLIP with its words."),
                io.String.Output(display_name="report", tooltip="What was changed, and the words that prompts use."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, concept: Any, strength: float) -> io.NodeOutput:
        """Apply and report."""
        from ..injection.comfy.concepts import apply_concept
        from ..weights.concepts import some_of

        finite(strength=strength)
        concept = as_concept(concept, "concept")
        applied = apply_concept(model, clip, concept, strength)
        changed = f"{applied.changed} weights changed at strength {strength:g}"
        if strength == 0:
            changed = "the weights have no effect, because the strength is 0"
        lines = [f"{concept.name}: {changed}; words: {_words(concept)}"]
        if applied.size:
            lines.append(f"K and V differ from the MODEL's own by {applied.size:.1%}")
        if concept.weights and applied.alone:
            names = some_of(applied.alone)
            lines.append(f"{len(applied.alone)} keys and values are not in the file and stay as they are ({names})")
        if applied.foreign:
            lines.append(
                "it was trained on another base model, and the difference between the two is applied as "
                "well: load that one"
            )
        report = "; ".join(lines) + "."
        (log.warning if applied.foreign else log.info)("[likeness] %s", report)
        return io.NodeOutput(applied.model, applied.clip, report)


class MergeConcepts(Node):
    """Several concepts to one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessMergeConcepts",
            display_name="Merge Concepts",
            category=CATEGORY,
            description="Merges concepts that were trained separately on one base model into one, so that a prompt "
            "can name them all: Custom Diffusion's closed-form solution, without training.",
            search_aliases=["Custom Diffusion compose", "multi-concept"],
            inputs=[
                io.Model.Input("model", tooltip="The base model that all were trained on."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                *(ConceptSocket.Input(f"concept_{n}", tooltip=f"Concept number {n}.") for n in (1, 2)),
                *(_phrase(n) for n in (1, 2)),
                *(_style(n) for n in (1, 2)),
                *(
                    ConceptSocket.Input(f"concept_{n}", optional=True, tooltip=f"Concept number {n}.")
                    for n in range(3, MOST_CONCEPTS + 1)
                ),
                *(_phrase(n) for n in range(3, MOST_CONCEPTS + 1)),
                *(_style(n) for n in range(3, MOST_CONCEPTS + 1)),
                advanced(
                    io.String.Input(
                        "captions",
                        default="",
                        multiline=True,
                        optional=True,
                        tooltip="Regularisation captions, one per line: ordinary sentences whose meaning the merge "
                        "preserves. Empty: 200 built-in ones.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "softness",
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.0001,
                        optional=True,
                        round=False,
                        tooltip="0 reproduces each concept exactly. If the report warns that the weights grow, 0.001 "
                        "to 0.1 keeps the image intact and reproduces each concept less exactly.",
                    )
                ),
            ],
            outputs=[
                ConceptSocket.Output(
                    display_name="concept", tooltip="The merged concept, for Apply Concept or Save Concept."
                ),
                io.String.Output(display_name="report", tooltip="How exactly each concept is reproduced."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, captions: str = "", softness: float = 0.0, **given: Any) -> io.NodeOutput:
        """Check, encode, solve."""
        from ..injection.comfy.concepts import concept_base, merger_of
        from ..weights.concept_merging import merge_concepts

        numbers = [n for n in range(1, MOST_CONCEPTS + 1) if given.get(f"concept_{n}") is not None]
        texts = {f"phrase_{n}": given.get(f"phrase_{n}") or "" for n in numbers}
        readable(captions=captions, **texts)
        finite(softness=softness)
        concepts = [as_concept(given[f"concept_{n}"], f"concept_{n}") for n in numbers]
        phrases = [_phrases(c, texts[f"phrase_{n}"], f"phrase_{n}") for c, n in zip(concepts, numbers, strict=True)]
        styles = [bool(given.get(f"style_{n}")) for n in numbers]
        base = concept_base(model, *concepts)
        lines = [line.strip() for line in captions.splitlines() if line.strip()]
        merger = merger_of(clip, list(zip(concepts, phrases, styles, strict=True)), lines, softness)
        merged = merge_concepts(concepts, base, merger)
        report = (
            f"Merged {len(concepts)} concepts, words: {_words(merged.concept)}; "
            f"{len(merger.constraints.features)} constraints, {merger.rows} caption tokens, "
            f"largest residual {merged.residual:.1e}"
        )
        if merger.ridge:
            report += f"; the captions do not determine all directions, so a ridge of {merger.ridge:.1e} was added"
        if merged.averaged:
            report += f"; {merged.averaged} weights of queries and output have no closed form and are averaged"
        if merged.growth > MOST_GROWTH:
            report += (
                f"; the weights change {merged.growth:.0f} times as much as any concept's own, which degrades images: "
                "the text encoder encodes these prompts almost alike. Start their words from different tokens, "
                "train them together, or raise softness"
            )
        (log.warning if merged.growth > MOST_GROWTH else log.info)("[likeness] %s.", report)
        return io.NodeOutput(merged.concept, f"{report}.")


def _phrase(number: int) -> Any:
    optional = {"optional": True} if number > 2 else {}
    return io.String.Input(
        f"phrase_{number}",
        default="",
        tooltip=f"What prompts call concept {number}: its word and class word, as in '<new1> cat'; several separated "
        "by commas. Empty: the file's own words and class word.",
        **optional,
    )


def _style(number: int) -> Any:
    optional = {"optional": True} if number > 2 else {}
    return io.Boolean.Input(
        f"style_{number}",
        default=False,
        tooltip=f"Whether concept {number} is a style rather than an object.",
        **optional,
    )


def _phrases(concept: Concept, text: str, name: str) -> list[str]:
    """What prompts call a concept. LikenessError where nobody can know, warned of where its words are not in it."""
    phrases = [" ".join(part.split()) for part in text.split(",") if part.strip()]
    phrases = phrases or concept.phrases
    if not phrases:
        raise LikenessError(
            f"{concept.name!r} has no word of its own: enter in {name} what prompts call it, such as 'painting'."
        )
    if lacking := [word for word in concept.tokens if all(word.lower() not in p.lower() for p in phrases)]:
        log.warning("[likeness] %s does not say %s of %s.", name, ", ".join(lacking), concept.name)
    return phrases


class CompressConcept(Node):
    """A concept to a smaller one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..weights.concept_compression import RankRule

        return schema(
            node_id="LikenessCompressConcept",
            display_name="Compress Concept",
            category=CATEGORY,
            description="Keeps the main directions of what a concept changes: a fifth of the size and nearly the same "
            "images.",
            search_aliases=["compressed delta", "SVD"],
            inputs=[
                io.Model.Input("model", tooltip="The base model that the concept was trained on."),
                ConceptSocket.Input("concept", tooltip="From Load Concept or Merge Concepts."),
                io.Float.Input(
                    "share",
                    default=0.6,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the change is kept, as a fraction of the sum of its singular values.",
                ),
                advanced(
                    io.Combo.Input(
                        "rule",
                        options=choices(RankRule),
                        default=RankRule.SHARE.value,
                        tooltip="'share kept': at least the share. 'official': at most the share, as in the paper's "
                        "code; a layer may keep nothing. 'fixed rank': the same rank everywhere.",
                    )
                ),
                advanced(
                    io.Int.Input("rank", default=16, min=1, max=1280, tooltip="Rank of every layer, for 'fixed rank'.")
                ),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concept", tooltip="For Apply Concept or Save Concept."),
                io.String.Output(display_name="report", tooltip="Ranks and sizes."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, concept: Any, share: float, rule: str, rank: int) -> io.NodeOutput:
        """Take apart, layer by layer."""
        from ..injection.comfy.concepts import concept_base
        from ..weights.concept_compression import RankRule, compress_concept, rank_choice
        from ..weights.concepts import concept_tensors
        from ..weights.lora import LoraPair

        finite(share=share)
        concept = as_concept(concept, "concept")
        rank_of = rank_choice(member(RankRule, rule, "rule"), share, rank)
        small = compress_concept(concept, concept_base(model, concept), rank_of)
        ranks = [value.rank for value in small.weights.values() if isinstance(value, LoraPair)]
        before, after = (sum(t.numel() for t in concept_tensors(c).values()) * 4e-6 for c in (concept, small))
        report = f"{len(ranks)} weights of rank {min(ranks, default=0)} to {max(ranks, default=0)}; "
        report += f"{before:.1f} MB became {after:.1f} MB"
        if empty := ranks.count(0):
            report += f"; {empty} layers keep nothing"
        log.info("[likeness] %s: %s.", concept.name, report)
        return io.NodeOutput(small, f"{report}.")


class SaveConcept(Node):
    """A concept to a file."""

    FORMATS = ("safetensors", "delta.bin (official)")

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessSaveConcept",
            display_name="Save Concept",
            category=CATEGORY,
            description="Writes a concept to models/custom_diffusion. Never replaces a file.",
            search_aliases=["Custom Diffusion save", "delta.bin"],
            is_output_node=True,
            inputs=[
                ConceptSocket.Input("concept", tooltip="From Merge Concepts, Compress Concept or Load Concept."),
                io.String.Input(
                    "filename", default="concept", tooltip="A file name; a number is added if it is taken."
                ),
                io.Combo.Input(
                    "format",
                    options=list(cls.FORMATS),
                    default=cls.FORMATS[0],
                    tooltip="safetensors: Hugging Face's key names, together with the words. delta.bin: for the "
                    "official code.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The name under which Load Concept lists it.")],
        )

    @classmethod
    def execute(cls, concept: Any, filename: str, format: str) -> io.NodeOutput:
        """Write under a free name."""
        from ..weights.concepts import write_concept, write_delta
        from .choices import one_of

        readable(filename=filename)
        concept = as_concept(concept, "concept")
        if one_of(cls.FORMATS, format, "format") == cls.FORMATS[0]:
            return io.NodeOutput(CONCEPTS.save(filename, partial(write_concept, concept)))
        return io.NodeOutput(DELTAS.save(filename, partial(write_delta, concept)))


NODES = [LoadConcept, ApplyConcept, MergeConcepts, CompressConcept, SaveConcept]
