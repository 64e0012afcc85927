"""What a user sees. Imported by the host only, because node classes derive from the host's."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class LikenessExtension(ComfyExtension):
    """Lists the pack's nodes for ComfyUI."""

    async def on_load(self) -> None:
        """Newer hosts call this; what the pack needs does not depend on it."""
        from . import ipadapter_plus

        await ipadapter_plus.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .. import models_download
        from . import (
            adapters,
            blip_diffusion,
            concepts,
            control,
            dataset,
            detail,
            edit_models,
            evaluation,
            faces,
            fastcomposer,
            ipadapter_plus,
            keypoints,
            masks,
            miniature,
            photoverse,
            prompts,
            pulid,
            references,
            restoration,
            sefi_ide,
            storymaker,
            training,
        )
        from .inputs import checked

        models_download.register_folders()
        nodes = [
            *faces.NODES,
            *keypoints.NODES,
            *masks.NODES,
            *adapters.NODES,
            *control.NODES,
            *prompts.NODES,
            *photoverse.NODES,
            *fastcomposer.NODES,
            *references.NODES,
            *pulid.NODES,
            *storymaker.NODES,
            *edit_models.NODES,
            *blip_diffusion.NODES,
            *ipadapter_plus.NODES,
            *concepts.NODES,
            *sefi_ide.NODES,
            *dataset.NODES,
            *training.NODES,
            *miniature.NODES,
            *evaluation.NODES,
            *restoration.NODES,
            *detail.NODES,
        ]
        return [checked(node) for node in nodes]
