"""SeFi-IDE in use: a subject from its file, and prompts in which its word is read stage by stage."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..errors import LikenessError, logger
from .choices import finite, must_exist, named, readable
from .files import Shelf
from .node import Node
from .schema import SubjectSocket, advanced, schema, strength_input

if TYPE_CHECKING:
    from pathlib import Path

    from ..adapters.sefi_ide.file import Subject
    from ..adapters.sefi_ide.prompt import Shares, SubjectPrompt

log = logger("likeness")

CATEGORY = "likeness/concepts"
KIND = "sefi_ide"
SUBJECTS = Shelf(KIND, KIND, "The subject", (".safetensors",))
NO_SUBJECTS = "(no file in models/sefi_ide)"
MOST_SUBJECTS = 3


def find_subject(name: str) -> Path:
    """The file of this name; LikenessError when it is not there."""
    if name == NO_SUBJECTS:
        raise LikenessError(
            "There is no file in models/sefi_ide: train a subject with Train SeFi-IDE, then reload the page."
        )
    return SUBJECTS.find_or_explain(name)


@must_exist(file=find_subject)
class LoadSubject(Node):
    """A file to a subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessLoadSubject",
            display_name="Load Subject",
            category=CATEGORY,
            description="Loads a subject that Train SeFi-IDE learned from one photo, for Subject Prompt.",
            search_aliases=["SeFi-IDE", "semantic fidelity", "one photo"],
            inputs=[
                io.Combo.Input("file", options=SUBJECTS.names() or [NO_SUBJECTS], tooltip="A file in models/sefi_ide."),
                io.String.Input(
                    "placeholder",
                    default="",
                    tooltip="The word by which prompts call the subject, in place of the file's own: needed when two "
                    "files use the same word. Empty: the file's own.",
                ),
            ],
            outputs=[
                SubjectSocket.Output(display_name="subject", tooltip="For Subject Prompt."),
                io.String.Output(display_name="report", tooltip="Its word, class word, stages and base model."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None, placeholder: str = "") -> str:
        """Changes when the file does."""
        return SUBJECTS.fingerprint(file)

    @classmethod
    def execute(cls, file: str, placeholder: str = "") -> io.NodeOutput:
        """Read and check."""
        from ..adapters.sefi_ide.file import load_subject

        readable(placeholder=placeholder)
        subject = load_subject(find_subject(named(file, "file")))
        if placeholder.strip():
            subject = replace(subject, placeholder=placeholder.strip())
        encoders = " and ".join(f"{name} ({table.shape[2]} wide)" for name, table in subject.tables.items())
        report = (
            f"{file}: prompts call it {subject.placeholder}, a {subject.class_word}; {subject.stages} stages; trained "
            f"for {encoders}."
        )
        log.info("[likeness] %s", report)
        return io.NodeOutput(subject, report)


class SubjectPromptNode(Node):
    """A text and the subjects its words stand for to CONDITIONING, and the MODEL that goes with it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessSubjectPrompt",
            display_name="Subject Prompt",
            category=CATEGORY,
            description="Encodes a prompt that names subjects of SeFi-IDE: their tokens change with the stage of "
            "denoising, and differ for keys and values. Replaces CLIP Text Encode for such prompts.",
            search_aliases=["SeFi-IDE", "semantic fidelity", "ProSpect"],
            inputs=[
                io.Clip.Input("clip", tooltip="From the checkpoint the subject was trained on."),
                io.Model.Input("model", tooltip="From the same checkpoint; LoRAs and identities on it stay."),
                SubjectSocket.Input("subject", tooltip="From Load Subject."),
                io.String.Input(
                    "text",
                    default="a photo of <ohwx> laughing",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt. Write the subject's word without a class word; it may stand anywhere and more "
                    "than once. Weights such as (<ohwx>:1.2), embeddings and long prompts are understood.",
                ),
                strength_input("1 is as trained, 0 uses the class word instead.", most=1.0),
                *(
                    SubjectSocket.Input(f"subject_{number}", optional=True, tooltip=f"Subject number {number}.")
                    for number in range(2, MOST_SUBJECTS + 1)
                ),
                *(
                    advanced(
                        io.String.Input(
                            name,
                            default="1",
                            tooltip=f"How much of the subject the {name} read, the rest being the class word: {what} "
                            "One number, or one for each stage from the first steps to the last, as in 0, 0.5, 1, 1, "
                            "1.",
                        )
                    )
                    for name, what in (("keys", "where it is."), ("values", "what it looks like."))
                ),
                advanced(
                    io.Sigmas.Input(
                        "sigmas",
                        optional=True,
                        tooltip="The sigmas of the sampling, from a scheduler node: the report then lists each "
                        "stage's steps.",
                    )
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="The prompt with its subjects, as a positive or a negative."
                ),
                io.Model.Output(display_name="model", tooltip="The MODEL for this prompt; sample with this one."),
                io.String.Output(display_name="report", tooltip="What each stage reads, and what was not found."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        model: Any,
        subject: Any,
        text: str,
        strength: float = 1.0,
        subject_2: Any = None,
        subject_3: Any = None,
        keys: str = "1",
        values: str = "1",
        sigmas: Any = None,
    ) -> io.NodeOutput:
        """Check, encode every stage once, and hand over to the injection."""
        from ..adapters.sefi_ide.prompt import subject_prompt
        from ..injection import comfy as binding

        finite(strength=strength)
        readable(text=text, keys=keys, values=values)
        if not binding.sites_of(model):
            raise LikenessError("The MODEL has no cross-attention: SeFi-IDE works with SD1.5, SD2 and SDXL models.")
        given = {"subject": subject, "subject_2": subject_2, "subject_3": subject_3}
        subjects = [as_subject(value, name) for name, value in given.items() if value is not None or name == "subject"]
        encoder = binding.ComfyTextEncoder(clip)
        made = subject_prompt(encoder, text, subjects, shares_of(keys, values, strength))
        applied = binding.apply_effects(model, made.edits)
        conditioning = binding.edited(encoder.conditioning(made.plain), made.edits)
        report = " ".join([*_report(subjects, made), *_steps(made, model, sigmas)])
        (log.warning if made.missing else log.info)("[likeness] %s", report)
        return io.NodeOutput([[states, told] for states, told in conditioning], applied.model, report)


def as_subject(value: Any, name: str) -> Subject:
    """What came in at a subject's socket; LikenessError for whatever else."""
    from ..adapters.sefi_ide.file import Subject

    if not isinstance(value, Subject):
        raise LikenessError(f"The input {name} holds a {type(value).__name__}: connect Load Subject.")
    return value


def shares_of(keys: str, values: str, strength: float) -> Shares:
    """The shares in two texts, times the strength."""
    from ..adapters.sefi_ide.prompt import Shares

    return Shares(
        *(tuple(strength * one for one in _numbers(text, name)) for name, text in (("keys", keys), ("values", values)))
    )


def _numbers(text: str, name: str) -> list[float]:
    parts = text.replace(",", " ").split()
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if not numbers or not all(math.isfinite(number) and 0 <= number <= 1 for number in numbers):
        raise LikenessError(f"The {name} are {text[:60]!r}: write numbers from 0 to 1, such as 1 or 0, 0.5, 1, 1, 1.")
    return numbers


def _report(subjects: list[Subject], made: SubjectPrompt) -> list[str]:
    found = [subject.placeholder for subject in subjects if subject.placeholder not in made.missing]
    said = []
    names = " and ".join(found)
    if found and made.stages:
        parts = ", ".join(f"{high} to {low}" for low, high in made.stages)
        said.append(f"{names} in {len(made.stages)} parts of the sampling (timesteps {parts}).")
    elif found:
        verb = "have" if len(found) > 1 else "has"
        said.append(f"{names} {verb} no effect, because strength, keys or values leave everything to the class word.")
    for name in made.missing:
        said.append(f"{name} has no effect, because the prompt does not name it: write {name} where the subject is.")
    return said


def _steps(made: SubjectPrompt, model: Any, sigmas: Any) -> list[str]:
    """Which steps of a sampling lie in which part."""
    if sigmas is None or not made.stages:
        return []
    sampling = model.get_model_object("model_sampling")
    steps = [float(sampling.timestep(sigma)) for sigma in sigmas[:-1]]
    parts = []
    for low, high in made.stages:
        inside = [number for number, t in enumerate(steps, 1) if low <= t <= high]
        parts.append(f"{high} to {low}: " + (f"steps {inside[0]} to {inside[-1]}" if inside else "no step"))
    return [f"Of {len(steps)} steps: {'; '.join(parts)}."]


NODES = [LoadSubject, SubjectPromptNode]
