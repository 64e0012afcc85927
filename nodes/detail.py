"""Detail Faces: faces sampled anew at a higher resolution, with the identity the model carries, and pasted back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..faces import adopt_analysis
from ..restoration.guard import guard_of
from ..restoration.restore import FaceJob, paste_mask_of, rework_faces
from ..restoration.windows import shares, upright
from .choices import must_exist, one_of
from .node import Node
from .progress import counter
from .restoration import (
    CATEGORY,
    PictureBatch,
    Wanted,
    find_paste,
    finish,
    outputs,
    regions_of,
    remarks_on,
    restoration_inputs,
)
from .schema import LARGEST_SEED, FaceAnalysisSocket, advanced, schema, seed_input

SAMPLERS, SCHEDULERS = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS


@must_exist(
    paste=find_paste,
    sampler_name=partial(one_of, SAMPLERS, name="sampler_name"),
    scheduler=partial(one_of, SCHEDULERS, name="scheduler"),
)
class DetailFaces(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        widgets, sockets = restoration_inputs("fidelity", "adain", "batch_size")
        return schema(
            node_id="LikenessDetailFaces",
            display_name="Detail Faces",
            category=CATEGORY,
            description=(
                "Resamples each face at a higher resolution, with the model's identity (Apply Identity before it) "
                "and the connected prompts, and pastes it back. For small faces of full figures and groups."
            ),
            inputs=[
                io.Image.Input("image", tooltip="One image or a batch."),
                io.Model.Input("model", tooltip="The model to sample with, with or without an identity applied."),
                io.Conditioning.Input(
                    "positive", tooltip="What each face shows, for example: photo of a smiling woman."
                ),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                io.Vae.Input("vae", tooltip="The VAE of the model's checkpoint."),
                FaceAnalysisSocket.Input(
                    "face_analysis", tooltip="Finds the faces, and recognises them for the guard."
                ),
                seed_input("Seed of the noise; each face gets its own."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Steps of a full sampling."),
                io.Float.Input(
                    "cfg", default=5.0, min=0.0, max=100.0, step=0.1, tooltip="How closely the prompt is followed."
                ),
                io.Combo.Input("sampler_name", options=SAMPLERS, default="euler", tooltip="ComfyUI's samplers."),
                io.Combo.Input("scheduler", options=SCHEDULERS, default="normal", tooltip="ComfyUI's noise schedules."),
                io.Float.Input(
                    "denoise",
                    default=0.4,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Denoising strength: 0.3 sharpens a face, 0.6 may change its expression.",
                ),
                io.Int.Input(
                    "resolution",
                    default=768,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Side of the square in which a face is sampled: 512 to 768 for SD1.5, 1024 for SDXL.",
                ),
                io.Float.Input(
                    "crop_factor",
                    default=2.0,
                    min=1.0,
                    max=8.0,
                    step=0.1,
                    tooltip="Side of the crop in multiples of the face box; larger includes hair and neck.",
                ),
                *widgets,
                advanced(
                    io.Boolean.Input(
                        "noise_mask",
                        default=True,
                        tooltip="Samples only what will be pasted, and keeps the rest of the square as it is.",
                    )
                ),
                *sockets,
            ],
            outputs=outputs(),
            search_aliases=["FaceDetailer", "ADetailer", "face fix", "Impact Pack", "inpaint face"],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        model: Any,
        positive: Any,
        negative: Any,
        vae: Any,
        face_analysis: Any,
        seed: int = 0,
        steps: int = 20,
        cfg: float = 5.0,
        sampler_name: str = "euler",
        scheduler: str = "normal",
        denoise: float = 0.4,
        resolution: int = 768,
        crop_factor: float = 2.0,
        noise_mask: bool = True,
        **wanted: Any,
    ) -> io.NodeOutput:
        from comfy.model_management import throw_exception_if_processing_interrupted

        from ..injection.comfy.resampling import CropWindow, Sampling

        pictures, asked, analysis = PictureBatch.of(image), Wanted(**wanted), adopt_analysis(face_analysis)
        sampler, schedule = one_of(SAMPLERS, sampler_name, "sampler_name"), one_of(SCHEDULERS, scheduler, "scheduler")
        sampling = Sampling(model, positive, negative, vae, steps, cfg, sampler, schedule, denoise)
        sampling.check()
        regions = regions_of(asked.region, pictures)
        # Without an identity to compare with, a face that is made anew may become whoever the model says; with one it
        # may be on its way to that person.
        least = asked.identity_guard if asked.identity is not None else 0.0
        guard = guard_of(analysis, least, asked.identity, strangers=False)
        options = replace(asked.options(analysis), batch=1, guard=guard)
        faces = asked.faces_of(pictures.photos, analysis, counter(len(pictures.photos)))
        size = pictures.colours.shape[1], pictures.colours.shape[2]
        made = iter(range(sum(map(len, faces))))

        def rework(jobs: Sequence[FaceJob]) -> Tensor:
            [job] = jobs
            region = None if regions is None else regions[job.picture % len(regions)]
            mask = torch.from_numpy(paste_mask_of(job, job.crop, options, region)) if noise_mask else None
            number = (seed + next(made)) % (LARGEST_SEED + 1)
            pixels = job.crop.clamp(0, 1).permute(1, 2, 0)[None]
            window = CropWindow(*shares(job, size), job.picture, len(pictures.colours))
            return sampling.again(pixels, window, number, mask).permute(0, 3, 1, 2)

        done = rework_faces(
            list(pictures.colours),
            faces,
            rework,
            upright(resolution // 8 * 8, crop_factor),
            options,
            canvases=pictures.canvases(),
            regions=regions,
            after_each=throw_exception_if_processing_interrupted,
        )
        return finish(pictures, done, remarks_on(faces, options, analysis))


NODES: list[type[io.ComfyNode]] = [DetailFaces]
