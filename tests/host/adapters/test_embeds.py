"""References encoded once: encoding, combining, saving and loading."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers.small_world import CLIP, encoded, pictures, same, sentence

from likeness.errors import LikenessError


@pytest.mark.parametrize("kind", ["plus", "base"])
def test_an_encoded_reference_does_what_the_picture_does_without_the_encoder(world, kind):
    adapter = world.adapter(kind)
    options = world.options(embeds=encoded(world, kind))
    from_embeds, _ = world.apply(adapter, options=options)
    from_picture, _ = world.apply(adapter, clip_vision=world.clip_vision, options=world.options(image=pictures()))
    assert same(world.sample(from_embeds), world.sample(from_picture))


def test_embeds_survive_saving_and_loading(world):
    embeds = encoded(world)
    names = [world.run("LikenessSaveEmbeds", embeds=embeds, filename="my/reference") for _ in range(2)]
    assert names == ["my/reference.safetensors", "my/reference_2.safetensors"], "nothing is overwritten"
    again = world.run("LikenessLoadEmbeds", file=names[0])
    assert torch.equal(again.cond, embeds.cond) and torch.equal(again.uncond, embeds.uncond)
    assert (again.adapter, again.encoder) == (embeds.adapter, embeds.encoder)
    [combo] = world.classes["LikenessLoadEmbeds"].define_schema().inputs
    assert set(names) <= set(combo.options)


def test_embeds_that_are_saved_at_once_under_one_name_do_not_replace_each_other(world):
    embeds = [encoded(world, seed=seed) for seed in range(3)]
    with ThreadPoolExecutor(6) as pool:
        jobs = [
            pool.submit(world.run, "LikenessSaveEmbeds", embeds=embeds[number % 3], filename="same")
            for number in range(12)
        ]
        names = [job.result() for job in jobs]
    assert len(set(names)) == 12
    for number, name in enumerate(names):
        assert torch.equal(world.run("LikenessLoadEmbeds", file=name).cond, embeds[number % 3].cond)


def test_a_full_disk_is_told_in_one_sentence(world, monkeypatch):
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    embeds = encoded(world)
    monkeypatch.setattr(Path, "write_bytes", full)
    text = sentence(world.run, "LikenessSaveEmbeds", embeds=embeds, filename="full")
    assert "could not be written" in text and "No space left" in text


@pytest.mark.parametrize("name", ["", "  ", "../outside", "/etc/x", "a/../../b", "c:x", "x\0y"])
def test_names_that_lead_out_of_the_folder_are_refused(world, name):
    text = sentence(world.run, "LikenessSaveEmbeds", embeds=encoded(world), filename=name)
    assert "does not name a file inside models/likeness_embeds" in text


def test_embeds_that_are_not_there_or_damaged_are_explained(world):
    from likeness.nodes.references import NO_EMBEDS

    assert "no saved embeds yet" in sentence(world.run, "LikenessLoadEmbeds", file=NO_EMBEDS)
    with pytest.raises(LikenessError, match="gone"):
        world.run("LikenessLoadEmbeds", file="gone.safetensors")
    (world.folder / "likeness_embeds" / "bad.ipadpt").write_bytes(b"nonsense")
    assert "'bad.ipadpt'" in sentence(world.run, "LikenessLoadEmbeds", file="bad.ipadpt")


def test_the_leading_pack_s_embeds_are_read(world):
    torch.save(torch.rand(1, 5, 1280), world.folder / "likeness_embeds" / "theirs.ipadpt")
    embeds = world.run("LikenessLoadEmbeds", file="theirs.ipadpt")
    assert embeds.uncond is None and embeds.adapter is None
    model, _ = world.apply(world.adapter("plus"), clip_vision=world.clip_vision, options=world.options(embeds=embeds))
    assert world.sample(model).isfinite().all()


def test_embeds_of_another_adapter_are_refused(world):
    text = sentence(world.apply, world.adapter("base"), options=world.options(embeds=encoded(world, "plus")))
    assert "IP-Adapter Plus" in text and "encode the images again" in text
    text = sentence(
        world.run, "LikenessCombineEmbeds", embeds_1=encoded(world), method="concat", embeds_2=encoded(world, "base")
    )
    assert "different adapters or encoders" in text


@pytest.mark.parametrize(
    ("method", "rows"),
    [("concat", 2), ("add", 1), ("subtract", 1), ("average", 1), ("norm average", 1), ("max", 1), ("min", 1)],
)
def test_embeds_combine(world, method, rows):
    one, two = encoded(world, seed=1), encoded(world, seed=2)
    both = world.run("LikenessCombineEmbeds", embeds_1=one, method=method, embeds_2=two)
    assert both.cond.shape == (rows, *one.cond.shape[1:]) and len(both.uncond) == 1
    model, _ = world.apply(world.adapter("plus"), options=world.options(embeds=both))
    assert world.sample(model).isfinite().all()
    alone = world.run("LikenessCombineEmbeds", embeds_1=one, method=method)
    assert torch.equal(alone.cond, one.cond)


def test_combining_and_encoding_check_their_words(world):
    assert "'most'" in sentence(world.run, "LikenessCombineEmbeds", embeds_1=encoded(world), method="most")
    assert "'round'" in sentence(encoded, world, crop="round")
    assert "enter a number" in sentence(encoded, world, weight=float("nan"))


def test_encoding_masks_weighs_and_refuses(world):
    assert torch.equal(encoded(world, weight=0.5).cond, encoded(world).cond * 0.5)
    faint = encoded(world, mask=torch.full((1, 8, 8), 1e-3))
    far, near = (float((embeds.cond - embeds.uncond).norm()) for embeds in (encoded(world), faint))
    assert near < 0.2 * far, "what the mask takes away looks like no picture"
    assert "3 reference masks" in sentence(encoded, world, mask=torch.ones(3, 8, 8))
    assert "save the identity instead" in sentence(encoded, world, "faceid")
    small = world.clip({**CLIP, "hidden_size": 768, "projection_dim": 512})
    text = sentence(
        world.run, "LikenessEncodeReference", adapter=world.adapter("plus"), clip_vision=small, image=pictures()
    )
    assert "needs ViT-H/14" in text
