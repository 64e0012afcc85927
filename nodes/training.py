"""Training in the graph, on the sockets' own MODEL, CLIP and VAE: a node for every method in the registry.

What trains is imported when a node runs (`training_methods`), because it takes long to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..errors import LikenessError
from ..faces.photo_list import names_of
from ..training.data.captions import fill_template
from ..training.data.dataset import Dataset
from ..training.data.names import prompt_stem
from ..training.methods import METHODS
from ..training.methods.method import ConceptInput, Knob, Method
from .choices import finite, must_exist, named, one_of, readable
from .files import Shelf
from .node import Node
from .schema import AdapterSocket, DatasetSocket, FaceAnalysisSocket, advanced, schema, training_seed_input

if TYPE_CHECKING:
    from .training_run import TrainingOutcome

CATEGORY = "likeness/training"
PACKAGES = ("accelerate", "diffusers", "peft", "pydantic", "transformers")
RESUME = (
    "A cancelled training keeps its state; queue the same graph again to resume it. A finished one is not repeated: "
    "missing files, other sample prompts or another name are made from the saved state, and more steps continue from "
    "it."
)
PRECISIONS = ["auto", "float32", "bfloat16", "float16"]  # of an enumeration that is imported late
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


def _run_inputs() -> list[Any]:
    return [
        training_seed_input(
            "On a CPU, the same seed gives the same result. Another seed is another training, so leave the control "
            "after it at fixed."
        ),
        io.String.Input(
            "sample_prompts",
            default="",
            multiline=True,
            tooltip="Prompts of the sample images, one per line, {} for the trigger word. Empty: a portrait.",
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
                "batch_size",
                default=1,
                min=1,
                max=64,
                tooltip="Images per step; more need more memory and give smoother training.",
            )
        ),
        advanced(
            io.Combo.Input(
                "precision",
                options=PRECISIONS,
                default=PRECISIONS[0],
                tooltip="Precision of the frozen weights. auto: bfloat16 on newer GPUs, float32 on a CPU.",
            )
        ),
        advanced(
            io.Boolean.Input(
                "gradient_checkpointing",
                default=False,
                tooltip="Computes activations a second time in the backward pass and so needs about half the memory: "
                "for GPUs with 8 GB or less.",
            )
        ),
        advanced(
            io.Int.Input(
                "save_every", default=200, min=1, max=100_000, tooltip="Steps between two saved states of the training."
            )
        ),
    ]


_RUN_DEFAULTS: dict[str, Any] = {each.id: each.default for each in _run_inputs()}


def _start_input() -> Any:
    return advanced(
        io.Combo.Input(
            "start_from",
            options=[NO_LORA, *LORAS.names()],
            default=NO_LORA,
            optional=True,
            tooltip=(
                "A LoRA in models/loras to train further, with its own rank and layers: for example one of an earlier "
                "training, on new photos. It must be made for this model."
            ),
        )
    )


def _adapter_input() -> Any:
    return AdapterSocket.Input(
        "adapter",
        optional=True,
        tooltip="From Load Identity Adapter: what it makes of the images is where training starts. Without one the "
        "vectors start from the class word, and need many more steps.",
    )


def find_start(choice: str) -> Path | None:
    """The chosen LoRA, None for none; LikenessError when it is not there."""
    return None if choice == NO_LORA else LORAS.find_or_explain(choice)


def _outputs(clip: str) -> list[Any]:
    return [
        io.Model.Output("tuned_model", display_name="model", tooltip="The tuned model, for KSampler."),
        io.Clip.Output("tuned_clip", display_name="clip", tooltip=clip),
        io.String.Output(
            "files", display_name="files", tooltip="The files that were written, and how prompts name what was learned."
        ),
        io.Image.Output("losses", display_name="losses", tooltip="The curves of all losses."),
        io.Image.Output(
            "samples", display_name="samples", tooltip="Images of the sample prompts by the trained model."
        ),
    ]


# --- a method's own inputs


def _socket(concept: ConceptInput) -> Any:
    optional = {"optional": True} if concept.optional else {}
    return DatasetSocket.Input(concept.socket, tooltip=concept.tooltip, **optional)


def _widget(knob: Knob) -> Any:
    given: dict[str, Any] = {"default": knob.default, "tooltip": knob.tooltip}
    if knob.optional:
        given["optional"] = True
    if knob.options:
        widget = io.Combo.Input(knob.name, options=list(knob.options), **given)
    elif isinstance(knob.default, bool):
        widget = io.Boolean.Input(knob.name, **given)
    elif isinstance(knob.default, str):
        widget = (
            io.String.Input(knob.name, multiline=True, **given) if knob.lines else io.String.Input(knob.name, **given)
        )
    elif isinstance(knob.default, int):
        widget = io.Int.Input(knob.name, min=knob.low, max=knob.high, **given)  # type: ignore[arg-type]
    else:
        fine = {"round": False} if knob.step is not None and knob.step < 1e-3 else {}
        widget = io.Float.Input(knob.name, min=knob.low, max=knob.high, step=knob.step, **given, **fine)
    return advanced(widget) if knob.advanced else widget


def _schema(method: Method) -> io.Schema:
    judge = FaceAnalysisSocket.Input(
        "face_analysis",
        optional=True,
        tooltip=f"Its recogniser checks the likeness. Needed unless {method.identity_knob} is 0.",
    )
    return schema(
        node_id=method.node_id,
        display_name=f"Train {method.title}",
        category=CATEGORY,
        description=f"{method.description} {RESUME}",
        inputs=[
            *(_socket(concept) for concept in method.concepts if not concept.optional),
            *_model_inputs(),
            *map(_widget, method.first),
            *_run_inputs(),
            *map(_widget, method.last),
            *([judge] if method.identity_knob else []),
            *([_start_input()] if method.continues_lora else []),
            *([_adapter_input()] if method.reads_adapter else []),
            *(_socket(concept) for concept in method.concepts if concept.optional),
        ],
        outputs=_outputs(method.clip),
        is_output_node=True,
        search_aliases=list(method.search_aliases),
        is_experimental=method.is_experimental,
    )


class _Train(Node):
    """A node that trains by a method."""

    method: Method

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(cls.method)

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        """Every value by its input's name; those that an older graph lacks are what new nodes begin with."""
        methods, method = _methods(), cls.method
        values = {"name": "", **_RUN_DEFAULTS, **{knob.name: knob.default for knob in method.knobs}, **given}
        texts = [knob.name for knob in method.knobs if isinstance(knob.default, str) and not knob.options]
        readable(**{name: values[name] for name in ("name", "sample_prompts", *texts)})
        finite(**{knob.name: values[knob.name] for knob in method.knobs if isinstance(knob.default, float)})
        values |= {
            knob.name: one_of(knob.options, values[knob.name], knob.name) for knob in method.knobs if knob.options
        }
        values |= {knob.name: _folder(values[knob.name]) for knob in method.knobs if knob.folder}
        datasets = _datasets(method, values)
        triggers = [dataset.trigger for dataset in datasets]
        judge = values.get("face_analysis")
        if method.identity_knob and values[method.identity_knob] <= 0:
            judge = None
        elif method.identity_knob and judge is None:
            raise LikenessError(
                "The identity loss needs a face recogniser: connect a face analysis, or set "
                f"{method.identity_knob} to 0."
            )
        outcome = methods.train_method(
            method,
            (values["model"], values["clip"], values["vae"]),
            values["name"].strip() or prompt_stem("_".join(triggers)),
            datasets,
            values,
            _sample_prompts(values["sample_prompts"], method.sample(datasets, values), triggers[0]),
            judge,
            find_start(named(values.get("start_from", NO_LORA), "start_from")) if method.continues_lora else None,
            values.get("adapter") if method.reads_adapter else None,
        )
        words = [f"embedding:{Path(name).stem}" for name in outcome.embeddings]
        how = f"in prompts: {method.usage(datasets, words)}"
        if not outcome.reads_captions:
            how += _unread_captions(datasets)
        return _result(values["model"], values["clip"], outcome, how)


class _TrainFurther(_Train):
    """A node that can train a LoRA further."""

    @classmethod
    def fingerprint_inputs(cls, start_from: str | None = NO_LORA, **others: Any) -> str:
        """Changes when the LoRA that is trained further does."""
        return LORAS.fingerprint(None if start_from == NO_LORA else start_from)


def node_of(method: Method) -> type[io.ComfyNode]:
    """The node of a trained method."""
    kind = _TrainFurther if method.continues_lora else _Train
    node = type(f"Train{method.name}", (kind,), {"method": method, "__module__": __name__})
    return must_exist(start_from=find_start)(node) if method.continues_lora else node


# --- running


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


def _datasets(method: Method, values: dict[str, Any]) -> list[Dataset]:
    """Those of the concepts, in their order. LikenessError for one that is not what the method asks for."""
    found: dict[str, Dataset] = {}
    for concept in method.concepts:
        value = values.get(concept.socket)
        if value is None and concept.optional:
            continue
        if not isinstance(value, Dataset):
            raise LikenessError(
                f"The input '{concept.socket}' holds a {type(value).__name__}: connect Portrait Dataset."
            )
        if concept.kind not in (None, value.kind):
            raise LikenessError(
                f"The input '{concept.socket}' holds a dataset of a {value.kind.value}: choose the kind "
                f"{concept.kind.value} in Portrait Dataset."
            )
        if concept.needs_masks:
            value.require_masks()
        other = next((name for name, dataset in found.items() if dataset.trigger == value.trigger), None)
        if other is not None:
            raise LikenessError(
                f"{other.capitalize()} and {concept.socket} have the same trigger word {value.trigger!r}: give each "
                "dataset a word of its own."
            )
        found[concept.socket] = value
    return list(found.values())


def _folder(name: str) -> str:
    """The path of a folder with images; '' for none."""
    from .photos import find_photos

    found = find_photos(name)
    return "" if found is None else str(found)


def _sample_prompts(text: str, default: str, trigger: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [fill_template(line, trigger) for line in lines or [default]]


def _result(model: Any, clip: Any, outcome: TrainingOutcome, how: str) -> io.NodeOutput:
    from .training_run import apply_results

    tuned_model, tuned_clip = apply_results(model, clip, outcome)
    text = "\n".join([*outcome.lines(), how, f"run: {outcome.folder.name}"])
    return io.NodeOutput(tuned_model, tuned_clip, text, outcome.losses, outcome.samples, ui=ui.PreviewText(text))


def _unread_captions(datasets: Sequence[Dataset]) -> str:
    """A line about captions that a method does not read, where there are any."""
    names = [picture.name for dataset in datasets for picture in dataset.pictures if picture.is_captioned]
    return f"\nnot used: the captions of {names_of(names)}, because the templates are used" if names else ""


NODES: list[type[io.ComfyNode]] = [node_of(method) for method in METHODS]
