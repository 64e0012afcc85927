"""Run as a program of its own: is a VAE copied while DynamicVRAM manages it, and does what it manages live on?

    python dynamic_vram.py COMFYUI_FOLDER

DynamicVRAM is comfy-aimdo's, on a CPU as far as it goes without a card: the buffers in the host's memory are real, the
address on the card is not. Ends with status 0, or with a segmentation fault where the copy freed what is the host's.
"""

import faulthandler
import gc
import os
import sys

faulthandler.enable()
sys.path.insert(0, sys.argv.pop(1))
import comfy_aimdo.control  # noqa: E402

assert comfy_aimdo.control.init("cuda")
import comfy_aimdo.host_buffer  # noqa: E402 - which looks for the library once
from comfy.cli_args import args  # noqa: E402

args.cpu = True
import comfy.memory_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from comfy.taesd.taesd import TAESD  # noqa: E402

from likeness.nodes.sockets import normal_copy  # noqa: E402


class Address:
    """As comfy-aimdo's `ModelVBAR`: frees its memory when it dies."""

    freed = 0

    def __del__(self) -> None:
        Address.freed += 1


comfy.memory_management.aimdo_enabled = True
comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
card = torch.device("cuda", 0)
torch.manual_seed(0)
weights = {name: 0.05 * torch.randn(value.shape) for name, value in TAESD(latent_channels=4).state_dict().items()}
weights["vae_scale"] = torch.tensor(1.0)
with torch.inference_mode():
    vae = comfy.sd.VAE(sd=weights, dtype=torch.float32)
module = vae.first_stage_model
vae.patcher = comfy.model_patcher.ModelPatcherDynamic(module, load_device=card, offload_device=torch.device("cpu"))

# What `load` hangs on a model and its layers, and the first use on a layer.
buffer = comfy_aimdo.host_buffer.HostBuffer(0, 1 << 20, 1 << 20)
module.dynamic_pins[card]["weights"] = (buffer, [], [-1], [0], [0], {})
address = Address()
for layer in module.modules():
    if hasattr(layer, "comfy_cast_weights"):
        layer.comfy_cast_weights = True
        layer._pin_state = module.dynamic_pins[card]
        layer._v = (address, 4096, 512)
        layer._v_signature = None
        layer._pins = {"weights": {"balancer_entry": [0, 0, layer], "registered": False, "stack_index": 0}}
        layer.hung_there_tomorrow = {"buffers": [buffer], "of": layer}

twin = normal_copy(module)
hung = {"dynamic_pins", "_pin_state", "_v", "hung_there_tomorrow"}
assert not [name for part in twin.modules() for name in part.__dict__ if name in hung]
pictures = torch.rand(1, 3, 32, 32, requires_grad=True)
latents = twin.encode(pictures)
latents.sum().backward()
assert pictures.grad is not None and pictures.grad.abs().sum() > 0
own = TAESD(latent_channels=4).requires_grad_(False)
own.load_state_dict(weights)
assert torch.equal(own.encode(pictures), latents)

del twin
gc.collect()
junk = [bytearray(200) for _ in range(2000)]  # over what was freed, if it was
buffer.extend(1 << 16, register=False)
assert buffer.size == 1 << 16 and Address.freed == 0
print("alive at the end", flush=True)
os._exit(0)  # before the buffer is freed, which without a card is a segmentation fault of its own
