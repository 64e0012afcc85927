"""Identity ControlNet: what each net of a prompt reads, when and where it acts, and what is refused."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import pytest
import torch
from helpers.small_world import person, same, sentence
from safetensors.torch import save_file
from torch import Tensor

TEXT, FACE = 77, 16  # tokens


@dataclass
class Net:
    """A ControlNet of the host, and the contexts that it was given, one (batch, tokens, width) per call."""

    control: Any
    contexts: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        network = self.control.control_model
        network.register_forward_pre_hook(
            lambda _, __, given: self.contexts.append(given["context"].clone()), with_kwargs=True
        )

    def read(self) -> set[int]:
        """How many tokens it was given."""
        return {context.shape[1] for context in self.contexts}


@pytest.fixture
def net(world, recipes):
    return lambda seed=5: Net(recipes.controlnet(recipes.SD15_TINY, seed=seed))


@pytest.fixture
def adapter(world) -> Any:
    return world.adapter("instantid")


def who(seed: int = 0) -> Any:
    return person(recogniser="antelopev2", seed=seed)


def keypoints(images: int = 1, side: int = 64) -> Tensor:
    return torch.rand(images, side, side, 3, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def control(world, adapter):
    """control(net, ...) -> positive, negative with the net; `on` are the prompts it is put onto."""

    def apply(net: Net, on: Any = None, **inputs: Any) -> Any:
        positive, negative = on or world.text
        given = {"adapter": adapter, "control_net": net.control, "identity": who(), "image": keypoints(), **inputs}
        return world.run("LikenessIdentityControlNet", every=True, positive=positive, negative=negative, **given)[:2]

    return apply


def host_control(on: Any, net: Net, strength: float = 1.0) -> Any:
    """The host's own Apply ControlNet."""
    node = import_module("nodes").ControlNetApplyAdvanced()
    return node.apply_controlnet(*on, net.control, keypoints(), strength, 0.0, 1.0)


def paint(world: Any, on: Any, model: Any = None, **options: Any) -> Tensor:
    settings = {"steps": 2, "shape": (1, 4, 8, 8), **options}
    return world.recipes.sample(model or world.model, *on, **settings)


def tokens(adapter: Any, identity: Any) -> Any:
    from likeness.adapters.instantid import face_embedding

    return adapter.adapter.encode(face_embedding(identity))


# What each net reads --------------------------------------------------------------------------------------------------


def test_the_net_reads_the_face_in_both_halves_in_the_order_of_the_batch(world, control, net, adapter, plain):
    own = net()
    assert not same(paint(world, control(own)), plain)
    expected = tokens(adapter, who())
    for context in own.contexts:  # the host puts the negative half first
        torch.testing.assert_close(context, torch.cat([expected.uncond, expected.cond]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth_first", [True, False])
def test_a_chained_depth_net_keeps_the_text(world, control, net, depth_first):
    own, depth = net(), net(6)
    on = control(own, host_control(world.text, depth)) if depth_first else host_control(control(own), depth)
    paint(world, on)
    assert own.read() == {FACE} and depth.read() == {TEXT}
    text = torch.cat([world.text[1][0][0], world.text[0][0][0]])
    torch.testing.assert_close(depth.contexts[0], text)


def test_the_order_of_the_chain_makes_no_difference(world, control, net):
    own, depth = net(), net(6)
    one = paint(world, control(own, host_control(world.text, depth)))
    other = paint(world, host_control(control(own), depth))
    assert same(one, other)
    assert not same(one, paint(world, control(own)))


def test_two_nets_read_their_own_persons(world, control, net, adapter):
    left, right = net(), net(6)
    paint(world, control(right, control(left, identity=who(1)), identity=who(2)))
    for seen, seed in ((left, 1), (right, 2)):
        expected = tokens(adapter, who(seed))
        torch.testing.assert_close(seen.contexts[0][1:], expected.cond, rtol=1e-5, atol=1e-5)


def test_one_net_serves_two_people(world, control, net):
    """The same file for both: neither its tokens nor its image are those of the last one."""
    own = net()
    paint(world, control(own, control(own, identity=who(1)), identity=who(2)), steps=1)
    first, second = own.contexts
    assert not torch.allclose(first[1:], second[1:]) and torch.allclose(first[:1], second[:1])


def test_texts_of_any_number_length_and_order_keep_the_face(world, control, net, recipes, adapter):
    own, expected = net(), tokens(adapter, who())
    long = recipes.conditioning(world.dim, tokens=154, seed=3)
    positive, negative = world.text
    on = control(own, ([*positive, *long], negative))
    assert paint(world, on, shape=(2, 4, 8, 12)).isfinite().all()
    rows = torch.cat(own.contexts)
    conditioned = [bool(torch.allclose(row, expected.cond[0], rtol=1e-5, atol=1e-5)) for row in rows]
    unconditioned = [bool(torch.allclose(row, expected.uncond[0], rtol=1e-5, atol=1e-5)) for row in rows]
    steps, images = 2, 2
    assert sum(conditioned) == 2 * steps * images and sum(unconditioned) == steps * images


def test_without_guidance_only_the_person_is_read(world, control, net, adapter):
    own, expected = net(), tokens(adapter, who())
    paint(world, control(own), cfg=1.0)
    assert all(torch.allclose(context, expected.cond, rtol=1e-5, atol=1e-5) for context in own.contexts)


# When, where, how strongly --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "off",
    [{"strength": 0.0}, {"start_at": 0.5, "end_at": 0.5}, {"attn_mask": torch.zeros(1, 8, 8)}],
    ids=["strength 0", "closed window", "empty mask"],
)
def test_off_is_bit_identical_and_said(world, control, net, adapter, plain, off):
    own = net()
    assert torch.equal(paint(world, control(own, **off)), plain)
    assert not own.contexts
    report = world.run(
        "LikenessIdentityControlNet", every=True, positive=world.text[0], negative=world.text[1], adapter=adapter,
        control_net=own.control, identity=who(), image=keypoints(), **off,
    )[2]  # fmt: skip
    assert "'Ada' has no effect, because" in report


@pytest.mark.parametrize(("start", "end", "steps"), [(0.0, 1.0, 8), (0.25, 0.75, 4), (0.2, 1.0, 6), (0.0, 0.67, 5)])
@pytest.mark.parametrize("scheduler", ["normal", "karras"])
def test_the_window_counts_steps_whatever_the_scheduler(world, control, net, start, end, steps, scheduler):
    """Of step i of n unless i/n < start or (i + 1)/n > end, as the official code counts."""
    own = net()
    paint(world, control(own, start_at=start, end_at=end), steps=8, scheduler=scheduler)
    assert len(own.contexts) == steps


def test_a_depth_net_goes_on_where_the_face_s_net_stops(world, control, net):
    own, depth = net(), net(6)
    paint(world, control(own, host_control(world.text, depth), end_at=0.5), steps=4)
    assert (len(own.contexts), len(depth.contexts)) == (2, 4)


def test_strength_scales_what_the_net_adds(world, control, net):
    own = net()
    weak, strong = (residuals(world, control(own, strength=s)) for s in (0.5, 1.0))
    for a, b in zip(weak, strong, strict=True):
        torch.testing.assert_close(2 * a, b, rtol=1e-4, atol=1e-5)


def residuals(world: Any, on: Any, size: tuple[int, int] = (8, 8), images: int = 1) -> list[Tensor]:
    """What the nets of a prompt add to one call of the denoiser, for the positive half alone."""
    options = on[0][0][1]
    control, model = options["control"], world.model.model
    control.pre_run(model, model.model_sampling.percent_to_sigma)
    with torch.inference_mode():
        conds = {key: cond.process_cond(batch_size=images, device="cpu", area=None).cond
                 for key, cond in options["model_conds"].items()}  # fmt: skip
        text = on[0][0][0].expand(images, -1, -1)
        x = torch.randn(images, 4, *size, generator=torch.Generator().manual_seed(3))
        found = control.get_control(x, torch.full((images,), 3.0), {"c_crossattn": text, **conds}, 1, {})
    control.cleanup()
    return [r.clone() for place in ("output", "middle") for r in found[place] if r is not None]


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_a_mask_multiplies_every_residual_at_its_own_size_and_soft_values_stay(world, control, net, size):
    own = net()
    mask = torch.zeros(1, 64, 64)
    mask[..., :32], mask[..., 32:] = 0.25, 0.75
    whole, masked = (residuals(world, control(own, **given), size) for given in ({}, {"attn_mask": mask}))
    for all_of_it, part in zip(whole, masked, strict=True):
        width = all_of_it.shape[-1]
        torch.testing.assert_close(part[..., 0], 0.25 * all_of_it[..., 0], rtol=1e-4, atol=1e-6)
        if width > 1:
            torch.testing.assert_close(part[..., -1], 0.75 * all_of_it[..., -1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 4], ids=["grey", "with alpha"])
@pytest.mark.parametrize("side", [(64, 64), (50, 71)], ids=str)
def test_keypoint_pictures_of_any_kind_and_size_are_read(world, control, net, plain, channels, side):
    picture = torch.rand(1, *side, channels, generator=torch.Generator().manual_seed(2))
    painted = paint(world, control(net(), image=picture))
    assert painted.isfinite().all() and not same(painted, plain)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (torch.zeros(0, 64, 64, 3), "keypoints is empty"),
        (torch.full((1, 64, 64, 3), torch.nan), "keypoints contains NaN"),
        (torch.ones(1, 64, 64, 5), "keypoints has shape"),
    ],
    ids=["empty", "NaN", "five channels"],
)
def test_keypoint_pictures_that_are_none_are_refused(world, adapter, net, wrong, says):
    assert says in refused(world, adapter=adapter, control_net=net().control, image=wrong)


def test_two_people_with_masks_share_the_picture(world, control, net):
    """Two half masks with the same person add up to the person without a mask."""
    own = net()
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    whole = residuals(world, control(own))
    halves = residuals(world, control(own, control(own, attn_mask=left), attn_mask=1 - left))
    for a, b in zip(whole, halves, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_mask_for_each_image_of_a_batch(world, control, net):
    own, masks = net(), torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
    found = residuals(world, control(own, attn_mask=masks, image=keypoints(2)), images=2)
    assert all(not r[0].any() and r[1].any() for r in found)


def test_adapter_and_net_work_alone_and_together(world, control, net, adapter, plain):
    own = net()
    model, _ = world.apply(adapter, who())
    pictures = [plain, paint(world, world.text, model), paint(world, control(own)), paint(world, control(own), model)]
    assert all(not same(a, b) for i, a in enumerate(pictures) for b in pictures[:i])


def test_a_context_window_takes_the_masks_of_its_own_images(world, control, net):
    own, masks = net(), torch.stack([torch.zeros(8, 8), torch.ones(8, 8), torch.zeros(8, 8)])
    ours = control(own, attn_mask=masks)[0][0][1]["control"]
    residual = torch.ones(2, 1, 4, 4)
    for window, expected in (({}, [0.0, 1.0]), ({"ad_params": {"sub_idxs": [1, 2]}}, [1.0, 0.0])):
        rows = import_module("likeness.injection.comfy.control")._rows(window, 2)
        assert ours._within(residual, 2, 1, rows)[:, 0, 0, 0].tolist() == expected


# What the host asks of a ControlNet -----------------------------------------------------------------------------------


def test_nothing_is_kept_after_a_run_and_nothing_was_changed(world, control, net, plain):
    own = net()
    mask = torch.rand(1, 8, 8)
    state, before = torch.random.get_rng_state(), [dict(entry[1]) for entry in (*world.text[0], *world.text[1])]
    on = control(own, attn_mask=mask, start_at=0.1)
    assert torch.equal(torch.random.get_rng_state(), state)
    paint(world, on)
    ours = on[0][0][1]["control"]
    assert ours._masks == {} and ours._sigmas is None and ours.net.cond_hint is None
    assert own.control.cond_hint_original is None, "the loaded net stays as it is"
    assert [dict(entry[1]) for entry in (*world.text[0], *world.text[1])] == before
    assert torch.equal(paint(world, world.text), plain)


def test_the_halves_share_one_object_and_the_host_sees_all_models_of_the_chain(world, control, net):
    own, depth = net(), net(6)
    on = control(own, host_control(world.text, depth))
    ours = on[0][0][1]["control"]
    assert ours is on[1][0][1]["control"], "else the halves are two calls"
    assert {id(m) for m in ours.get_models()} == {id(n.control.control_model_wrapped) for n in (own, depth)}
    other = ours.copy()
    assert other is not ours and other.net is not ours.net and other.key == ours.key
    assert other.net.control_model is ours.net.control_model


@pytest.mark.host(since="0.23")
def test_another_card_gets_weights_of_its_own(world, control, net):
    ours, card = control(net(), start_at=0.1)[0][0][1]["control"], torch.device("cpu")
    clone = ours.deepclone_multigpu(card, autoregister=True)
    assert ours.get_instance_for_device(card) is clone and clone.scope is ours.scope and clone.key == ours.key
    assert clone.net.control_model is not ours.net.control_model
    assert torch.equal(clone.net.cond_hint_original, ours.net.cond_hint_original)


def test_both_halves_are_one_call(world, control, net):
    own = net()
    paint(world, control(own), steps=3)
    assert [len(context) for context in own.contexts] == [2, 2, 2]


def test_twenty_runs_in_a_row_keep_nothing(world, control, net, adapter):
    own = net()
    own.contexts = Forgetful()
    model, _ = world.apply(adapter, who())
    on = control(own, attn_mask=torch.rand(1, 8, 8), start_at=0.1)
    alive = []
    for _ in range(20):
        paint(world, on, model, steps=1)
        gc.collect()
        alive.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))
    assert alive[-1] == alive[2], "the first runs fill the caches"


class Forgetful(list):
    """Takes everything and keeps nothing."""

    def append(self, _: Tensor) -> None:
        """Not kept."""


# What is refused ------------------------------------------------------------------------------------------------------


def refused(world: Any, **inputs: Any) -> str:
    given = {"positive": world.text[0], "negative": world.text[1], "identity": who(), "image": keypoints(), **inputs}
    return sentence(world.run, "LikenessIdentityControlNet", **given)


def test_an_adapter_without_a_controlnet_is_named(world, net):
    text = refused(world, adapter=world.adapter("faceid"), control_net=net().control)
    assert "faceid_0.safetensors" in text and "no ControlNet of its own" in text


def test_a_controlnet_of_another_family_is_refused(world, adapter, recipes):
    wide = recipes.controlnet({**recipes.SD15_TINY, "context_dim": 768})
    text = refused(world, adapter=adapter, control_net=wide)
    assert "was made for SD1.5" in text and "64 wide" in text and "Load ControlNet Model" in text


def test_a_controlnet_that_reads_no_text_is_refused(world, adapter):
    from comfy.controlnet import T2IAdapter

    text = refused(world, adapter=adapter, control_net=T2IAdapter(torch.nn.Identity(), 3, 8, "nearest-exact"))
    assert "T2IAdapter" in text and "reads no text" in text


def test_a_black_picture_is_never_a_silent_hint(world, adapter, net):
    assert "black" in refused(world, adapter=adapter, control_net=net().control, image=torch.zeros(1, 64, 64, 3))


def test_another_recogniser_is_refused_unless_allowed(world, adapter, net, control):
    stranger = person(recogniser="glint360k")
    text = refused(world, adapter=adapter, control_net=net().control, identity=stranger)
    assert "trained on the recogniser antelopev2" in text and "made with glint360k" in text
    options = world.run("LikenessInstantIDOptions", any_recogniser=True)
    assert paint(world, control(net(), identity=stranger, options=options)).isfinite().all()


def test_options_of_another_system_are_refused(world, adapter, net):
    text = refused(world, adapter=adapter, control_net=net().control, options=world.options())
    assert "connect InstantID Options" in text
    assert "connect InstantID Options" in sentence(world.apply, adapter, who(), options=world.options())
    options = world.run("LikenessInstantIDOptions")
    assert "connect IP-Adapter Options" in sentence(world.apply, world.adapter("faceid"), person(), options=options)


@pytest.mark.parametrize("name", ["strength", "start_at", "end_at"])
def test_inputs_that_are_not_numbers_are_refused(world, adapter, net, name):
    assert "enter a number" in refused(world, adapter=adapter, control_net=net().control, **{name: float("nan")})


def test_tokens_lost_on_the_way_are_said(world, control, net):
    from likeness.errors import LikenessError

    on = control(net())
    for prompt in on:
        prompt[0][1].pop("model_conds")
    with pytest.raises(LikenessError, match="connect Identity ControlNet after"):
        paint(world, on)


def test_instantid_s_adapter_in_load_controlnet_model_is_refused_by_the_host(world, adapter):
    """Nothing of ours can make the host's sentence; it must not be taken for a net in silence."""
    from comfy.controlnet import load_controlnet_state_dict

    weights = {f"image_proj.{k}": v for k, v in adapter.adapter.image_proj.state_dict().items()}
    assert load_controlnet_state_dict(weights) is None


@pytest.mark.parametrize("system", ["by content", "InstantID", "IP-Adapter"])
@pytest.mark.parametrize("key", ["controlnet_cond_embedding.conv_in.weight", "zero_convs.0.0.weight"])
def test_instantid_s_controlnet_in_load_identity_adapter_is_told(world, key, system):
    save_file(
        {key: torch.zeros(2, 2), "down_blocks.0.resnets.0.x": torch.zeros(1), "input_blocks.0.x": torch.zeros(1)},
        world.folder / "ipadapter" / "net.safetensors",
    )
    text = sentence(world.run, "LikenessLoadIdentityAdapter", adapter_file="net.safetensors", system=system)
    assert "'net.safetensors' is a ControlNet" in text and "Identity ControlNet" in text
