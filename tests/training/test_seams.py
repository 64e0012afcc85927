"""What methods may ask of the engine: stages, values of their own, augmented samples, hooks, several concepts."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import torch

from likeness.injection.key_values import separate_values
from likeness.training.base.model import Conditioning
from likeness.training.config import RunSettings
from likeness.training.engine import train
from likeness.training.recipe import Sample, generator, stratified_timesteps
from likeness.training.recipes import prompts
from likeness.training.recipes.textual_inversion import TextualInversionSettings, textual_inversion


def recipe_of(base, photos, **changes):
    recipe = textual_inversion(base, photos, TextualInversionSettings(token="<a>", steps=2, captions=False))
    return replace(recipe, phases=[replace(phase, **changes) for phase in recipe.phases])


def test_keys_and_values_may_be_projected_from_different_states(base):
    z, t = torch.randn(1, 4, 16, 16), torch.tensor([300])
    keys, values = base.encode(["a photo"]).states, base.encode(["a dog"]).states
    with torch.no_grad():
        plain = base.predict(z, t, Conditioning(keys))
        with separate_values(base.unet):
            same = base.predict(z, t, Conditioning(keys, values=keys))
            other = base.predict(z, t, Conditioning(keys, values=values))
            untouched = base.predict(z, t, Conditioning(keys))
        after = base.predict(z, t, Conditioning(keys))
    torch.testing.assert_close(same, plain)
    assert not torch.allclose(other, plain) and torch.equal(untouched, plain) and torch.equal(after, plain)


def test_prompts_are_read_at_the_timestep_that_was_drawn(base, photos, tmp_path):
    recipe, read, drawn = recipe_of(base, photos), [], []
    timestep = recipe.phases[0].timestep

    def staged(said, t):
        read.extend(t.tolist())
        found = base.encode(said)
        return replace(found, values=found.states)

    def draw(random, n):
        drawn.append(timestep(random, n))
        return drawn[-1]

    base.staged = staged
    train(base, replace(recipe, phases=[replace(recipe.phases[0], timestep=draw)]), RunSettings(), tmp_path / "run")
    assert read == drawn and len(drawn) == 2


def test_stratified_timesteps_visit_every_part_once_a_round():
    draw = stratified_timesteps(1000, 3, seed=5)
    drawn = [draw(generator(n), n) for n in range(300)]
    parts = [min(t * 3 // 1000, 2) for t in drawn]
    rounds = [parts[n : n + 3] for n in range(0, 300, 3)]
    assert all(sorted(each) == [0, 1, 2] for each in rounds) and len({tuple(each) for each in rounds}) == 6
    assert 0 <= min(drawn) < 20 and 980 < max(drawn) <= 999


def test_latents_of_samples_that_do_not_recur_are_not_kept(base, photos, tmp_path, monkeypatch):
    from likeness.training import cache

    asked = []
    get = cache.TensorCache.get
    monkeypatch.setattr(cache.TensorCache, "get", lambda self, key, make: asked.append(key) or get(self, key, make))

    def augmented(n, random):
        return Sample(replace(photos[0], name=str(n)), "a photo of a <a> person", recurs=False)

    train(base, recipe_of(base, photos, streams=[augmented]), RunSettings(), tmp_path / "run")
    assert not [key for key in asked if isinstance(key, tuple)]


def test_hooks_are_attached_while_a_phase_is_at_work(base, photos, tmp_path):
    told = []

    @contextmanager
    def hooks():
        told.append("attached")
        try:
            yield
        finally:
            told.append("detached")

    train(base, recipe_of(base, photos, hooks=hooks), RunSettings(), tmp_path / "run")
    assert told == ["attached", "detached"]


def test_concepts_are_learned_together_each_with_its_own_words(photos, make_photo):
    def said(words):
        return lambda example, random: words

    others = [make_photo(10), make_photo(11)]
    concepts = [
        prompts.TaughtConcept(photos, said("<a> person"), others[:1], said("person")),
        prompts.TaughtConcept(others, said("<b> dog"), photos[:1], said("dog")),
    ]
    shown, classes = prompts.joint(concepts, seed=1)
    samples = [shown(n, generator(n)) for n in range(len(photos) + len(others))]
    assert {(s.example, s.prompt) for s in samples} == {
        *((photo, "<a> person") for photo in photos),
        *((photo, "<b> dog") for photo in others),
    }
    assert {classes(n, generator(n)).prompt for n in range(2)} == {"person", "dog"}
