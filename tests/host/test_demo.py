"""The demonstration through the real server: the same person, prompts and noise give the same images."""

from __future__ import annotations

import pytest

from likeness.miniature import demo
from likeness.miniature.demo_comfyui import paint_in_comfyui
from likeness.miniature.models.world import load_world

pytestmark = pytest.mark.host


def test_comfyui_paints_what_the_demonstration_paints_without_it(host_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(host_path))
    monkeypatch.setattr(demo, "PROMPTS", demo.PROMPTS[:1])
    world = load_world()
    subject = demo.somebody(world, 3)
    in_comfyui = paint_in_comfyui(subject.given, demo.PROMPTS, seed=5)
    here = demo.paint(world, subject.identity, seed=5)
    for method, pictures in here.items():
        assert (in_comfyui[method] - pictures).abs().max() < 3 / 255, method
    assert (here[demo.WITH] - here[demo.WITHOUT]).abs().max() > 0.1
