"""Identity Report and Keep Best Likeness in the real host's process, with a judge that reads colours."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import comfyui
import numpy as np
import pytest
import torch

from likeness.errors import LikenessError
from likeness.faces import Detection, FaceAnalysis, Identity, build_identity, to_photos

RED, GREEN, BLUE, BLACK = (1.0, 0.25, 0.25), (0.25, 1.0, 0.25), (0.25, 0.25, 1.0), (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ByColour:
    """One face in every image whose middle is not black; its embedding is the colour there, minus mid grey."""

    name: str = "by colour"
    threshold: float = 0.5
    sizes: tuple[int, ...] = (64,)

    def detect(self, image_bgr, size=None):
        middle = image_bgr[image_bgr.shape[0] // 2, image_bgr.shape[1] // 2]
        if middle.max() == 0:
            return []
        five = np.array([(24, 24), (40, 24), (32, 34), (26, 44), (38, 44)], np.float32)
        return [Detection(np.array([16, 8, 48, 56], np.float32), 0.9, five)]

    def embed(self, image_rgb, keypoints):
        x, y = keypoints[2].round().astype(int)
        return image_rgb[y, x].astype(np.float32) - 127.5


JUDGE = FaceAnalysis("judge", ByColour(), ByColour(), licence="public domain")
CONDITIONER = FaceAnalysis("conditioner", ByColour(), ByColour("conditioner"))


def _pictures(*colours) -> torch.Tensor:
    return torch.tensor(colours).float().reshape(-1, 1, 1, 3).expand(-1, 64, 64, 3).contiguous()


@pytest.fixture(scope="module")
def nodes(host_nodes):
    from likeness.nodes import evaluation

    return {node.GET_SCHEMA().node_id: node for node in evaluation.NODES}


@pytest.fixture
def run(nodes):
    """`run("IdentityReport", ...)` gives the node's outputs by name."""

    def execute(node: str, /, **inputs):
        chosen = nodes[f"Likeness{node}"]
        output = chosen.execute(**inputs)
        names = [socket.id for socket in chosen.GET_SCHEMA().outputs]
        return SimpleNamespace(**dict(zip(names, output.result, strict=True)), ui=output.ui)

    return execute


@pytest.fixture(scope="module")
def ann() -> Identity:
    photos = to_photos(_pictures(RED))
    return build_identity(photos, [CONDITIONER.find(photo)[0] for photo in photos], "ann")


@pytest.fixture
def output(host_nodes, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def _is_blocked(value) -> bool:
    from comfy_execution.graph_utils import ExecutionBlocker

    return isinstance(value, ExecutionBlocker)


def test_pictures_are_judged_sorted_and_shown(run, ann):
    images = _pictures(GREEN, RED, BLACK)
    found = run("IdentityReport", images=images, identity=ann, judge=JUDGE, title="Ann")
    assert found.per_image[1] > 100 and found.per_image[0] == found.per_image[2] == 0
    assert found.likeness == pytest.approx(np.mean(found.per_image)) and found.order == [1, 0, 2]
    assert torch.equal(found.kept, images[[1]]) and torch.equal(found.rejected, images[[0, 2]])
    assert found.report.ndim == 4 and found.report.shape[-1] == 3 and 0 <= found.report.min() < found.report.max() <= 1
    assert found.markdown.startswith("# Ann\n") and "| no face |" in found.markdown
    assert "ann:" in found.ui["text"][0] and found.ui["images"]


def test_nothing_kept_blocks_what_follows_and_says_why(run, ann):
    images = _pictures(GREEN, BLACK)
    found = run("IdentityReport", images=images, identity=ann, judge=JUDGE)
    assert _is_blocked(found.kept) and torch.equal(found.rejected, images)
    assert "No image reaches 60 %: nodes after 'kept' do not run." in found.markdown
    assert _is_blocked(run("IdentityReport", images=_pictures(RED), identity=ann, judge=JUDGE).rejected)


def test_the_baseline_tells_what_the_identity_adds(run, ann):
    found = run(
        "IdentityReport", images=_pictures(RED, RED), identity=ann, judge=JUDGE, baseline=_pictures(BLUE, GREEN)
    )
    assert "+120 points against the images without identity" in found.markdown


def test_photos_that_were_not_given_tell_copies_and_several_people_are_counted(run, ann, output):
    other = (1.0, 0.6, 0.25)
    found = run(
        "IdentityReport", images=_pictures(RED, other), identity=ann, judge=JUDGE, held_out=_pictures(other), save=True
    )
    assert "As multi-identity benchmarks count it, by by colour: Sim(GT) 0." in found.markdown
    assert "| 0 | 120 % | 1.00 | 0." in found.markdown and "| 1.00 | 1.00 |  |" in found.markdown, "a copy"
    [records] = output.rglob("records.csv")
    head = records.read_text().splitlines()[0].split(",")
    assert {"id_ref", "id_other", "copy", "copy_paste"} <= set(head)
    blue = replace(ann, name="bob", embeddings=ann.embeddings.roll(1, 1), aligned=ann.aligned.flip(3))
    both = run("IdentityReport", images=_pictures(RED), identity=ann, identity_2=blue, judge=JUDGE).markdown
    assert "Sim(Ref)" in both and "blending" in both and "Sim(GT)" not in both


def test_a_report_is_saved_and_never_over_another(run, ann, output):
    for number in (1, 2):
        found = run("IdentityReport", images=_pictures(RED, BLACK), identity=ann, judge=JUDGE, save=True, title="Ann")
        folder = output / "likeness" / "reports" / f"report_{number:03d}"
        assert str(folder) in found.markdown
        assert {"report.md", "records.csv", "sheet.png", "people.png"} <= {path.name for path in folder.iterdir()}
        assert (folder / "report.md").read_text().startswith("# Ann")


def test_the_judge_may_not_be_the_recogniser_that_made_the_identity(run, ann):
    for node in ("IdentityReport", "KeepBestLikeness"):
        with pytest.raises(LikenessError, match=r"conditioner is the recogniser that made the identity"):
            run(node, images=_pictures(RED), identity=ann, judge=CONDITIONER)
    allowed = run("IdentityReport", images=_pictures(RED), identity=ann, judge=CONDITIONER, allow_same_recogniser=True)
    assert "**Warning: judge equals conditioner" in allowed.markdown


def test_without_a_judge_the_first_independent_one_is_taken(run, ann, monkeypatch):
    from likeness.nodes import evaluation

    opened = []

    def open_only(*names):
        def open_analysis(name, provider):
            opened.append(name)
            if name not in names:
                raise LikenessError("missing")
            return names_to[name]

        return open_analysis

    names_to = {"OpenCV (YuNet + SFace)": JUDGE, "buffalo_l": CONDITIONER}
    monkeypatch.setattr(evaluation.models_download, "list_insightface_packs", lambda: ["buffalo_l"])
    monkeypatch.setattr(evaluation, "open_analysis", open_only("OpenCV (YuNet + SFace)", "buffalo_l"))
    assert "Judge: by colour" in run("IdentityReport", images=_pictures(RED), identity=ann).markdown
    monkeypatch.setattr(evaluation, "open_analysis", open_only("buffalo_l"))
    own = run("IdentityReport", images=_pictures(RED), identity=ann).markdown
    assert "Judge: conditioner" in own and "**Warning: judge equals conditioner" in own
    monkeypatch.setattr(evaluation, "open_analysis", open_only())
    with pytest.raises(LikenessError, match="There is no judge: connect Load Face Analysis"):
        run("IdentityReport", images=_pictures(RED), identity=ann)
    opened.clear()
    with pytest.raises(LikenessError, match="There is no judge"):
        run("IdentityReport", images=_pictures(RED), identity=replace(ann, recogniser="miniature"))
    assert opened == ["miniature-judge"], "drawn people are judged by their own world"


@pytest.mark.parametrize(
    ("count", "threshold", "kept"), [(1, 0.0, [1]), (2, 0.0, [1, 3]), (0, 60.0, [1, 3]), (5, 0.0, [1, 3, 0, 2])]
)
def test_the_best_are_kept_best_first(run, ann, count, threshold, kept):
    images = _pictures(GREEN, RED, BLACK, RED)
    found = run("KeepBestLikeness", images=images, identity=ann, judge=JUDGE, count=count, threshold=threshold)
    assert found.indices == kept and torch.equal(found.kept, images[kept])
    if len(kept) < 4:
        assert torch.equal(found.rejected, images[[n for n in range(4) if n not in kept]])
    else:
        assert _is_blocked(found.rejected)


def test_both_nodes_and_the_room_give_the_same_numbers(run, ann):
    from likeness.evaluation.identity import score

    images = _pictures((1.0, 0.4, 0.3), (0.9, 0.2, 0.6))
    found = run("IdentityReport", images=images, identity=ann, judge=JUDGE)
    np.testing.assert_allclose(found.per_image, score(images, ann, JUDGE).percents)
    best = run("KeepBestLikeness", images=images, identity=ann, judge=JUDGE)
    assert best.indices == found.order[:1]


def test_a_region_tells_where_the_person_should_be(run, ann):
    left = torch.zeros(1, 64, 64)
    left[:, :, :16] = 1
    found = run("IdentityReport", images=_pictures(RED), identity=ann, judge=JUDGE, region=left)
    assert found.likeness == 0 and "no face in the region" in found.markdown


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"identity": "ann"}, "identity'? holds a str"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"prompts": "a\nb"}, "2 prompts for 1 images"),
        ({"region": torch.zeros(1, 64, 64)}, "region'? is empty, .*Load Image gives an empty mask"),
        ({"region": torch.full((1, 64, 64), 0.4)}, "region'? is empty"),
        ({"region": torch.full((1, 64, 64), float("nan"))}, "region'? holds NaN"),
        ({"region": torch.ones(3, 64, 64)}, "3 masks on 'region' for 1 images"),
        ({"images": torch.zeros(0, 64, 64, 3)}, "no image to judge|input images is empty"),
        ({"clip": object()}, "CLIP-T needs"),
        ({"judge": FaceAnalysis("boxes", ByColour())}, "boxes has no recogniser"),
        ({"held_out": _pictures(BLUE)}, "finds nobody on 'held_out' who looks like 'ann': connect other photos"),
        ({"held_out": _pictures(RED)}, r"on 'held_out' shows the same as one that 'ann' was made of"),
        ({"held_out": torch.zeros(0, 64, 64, 3)}, "finds nobody on 'held_out'|input held_out is empty"),
    ],
)
def test_what_cannot_be_measured_is_explained(run, ann, inputs, words):
    with pytest.raises(LikenessError, match=words):
        run("IdentityReport", **{"images": _pictures(RED), "identity": ann, "judge": JUDGE, **inputs})


class _Vision:
    def __init__(self, width=3):
        self.width = width

    def encode_image(self, images, crop="center"):
        return {"image_embeds": images.mean((1, 2))[:, : self.width]}


class _Clip:
    def tokenize(self, text):
        return {"l": [[text]]}

    def encode_from_tokens(self, tokens, return_pooled=False):
        colour = {"red": (1.0, 0, 0), "green": (0, 1.0, 0)}
        return None, torch.tensor([colour.get(tokens["l"][0][0], (1.0, 1, 1))])


def test_pictures_and_prompts_are_compared_by_the_hosts_clip(run, ann):
    found = run(
        "IdentityReport",
        images=_pictures((1.0, 0, 0), (0, 1.0, 0)),
        identity=ann,
        judge=JUDGE,
        prompts="red\nred",
        clip=_Clip(),
        clip_vision=_Vision(),
    )
    assert "CLIP-T: 0.500 on average." in found.markdown
    with pytest.raises(LikenessError, match=r"text embeddings have width 3, image embeddings 2"):
        run(
            "IdentityReport",
            images=_pictures(RED),
            identity=ann,
            judge=JUDGE,
            prompts="red",
            clip=_Clip(),
            clip_vision=_Vision(2),
        )


class _AnyVision:
    def __init__(self, width):
        self.matrix = torch.randn(3, width, generator=torch.Generator().manual_seed(1))

    def encode_image(self, images, crop="center"):
        return {"image_embeds": (images.mean((1, 2)) - 0.5) @ self.matrix}


def _projection(clip, kind):
    return getattr(clip.cond_stage_model, kind).transformer.text_projection.weight


@pytest.fixture
def scored(run, ann):
    def score(clip, vision):
        with torch.inference_mode():
            pictures = _pictures(RED)
            inputs = {"identity": ann, "judge": JUDGE, "prompts": "a red picture", "clip": clip, "clip_vision": vision}
            return run("IdentityReport", images=pictures, **inputs).markdown

    return score


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), "eye", "one row of zeros"])
def test_a_clip_without_a_projection_is_refused_whatever_stands_in_its_place(recipes, scored, value):
    clip = recipes.tiny_clip(sdxl=True)
    assert "CLIP-T: " in scored(clip, _AnyVision(64))
    with torch.no_grad():
        weight = _projection(clip, "clip_g")
        if value == "eye":
            weight.copy_(torch.eye(64))
        elif value == "one row of zeros":
            weight[3] = 0
        else:
            weight.fill_(value)
    with pytest.raises(LikenessError, match=r"it has no text projection.* connect SDXL's CLIP with CLIP-ViT-bigG"):
        scored(clip, _AnyVision(64))


def test_the_first_text_encoder_of_sdxl_needs_no_projection(recipes, scored):
    clip = recipes.tiny_clip(sdxl=True)
    wide = torch.nn.Parameter(torch.full((32, 64), float("nan")))  # of another width than CLIP-G's
    clip.cond_stage_model.clip_l.transformer.text_projection.weight = wide
    assert "CLIP-T: " in scored(clip, _AnyVision(64))


def test_sd15s_text_encoder_is_refused(recipes, scored):
    with pytest.raises(LikenessError, match=r"it has no text projection, as in SD1\.5"):
        scored(recipes.tiny_clip(), _AnyVision(64))


@pytest.mark.slow
def test_sd15s_text_encoder_out_of_a_checkpoint_is_refused(small_checkpoint, models, scored):
    import comfy.sd

    with torch.inference_mode():
        path = str(models / "checkpoints" / small_checkpoint)
        _, clip, _, _ = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clipvision=False)
    with pytest.raises(LikenessError, match=r"it has no text projection, as in SD1\.5"):
        scored(clip, _AnyVision(768))


def test_clips_that_do_not_fit_are_refused_before_pictures_are_judged(run, ann):
    class Never(ByColour):
        def detect(self, image_bgr, size=None):
            raise AssertionError("judged")

    inputs = {"images": _pictures(RED), "identity": ann, "prompts": "red", "clip": _Clip(), "clip_vision": _Vision(2)}
    with pytest.raises(LikenessError, match=r"text embeddings have width 3, image embeddings 2"):
        run("IdentityReport", judge=FaceAnalysis("judge", Never(), ByColour()), **inputs)


def test_the_example_asks_another_recogniser_than_the_adapters():

    folder = comfyui.REPOSITORY / "workflows" / "api"
    prompt = json.loads((folder / "identity_report.api.json").read_text())
    by_id = {number: node for number, node in prompt.items() if node["class_type"] == "LikenessLoadFaceAnalysis"}
    for kind in ("LikenessIdentityReport", "LikenessKeepBestLikeness"):
        (node,) = [node for node in prompt.values() if node["class_type"] == kind]
        assert by_id[node["inputs"]["judge"][0]]["inputs"]["model"] == "miniature-judge"


# --- two judges

SECOND = FaceAnalysis("second", ByColour(), ByColour("second"), licence="CC0-1.0")


def test_two_judges_are_shown_and_must_both_be_pleased(run, ann):
    images = _pictures(RED, GREEN)
    found = run("IdentityReport", images=images, identity=ann, judge=JUDGE, second_judge=SECOND)
    assert "Judges: by colour and second" in found.markdown and "public domain; CC0-1.0" in found.markdown
    assert run("KeepBestLikeness", images=images, identity=ann, judge=JUDGE, second_judge=SECOND).indices == [0]


def test_a_second_judge_is_another_one_and_never_the_conditioner(run, ann):
    with pytest.raises(LikenessError, match="Both judges are by colour: connect another"):
        run("IdentityReport", images=_pictures(RED), identity=ann, judge=JUDGE, second_judge=JUDGE)
    with pytest.raises(LikenessError, match="conditioner is the recogniser that made the identity"):
        run("KeepBestLikeness", images=_pictures(RED), identity=ann, judge=JUDGE, second_judge=CONDITIONER)


def test_without_a_judge_both_free_ones_are_taken(run, ann, monkeypatch):
    from likeness.nodes import evaluation

    found = {evaluation.OPENCV: JUDGE, evaluation.DLIB: SECOND, "buffalo_l": CONDITIONER}
    monkeypatch.setattr(evaluation.models_download, "list_insightface_packs", lambda: ["buffalo_l"])
    monkeypatch.setattr(evaluation, "open_analysis", lambda name, provider: found[name])
    assert "Judges: by colour and second" in run("IdentityReport", images=_pictures(RED), identity=ann).markdown
    made_by_second = replace(ann, recogniser="second")
    assert "Judge: by colour." in run("IdentityReport", images=_pictures(RED), identity=made_by_second).markdown
