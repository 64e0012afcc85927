"""The way of a face: what is skipped and why, batches, colours, and the guard that keeps the person."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import restorers as small

from likeness.errors import LikenessError
from likeness.faces import Face, FaceAnalysis
from likeness.faces.align import FFHQ_512
from likeness.faces.identity import build_identity
from likeness.restoration.colour import ColourMatch, blurred, grey_like, is_grey, matched, with_texture
from likeness.restoration.guard import SHARES, Guard, guard_of
from likeness.restoration.restore import FaceJob, Fate, PasteOptions, batched, restore_faces
from likeness.restoration.restorers import restorer_of

SIDE = 64
PICTURE = torch.rand(160, 200, 3, generator=torch.Generator().manual_seed(0))


def face_at(x: float, y: float, scale: float = 0.12, side_on: bool = False) -> Face:
    points = ((FFHQ_512 - 256) * scale + np.array([x, y])).astype(np.float32)
    if side_on:
        points[:2] = points[:2].mean(0)
    reach = 150 * scale
    return Face(np.array([x - reach, y - reach, x + reach, y + reach], np.float32), 1.0, points)


def darker(crops: torch.Tensor) -> torch.Tensor:
    return crops * 0.5


@dataclass
class Counting:
    """A restorer that remembers how many crops came at once."""

    counts: list[int]
    most: int = 99

    def __call__(self, crops: torch.Tensor) -> torch.Tensor:
        self.counts.append(len(crops))
        if len(crops) > self.most:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return darker(crops)


def test_every_face_of_every_picture_is_restored_in_batches_and_nothing_else_changes():
    faces = [[face_at(50, 60), face_at(140, 90)], [], [face_at(100, 80)]]
    restore = Counting([])
    before = [PICTURE.clone() for _ in range(3)]
    done = restore_faces(before, faces, restore, SIDE, PasteOptions(batch=2))
    assert restore.counts == [2, 1] and all(torch.equal(picture, PICTURE) for picture in before)
    assert [(o.picture, o.number, o.fate) for o in done.outcomes] == [
        *((0, 0, Fate.RESTORED), (0, 1, Fate.RESTORED), (2, 0, Fate.RESTORED))
    ]
    assert torch.equal(done.pictures[1], PICTURE) and not done.covered[1].any()
    for picture, covered in zip(done.pictures, done.covered, strict=True):
        assert torch.equal(picture[covered == 0], PICTURE[covered == 0])
    assert done.pictures[0][55:65, 45:55].mean() < 0.7 * PICTURE[55:65, 45:55].mean()
    assert len(done.before) == len(done.after) == 3


def test_batched_and_one_by_one_give_the_same():
    restorer = restorer_of(small.gfpgan(), "x")
    faces = [[face_at(50, 60), face_at(140, 90)], [face_at(100, 80)]]
    one, many = (
        restore_faces([PICTURE, PICTURE], faces, restorer.restore, restorer.side, PasteOptions(batch=n)) for n in (1, 3)
    )
    for a, b in zip(one.pictures, many.pictures, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def jobs(count: int) -> list[FaceJob]:
    return [FaceJob(0, n, face_at(50, 60), np.eye(2, 3), None, torch.rand(3, 8, 8)) for n in range(count)]


def test_where_memory_is_too_small_for_all_half_of_them_go_at_a_time():
    def by(restore):
        return lambda jobs: restore(torch.stack([job.crop for job in jobs]))

    restore = Counting([], most=1)
    assert len(list(batched(by(restore), jobs(4)))) == 4 and restore.counts == [4, 2, 1, 1, 2, 1, 1]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        list(batched(by(Counting([], most=0)), jobs(2)))
    with pytest.raises(ZeroDivisionError):
        list(batched(by(lambda crops: crops / (1 // 0)), jobs(2)))


UNFIT = {
    "smaller than 24 pixels": face_at(50, 60, 0.07),
    "seen from the side": face_at(50, 60, side_on=True),
    "no keypoints": Face(face_at(50, 60).box, 1.0),
}


@pytest.mark.parametrize("why", UNFIT)
def test_faces_that_cannot_be_restored_stay_and_the_outcome_says_why(why):
    done = restore_faces([PICTURE], [[UNFIT[why], face_at(140, 90)]], darker, SIDE)
    assert [outcome.fate for outcome in done.outcomes] == [Fate.KEPT, Fate.RESTORED]
    assert why in done.outcomes[0].sentence() and "left as it was" in done.outcomes[0].sentence()
    assert torch.equal(done.pictures[0][50:70, 40:60], PICTURE[50:70, 40:60])


def test_half_cut_faces_are_restored_and_nan_from_the_network_is_not_pasted():
    done = restore_faces([PICTURE], [[face_at(2, 80), face_at(198, 10)]], darker, SIDE)
    assert {outcome.fate for outcome in done.outcomes} == {Fate.RESTORED}
    done = restore_faces([PICTURE], [[face_at(100, 80)]], lambda crops: crops * torch.nan, SIDE)
    assert torch.equal(done.pictures[0], PICTURE) and "NaN or infinite" in done.outcomes[0].why


def test_strength_and_region():
    whole, half, none = (
        restore_faces([PICTURE], [[face_at(100, 80)]], darker, SIDE, PasteOptions(strength)).pictures[0]
        for strength in (1.0, 0.5, 0.0)
    )
    assert torch.allclose(none, PICTURE, atol=1e-6)
    assert torch.allclose((whole + PICTURE) / 2, half, atol=1e-5) and not torch.equal(whole, half)
    region = torch.zeros(160, 200)
    region[:80] = 1
    done = restore_faces([PICTURE], [[face_at(100, 80)]], darker, SIDE, regions=[region])
    assert torch.equal(done.pictures[0][84:], PICTURE[84:]) and not torch.equal(done.pictures[0], PICTURE)


def test_faces_are_pasted_at_the_size_of_the_canvas():
    large = torch.nn.functional.interpolate(PICTURE.permute(2, 0, 1)[None], (400, 500), mode="bilinear")
    canvas = large[0].permute(1, 2, 0).contiguous()
    done = restore_faces([PICTURE], [[face_at(100, 80)]], darker, SIDE, canvases=[canvas])
    assert done.pictures[0].shape == (400, 500, 3)
    small = restore_faces([PICTURE], [[face_at(100, 80)]], darker, SIDE).covered[0]
    expected = torch.nn.functional.interpolate(small[None, None], (400, 500), mode="bilinear")[0, 0]
    assert (done.covered[0] - expected).abs().max() < 0.05


# --- colours


def test_colours_are_brought_back():
    crop = torch.rand(3, SIDE, SIDE) * torch.tensor([1.0, 0.6, 0.4]).reshape(3, 1, 1)
    tinted = (crop * 0.5 + torch.tensor([0.0, 0.2, 0.4]).reshape(3, 1, 1)).clamp(0, 1)
    mask = torch.ones(SIDE, SIDE)
    mean = matched(tinted, crop, mask, ColourMatch.MEAN)
    assert torch.allclose(mean.mean((1, 2)), crop.mean((1, 2)), atol=1e-4)
    assert torch.allclose(mean.std((1, 2)), crop.std((1, 2)), atol=1e-3)
    coarse = matched(tinted, crop, mask, ColourMatch.COARSE)
    assert (blurred(coarse, 6) - blurred(crop, 6)).abs().mean() < 0.02
    assert torch.equal(matched(tinted, crop, mask, ColourMatch.NONE), tinted)
    only = torch.zeros(SIDE, SIDE)
    only[:8, :8] = 1
    assert torch.allclose(
        matched(tinted, crop, only, ColourMatch.MEAN)[:, :8, :8].mean((1, 2)), crop[:, :8, :8].mean((1, 2)), atol=1e-4
    )


def test_texture_is_the_pictures_finest_detail():
    crop, flat = torch.rand(3, 170, 170), torch.full((3, 170, 170), 0.5)
    rough = with_texture(flat, crop, 1.0)
    assert rough.std() > 0.1 and (blurred(rough, 3) - 0.5).abs().mean() < 0.02
    assert torch.equal(with_texture(flat, crop, 0.0), flat)


def test_grey_pictures_stay_grey():
    grey = torch.rand(1, SIDE, SIDE).expand(3, -1, -1)
    assert is_grey(grey) and not is_grey(torch.rand(3, SIDE, SIDE))
    made = grey_like(torch.rand(3, SIDE, SIDE), grey)
    assert torch.allclose(made[0], made[2]) and torch.allclose(made.mean(), grey.mean(), atol=1e-4)
    picture = PICTURE.mean(-1, keepdim=True).expand(-1, -1, 3)
    tint = torch.tensor([1.0, 0.5, 0.2]).reshape(3, 1, 1)
    done = restore_faces([picture], [[face_at(100, 80)]], lambda crops: crops * tint, SIDE)
    assert (done.pictures[0].amax(-1) - done.pictures[0].amin(-1)).max() < 1e-4


# --- the guard


@dataclass(frozen=True)
class ByTint:
    """Recognises people by the mean colour of their face."""

    name: str = "by tint"

    def embed(self, image_rgb, keypoints):
        return image_rgb.reshape(-1, 3).mean(0).astype(np.float32) - 128


@dataclass(frozen=True)
class Nobody:
    """A detector that is not asked."""

    name: str = "nobody"
    threshold: float = 0.0

    def detect(self, image_bgr, size=None):
        return []


def tinted(red: float, green: float, blue: float) -> torch.Tensor:
    noise = torch.rand(160, 200, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    return torch.tensor([red, green, blue]) + 0.1 * noise  # all of one colour would be a grey image


STRANGER = torch.tensor([0.1, 0.9, 0.9]).reshape(3, 1, 1)


def to_a_stranger(crops: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(crops) * STRANGER


def likeness_of(picture: torch.Tensor, to: torch.Tensor) -> float:
    points = np.zeros((5, 2))
    a, b = (ByTint().embed((one[70:90, 90:110] * 255).round().to(torch.uint8).numpy(), points) for one in (picture, to))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_guard_keeps_the_person_where_plain_restoration_loses_them():
    picture, faces = tinted(0.9, 0.2, 0.2), [[face_at(100, 80)]]
    plain, kept = (
        restore_faces([picture], faces, to_a_stranger, SIDE, PasteOptions(guard=Guard(ByTint(), least)))
        for least in (0.0, 0.6)
    )
    assert likeness_of(plain.pictures[0], picture) < 0 < 0.6 <= likeness_of(kept.pictures[0], picture)
    [measured], [reduced] = plain.outcomes, kept.outcomes
    assert measured.fate is Fate.RESTORED and measured.likeness and measured.likeness.kept < 0
    assert reduced.fate is Fate.REDUCED and reduced.share in SHARES
    assert reduced.likeness and reduced.likeness.before == pytest.approx(1.0) and reduced.likeness.kept >= 0.6
    for words in ("reduced to", "likeness 1.00 before", "if it were restored in full", "another person"):
        assert words in reduced.sentence()


def test_a_restoration_that_keeps_the_person_is_whole_and_one_that_never_does_is_left_out():
    picture, faces = tinted(0.9, 0.2, 0.2), [[face_at(100, 80)]]
    gentle = restore_faces([picture], faces, lambda crops: crops * 0.95, SIDE, PasteOptions(guard=Guard(ByTint(), 0.9)))
    assert gentle.outcomes[0].fate is Fate.RESTORED and gentle.outcomes[0].share == 1
    never = restore_faces([picture], faces, to_a_stranger, SIDE, PasteOptions(guard=Guard(ByTint(), 0.9999)))
    assert never.outcomes[0].fate is Fate.KEPT and torch.equal(never.pictures[0], picture)


def person(red: float, green: float, blue: float):
    photo = (tinted(red, green, blue) * 255).round().to(torch.uint8).numpy()
    embedding = ByTint().embed(photo, np.zeros((5, 2)))
    face = Face(np.array([60, 40, 140, 120], np.float32), 1.0, face_at(100, 80).keypoints, embedding, "by tint")
    return build_identity([photo], [face], "Ann")


def test_an_identity_is_who_the_face_should_stay():
    analysis = FaceAnalysis("tints", Nobody(), ByTint())
    guard = guard_of(analysis, 0.5, person(0.9, 0.3, 0.2))
    assert guard is not None and guard.person is not None
    done = restore_faces([tinted(0.8, 0.4, 0.2)], [[face_at(100, 80)]], to_a_stranger, SIDE, PasteOptions(guard=guard))
    [outcome] = done.outcomes
    assert outcome.likeness and 0.5 < outcome.likeness.before < 0.9999
    assert outcome.likeness.kept >= 0.5 * outcome.likeness.before > outcome.likeness.restored
    closer = restore_faces(
        [tinted(0.8, 0.4, 0.2)],
        [[face_at(100, 80)]],
        lambda crops: torch.ones_like(crops) * torch.tensor([0.9, 0.3, 0.2]).reshape(3, 1, 1),
        SIDE,
        PasteOptions(guard=guard),
    )
    assert closer.outcomes[0].fate is Fate.RESTORED
    assert closer.outcomes[0].likeness and closer.outcomes[0].likeness.kept > closer.outcomes[0].likeness.before


def test_without_a_recogniser_there_is_no_guard_and_no_identity_either():
    analysis = FaceAnalysis("boxes", Nobody())
    assert guard_of(analysis, 0.5) is None
    with pytest.raises(LikenessError, match=r"boxes has no recogniser.*'Ann'"):
        guard_of(analysis, 0.5, person(0.9, 0.3, 0.2))


ANN, BOB = (0.9, 0.3, 0.2), (0.2, 0.3, 0.9)


@pytest.mark.parametrize("who", ["Ann", "Ann and Cleo"])
def test_a_stranger_in_the_picture_stays_themselves(who):
    """In an image of two people the identity is another, or is of several people."""
    from likeness.faces.identity import combine_identities

    identity = person(*ANN) if who == "Ann" else combine_identities([person(*ANN), person(0.2, 0.9, 0.3)])
    guard = guard_of(FaceAnalysis("tints", Nobody(), ByTint()), 0.6, identity)
    picture = tinted(*BOB)
    done = restore_faces([picture], [[face_at(100, 80)]], to_a_stranger, SIDE, PasteOptions(guard=guard))
    [outcome] = done.outcomes
    assert outcome.fate is not Fate.RESTORED and outcome.likeness and outcome.likeness.stranger
    assert outcome.likeness.before == pytest.approx(1.0) and outcome.likeness.kept >= 0.6
    assert "to itself, as it is not the identity's person" in outcome.sentence()
    to_ann = torch.tensor(ANN).reshape(3, 1, 1)
    found = restore_faces([picture], [[face_at(100, 80)]], lambda x: x * 0 + to_ann, SIDE, PasteOptions(guard=guard))
    assert found.outcomes[0].fate is Fate.RESTORED  # who becomes the person is not held back


@dataclass(frozen=True)
class Blind:
    """A recogniser that cannot see some faces, in the ways that recognisers fail."""

    how: str
    name: str = "blind"

    def embed(self, image_rgb, keypoints):
        if self.how == "raises":
            raise LikenessError("The face's keypoints all fall on one point: no crop can be aligned to them.")
        return np.full(3, np.nan if self.how == "NaN" else 0.0, np.float32)


@pytest.mark.parametrize("how", ["raises", "NaN", "zeros"])
def test_a_face_that_cannot_be_recognised_stays_and_the_report_says_so(how):
    guarded, measured = (
        restore_faces([PICTURE], [[face_at(100, 80)]], darker, SIDE, PasteOptions(guard=Guard(Blind(how), least)))
        for least in (0.5, 0.0)
    )
    assert torch.equal(guarded.pictures[0], PICTURE) and guarded.outcomes[0].fate is Fate.KEPT
    assert measured.outcomes[0].fate is Fate.RESTORED and measured.outcomes[0].likeness is None
    for done in (guarded, measured):
        assert "blind cannot recognise it" in done.outcomes[0].sentence()


def test_a_restoration_that_cannot_be_recognised_is_reduced_until_it_can():
    @dataclass(frozen=True)
    class OfBright:
        name: str = "of bright"

        def embed(self, image_rgb, keypoints):
            return np.full(3, 1.0 if image_rgb.mean() > 60 else np.nan, np.float32)

    done = restore_faces([PICTURE], [[face_at(100, 80)]], lambda x: x * 0, SIDE, PasteOptions(guard=Guard(OfBright())))
    assert done.outcomes[0].fate is Fate.REDUCED and done.outcomes[0].likeness


def test_a_face_without_keypoints_is_not_guarded_and_the_report_says_so():
    from likeness.restoration.restore import rework_faces
    from likeness.restoration.windows import upright

    boxes = Face(face_at(100, 80).box, 1.0)
    done = rework_faces(
        [PICTURE],
        [[boxes]],
        lambda jobs: jobs[0].crop[None] * 0.5,
        upright(SIDE, 2.0),
        PasteOptions(guard=Guard(ByTint())),
    )
    assert done.outcomes[0].fate is Fate.RESTORED and "the guard did not check it" in done.outcomes[0].sentence()


def test_an_identity_of_another_length_is_said():
    guard = Guard(ByTint(), person=torch.ones(512))
    with pytest.raises(LikenessError, match="embeddings of width 512 and by tint those of width 3: make"):
        restore_faces([PICTURE], [[face_at(100, 80)]], darker, SIDE, PasteOptions(guard=guard))


def test_an_identity_of_another_recogniser_is_seen_again_by_this_one():
    from likeness.faces import Identity

    ann: Identity = person(*ANN)
    elsewhere = Identity(**{**vars(ann), "recogniser": "another", "embeddings": torch.rand(1, 512)})
    guard = guard_of(FaceAnalysis("tints", Nobody(), ByTint()), 0.5, elsewhere)
    assert guard is not None and guard.person is not None and guard.person.shape == (3,)
    done = restore_faces([tinted(*ANN)], [[face_at(100, 80)]], to_a_stranger, SIDE, PasteOptions(guard=guard))
    [outcome] = done.outcomes
    assert outcome.likeness and outcome.likeness.before > 0.9 and outcome.fate is not Fate.RESTORED
    no_crops = {key: value[:0] for key, value in vars(ann).items() if key in ("aligned", "portraits", "keypoints")}
    boxes_only = Identity(**{**vars(elsewhere), **no_crops})
    with pytest.raises(LikenessError, match="no aligned face that could be embedded by by tint"):
        guard_of(FaceAnalysis("tints", Nobody(), ByTint()), 0.5, boxes_only)
