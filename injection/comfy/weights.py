"""Changes of the denoiser's own weights, as patches of a MODEL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...adapters.effects import WeightDelta
from ...errors import LikenessError
from ...weights.lora import LoraPair, check_fits, weight_name
from ..windows import Window
from .run import sigmas_of_run

_WINDOWS = "likeness_windows"  # of our wrappers, and our attachment: id -> strength of the changes with a window
_DELTAS = "likeness_deltas"  # our attachment: id -> strength of the changes that a MODEL has


def add_delta(model: Any, delta: WeightDelta) -> int:
    """Add a change of weights to a MODEL, in place; returns the number of weights it changes.

    One that the model already has is raised to the greater of both strengths, not added twice, so that several people
    can use one adapter.
    """
    applied: dict[str, float] = dict(model.attachments.get(_DELTAS, {}))
    if delta.replaces:
        return _replace(model, delta, applied)
    missing = delta.strength - applied.get(delta.id, 0.0)
    if missing == 0 or (delta.id in applied and missing < 0):
        return 0
    changed = model.add_patches(_patches(model, delta), missing)
    model.attachments[_DELTAS] = {**applied, delta.id: delta.strength}
    return len(changed)


def _replace(model: Any, delta: WeightDelta, applied: dict[str, float]) -> int:
    """Move a MODEL's weights towards others, in place, before whatever other patches add to them."""
    import comfy.utils

    before = applied.get(delta.id, 0.0)
    if delta.strength <= before:
        return 0
    patches = _patches(model, delta)
    own = {f"diffusion_model.{name}" for name, _ in model.model.diffusion_model.named_parameters()}
    names = {ours: theirs for theirs, ours in _weight_names(model).items()}
    missing = next((names[name] for name in sorted(own & names.keys()) if name not in patches), None)
    if missing is not None:
        raise LikenessError(
            f"The UNet in {delta.name!r} has no {missing!r}, which the connected MODEL has: download the file again, "
            "or set lora_strength to 0 to keep the MODEL's own UNet."
        )
    for name, (weight,) in patches.items():
        check_fits(name.removesuffix(".weight"), weight, comfy.utils.get_attr(model.model, name))
    share = (delta.strength - before) / (1 - before)  # of the way that is left
    for name in model.add_patches(patches, share, 1 - share):
        model.patches[name].insert(int(before > 0), model.patches[name].pop())
    model.attachments[_DELTAS] = {**applied, delta.id: delta.strength}
    return len(patches)


def _patches(model: Any, delta: WeightDelta) -> dict[str, Any]:
    """The host's name of a weight -> its change, as `add_patches` takes it."""
    import comfy.lora

    lora, targets, full, names = {}, {}, {}, _weight_names(model)
    for path, change in delta.changes.items():
        if isinstance(change, LoraPair):
            tensors = {"lora_up.weight": change.up, "lora_down.weight": change.down, "lora_mid.weight": change.mid}
            lora |= {f"{path}.{name}": tensor for name, tensor in tensors.items() if tensor is not None}
            if change.alpha:
                lora[f"{path}.alpha"] = torch.tensor(change.alpha)
            targets[path] = names[f"{path}.weight"]
        else:
            full[names[weight_name(path)]] = (change,)
    return {**comfy.lora.load_lora(lora, targets), **full}


def add_windowed_delta(model: Any, delta: WeightDelta) -> tuple[Any, int]:
    """A change of weights that comes and goes within a run; returns the MODEL, which the host may have to replace by
    one that keeps its weights in place, and the number of weights it changes.

    The host's own weight hooks do it, which know how to put weights back whatever memory they lie in. They hang on
    conditionings: once per run one hook, the same object, is hung on all of them, so that batches stay whole.
    """
    import comfy.hooks
    from comfy.patcher_extension import WrappersMP

    key = f"{_WINDOWS}_{delta.id}"
    applied: dict[str, float] = dict(model.attachments.get(_WINDOWS, {}))
    if applied.get(delta.id, -math.inf) >= delta.strength:
        return model, 0
    if getattr(model, "is_dynamic", bool)():  # newer hosts: weights that are streamed in know no hooks
        model = model.get_non_dynamic_delegate()
    hook = comfy.hooks.WeightHook()
    hook.need_weight_init = False  # its patches are given below
    switch = hook.hook_keyframe = WindowSwitch(Window.of(delta.scope))
    changed = model.add_hook_patches(hook, _patches(model, delta), strength_patch=delta.strength)
    group = comfy.hooks.HookGroup()
    group.add(hook)

    def outer_sample(executor: Any, *args: Any, **keywords: Any) -> Any:
        guider = executor.class_obj
        switch.place(guider.model_patcher.get_model_object("model_sampling"), sigmas_of_run(args))
        combined: dict[int, Any] = {}  # entries that share their own hooks share the combined ones
        for entries in guider.conds.values():
            for entry in entries:
                own = entry.get("hooks")
                if id(own) not in combined:
                    combined[id(own)] = comfy.hooks.HookGroup.combine_all_hooks([own, group])
                entry["hooks"] = combined[id(own)]
        return executor(*args, **keywords)

    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, key)  # of a weaker one
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, outer_sample)
    model.attachments[_WINDOWS] = {**applied, delta.id: delta.strength}
    return model, len(changed)


class WindowSwitch:
    """Stands where the host's hooks keep their keyframes: strength 1 within a window of sigmas, 0 outside."""

    keyframes = ()

    def __init__(self, window: Window) -> None:
        self.window = window
        self.strength = 0.0
        self._high, self._low = math.inf, -math.inf

    def place(self, model_sampling: Any, sigmas: Sequence[float]) -> None:
        """Before a run, whose sigmas these are."""
        self._high, self._low = self.window.sigmas(model_sampling, sigmas)

    def prepare_current_keyframe(self, curr_t: float, transformer_options: dict) -> bool:
        """Before a model evaluation; returns whether the strength has changed."""
        before, self.strength = self.strength, float(self._low <= curr_t <= self._high)
        return self.strength != before

    def reset(self) -> None:
        """Before a run."""
        self.strength = 0.0

    def initialize_timesteps(self, model: Any) -> None:
        """Before a run; the sigmas are known already."""

    def clone(self) -> WindowSwitch:
        """The host clones groups of hooks; the switch of a window is one."""
        return self


def has_elsewhere(model: Any, delta: WeightDelta) -> bool:
    """Whether another node has put this change onto the MODEL, as from the LoRA file published beside an adapter."""
    if delta.id in model.attachments.get(_DELTAS, {}):
        return False
    path, change = next(iter(delta.changes.items()))
    if not isinstance(change, LoraPair):
        return False
    patches = model.patches.get(_weight_names(model)[weight_name(path)], [])
    ups = [getattr(patch[1], "weights", [None])[0] for patch in patches]
    return any(isinstance(up, Tensor) and torch.equal(up.to("cpu", change.up.dtype), change.up.cpu()) for up in ups)


def base_weights(model: Any, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The denoiser's own weights by diffusers' name, float32 on the CPU, without any patch, wherever the host keeps
    them. wanted: which, by that name."""
    # A model that is loaded has patches in its weights; the host's key patches begin with what was there before.
    found = model.get_key_patches("diffusion_model.")
    weights = {}
    for theirs, ours in _weight_names(model).items():
        if wanted(theirs) and ours in found:
            weight, convert = found[ours][0]
            weights[theirs] = convert(weight.to("cpu"), inplace=False).float()
    return weights


def _weight_names(model: Any) -> dict[str, str]:
    """diffusers' name of a weight of the denoiser -> the host's, as `add_patches` takes it."""
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {theirs: f"diffusion_model.{ours}" for theirs, ours in names.items()}
