"""Training in the graph: Textual Inversion, DreamBooth and MagiCapture on the sockets' own MODEL, CLIP and VAE.

What trains is imported when a node runs (`training_methods`), because it takes long to import.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..errors import LikenessError
from ..faces.photo_list import names_of
from ..training.data.captions import composed, fill, parse_templates, person_templates, style_templates
from ..training.data.dataset import Dataset, DatasetKind
from ..training.data.names import prompt_stem
from .choices import finite, must_exist, named, readable
from .files import Shelf
from .node import Node
from .schema import DatasetSocket, FaceAnalysisSocket, advanced, schema

if TYPE_CHECKING:
    from .training_run import Outcome

CATEGORY = "likeness/training"
PACKAGES = ("accelerate", "diffusers", "peft", "pydantic", "transformers")
RESUME = (
    "Cancelled, the training keeps its state; queue the same graph again and it goes on. Finished, nothing is trained "
    "again: files that are gone, other sample prompts or another name are made from the saved state, and more steps go "
    "on from it."
)
# The values of enumerations that are imported late; a test holds them together.
PRECISIONS = ["auto", "float32", "bfloat16", "float16"]
LAYERS = ["cross-attention", "attention", "attention and GEGLU", "transformer", "transformer and convolutions"]
MASKS = ["none", "face", "face, normalised"]
TETHERS = ["none", "norm", "deviation"]
TUNED = ["LoRA", "all weights (checkpoint)"]
NO_LORA = "none"
LORAS = Shelf("loras", "loras", "The LoRA")


# --- inputs and outputs that all have


def _model_inputs() -> list[Any]:
    return [
        io.Model.Input("model", tooltip="An SD1.5, SD2 or SDXL model; LoRAs on it are part of what is trained from."),
        io.Clip.Input("clip", tooltip="The checkpoint's text encoder; CLIP Set Last Layer is followed."),
        io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
        io.String.Input(
            "name",
            default="",
            tooltip=(
                "Name of the files, and of the folder in output/likeness/runs. Empty: the trigger word. In files' "
                "names spaces and brackets become underscores, because prompts name them; a number is added where a "
                "name is taken, and nothing is overwritten."
            ),
        ),
    ]


def _steps(name: str, default: int, tooltip: str) -> Any:
    return io.Int.Input(name, default=default, min=1, max=1_000_000, tooltip=tooltip)


def _rate(default: float, tooltip: str) -> Any:
    return io.Float.Input("learning_rate", default=default, min=0.0, max=1.0, step=1e-6, round=False, tooltip=tooltip)


def _run_inputs() -> list[Any]:
    return [
        io.Int.Input("seed", default=0, min=0, max=2**32 - 1, tooltip="The same seed trains the same on a CPU."),
        io.String.Input(
            "sample_prompts",
            default="",
            multiline=True,
            tooltip="Prompts of the sample pictures, one a line, {} for the trigger word. Empty: a portrait.",
        ),
        io.Int.Input(
            "preview_every",
            default=250,
            min=0,
            max=1_000_000,
            tooltip="Steps between two previews of the sample prompts, which take time; 0 shows none.",
        ),
        advanced(
            io.Int.Input(
                "batch_size", default=1, min=1, max=64, tooltip="Pictures a step; more take memory and learn smoother."
            )
        ),
        advanced(
            io.Combo.Input(
                "precision",
                options=PRECISIONS,
                default=PRECISIONS[0],
                tooltip="Of the frozen weights. auto: bfloat16 on newer GPUs, float32 on a CPU.",
            )
        ),
        advanced(
            io.Boolean.Input(
                "gradient_checkpointing",
                default=False,
                tooltip="Computes things twice to need about half the memory: for cards with 8 GB or less.",
            )
        ),
        advanced(
            io.Int.Input(
                "save_every", default=200, min=1, max=100_000, tooltip="Steps between two saved states of the training."
            )
        ),
    ]


def _mask_input() -> Any:
    return advanced(
        io.Combo.Input(
            "mask",
            options=MASKS,
            default=MASKS[0],
            tooltip=(
                "Whether only the face is learned: 'face' weighs the picture with the dataset's masks, 'face, "
                "normalised' also makes small faces count as much as large ones."
            ),
        )
    )


def _start_input() -> Any:
    return advanced(
        io.Combo.Input(
            "start_from",
            options=[NO_LORA, *LORAS.names()],
            default=NO_LORA,
            optional=True,
            tooltip=(
                "A LoRA of models/loras that is trained further, with the rank and the layers that it has: one of an "
                "earlier training, say, that is to see new photos. It must be made for this model."
            ),
        )
    )


def find_start(choice: str) -> Path | None:
    """The chosen LoRA, None for none; LikenessError when it is not there."""
    return None if choice == NO_LORA else LORAS.find_or_explain(choice)


def _start_fingerprint(choice: str | None) -> str:
    return LORAS.fingerprint(None if choice == NO_LORA else choice)


def _outputs(clip: str) -> list[Any]:
    return [
        io.Model.Output("tuned_model", display_name="model", tooltip="The tuned model, for KSampler."),
        io.Clip.Output("tuned_clip", display_name="clip", tooltip=clip),
        io.String.Output(
            "files", display_name="files", tooltip="The files that were written, and how prompts name what was learned."
        ),
        io.Image.Output("losses", display_name="losses", tooltip="The curves of all losses."),
        io.Image.Output("samples", display_name="samples", tooltip="The sample prompts, painted by the trained model."),
    ]


def _methods() -> Any:
    """What trains. LikenessError when a package that it needs is not installed."""
    lacking = [name for name in PACKAGES if find_spec(name) is None]
    if lacking:
        raise LikenessError(
            f"Training needs packages that are missing: run `pip install {' '.join(lacking)}` in ComfyUI's Python and "
            "restart it."
        )
    from . import training_methods

    return training_methods


def _sample_prompts(text: str, default: str, trigger: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [fill(line, trigger) for line in lines or [default]]


def _result(model: Any, clip: Any, outcome: Outcome, how: str) -> io.NodeOutput:
    from .training_run import apply_results

    tuned_model, tuned_clip = apply_results(model, clip, outcome)
    kinds = {"LoRA": outcome.loras, "embedding": outcome.embeddings, "checkpoint": outcome.checkpoints}
    lines = [f"{kind}: {name}" for kind, names in kinds.items() for name in names]
    text = "\n".join([*lines, how, f"run: {outcome.folder.name}"])
    return io.NodeOutput(tuned_model, tuned_clip, text, outcome.losses, outcome.samples, ui=ui.PreviewText(text))


def _embedding(outcome: Outcome, number: int) -> str:
    return f"embedding:{Path(outcome.embeddings[number]).stem}"


# --- the three


class TrainTextualInversion(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessTrainTextualInversion",
            display_name="Train Textual Inversion",
            category=CATEGORY,
            description=(
                "Learns one new word for a person or a style and changes nothing else: a file of a few kilobytes that "
                f"prompts name as embedding:<file>. {RESUME}"
            ),
            inputs=[
                DatasetSocket.Input("dataset", tooltip="From Portrait Dataset; four to ten pictures."),
                *_model_inputs(),
                _steps("steps", 3000, "Pictures times batch size that are shown: 1500 to 5000."),
                _rate(5e-4, "5e-4 is usual; five times more for few steps."),
                io.Int.Input(
                    "vectors",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="How many words of a prompt it takes: more hold more detail and obey prompts less.",
                ),
                io.String.Input(
                    "start_words",
                    default="",
                    tooltip=(
                        "Words whose meaning it starts from; more words than vectors are averaged. Empty: the "
                        "dataset's class word."
                    ),
                ),
                *_run_inputs(),
                advanced(
                    io.Combo.Input(
                        "tether",
                        options=TETHERS,
                        default=TETHERS[1],
                        tooltip=(
                            "What keeps the new word as strong as others, so that it leaves room for the rest of a "
                            "prompt: 'norm' holds its length, 'deviation' its spread."
                        ),
                    )
                ),
                _mask_input(),
            ],
            outputs=_outputs("The same text encoder: the new word is in the embeddings folder."),
            is_output_node=True,
            search_aliases=["embedding training", "TI"],
        )

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        model: Any,
        clip: Any,
        vae: Any,
        name: str = "",
        steps: int = 3000,
        learning_rate: float = 5e-4,
        vectors: int = 1,
        start_words: str = "",
        seed: int = 0,
        sample_prompts: str = "",
        preview_every: int = 250,
        batch_size: int = 1,
        precision: str = PRECISIONS[0],
        gradient_checkpointing: bool = False,
        save_every: int = 200,
        tether: str = TETHERS[1],
        mask: str = MASKS[0],
    ) -> io.NodeOutput:
        methods = _methods()

        readable(name=name, start_words=start_words, sample_prompts=sample_prompts)
        finite(learning_rate=learning_rate)
        dataset = _dataset(dataset, "dataset")
        prompts = _sample_prompts(sample_prompts, dataset.pictures[0].caption, dataset.trigger)
        run = methods.run_settings(
            seed, batch_size, precision, gradient_checkpointing, save_every, preview_every, prompts
        )
        outcome = methods.train_textual_inversion(
            (model, clip, vae),
            name.strip() or prompt_stem(dataset.trigger),
            dataset,
            run,
            vectors=vectors,
            start=start_words.strip() or dataset.class_word,
            steps=steps,
            learning_rate=learning_rate,
            tether=tether,
            mask=mask,
        )
        return _result(model, clip, outcome, f"in prompts: {_embedding(outcome, 0)}")


@must_exist(start_from=find_start)
class TrainDreamBooth(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessTrainDreamBooth",
            display_name="Train DreamBooth",
            category=CATEGORY,
            description=(
                "Teaches the model a person by a LoRA that any LoRA loader reads, or by a checkpoint of its own: the "
                "trigger word before the class word is that person from then on, and everybody else stays as they "
                f"were, for which the model first paints a few pictures of the class. {RESUME}"
            ),
            inputs=[
                DatasetSocket.Input("dataset", tooltip="From Portrait Dataset; four to ten pictures."),
                *_model_inputs(),
                _steps("steps", 500, "About 100 for every picture."),
                _rate(1e-4, "1e-4 is usual for a LoRA."),
                io.Int.Input("rank", default=4, min=1, max=256, tooltip="Size of the LoRA: 4 to 32."),
                io.Combo.Input(
                    "layers",
                    options=LAYERS,
                    default=LAYERS[1],
                    tooltip="Which layers the LoRA changes: more learn faster and forget faster.",
                ),
                io.Boolean.Input(
                    "train_text_encoder",
                    default=False,
                    tooltip="Also a LoRA in the text encoder: closer to the person, sooner overdone.",
                ),
                io.Float.Input(
                    "prior_weight",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much the class must stay as it was; 0 needs no class pictures.",
                ),
                io.Int.Input(
                    "class_pictures",
                    default=50,
                    min=1,
                    max=10_000,
                    tooltip="Pictures of the class that the untouched model paints first; they are kept with the run.",
                ),
                *_run_inputs(),
                _mask_input(),
                advanced(
                    io.Combo.Input(
                        "tuned",
                        options=TUNED,
                        default=TUNED[0],
                        optional=True,
                        tooltip=(
                            "What is trained. All weights: closest to the person, saved as a checkpoint of 2 to 7 GB; "
                            "rank and layers do nothing, learning_rate is about 5e-6, and it takes 24 GB of graphics "
                            "memory or more."
                        ),
                    )
                ),
                _start_input(),
            ],
            outputs=_outputs("The text encoder, with what it learned where it was trained too."),
            is_output_node=True,
            search_aliases=["LoRA training", "Train LoRA", "personalise a model"],
        )

    @classmethod
    def fingerprint_inputs(cls, start_from: str | None = NO_LORA, **others: Any) -> str:
        """Changes when the LoRA that is trained further does."""
        return _start_fingerprint(start_from)

    @classmethod
    def execute(
        cls,
        dataset: Dataset,
        model: Any,
        clip: Any,
        vae: Any,
        name: str = "",
        steps: int = 500,
        learning_rate: float = 1e-4,
        rank: int = 4,
        layers: str = LAYERS[1],
        train_text_encoder: bool = False,
        prior_weight: float = 1.0,
        class_pictures: int = 50,
        seed: int = 0,
        sample_prompts: str = "",
        preview_every: int = 250,
        batch_size: int = 1,
        precision: str = PRECISIONS[0],
        gradient_checkpointing: bool = False,
        save_every: int = 200,
        mask: str = MASKS[0],
        tuned: str = TUNED[0],
        start_from: str = NO_LORA,
    ) -> io.NodeOutput:
        methods = _methods()

        readable(name=name, sample_prompts=sample_prompts)
        finite(learning_rate=learning_rate, prior_weight=prior_weight)
        dataset = _dataset(dataset, "dataset")
        prompts = _sample_prompts(sample_prompts, dataset.pictures[0].caption, dataset.trigger)
        run = methods.run_settings(
            seed, batch_size, precision, gradient_checkpointing, save_every, preview_every, prompts
        )
        outcome = methods.train_dreambooth(
            (model, clip, vae),
            name.strip() or prompt_stem(dataset.trigger),
            dataset,
            run,
            rank=rank,
            layers=layers,
            text_encoder=train_text_encoder,
            steps=steps,
            learning_rate=learning_rate,
            prior_weight=prior_weight,
            class_pictures=class_pictures,
            mask=mask,
            tuned=tuned,
            start_from=find_start(named(start_from, "start_from")),
        )
        return _result(model, clip, outcome, f"in prompts: {dataset.trigger} {dataset.class_word}")


@must_exist(start_from=find_start)
class TrainMagiCapture(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def templates(name: str, what: str) -> Any:
            return advanced(
                io.String.Input(
                    name,
                    default="",
                    multiline=True,
                    tooltip=f"Sentences about the {what}, one a line, {{}} for its word. Empty: built-in ones.",
                )
            )

        return schema(
            node_id="LikenessTrainMagiCapture",
            display_name="Train MagiCapture",
            category=CATEGORY,
            description=(
                "Learns a person and a portrait style together, each from a few pictures, so that one prompt paints "
                "that person in that style: two words and a LoRA. Masks keep the person to the face and the style to "
                f"the rest; a face recogniser checks the likeness while it learns. {RESUME}"
            ),
            inputs=[
                DatasetSocket.Input("person", tooltip="A Portrait Dataset of the kind person, with masks."),
                DatasetSocket.Input("style", tooltip="A Portrait Dataset of the kind style, with masks, of one size."),
                *_model_inputs(),
                _steps("inversion_steps", 1200, "Of the first phase, in which the two words are learned."),
                _steps("tuning_steps", 1500, "Of the second phase, in which the LoRA is learned."),
                io.Int.Input("rank", default=4, min=1, max=256, tooltip="Size of the LoRA: 4 to 32."),
                io.Float.Input(
                    "identity_weight",
                    default=0.25,
                    min=0.0,
                    max=5.0,
                    step=0.05,
                    tooltip="How much the face must look like the person: 0.1 to 0.5. 0 needs no face analysis.",
                ),
                io.Float.Input(
                    "attention_weight",
                    default=2.5,
                    min=0.0,
                    max=50.0,
                    step=0.1,
                    tooltip="How strictly the person's word looks at the face alone and the style's at the rest.",
                ),
                *_run_inputs(),
                templates("person_templates", "person"),
                templates("style_templates", "style"),
                FaceAnalysisSocket.Input(
                    "face_analysis",
                    optional=True,
                    tooltip="Its recogniser checks the likeness. Needed unless identity_weight is 0.",
                ),
                _start_input(),
            ],
            outputs=_outputs("The text encoder with its LoRA."),
            is_output_node=True,
            search_aliases=["style and person", "portrait style"],
            is_experimental=True,  # proven on the miniature; nobody has published a model of it to compare with
        )

    @classmethod
    def fingerprint_inputs(cls, start_from: str | None = NO_LORA, **others: Any) -> str:
        """Changes when the LoRA that is trained further does."""
        return _start_fingerprint(start_from)

    @classmethod
    def execute(
        cls,
        person: Dataset,
        style: Dataset,
        model: Any,
        clip: Any,
        vae: Any,
        name: str = "",
        inversion_steps: int = 1200,
        tuning_steps: int = 1500,
        rank: int = 4,
        identity_weight: float = 0.25,
        attention_weight: float = 2.5,
        seed: int = 0,
        sample_prompts: str = "",
        preview_every: int = 250,
        batch_size: int = 1,
        precision: str = PRECISIONS[0],
        gradient_checkpointing: bool = False,
        save_every: int = 200,
        person_templates: str = "",
        style_templates: str = "",
        face_analysis: Any = None,
        start_from: str = NO_LORA,
    ) -> io.NodeOutput:
        methods = _methods()

        readable(name=name, sample_prompts=sample_prompts)
        readable(person_templates=person_templates, style_templates=style_templates)
        finite(identity_weight=identity_weight, attention_weight=attention_weight)
        person, style = _pair(_dataset(person, "person"), _dataset(style, "style"))
        if identity_weight > 0 and face_analysis is None:
            raise LikenessError(
                "The identity loss needs a face recogniser: connect a face analysis, or set identity_weight to 0."
            )
        templates = _templates(person, person_templates), _templates(style, style_templates)
        prompts = _sample_prompts(sample_prompts, composed(templates[0][0], style.trigger), person.trigger)
        run = methods.run_settings(
            seed, batch_size, precision, gradient_checkpointing, save_every, preview_every, prompts
        )
        outcome = methods.train_magicapture(
            (model, clip, vae),
            name.strip() or prompt_stem(f"{person.trigger}_{style.trigger}"),
            person,
            style,
            run,
            face_analysis if identity_weight > 0 else None,
            templates,
            inversion_steps=inversion_steps,
            tuning_steps=tuning_steps,
            rank=rank,
            identity_weight=identity_weight,
            attention_weight=attention_weight,
            start_from=find_start(named(start_from, "start_from")),
        )
        words = f"a photo of a {_embedding(outcome, 0)} {person.class_word} in the style of {_embedding(outcome, 1)}"
        return _result(model, clip, outcome, f"in prompts: {words}{_unread_captions(person, style)}")


def _unread_captions(*datasets: Dataset) -> str:
    """A line about captions that MagiCapture does not read, where there are any."""
    names = [sample.name for dataset in datasets for sample in dataset.pictures if sample.is_captioned]
    return f"\nnot used: the captions of {names_of(names)}, because the templates are what it says" if names else ""


def _templates(dataset: Dataset, text: str) -> tuple[str, ...]:
    """The user's, else the built-in ones."""
    built_in = person_templates if dataset.kind is DatasetKind.PERSON else style_templates
    return parse_templates(text) or built_in(dataset.class_word)


def _dataset(value: Any, name: str) -> Dataset:
    if not isinstance(value, Dataset):
        raise LikenessError(f"The input '{name}' holds a {type(value).__name__}: connect Portrait Dataset.")
    return value


def _pair(person: Dataset, style: Dataset) -> tuple[Dataset, Dataset]:
    """Both, of the right kinds, with words of their own and masks."""
    for dataset, kind in ((person, DatasetKind.PERSON), (style, DatasetKind.STYLE)):
        if dataset.kind is not kind:
            raise LikenessError(
                f"The input '{kind.value}' holds a dataset of a {dataset.kind.value}: choose the kind {kind.value} in "
                "Portrait Dataset."
            )
        dataset.require_masks()
    if person.trigger == style.trigger:
        raise LikenessError(
            f"Person and style have the same trigger word {person.trigger!r}: give each dataset a word of its own."
        )
    return person, style


NODES: list[type[io.ComfyNode]] = [TrainTextualInversion, TrainDreamBooth, TrainMagiCapture]
