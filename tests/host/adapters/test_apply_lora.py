"""The LoRA of a FaceID file: in the weights while the MODEL is loaded, once for everybody, gone afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.small_world import official, person
from torch import Tensor


def loaded_weights(model: Any) -> dict[str, Tensor]:
    """The denoiser's weights as they are while this MODEL is loaded."""
    import comfy.model_management as mm

    mm.load_models_gpu([model], force_patch_weights=True)
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def lora_targets(world: Any, adapter: Any) -> dict[str, Any]:
    """weight name -> its pair."""
    places = {}
    for (slot, layer), pair in adapter.adapter.lora_pairs().items():
        site = world.sites[slot // 2]
        places[f"diffusion_model.{site.comfy_path}.attn{slot % 2 + 1}.{layer}.weight"] = pair
    return places


def test_the_lora_changes_the_weights_and_is_gone_after_unloading(world):
    adapter = world.adapter("faceid")
    before = loaded_weights(world.model)
    model, report = world.apply(adapter, person(), lora_strength=0.7)
    targets = lora_targets(world, adapter)
    assert f"LoRA 0.7 on {len(targets)} weights" in report
    after = loaded_weights(model)
    for name, value in after.items():
        expected = before[name]
        if name in targets:
            expected = expected + 0.7 * targets[name].up @ targets[name].down
            assert not torch.allclose(value, before[name], atol=1e-4)
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    model.detach()
    restored = {name: value.clone() for name, value in world.model.model.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in restored.items())


def test_a_lora_of_strength_zero_is_no_patch(world):
    model, report = world.apply(world.adapter("faceid"), person(), lora_strength=0.0)
    assert not model.patches and "LoRA" not in report


def test_a_lora_loaded_by_another_node_is_not_added_again(world):
    """The companion file holds the same matrices; the leading pack's loader has often put it on the MODEL already."""
    import comfy.lora

    adapter = world.adapter("faceid")
    targets = lora_targets(world, adapter)
    companion = {}
    for number, pair in enumerate(targets.values()):
        companion[f"{number}.lora_up.weight"], companion[f"{number}.lora_down.weight"] = pair.up, pair.down
    base = world.model.clone()
    base.add_patches(comfy.lora.load_lora(companion, {str(n): name for n, name in enumerate(targets)}), 0.8)
    model, report = world.apply(adapter, person(), model=base)
    assert all(len(patches) == 1 for patches in model.patches.values())
    assert "from another node" in report


def test_the_second_person_can_raise_the_lora_but_not_lower_it(world):
    adapter = world.adapter("faceid")
    one, _ = world.apply(adapter, person(), lora_strength=0.4)

    def total(model: Any) -> float:
        return sum(patch[0] for patch in next(iter(model.patches.values())))

    assert total(world.apply(adapter, person(), model=one, lora_strength=1.0)[0]) == pytest.approx(1.0)
    assert total(world.apply(adapter, person(), model=one, lora_strength=0.1)[0]) == pytest.approx(0.4)
    assert total(one) == pytest.approx(0.4), "the branch before is left as it was"


def test_loras_of_two_adapters_of_one_name_are_both_applied(world):
    official.write(world.folder / "ipadapter" / "a" / "adapter.bin", world.groups("faceid", seed=1))
    official.write(world.folder / "ipadapter" / "b" / "adapter.bin", world.groups("faceid", seed=2))
    first, second = (world.run("LikenessLoadIdentityAdapter", adapter_file=f"{folder}/adapter.bin") for folder in "ab")
    both, _ = world.apply(second, person(), model=world.apply(first, person())[0])
    assert all(len(patches) == 2 for patches in both.patches.values())
