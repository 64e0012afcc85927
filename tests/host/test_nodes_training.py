"""Training in the real host: the tuned MODEL and CLIP are what was trained, cancel and resume change nothing."""

from __future__ import annotations

import contextlib
import csv
import errno
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.datasets import SIDE, STYLE, dataset
from PIL import Image
from safetensors.torch import load_file

from likeness.errors import LikenessError
from likeness.weights.checkpoint_layout import unet_names


@pytest.fixture(scope="module")
def nodes(host_nodes):
    from likeness.nodes import training

    return {node.GET_SCHEMA().node_id.removeprefix("LikenessTrain"): node for node in training.NODES}


@pytest.fixture
def places(host_nodes, tmp_path, monkeypatch):
    """The host with empty output, loras, embeddings and checkpoints folders."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    for kind in ("loras", "embeddings", "checkpoints"):
        (tmp_path / kind).mkdir()
        known = folder_paths.folder_names_and_paths[kind][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], known))
    return tmp_path


@pytest.fixture
def sockets(recipes, places):
    """MODEL, CLIP and VAE of the tiny models, made as the executor makes them."""
    with torch.inference_mode():
        return {"model": recipes.tiny_sd15(), "clip": recipes.tiny_clip(), "vae": recipes.tiny_vae()}


QUICK = {"preview_every": 0, "save_every": 1000}


def run(node, **inputs):
    """model, clip, files, losses, samples"""
    with torch.inference_mode():
        return node.execute(**{**QUICK, **inputs}).result


@contextlib.contextmanager
def trained_network(monkeypatch):
    """Collects the base model as it was at the end of training."""
    from likeness.nodes import training_run

    seen, sample = [], training_run.sample_pictures

    def remember(base, prompts, size, seed):
        seen.append(base)
        return sample(base, prompts, size, seed, steps=1)

    monkeypatch.setattr(training_run, "sample_pictures", remember)
    yield seen


# --- schemas


def test_choices_are_those_of_the_enumerations_that_are_imported_late(nodes):
    from likeness.nodes import training, training_methods
    from likeness.nodes.choices import choices
    from likeness.training.base.lora import Reach
    from likeness.training.methods import dreambooth, method, textual_inversion
    from likeness.training.recipes.denoising import Mask
    from likeness.training.recipes.dreambooth import TunedWeights
    from likeness.training.recipes.textual_inversion import Tether

    assert choices(training_methods.PrecisionChoice) == training.PRECISIONS
    assert tuple(choices(Reach)) == dreambooth.LAYERS
    assert tuple(choices(Mask)) == method.MASKS
    assert tuple(choices(Tether)) == textual_inversion.TETHERS
    assert tuple(choices(TunedWeights)) == dreambooth.TUNED


# --- what comes out


def test_dreambooth_gives_the_model_that_was_trained(nodes, sockets, places, monkeypatch):
    import comfy.model_management

    from likeness.nodes.sockets import schedule_of

    before = {key: value.clone() for key, value in sockets["model"].model.state_dict().items()}
    with trained_network(monkeypatch) as seen:
        model, clip, files, losses, samples = run(
            nodes["DreamBooth"],
            **{"dataset": dataset(), **sockets, "steps": 3, "learning_rate": 0.02, "class_pictures": 1},
            rank=2,
            train_text_encoder=True,
            name="anna",
            layers="transformer",
        )
    [base] = seen
    assert "LoRA: anna.safetensors" in files and "in prompts: ohwx person" in files
    assert losses.shape[-1] == 3 and samples.shape == (1, SIDE, SIDE, 3)
    random = torch.Generator().manual_seed(0)
    z, t = torch.randn(1, 4, 8, 8, generator=random), 300
    schedule = schedule_of(model)
    with torch.no_grad():
        states = base.encode(["a photo of a ohwx person"]).states
        theirs = clip.encode_from_tokens(clip.tokenize("a photo of a ohwx person"))
        assert float((states - theirs).std()) < 0.02 * float(states.std())
        plain = sockets["clip"].encode_from_tokens(sockets["clip"].tokenize("a photo of a ohwx person"))
        assert float((plain - theirs).std()) > 0.02 * float(states.std()), "the LoRA changes the text encoder"

        def host(patcher):
            comfy.model_management.load_models_gpu([patcher])
            sigma = patcher.get_model_object("model_sampling").sigmas[t]
            return patcher.model.apply_model(z, sigma[None], c_crossattn=states)

        acp = schedule.alphas_cumprod[t]
        prediction = base.unet(z * acp.sqrt(), t, states).sample
        ours = schedule.estimate_z0(z * acp.sqrt(), prediction, torch.tensor([t]))
        tuned, untuned = host(model), host(sockets["model"])
    assert float((ours - tuned).std()) < 0.02 * float((tuned - untuned).std()) < float(tuned.std())
    comfy.model_management.unload_all_models()
    after = sockets["model"].model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_an_sdxl_lora_tunes_both_text_encoders(nodes, recipes, places, monkeypatch):
    with torch.inference_mode():
        sockets = {"model": recipes.tiny_sdxl(), "clip": recipes.tiny_clip(sdxl=True), "vae": recipes.tiny_vae()}
    with trained_network(monkeypatch) as seen:
        _, clip, files, _, _ = run(
            nodes["DreamBooth"],
            **{"dataset": dataset(), **sockets, "steps": 3, "learning_rate": 0.02, "prior_weight": 0.0},
            rank=2,
            train_text_encoder=True,
            name="anna",
        )
    assert "LoRA: anna.safetensors" in files
    names = load_file(places / "loras" / "anna.safetensors")
    assert {"_".join(name.split("_")[:2]) for name in names} == {"lora_unet", "lora_te1", "lora_te2"}
    with torch.no_grad():
        trained = seen[0].encode(["a photo of a ohwx person"])
        theirs, plain = (
            encoder.encode_from_tokens(encoder.tokenize("a photo of a ohwx person"), return_pooled=True)
            for encoder in (clip, sockets["clip"])
        )
    for ours, tuned, before in zip((trained.states, trained.pooled), theirs, plain, strict=True):
        assert float((ours - tuned).std()) < 0.1 * float((before - tuned).std())


def test_dreambooth_of_all_weights_gives_the_model_that_was_trained_and_a_checkpoint_of_it(
    nodes, sockets, places, monkeypatch
):
    import comfy.model_management

    from likeness.nodes.sockets import UNET, merged_weights

    before = {key: value.clone() for key, value in sockets["model"].model.state_dict().items()}
    inputs = {
        **sockets,
        "dataset": dataset(),
        "name": "anna",
        "steps": 2,
        "learning_rate": 1e-3,
        "prior_weight": 0.0,
        "train_text_encoder": True,
        "tuned": "all weights (checkpoint)",
    }
    with trained_network(monkeypatch) as seen:
        model, clip, files, _, _ = run(nodes["DreamBooth"], **inputs)
    [base] = seen
    assert "checkpoint: anna.safetensors" in files and "LoRA" not in files
    saved = load_file(places / "checkpoints" / "anna.safetensors")
    tuned, trained = merged_weights(model, UNET), base.unet.state_dict()
    names = unet_names(trained)
    assert {f"model.diffusion_model.{name}" for name in tuned} == {key for key in saved if key.startswith("model.")}
    for key, value in trained.items():
        torch.testing.assert_close(tuned[names[key]], value.float(), atol=1e-3, rtol=1e-3)
        assert not torch.equal(before[f"{UNET}{names[key]}"], tuned[names[key]]) or value.abs().max() == 0
    for key, value in sockets["vae"].get_sd().items():
        torch.testing.assert_close(saved[f"first_stage_model.{key}"].float(), value.float(), atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        states = base.encode(["a photo of a ohwx person"]).states
        theirs = clip.encode_from_tokens(clip.tokenize("a photo of a ohwx person"))
        plain = sockets["clip"].encode_from_tokens(sockets["clip"].tokenize("a photo of a ohwx person"))
    assert float((states - theirs).std()) < 0.1 * float((plain - theirs).std())
    assert "checkpoint: anna.safetensors" in run(nodes["DreamBooth"], **inputs)[2], "it is used, not made again"
    assert [path.name for path in (places / "checkpoints").iterdir()] == ["anna.safetensors"]
    after = sockets["model"].model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    comfy.model_management.unload_all_models()


def test_all_weights_of_the_miniature_are_refused_before_its_class_pictures(nodes, places, monkeypatch):
    from likeness.miniature.models import comfy as miniature
    from likeness.nodes import training_methods

    monkeypatch.setattr(training_methods, "class_pictures", None)
    with torch.inference_mode():
        sockets = {"model": miniature.load_model(), "clip": miniature.load_clip(), "vae": miniature.load_vae()}
    with pytest.raises(LikenessError, match="a model whose VAE a checkpoint can hold"):
        run(nodes["DreamBooth"], dataset=dataset(), **sockets, tuned="all weights (checkpoint)")


def test_cross_attention_and_the_text_encoder_train_together(nodes, sockets, places, monkeypatch):
    with trained_network(monkeypatch):
        choices = {"layers": "cross-attention", "train_text_encoder": True, "rank": 2}
        _, _, files, _, _ = run(nodes["DreamBooth"], dataset=dataset(), **sockets, **choices, steps=1, prior_weight=0.0)
    names = load_file(places / "loras" / files.split("LoRA: ")[1].splitlines()[0])
    assert any("attn2" in name for name in names) and not any("attn1" in name for name in names)
    assert any(name.startswith("lora_te") and "self_attn" in name for name in names)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "float16"}, r"float16 .* does not work on this device"),
        ({"mask": "face", "dataset": dataset(mask=None)}, "has no face mask"),
        ({"dataset": dataset(caption="a person")}, "does not name|ohwx"),
    ],
    ids=["float16 on a CPU", "masks that are not there", "captions without the word"],
)
def test_choices_that_exclude_each_other_are_refused_before_class_pictures(
    nodes, sockets, places, monkeypatch, changes, words
):
    from likeness.nodes import training_methods

    monkeypatch.setattr(training_methods, "class_pictures", None)
    with pytest.raises(LikenessError, match=words):
        run(nodes["DreamBooth"], **{"dataset": dataset(), **sockets, "steps": 1, **changes})


@pytest.mark.parametrize(("name", "stem"), [("anna", "anna"), ("anna (v2)", "anna_v2"), ("安娜, 1", "安娜_1")])
def test_textual_inversion_gives_a_word_that_prompts_can_name(nodes, sockets, places, monkeypatch, name, stem):
    with trained_network(monkeypatch) as seen:
        model, clip, files, _, _ = run(
            nodes["TextualInversion"],
            **{"dataset": dataset(), **sockets, "steps": 2, "learning_rate": 0.05, "vectors": 2, "name": name},
        )
    assert model is sockets["model"] and clip is sockets["clip"]
    said = next(line for line in files.splitlines() if line.startswith("in prompts: ")).removeprefix("in prompts: ")
    assert said == f"embedding:{stem}"
    clip.tokenizer.clip_l.embedding_directory = [str(places / "embeddings")]
    with torch.no_grad():
        theirs = clip.encode_from_tokens(clip.tokenize(f"a photo of a {said} person"))
        ours = seen[0].encode(["a photo of a <ohwx> person"]).states
        plain = clip.encode_from_tokens(clip.tokenize("a photo of a ohwx person"))
    assert torch.allclose(ours, theirs, atol=1e-3)
    assert not torch.allclose(plain, theirs, atol=1e-2), "ohwx is a word of CLIP, and stays what it was"


def test_a_word_at_the_end_of_a_long_caption_is_learned_and_named_there(nodes, sockets, places, monkeypatch):
    filler = ", ".join(["a woman in a long red velvet dress beside an old stone bridge over a quiet river"] * 6)
    inputs = {**sockets, "steps": 10, "learning_rate": 0.05, "tether": "none", "name": "late"}
    with trained_network(monkeypatch) as seen:
        run(nodes["TextualInversion"], dataset=dataset(caption=f"{filler}, ohwx person"), **inputs)
    [tower] = seen[0].text
    word, words = (
        load_file(places / "embeddings" / "late.safetensors")["emb_params"][0],
        tower.encoder.get_input_embeddings(),
    )
    start = words.table.weight[tower.tokenizer("person", add_special_tokens=False).input_ids[0]]
    assert float((word - start).norm()) > 0.5 * float(start.norm()), "0.015 where the caption was cut off before it"
    clip = sockets["clip"]
    clip.tokenizer.clip_l.embedding_directory = [str(places / "embeddings")]
    with torch.no_grad():
        theirs = clip.encode_from_tokens(clip.tokenize(f"{filler}, embedding:late person"))
        ours = seen[0].encode([f"{filler}, <ohwx> person"]).states
    assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("identity_weight", [0.0, 0.5])
def test_magicapture_gives_a_lora_and_two_words(nodes, recipes, sockets, places, files, identity_weight):
    from likeness.faces import load_pack

    three_levels = {"channel_mult": [1, 2, 2], "num_res_blocks": [1] * 3, "transformer_depth": [1] * 3}
    with torch.inference_mode():  # so that there are attention maps of a quarter of the latents' side
        sockets["model"] = recipes.tiny_sd15(**three_levels, transformer_depth_output=[1] * 6)
    pack = places / "packs" / "buffalo_l"
    files.write_detector(pack / "det_10g.onnx", [files.KnownFace(np.zeros((640, 640, 3), np.uint8), *_somewhere())])
    files.write_recogniser(pack / "w600k_r50.onnx")
    model, clip, text, _, _ = run(
        nodes["MagiCapture"],
        **{"person": dataset(), "style": STYLE, **sockets, "inversion_steps": 1, "tuning_steps": 2, "name": "both"},
        identity_weight=identity_weight,
        face_analysis=load_pack(pack),
    )
    assert "embedding:both-person person in the style of embedding:both-style" in text
    assert model.patches and clip.patcher.patches
    with (places / "output" / "likeness" / "runs" / "both" / "losses.csv").open() as table:
        columns = next(csv.reader(table))
    assert ("identity" in columns) == (identity_weight > 0) and "attention" in columns


def _somewhere():
    box = np.array([200, 200, 400, 400], np.float32)
    return box, np.array([(260, 270), (340, 270), (300, 310), (270, 350), (330, 350)], np.float32)


@contextlib.contextmanager
def no_training(monkeypatch):
    """Fails where a step is made."""
    from likeness.training import engine

    with monkeypatch.context() as patch:
        patch.setattr(engine._SharedRun, "gradients", None)
        yield


def test_a_finished_training_is_not_repeated_and_nothing_is_overwritten(nodes, sockets, places, monkeypatch):
    from likeness.nodes import training_run

    inputs = {"dataset": dataset(), **sockets, "steps": 1, "name": "anna"}
    run(nodes["TextualInversion"], **inputs)
    first = (places / "embeddings" / "anna.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "train", None)
        assert "embedding: anna.safetensors" in run(nodes["TextualInversion"], **inputs)[2]
    text = run(nodes["TextualInversion"], **inputs, seed=1)[2]
    assert "embedding: anna_2.safetensors" in text and "run: anna_2" in text
    assert (places / "embeddings" / "anna.safetensors").read_bytes() == first


def test_lost_products_of_a_training_are_made_again_from_its_state(nodes, sockets, places, monkeypatch):
    """A moved or renamed file, other sample prompts, images that are gone or damaged, another name."""
    inputs = {"dataset": dataset(), **sockets, "steps": 2, "rank": 2, "class_pictures": 1, "name": "anna"}
    _, _, _, losses, samples = run(nodes["DreamBooth"], **inputs)
    loras, folder = places / "loras", places / "output" / "likeness" / "runs" / "anna"
    whole = load_file(loras / "anna.safetensors")
    (loras / "people").mkdir()
    pictures = places / "output" / "likeness" / "class_pictures"
    with no_training(monkeypatch):
        (loras / "anna.safetensors").rename(loras / "people" / "mine.safetensors")
        pictures.rename(places / "moved")
        text = run(nodes["DreamBooth"], **inputs)[2]
        assert "LoRA: anna.safetensors" in text and "run: anna" in text.splitlines()
        again = load_file(loras / "anna.safetensors")
        assert all(torch.equal(again[key], whole[key]) for key in whole) and again.keys() == whole.keys()
        assert not pictures.exists(), "nothing is left to be learned from them"
        moon = run(nodes["DreamBooth"], **inputs, sample_prompts="the moon\na {} person")[4]
        assert moon.shape[0] == 2 and not torch.equal(moon[0], samples[0])
        assert torch.equal(run(nodes["DreamBooth"], **inputs)[4], samples)
        for name in ("losses.png", "sample_0.png", "finished.json"):
            for content in (None, b"", b"[" * 100_000):
                (folder / name).unlink()
                if content is not None:
                    (folder / name).write_bytes(content)
                found = run(nodes["DreamBooth"], **inputs)
                assert "LoRA: anna.safetensors" in found[2].splitlines()
                assert torch.equal(found[3], losses) and torch.equal(found[4], samples)
        text = run(nodes["DreamBooth"], **{**inputs, "name": "clara", "sample_prompts": "a {} person"})[2]
        assert "LoRA: clara.safetensors" in text and "run: anna" in text.splitlines()
    assert sorted(path.name for path in loras.iterdir()) == ["anna.safetensors", "clara.safetensors", "people"]
    assert (folder / "finished.damaged.json").exists() and (folder / "finished.damaged_2.json").exists()


def test_more_steps_go_on_from_a_training_and_give_what_they_would_have_given(nodes, sockets, places, monkeypatch):
    from likeness.training import engine

    made, gradients = [], engine._SharedRun.gradients
    monkeypatch.setattr(engine._SharedRun, "gradients", lambda self, f: made.append(self.step) or gradients(self, f))
    inputs = {"dataset": dataset(), **sockets, "prior_weight": 0.0, "rank": 2}
    run(nodes["DreamBooth"], **inputs, steps=2, name="anna")
    text = run(nodes["DreamBooth"], **inputs, steps=4, name="anna")[2]
    assert made == [0, 1, 2, 3] and "LoRA: anna_2.safetensors" in text and "run: anna_2" in text
    text = run(nodes["DreamBooth"], **inputs, steps=2, name="anna", class_pictures=7)[2]
    assert "LoRA: anna.safetensors" in text and "run: anna" in text.splitlines(), "class pictures weigh nothing here"
    assert len(made) == 4
    run(nodes["DreamBooth"], **inputs, steps=4, name="anna", learning_rate=2e-4)
    assert len(made) == 8, "another rate is another training"
    places.joinpath("output", "likeness", "runs").rename(places / "forgotten")
    run(nodes["DreamBooth"], **inputs, steps=4, name="unbroken")
    prolonged, unbroken = (load_file(places / "loras" / f"{name}.safetensors") for name in ("anna_2", "unbroken"))
    assert all(torch.equal(prolonged[key], unbroken[key]) for key in unbroken)


def test_a_cancelled_training_goes_on_with_other_prompts_and_steps_in_its_folder(nodes, sockets, places, monkeypatch):
    import comfy.model_management as host

    from likeness.training import engine

    made, gradients = [], engine._SharedRun.gradients
    inputs = {"dataset": dataset(), **sockets, "name": "anna"}

    def step(self, loss_of):
        made.append(self.step)
        value = gradients(self, loss_of)
        if made == [0, 1]:  # a newer host looks for it within a step too
            host.interrupt_current_processing()
        return value

    monkeypatch.setattr(engine._SharedRun, "gradients", step)
    with pytest.raises(host.InterruptProcessingException):
        run(nodes["TextualInversion"], **inputs, steps=6)
    assert made == [0, 1]
    text = run(nodes["TextualInversion"], **inputs, steps=3, sample_prompts="a {} person at sea")[2]
    assert made == [0, 1, 2] and "run: anna" in text.splitlines()


@pytest.mark.parametrize("kind", ["DreamBooth", "MagiCapture"])
def test_a_lora_of_the_list_is_trained_further(nodes, sockets, recipes, places, monkeypatch, kind):
    inputs = {"dataset": dataset(), **sockets, "steps": 1, "prior_weight": 0.0, "rank": 3, "learning_rate": 0.01}
    run(nodes["DreamBooth"], **inputs, name="first", train_text_encoder=True)
    if kind == "MagiCapture":
        inputs = {"person": dataset(), "style": STYLE, **sockets, "inversion_steps": 1, "tuning_steps": 3}
        inputs |= {"identity_weight": 0.0, "attention_weight": 0.0}
    node = nodes[kind]
    assert "first.safetensors" in next(i for i in node.GET_SCHEMA().inputs if i.id == "start_from").options
    text = run(node, **{**inputs, "rank": 8}, name="more", start_from="first.safetensors")[2]
    assert "LoRA: more.safetensors" in text
    first, more = (load_file(places / "loras" / f"{name}.safetensors") for name in ("first", "more"))
    assert first.keys() == more.keys() and all(first[key].shape == more[key].shape for key in first)
    assert any(not torch.equal(first[key], more[key]) for key in first)
    with no_training(monkeypatch):
        text = run(node, **{**inputs, "rank": 9}, name="more", start_from="first.safetensors")[2]
        assert "LoRA: more.safetensors" in text, "the file's rank counts"
    before = node.fingerprint_inputs(start_from="first.safetensors")
    (places / "loras" / "more.safetensors").replace(places / "loras" / "first.safetensors")
    assert node.fingerprint_inputs(start_from="first.safetensors") != before
    assert node.validate_inputs(start_from="first.safetensors") is True
    assert "'gone.safetensors' was not found" in node.validate_inputs(start_from="gone.safetensors")
    with pytest.raises(LikenessError, match="start_from is 5, not a name"):
        run(node, **inputs, start_from=5)


def test_a_training_that_another_process_works_on_is_left_alone(nodes, sockets, places):
    inputs = {"dataset": dataset(), **sockets, "steps": 1, "name": "anna"}
    run(nodes["TextualInversion"], **inputs)
    folder = places / "output" / "likeness" / "runs" / "anna"
    (places / "embeddings" / "anna.safetensors").unlink()
    code = "import pathlib, sys; from likeness import locks; held = locks.locked(pathlib.Path(sys.argv[1]), '');"
    code += "held.__enter__(); print('held', flush=True); sys.stdin.read()"
    command, pipe = [sys.executable, "-c", code, str(folder)], subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(LikenessError, match=f"in use by process {other.pid} on"):
            run(nodes["TextualInversion"], **inputs)
        other.communicate()
    assert "embedding: anna.safetensors" in run(nodes["TextualInversion"], **inputs)[2]


def test_class_pictures_are_painted_once_for_all_trainings_of_a_model(nodes, sockets, recipes, places, monkeypatch):
    from likeness.training import class_pictures

    inputs = {"dataset": dataset(), **sockets, "steps": 1, "class_pictures": 2, "name": "anna"}
    painted, paint = [], class_pictures.sample_pictures
    monkeypatch.setattr(class_pictures, "sample_pictures", lambda *a, **k: painted.append(a) or paint(*a, **k, steps=1))
    run(nodes["DreamBooth"], **inputs)
    run(nodes["DreamBooth"], **inputs, seed=1)
    assert len(painted) == 2
    with torch.inference_mode():
        inputs["model"] = recipes.tiny_sd15(seed=5)
    run(nodes["DreamBooth"], **inputs)
    assert len(painted) == 4
    assert len(list((places / "output" / "likeness" / "class_pictures").iterdir())) == 2


def test_what_does_not_decide_over_the_weights_starts_no_new_run(nodes, sockets, places, monkeypatch):
    from likeness.nodes import training_run

    inputs = {"dataset": dataset(), **sockets, "steps": 2, "name": "anna"}
    run(nodes["TextualInversion"], **inputs)
    monkeypatch.setattr(training_run, "train", None)
    text = run(nodes["TextualInversion"], **inputs, preview_every=1, save_every=7, gradient_checkpointing=True)[2]
    assert "run: anna" in text.splitlines()


def test_another_text_encoder_is_another_training(nodes, sockets, recipes, places):
    inputs = {"dataset": dataset(), **sockets, "steps": 1, "name": "anna"}
    run(nodes["TextualInversion"], **inputs)
    with torch.inference_mode():
        inputs["clip"] = recipes.tiny_clip(seed=5)
    assert "run: anna_2" in run(nodes["TextualInversion"], **inputs)[2].splitlines()


@pytest.mark.parametrize("at", ["results", "samples", "list", "previews"])
def test_a_full_disk_is_named_and_leaves_no_scraps(nodes, sockets, places, monkeypatch, at):
    from likeness.nodes import training_run

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    inputs = {"dataset": dataset(), **sockets, "steps": 2, "name": "anna"}
    with monkeypatch.context() as patch:
        if at == "results":
            patch.setattr(training_run.shutil, "copyfile", full)
        elif at == "samples":
            patch.setattr(training_run, "write_whole", full)
        elif at == "list":
            note = training_run._note
            patch.setattr(training_run, "_note", lambda f, made: full() if made.files else note(f, made))
        else:
            patch.setattr(Image.Image, "save", full)
        with pytest.raises(LikenessError, match="No space left"):
            run(nodes["TextualInversion"], **{**inputs, **({"preview_every": 1} if at == "previews" else {})})
    left = [path.name for path in (places / "embeddings").rglob("*")]
    assert left == (["anna.safetensors"] if at == "list" else [])
    assert all(load_file(path) for path in (places / "embeddings").rglob("*"))
    assert "embedding: anna" in run(nodes["TextualInversion"], **inputs)[2]


# --- what goes wrong


def test_mistakes_are_said_before_anything_is_loaded(nodes, sockets, places):
    person, mc = dataset(), nodes["MagiCapture"]
    for node, inputs, sentence in (
        (nodes["DreamBooth"], {"dataset": "x"}, "'dataset' holds a str: connect Portrait Dataset"),
        (nodes["DreamBooth"], {"dataset": person, "layers": "all"}, "'all' is not a choice for layers"),
        (nodes["DreamBooth"], {"dataset": person, "tuned": "all"}, "'all' is not a choice for tuned"),
        (nodes["DreamBooth"], {"dataset": person, "learning_rate": float("nan")}, "learning_rate is nan"),
        (nodes["DreamBooth"], {"dataset": person, "learning_rate": 0.0}, "learning_rate cannot be 0"),
        (nodes["DreamBooth"], {"dataset": person, "name": "../x"}, "The name '../x' holds '/'"),
        (mc, {"person": STYLE, "style": person}, "'person' holds a dataset of a style"),
        (mc, {"person": person, "style": replace(STYLE, trigger="ohwx")}, "have the same trigger word 'ohwx'"),
        (mc, {"person": dataset(mask=None), "style": STYLE}, "has no face mask"),
        (mc, {"person": person, "style": STYLE}, "connect a face analysis, or set identity_weight to 0"),
        (nodes["TextualInversion"], {"dataset": person, "steps": 0}, "steps (cannot be|is) 0: "),
        (nodes["TextualInversion"], {"dataset": dataset(mask=None), "mask": "face"}, "has no face mask"),
    ):
        with pytest.raises(LikenessError, match=sentence):
            run(node, **sockets, **inputs)


def test_missing_packages_are_named(nodes, sockets, monkeypatch):
    from likeness.nodes import training

    monkeypatch.setattr(training, "PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(LikenessError, match="pip install no_such_package"):
        run(nodes["TextualInversion"], dataset=dataset(), **sockets)


def test_an_analysis_without_gradient_is_refused(host_nodes):
    from likeness.faces import load_lbp
    from likeness.nodes.training_run import measure_on

    with pytest.raises(LikenessError, match="no recogniser that training can use"):
        measure_on(load_lbp(), torch.device("cpu"))


# --- methods that a registry line adds


def test_a_method_of_two_concepts_is_a_node_with_both(sockets, places, monkeypatch):
    from helpers.toy_method import TOY

    from likeness.nodes import training
    from likeness.training import methods

    monkeypatch.setattr(methods, "METHODS", [*methods.METHODS, TOY])
    node = training.node_of(TOY)
    schema = node.GET_SCHEMA()
    assert schema.node_id == "LikenessTrainToyStages"
    assert [given.id for given in schema.inputs[:2]] == ["person", "place"]
    photos = {"person": dataset(), "place": dataset(trigger="rome", count=3)}
    with trained_network(monkeypatch) as seen:
        _, _, files, losses, samples = run(node, **photos, **sockets, steps=2, name="both")
    assert len(seen) == 1 and "both.safetensors" in files and "both_2.safetensors" in files
    assert sorted(path.name for path in (places / "embeddings").iterdir()) == ["both.safetensors", "both_2.safetensors"]
    assert losses.shape[-1] == 3 and samples.shape == (1, SIDE, SIDE, 3)
    with pytest.raises(LikenessError, match="have the same trigger word"):
        run(node, **photos | {"place": dataset()}, **sockets, steps=2)
