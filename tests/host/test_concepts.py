"""Custom Diffusion in the host: golden UNets, weights and words in MODEL and CLIP, merging, compressing, saving."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from conformance import harness
from helpers import datasets
from helpers.concepts import WIDTH, concept
from helpers.host_call import call
from helpers.small_world import sentence
from torch import Tensor

from likeness.weights.concepts import Concept, Layout, load_concept, read_concept
from likeness.weights.embedding_files import TokenEmbedding

CASES = [
    path
    for path in harness.find_cases(harness.golden_folder())
    if path.parent.name == "custom_diffusion" and "end to end" in harness.read_metadata(path)["variant"]
]


@pytest.fixture(scope="module")
def runner() -> Any:
    from conformance.runners import custom_diffusion

    return custom_diffusion


@pytest.fixture(scope="module")
def world(recipes) -> dict[str, Any]:
    return {"model": recipes.tiny_sd15(), "clip": recipes.tiny_clip()}


@pytest.fixture(scope="module")
def nodes(host_nodes) -> dict[str, Any]:
    from likeness.nodes import concepts

    return {node.GET_SCHEMA().node_id.removeprefix("Likeness"): node for node in concepts.NODES}


@pytest.fixture
def folder(host_nodes, tmp_path) -> Any:
    import folder_paths

    from likeness.models_download import register_folders

    register_folders()
    before = folder_paths.folder_names_and_paths["custom_diffusion"]
    folder_paths.folder_names_and_paths["custom_diffusion"] = ([str(tmp_path)], before[1])
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.folder_names_and_paths["custom_diffusion"] = before


def run(node: Any, **given: Any) -> Any:
    wanted = inspect.signature(node.execute).parameters
    defaults = {i.id: i.default for i in node.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in wanted.values())
    with torch.inference_mode():
        return node.execute(**{k: v for k, v in defaults.items() if takes_all or k in wanted} | given).result


# Golden cases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_golden_unet_through_the_model_patcher(path, runner, recipes):
    from likeness.injection.comfy.concepts import apply_concept

    case = harness.read_case(path)
    given = case.inputs
    base = recipes.unet_from_diffusers(runner.unet_config(case), case.weights_below("unet."))
    extra = {}
    if "time_ids" in given:
        rows = [base.model.embedder(ids).flatten() for ids in given["time_ids"]]
        extra = {"y": torch.cat([given["text_embeds"], torch.stack(rows)], 1)}
    found = runner.concept_of(case)
    model = apply_concept(base, None, found).model
    roles = [0] * 1 if len(given["sample"]) == 1 else list(range(len(given["sample"])))
    eps = torch.cat(
        [
            call(
                model, given["sample"][row : row + 1], given["timestep"], given["encoder_hidden_states"][row : row + 1],
                roles=[0], **{name: value[row : row + 1] for name, value in extra.items()},
            )
            for row in roles
        ]
    )  # fmt: skip
    torch.testing.assert_close(eps, case.expected["noise_pred"], rtol=case.rtol, atol=case.atol)


# MODEL ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [False, True])
def test_strength_1_gives_the_trained_weights_and_0_the_base_bit_for_bit(world, recipes, queries):
    from likeness.injection.comfy.concepts import apply_concept
    from likeness.nodes.sockets import merged_weights

    model, learned = world["model"], concept(world["model"], queries=queries)
    before = merged_weights(model, "diffusion_model.")
    import comfy.utils

    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    whole = merged_weights(apply_concept(model, None, learned, 1.0).model, "diffusion_model.")
    for name, value in learned.weights.items():
        torch.testing.assert_close(whole[names[name]], value, rtol=1e-6, atol=1e-7)
    untouched = set(before) - {names[name] for name in learned.weights}
    assert all(torch.equal(before[name], whole[name]) for name in untouched)
    text = [recipes.conditioning(WIDTH, seed=1), recipes.conditioning(WIDTH, seed=2)]
    shape = {"steps": 2, "shape": (1, 4, 8, 8)}
    plain = recipes.sample(model, *text, **shape)
    assert torch.equal(recipes.sample(apply_concept(model, None, learned, 0.0).model, *text, **shape), plain)
    assert not torch.allclose(recipes.sample(apply_concept(model, None, learned).model, *text, **shape), plain)
    after = merged_weights(model, "diffusion_model.")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_that_is_loaded_with_other_patches_still_tells_its_own_weights(world):
    import comfy.model_management

    from likeness.injection.comfy.concepts import apply_concept
    from likeness.injection.comfy.weights import base_weights

    model, learned = world["model"], concept(world["model"])
    own = base_weights(model, lambda name: name in learned.weights)
    other = apply_concept(model, None, concept(model, seed=5)).model
    comfy.model_management.load_models_gpu([other])
    try:
        for patcher in (model, other):
            again = base_weights(patcher, lambda name: name in learned.weights)
            assert all(torch.equal(again[name], value) for name, value in own.items())
    finally:
        comfy.model_management.unload_all_models()


def test_a_pair_stays_a_pair_and_the_same_concept_is_not_added_twice(world, nodes):
    small, report = run(nodes["CompressConcept"], model=world["model"], concept=concept(world["model"]))
    assert "became" in report
    once = run(nodes["ApplyConcept"], **world, concept=small)[0]
    (patch, *_) = next(iter(once.patches.values()))
    assert type(patch[1]).__name__ == "LoRAAdapter"
    twice = run(nodes["ApplyConcept"], model=once, clip=world["clip"], concept=small)[0]
    assert {name: len(p) for name, p in twice.patches.items()} == dict.fromkeys(once.patches, 1)


def test_reports_say_what_changes_and_what_is_foreign(world, nodes, recipes):
    learned = concept(world["model"])
    report = run(nodes["ApplyConcept"], **world, concept=learned)[2]
    assert "14 weights changed" in report and "words: <new1>" in report and "another base" not in report
    half = Concept("half", (Layout.DELTA,), dict(list(learned.weights.items())[:4]), {})
    report = run(nodes["ApplyConcept"], **world, concept=half)[2]
    assert "10 keys and values are not in the file" in report and "attn2.to_k.weight" in report
    other = {"model": recipes.tiny_sd15(seed=7), "clip": world["clip"]}
    assert "another base model" in run(nodes["ApplyConcept"], **other, concept=learned)[2]


def test_another_family_is_named(world, nodes, recipes):
    learned = concept(world["model"])
    text = sentence(run, nodes["ApplyConcept"], model=recipes.tiny_sdxl(), clip=world["clip"], concept=learned)
    assert "64" in text and "128" in text
    flux = recipes.tiny_flux()
    assert "no cross-attention" in sentence(run, nodes["ApplyConcept"], model=flux, clip=world["clip"], concept=learned)


# CLIP -----------------------------------------------------------------------------------------------------------------


def ids(clip: Any, text: str) -> list[Any]:
    return [token for token, _ in clip.tokenize(text)["l"][0]]


def vector_places(clip: Any, text: str) -> list[tuple[int, float]]:
    pairs = clip.tokenize(text)["l"][0]
    return [(n, weight) for n, (token, weight) in enumerate(pairs) if isinstance(token, Tensor)]


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("a photo of a <new1> cat", [(5, 1.0)]),
        ("<new1>, smiling", [(1, 1.0)]),
        ("(<new1> cat:1.3), (<new1>)", [(1, 1.3), (4, 1.1)]),
        ("a<NEW1>cat", [(2, 1.0)]),
        ("nobody", []),
        ("<new1><new1>", [(1, 1.0), (2, 1.0)]),
    ],
)
def test_words_stand_where_the_prompt_says_them(world, text, places):
    from likeness.injection.comfy.words import with_words

    learned = concept(world["model"])
    clip = with_words(world["clip"], learned.tokens)
    found = vector_places(clip, text)
    assert [n for n, _ in found] == [n for n, _ in places]
    assert [w for _, w in found] == pytest.approx([w for _, w in places])
    assert not vector_places(world["clip"], text), "the given CLIP is left as it is"
    for n, _ in found:
        assert torch.equal(ids(clip, text)[n], learned.tokens["<new1>"].vectors["clip_l"][0])


def test_the_text_around_a_word_is_what_it_was(world):
    from likeness.injection.comfy.words import with_words

    clip = with_words(world["clip"], concept(world["model"]).tokens)
    plain = [i for i in ids(world["clip"], "a photo of a cat, smiling") if i not in (49406, 49407)]
    told = [i for i in ids(clip, "a photo of a <new1> cat, smiling") if not isinstance(i, Tensor)]
    assert [i for i in told if i not in (49406, 49407)] == plain


def test_an_embedding_file_of_the_host_says_the_same(world, tmp_path):
    from likeness.injection.comfy.words import with_words

    learned = concept(world["model"])
    torch.save({"<new1>": learned.tokens["<new1>"].vectors["clip_l"][0]}, tmp_path / "anna.pt")
    clip = world["clip"].clone()
    import copy

    clip.tokenizer = copy.copy(clip.tokenizer)
    clip.tokenizer.clip_l = copy.copy(clip.tokenizer.clip_l)
    clip.tokenizer.clip_l.embedding_directory = [str(tmp_path)]
    clip.tokenizer.clip_l.embedding_size = WIDTH
    theirs = clip.encode_from_tokens(clip.tokenize("a photo of a embedding:anna cat"))
    ours = with_words(world["clip"], learned.tokens)
    assert torch.equal(theirs, ours.encode_from_tokens(ours.tokenize("a photo of a <new1> cat")))
    both = with_words(clip, learned.tokens)
    assert len(vector_places(both, "a embedding:anna and a <new1> cat")) == 2


def test_two_concepts_teach_both_words_and_one_word_twice_is_refused(world, nodes):
    one, two = concept(world["model"], "<anna>"), concept(world["model"], "<bob>", seed=1)
    _, clip, _ = run(nodes["ApplyConcept"], **world, concept=one)
    both = run(nodes["ApplyConcept"], model=world["model"], clip=clip, concept=two)[1]
    assert len(vector_places(both, "a <anna> person and a <bob> person")) == 2
    assert "knows the word <anna> already" in sentence(
        run, nodes["ApplyConcept"], model=world["model"], clip=clip, concept=one
    )


def test_words_of_another_text_encoder_are_refused(world, nodes):
    wide = Concept("x", (Layout.TOKENS,), {}, {"<a>": TokenEmbedding({"clip_l": torch.randn(1, 48)})})
    assert "width 48" in sentence(run, nodes["ApplyConcept"], **world, concept=wide)
    sdxl = Concept(
        "x", (Layout.TOKENS,), {}, {"<a>": TokenEmbedding({k: torch.ones(1, 64) for k in ("clip_l", "clip_g")})}
    )
    assert "clip_l and clip_g" in sentence(run, nodes["ApplyConcept"], **world, concept=sdxl)


def test_sdxl_has_the_word_in_both_encoders(recipes):
    from likeness.injection.comfy.words import with_words

    vectors = {"clip_l": torch.randn(1, 64), "clip_g": torch.randn(1, 64)}
    clip = with_words(recipes.tiny_clip(sdxl=True), {"<a>": TokenEmbedding(vectors)})
    found = clip.tokenize("a <a> cat")
    assert all(isinstance(found[tower][0][2][0], Tensor) for tower in ("l", "g"))
    assert torch.equal(found["g"][0][2][0], vectors["clip_g"][0])


def test_a_text_encoder_in_the_file_comes_along(world):
    from likeness.injection.comfy.concepts import apply_concept
    from likeness.nodes.sockets import merged_weights

    own = merged_weights(world["clip"].patcher, "")
    name = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    table = "clip_l.transformer.text_model.embeddings.token_embedding.weight"
    grown = torch.cat([own[table] + 0.01, torch.ones(1, WIDTH)])
    text = {name.removeprefix("clip_l.transformer."): own[name] + 0.1, table.removeprefix("clip_l.transformer."): grown}
    content = {"unet": {}, "modifier_token": {"<new1>": torch.ones(WIDTH)}, "text_encoder": text}
    applied = apply_concept(world["model"], world["clip"], read_concept(content, "delta.bin"))
    after = merged_weights(applied.clip.patcher, "")
    torch.testing.assert_close(after[name], own[name] + 0.1)
    torch.testing.assert_close(after[table], own[table] + 0.01)


# Merge and save -------------------------------------------------------------------------------------------------------


def test_merged_concepts_do_what_each_did_alone(world, nodes):
    from likeness.injection.comfy.concepts import apply_concept, features
    from likeness.injection.comfy.encoders import ComfyTextEncoder
    from likeness.injection.comfy.weights import base_weights
    from likeness.weights.concepts import whole_weights

    learned = [concept(world["model"], f"<{name}>", seed=n) for n, name in enumerate(("anna", "bob", "cleo"))]
    given = {f"concept_{n}": each for n, each in enumerate(learned, 1)}
    said = {f"phrase_{n}": f"<{name}> person" for n, name in enumerate(("anna", "bob", "cleo"), 1)}
    merged, report = run(nodes["MergeConcepts"], **world, **given, **said)
    assert (
        "Merged 3 concepts" in report and "residual" in report and list(merged.tokens) == ["<anna>", "<bob>", "<cleo>"]
    )
    applied = apply_concept(world["model"], world["clip"], merged)
    encoder = ComfyTextEncoder(applied.clip)
    base = base_weights(world["model"], lambda name: name in merged.weights)
    for each, phrase in zip(learned, said.values(), strict=True):
        text = features(encoder, f"photo of a {phrase}", "photo of a")
        assert len(text) == 3  # word, class word, end
        alone = whole_weights(each, base)
        for name, value in whole_weights(merged, base).items():
            torch.testing.assert_close(text @ value.T, text @ alone[name].T, rtol=2e-3, atol=2e-3)


def test_queries_are_averaged_and_it_is_said(world, nodes):
    one, two = (concept(world["model"], f"<{w}>", seed=n, queries=True) for n, w in enumerate("ab"))
    merged, report = run(nodes["MergeConcepts"], **world, concept_1=one, concept_2=two)
    assert "21 weights of queries and output" in report
    name = next(name for name in merged.weights if "to_q" in name)
    torch.testing.assert_close(merged.weights[name], (one.weights[name] + two.weights[name]) / 2)


def test_few_captions_take_a_ridge_and_styles_their_own_prefix(world, nodes):
    one, two = concept(world["model"], "<a>"), concept(world["model"], "<b>", seed=1)
    _, report = run(
        nodes["MergeConcepts"], **world, concept_1=one, concept_2=two, captions="a dog\na house", style_2=True
    )
    assert "ridge" in report


def test_what_cannot_be_merged_is_said(world, nodes):
    one = concept(world["model"], "<a>")
    plain = Concept("plain", (Layout.DELTA,), one.weights, {})
    assert "phrase_2" in sentence(run, nodes["MergeConcepts"], **world, concept_1=one, concept_2=plain)
    assert "already" in sentence(run, nodes["MergeConcepts"], **world, concept_1=one, concept_2=one)
    assert "concept_2 holds a str" in sentence(run, nodes["MergeConcepts"], **world, concept_1=one, concept_2="x")


@pytest.mark.parametrize("form", ["safetensors", "delta.bin (official)"])
def test_saved_concepts_are_loaded_and_renamed(world, nodes, folder, form):
    learned = concept(world["model"])
    (file,) = run(nodes["SaveConcept"], concept=learned, filename="anna", format=form)
    assert (folder / file).is_file()
    again, report = run(nodes["LoadConcept"], file=file, words="<anna>")
    assert "words: <anna>; 14 weights" in report and again.id == learned.id
    assert list(load_concept(folder / file).tokens) == ["<new1>"]
    assert run(nodes["SaveConcept"], concept=learned, filename="anna", format=form)[0] != file
    assert "gets 2 names" in sentence(run, nodes["LoadConcept"], file=file, words="a b")


def test_files_that_are_not_there_are_said(nodes, folder):
    assert "no file in models/custom_diffusion" in sentence(
        run, nodes["LoadConcept"], file="(no file in models/custom_diffusion)"
    )
    assert "was not found" in sentence(run, nodes["LoadConcept"], file="gone.bin")


# Training -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def training(host_nodes, folder, tmp_path, monkeypatch) -> Any:
    """The node that trains, its sockets as the executor makes them, and empty folders of the host."""
    import folder_paths

    from likeness.nodes.training import NODES

    for kind in ("input", "output"):
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
        (tmp_path / kind).mkdir()
    known = folder_paths.folder_names_and_paths["embeddings"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(tmp_path / "embeddings")], known))
    return next(node for node in NODES if node.GET_SCHEMA().node_id == "LikenessTrainCustomDiffusion")


def photos(trigger: str, count: int = 2) -> Any:
    return datasets.dataset(trigger=trigger, count=count)


def trained(node: Any, recipes: Any, **given: Any) -> Any:
    with torch.inference_mode():
        sockets = {"model": recipes.tiny_sd15(), "clip": recipes.tiny_clip(), "vae": recipes.tiny_vae()}
    quick = {"preview_every": 0, "steps": 2, "learning_rate": 0.01, "start_words": "person man", "class_pictures": 1}
    return sockets, run(node, **{**sockets, **quick, **given})


def test_the_node_trains_one_concept_and_its_outputs_have_it(training, recipes, tmp_path):
    sockets, (model, clip, files, losses, _) = trained(training, recipes, dataset=photos("anna"), name="anna")
    assert "concept: anna.safetensors" in files and "embedding: anna-anna.safetensors" in files
    assert losses.shape[-1] == 3 and "a embedding:anna-anna person" in files
    learned = load_concept(tmp_path / "anna.safetensors")
    assert learned.phrases == ["<anna> person"] and any("to_q" in name for name in learned.weights)
    assert vector_places(clip, "a photo of a <anna> person") == [(5, 1.0)]
    from comfy.sd1_clip import load_embed

    theirs = load_embed("anna-anna", [str(tmp_path / "embeddings")], WIDTH, "clip_l")
    assert torch.equal(theirs, learned.tokens["<anna>"].vectors["clip_l"]), "the host's own loader reads the word"
    from likeness.injection.comfy.concepts import apply_concept

    text = [recipes.conditioning(WIDTH, seed=1), recipes.conditioning(WIDTH, seed=2)]
    shape = {"steps": 2, "shape": (1, 4, 8, 8)}
    loaded = apply_concept(sockets["model"], None, learned)
    assert not loaded.foreign
    assert torch.equal(recipes.sample(model, *text, **shape), recipes.sample(loaded.model, *text, **shape))
    assert not torch.equal(recipes.sample(model, *text, **shape), recipes.sample(sockets["model"], *text, **shape))


def test_two_concepts_are_learned_together_and_a_folder_of_the_class_is_read(training, recipes, tmp_path):
    import numpy as np
    from PIL import Image

    (tmp_path / "input" / "class").mkdir()
    Image.fromarray(np.zeros((70, 90, 3), np.uint8)).save(tmp_path / "input" / "class" / "a.png")
    both = {"dataset": photos("anna"), "dataset_2": photos("bob")}
    _, (_, clip, files, *_) = trained(
        training, recipes, **both, name="two", class_folder="class", layers="keys and values"
    )
    learned = load_concept(tmp_path / "two.safetensors")
    assert list(learned.tokens) == ["<anna>", "<bob>"] and not any("to_q" in name for name in learned.weights)
    assert len(vector_places(clip, "a <anna> person and a <bob> person")) == 2
    assert "a embedding:two-anna person and a embedding:two-bob person" in files


def test_what_the_node_cannot_train_is_said(training, recipes):
    assert "start from is" in sentence(trained, training, recipes, dataset=photos("anna"), start_words="unbelievably?!")
    assert "was not found" in sentence(trained, training, recipes, dataset=photos("anna"), class_folder="gone")


def test_choices_of_the_node_are_those_of_the_recipe(host_nodes):
    from likeness.nodes.choices import choices
    from likeness.training.data.zoom import Zoom
    from likeness.training.methods import custom_diffusion
    from likeness.training.recipes.custom_diffusion import Layers

    assert tuple(choices(Layers)) == custom_diffusion.LAYERS and tuple(choices(Zoom)) == custom_diffusion.ZOOMS
