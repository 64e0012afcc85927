"""SeFi-IDE in the host: golden UNets, a subject's stages in a prompt, several subjects, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conformance import harness
from helpers.host_call import call
from helpers.small_world import sentence
from helpers.subjects import subject
from safetensors.torch import save_file
from torch import Tensor

from likeness.adapters.sefi_ide.file import Subject, subject_metadata, subject_tensors
from likeness.adapters.sefi_ide.networks import stage_of

CASES = [
    path
    for path in harness.find_cases(harness.golden_folder())
    if path.parent.name == "sefi_ide" and "tiny UNet" in harness.read_metadata(path)["variant"]
]


@pytest.fixture(scope="module")
def world(recipes) -> Any:
    clip, model = recipes.tiny_clip(), recipes.tiny_sd15()

    class World:
        def encoded(self, text: str) -> Any:
            return clip.encode_from_tokens_scheduled(clip.tokenize(text))

        def prompt(self, text: str = "a photo of <ann> laughing", *subjects: Subject, **given: Any) -> Any:
            from likeness.nodes.sefi_ide import SubjectPromptNode

            first, *others = subjects or (subject(),)
            more = {f"subject_{number}": other for number, other in enumerate(others, 2)}
            inputs = {"clip": clip, "model": model, "subject": first, "text": text, **more, **given}
            with torch.inference_mode():
                return SubjectPromptNode.execute(**inputs).result

        def paint(self, conditioning: Any, patched: Any = None, negative: Any = None, **options: Any) -> Tensor:
            shape = options.pop("shape", (1, 4, 8, 8))
            plain = self.encoded("blurred")
            return recipes.sample(patched or model, conditioning, negative or plain, shape=shape, **options)

    return World()


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_golden_unet_through_the_model_patcher(path, recipes):
    from likeness.injection.comfy.text import ValuesPatch

    case = harness.read_case(path)
    config, given = dict(case.config), case.inputs
    stages = config.pop("stages")
    base = recipes.unet_from_diffusers(config, case.weights_below("unet."))
    extra = {}
    if "time_ids" in given:
        rows = [base.model.embedder(ids).flatten() for ids in given["time_ids"]]
        extra = {"y": torch.cat([given["text_embeds"], torch.stack(rows)], 1)}
    outputs = []
    for t in given["timesteps"]:
        stage = int(stage_of(t, stages))
        model = base.clone()
        patch = ValuesPatch({"ours": given["context_v"][stage : stage + 1]})
        model.set_model_attn2_patch(
            lambda n, k, v, options, patch=patch: patch(n, k, v, {**options, "uuids": ["ours"]})
        )
        text = given["context_k"][stage : stage + 1]
        outputs.append(call(model, given["sample"], t[None], text, roles=[0], **extra))
    torch.testing.assert_close(
        torch.cat(outputs), case.expected["noise_pred"], rtol=case.rtol, atol=max(case.atol, 1e-5)
    )


def test_tokens_equal_to_the_class_word_are_the_ordinary_prompt(world, recipes):
    from likeness.injection.comfy import ComfyTextEncoder

    clip = recipes.tiny_clip()
    [person] = ComfyTextEncoder(clip).tokenize("person")["clip_l"]
    row = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight[person.id].detach().float()
    same = replace(subject(), tables={"clip_l": row.expand(5, 2, -1).clone()})
    conditioning, model, _ = world.prompt("a photo of <ann> laughing", same)
    ordinary = world.paint(world.encoded("a photo of person laughing"))
    torch.testing.assert_close(world.paint(conditioning, model), ordinary, atol=1e-5, rtol=1e-5)
    other, patched, _ = world.prompt("a photo of <ann> laughing", subject())
    assert not torch.allclose(world.paint(other, patched), ordinary, atol=1e-2)


@pytest.mark.parametrize("stages", [1, 4, 5, 10])
def test_every_timestep_reads_its_own_stage(world, recipes, stages):
    """Whatever the scheduler: each of the host's thousand noise levels lies in exactly one entry, that of its stage."""
    from likeness.injection.comfy.text import _placed, _riding

    one = subject(stages=stages)
    conditioning, model, _ = world.prompt("<ann>", one)
    sampling = model.get_model_object("model_sampling")
    entries = [_placed(dict(told), sampling, ()) for _, told in conditioning]
    assert len(entries) == stages
    for t in (*range(0, 1000, 7), 199, 200, 399, 400, 799, 800, 999):
        sigma = float(sampling.sigma(torch.tensor(float(t))))
        hit = [n for n, e in enumerate(entries) if e.get("timestep_end", -1) <= sigma <= e.get("timestep_start", 1e9)]
        assert hit == [stages - 1 - int(stage_of(torch.tensor(t), stages))], t
    values = [_riding(told).values for _, told in conditioning]
    assert all(v is not None and not torch.equal(v, text) for v, (text, _) in zip(values, conditioning, strict=True))


@pytest.mark.parametrize("scheduler", ["normal", "karras", "ddim_uniform"])
def test_the_subject_decides_and_the_rest_stays(world, scheduler):
    conditioning, model, report = world.prompt()
    drawn = world.paint(conditioning, model, scheduler=scheduler)
    plain = world.paint(world.encoded("a photo of person laughing"), scheduler=scheduler)
    assert "<ann> in 5 parts of the sampling (timesteps 999 to 800, " in report
    assert drawn.isfinite().all() and not torch.allclose(drawn, plain, atol=1e-2)
    other, patched, _ = world.prompt("a photo of <ann> laughing", subject(seed=1))
    assert not torch.allclose(world.paint(other, patched, scheduler=scheduler), drawn, atol=1e-2)
    # The MODEL alone changes nothing: what is new rides on the prompt.
    assert torch.equal(world.paint(world.encoded("a cat"), model), world.paint(world.encoded("a cat")))


def test_it_may_stand_in_the_negative(world):
    negative, model, _ = world.prompt("<ann>")
    text = world.encoded("a photo")
    assert not torch.allclose(world.paint(text, model, negative), world.paint(text), atol=1e-2)


def test_strength_0_and_shares_of_0_are_the_class_word_to_the_bit(world):
    plain = world.paint(world.encoded("a photo of person laughing"))
    for given in ({"strength": 0.0}, {"keys": "0", "values": "0, 0, 0, 0, 0"}):
        conditioning, model, _ = world.prompt(**given)
        assert torch.equal(world.paint(conditioning, model), plain)
    half, model, _ = world.prompt(strength=0.5)
    whole, patched, _ = world.prompt()
    assert not torch.equal(world.paint(half, model), world.paint(whole, patched))


def test_keys_and_values_and_stages_can_be_left_to_the_class_word(world):
    drawn = [world.paint(*world.prompt(**given)[:2]) for given in
             ({}, {"keys": "0"}, {"values": "0"}, {"keys": "0, 1, 1, 1, 1", "values": "0 1 1 1 1"})]  # fmt: skip
    assert all(not torch.equal(one, other) for n, one in enumerate(drawn) for other in drawn[:n])
    conditioning, _, report = world.prompt(keys="0 1 1 1 1", values="0 1 1 1 1")
    assert "in 4 parts" in report and len(conditioning) == 5


def test_two_subjects_and_one_twice_in_prompts_of_any_length(world):
    ann, bob = subject(), subject("<bob>", seed=3)
    both, model, report = world.prompt("<ann> beside <bob>", ann, bob)
    assert "<ann> and <bob>" in report
    one, patched, _ = world.prompt("<ann> beside <bob>", ann, subject("<bob>", seed=4))
    assert not torch.allclose(world.paint(both, model), world.paint(one, patched), atol=1e-2)
    twice = world.prompt("<ann> and (<ann>:1.2), (<ann>)")
    once = world.prompt("<ann> and (person:1.2), (person)")
    assert not torch.allclose(world.paint(*twice[:2]), world.paint(*once[:2]), atol=1e-2)
    long = world.prompt("a very long prompt, " * 30 + "<ann>")
    assert long[0][0][0].shape[1] > 77 and world.paint(*long[:2]).isfinite().all()
    mixed = world.prompt("<ann> beside <bob>", ann, subject("<bob>", stages=3))
    assert len(mixed[0]) == 7 and world.paint(*mixed[:2]).isfinite().all()


def test_a_word_that_is_missing_is_said_and_nothing_changes(world, caplog):
    conditioning, model, report = world.prompt("a photo of a cat")
    assert "<ann> has no effect, because the prompt does not name it" in report and "no effect" in caplog.text
    assert torch.equal(world.paint(conditioning, model), world.paint(world.encoded("a photo of a cat")))


def test_the_steps_of_each_stage_are_told(world):
    import comfy.samplers

    model = world.prompt()[1]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 10)
    report = world.prompt(sigmas=sigmas)[2]
    assert "Of 10 steps: 999 to 800: steps 1 to " in report and "199 to 0: steps " in report


def test_sdxl_reads_both_tables_and_the_class_word_s_pooled_text(recipes):
    from likeness.nodes.sefi_ide import SubjectPromptNode

    clip, model = recipes.tiny_clip(sdxl=True), recipes.tiny_sdxl()
    one = subject(towers=("clip_l", "clip_g"))
    with torch.inference_mode():
        conditioning, patched, _ = SubjectPromptNode.execute(clip=clip, model=model, subject=one, text="<ann>").result
    pooled = clip.encode_from_tokens(clip.tokenize("person"), return_pooled=True)[1]
    assert all(torch.equal(told["pooled_output"], pooled) for _, told in conditioning)
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    drawn = recipes.sample(patched, conditioning, negative, shape=(1, 4, 8, 8))
    assert drawn.isfinite().all()


def test_sd2_reads_the_table_of_its_own_encoder(recipes):
    """OpenCLIP-H: another padding, and the last layer but one."""
    from likeness.nodes.sefi_ide import SubjectPromptNode

    clip, model, one = recipes.tiny_clip(sd2=True), recipes.tiny_sd15(), subject(towers=("clip_h",))
    with torch.inference_mode():
        conditioning, patched, _ = SubjectPromptNode.execute(clip=clip, model=model, subject=one, text="<ann>").result
    plain = clip.encode_from_tokens_scheduled(clip.tokenize("person"))
    assert all(told["pooled_output"].equal(plain[0][1]["pooled_output"]) for _, told in conditioning)
    drawn, without = (
        recipes.sample(*each, plain, shape=(1, 4, 8, 8)) for each in ((patched, conditioning), (model, plain))
    )
    assert drawn.isfinite().all() and not torch.allclose(drawn, without, atol=1e-2)
    foreign = {"clip": clip, "model": model, "subject": subject(), "text": "<ann>"}
    assert "trained for clip_l (64 wide), and the connected CLIP is clip_h" in sentence(
        SubjectPromptNode.execute, **foreign
    )


def test_it_goes_with_other_patches_and_a_control_net(world, recipes, host_nodes):
    conditioning, model, _ = world.prompt()
    doubled = model.clone()
    doubled.set_model_attn2_patch(lambda n, k, v, options: (n, k, v * 2))
    drawn = world.paint(conditioning, model)
    assert not torch.allclose(world.paint(conditioning, doubled), drawn, atol=1e-2)
    net = recipes.controlnet(recipes.SD15_TINY)
    hint = torch.rand(1, 64, 64, 3)
    positive, negative = host_nodes.ControlNetApplyAdvanced().apply_controlnet(
        conditioning, world.encoded(""), net, hint, 1, 0, 1
    )
    assert not torch.allclose(world.paint(positive, model, negative), drawn, atol=1e-3)


def test_what_does_not_fit_is_said(world, recipes):
    assert "clip_l (768 wide)" in sentence(
        world.prompt, "<ann>", replace(subject(), tables={"clip_l": torch.ones(5, 2, 768)})
    )
    assert "cannot tell apart" in sentence(world.prompt, "<ann>", subject(), subject())
    assert "cannot tell apart" in sentence(world.prompt, "<ann>", subject("ann"), subject("anna"))
    several = replace(subject(), class_word="golden retriever")
    assert "is 2 tokens" in sentence(world.prompt, "<ann>", several) and "'golden', 'retriever'" in sentence(
        world.prompt, "<ann>", several
    )
    assert "3 shares for the keys and 5 stages" in sentence(world.prompt, "<ann>", keys="1 1 0")
    for wrong in ("", "x", "1.5", "nan"):
        assert "write numbers from 0 to 1" in sentence(world.prompt, "<ann>", values=wrong)
    assert "connect Load Subject" in sentence(world.prompt, "<ann>", subject_3=3.0)
    assert "no cross-attention" in sentence(world.prompt, "<ann>", model=recipes.tiny_flux())


def test_files_are_loaded_by_name_and_others_refused(host_nodes, tmp_path, monkeypatch):
    import folder_paths

    from likeness.models_download import register_folders
    from likeness.nodes.sefi_ide import LoadSubject

    register_folders()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "sefi_ide", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    save_file(subject_tensors(subject()), tmp_path / "ann.safetensors", subject_metadata(subject()))
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "ann.safetensors").read_bytes()[:200])
    found, report = LoadSubject.execute(file="ann.safetensors", placeholder="<carl>").result
    assert found.placeholder == "<carl>" and "5 stages" in report
    assert torch.equal(found.tables["clip_l"], subject().tables["clip_l"])
    assert "is not a SeFi-IDE subject" in sentence(LoadSubject.execute, file="lora.safetensors")
    assert "cut.safetensors" in sentence(LoadSubject.execute, file="cut.safetensors")
    assert "not found" in sentence(LoadSubject.execute, file="gone.safetensors")
    assert "Train SeFi-IDE" in sentence(LoadSubject.execute, file="(no file in models/sefi_ide)")


def test_a_prompt_for_an_area_leaves_the_negative_as_it_is(world, recipes, monkeypatch):
    """The host copies its entry, uuid and all, into the negative half, with the negative's text."""
    from likeness.injection.comfy.text import ValuesPatch

    seen: dict[int, set[bool]] = {0: set(), 1: set()}
    read = ValuesPatch.__call__

    def noted(self: Any, n: Tensor, context: Tensor, value: Tensor, options: dict) -> Any:
        found = read(self, n, context, value, options)
        roles = options["cond_or_uncond"]
        for role, keys, values in zip(roles, found[1].chunk(len(roles)), found[2].chunk(len(roles)), strict=True):
            seen[role].add(torch.equal(keys, values))
        return found

    monkeypatch.setattr(ValuesPatch, "__call__", noted)
    conditioning, model, _ = world.prompt()
    there = [[text, {**told, "area": (8, 4, 0, 0), "strength": 1.0}] for text, told in conditioning]
    world.paint(there, model)
    assert seen == {0: {False}, 1: {True}}


@pytest.mark.parametrize("negative", ["blurred", "<ann>"])
def test_rows_of_a_batch_may_be_at_different_stages(world, negative):
    """As in ComfyUI's own training, and in samplers that give every frame a noise level of its own."""
    import comfy.samplers

    text, model, _ = world.prompt()
    other, _, _ = world.prompt(negative)
    sampling = model.get_model_object("model_sampling")
    sigmas = sampling.sigma(torch.tensor([950.0, 450.0, 430.0, 20.0]))
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))

    def read(levels: Tensor) -> Tensor:
        """What the MODEL predicts for all rows, each at its level."""
        guider, found = comfy.samplers.CFGGuider(model), []

        def once(denoise: Any, x: Tensor, _sigmas: Tensor, extra_args: Any, **_options: Any) -> Tensor:
            found.append(denoise(x, levels, **extra_args))
            return x

        guider.set_conds(text, other)
        guider.set_cfg(5.0)
        with torch.inference_mode():
            guider.sample(noise, 0 * noise, comfy.samplers.KSAMPLER(once), sampling.sigma(torch.tensor([999.0, 0.0])))
        return found[0]

    together = read(sigmas)
    for row, sigma in enumerate(sigmas):
        alone = read(sigma.expand(4))[row]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(alone, read(sigmas[(row + 2) % 4].expand(4))[row], atol=1e-2)


@pytest.mark.parametrize("word", ["sks", "SKS", "img"])
def test_a_subject_may_have_any_word(world, word):
    other = subject(word, seed=1)
    conditioning, _, _ = world.prompt(f"<ann> and {word}, laughing", subject(), other)
    usual, _, _ = world.prompt("<ann> and <ben>, laughing", subject(), replace(other, placeholder="<ben>"))
    for (one, _), (two, _) in zip(conditioning, usual, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    *_, report = world.prompt(f"she a{word}s and {word}y", other)
    assert "does not name it" in report
