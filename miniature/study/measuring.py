"""Measuring methods in the miniature world: people nobody was trained on, and what is said of their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...errors import LikenessError
from ...evaluation.copying import mean_copy, pose
from ...evaluation.identity import References, score_sight, see
from ...evaluation.prompts import attributes
from ...evaluation.similarity import diversity
from ...evaluation.table import POSE, Record
from ...faces import FaceAnalysis, unit
from ...faces.found import find_faces, identity_of
from ...faces.identity import Identity
from ..drawing.people import SPLITS
from ..models.world import ATTRIBUTES, World, photos_of, wanted

GIVEN, HELD_OUT = 4, 4  # photos per person: for the method, and to judge by
# Numbers within the test people: no two uses share a person.
TABLE_PEOPLE, TUNING_PEOPLE, DEMO_PEOPLE = range(1000, 1050), range(2000, 2016), range(5000, 6000)
PROMPTS = (
    "a photo of a person wearing a red shirt in the forest",  # plain context
    "a photo of a person wearing a white shirt on the beach",
    "a photo of a person wearing glasses and a black suit in the city",  # clothes, accessories
    "a photo of a person wearing a green hat and a purple sweater in a room",
    "a photo of a smiling person wearing a blue sweater in the mountains",  # expression
    "a photo of a surprised person wearing a yellow shirt in the desert",
    "a watercolor painting of a person wearing a green shirt in the forest",  # style
    "a night photo of a smiling person with a beard wearing an orange sweater on a stage",  # three at once
)


@dataclass(frozen=True, eq=False)
class StudySubject:
    """One person: photos that a method may see, others to judge by, and how the judge and the conditioner see them."""

    name: str
    given: Sequence[np.ndarray]  # (H, W, 3) uint8
    held_out: Sequence[np.ndarray]
    world: World

    @cached_property
    def identity(self) -> Identity:
        """Built from the given photos; LikenessError where one shows no face of this world."""
        return identity_of(find_faces(self.world.analysis, self.given), self.name)[0]

    @cached_property
    def judged(self) -> References:
        """The held-out photos as the judge sees them."""
        return references_of_photos(self.world.judge, self.held_out)

    @cached_property
    def judged_given(self) -> References:
        """The given photos as the judge sees them."""
        return references_of_photos(self.world.judge, self.given)

    @cached_property
    def conditioned(self) -> References:
        """The held-out photos as the conditioner sees them."""
        return references_of_photos(self.world.analysis, self.held_out)


def subjects(world: World, numbers: Sequence[int]) -> list[StudySubject]:
    """The test people of these numbers."""
    made = []
    for number in numbers:
        photos = list(photos_of(SPLITS["test"][number], GIVEN + HELD_OUT))
        made.append(StudySubject(f"person-{number}", photos[:GIVEN], photos[GIVEN:], world))
    return made


def references_of_photos(eye: FaceAnalysis, photos: Sequence[np.ndarray]) -> References:
    """The photos in which this face analysis finds a face; LikenessError when there is none."""
    sight = see([torch.from_numpy(photo).float() / 255 for photo in photos], eye)
    if not bool(sight.found.any()):
        raise LikenessError("No face of the miniature world is in the photos: use drawn portraits of this world.")
    embeddings = sight.embeddings[sight.found]
    return References(embeddings, torch.ones(len(embeddings)))


def asked(prompt: str) -> dict[str, str]:
    """What counts for `attributes`: the expression is a column of its own."""
    return {name: value for name, value in wanted(prompt).items() if name in ATTRIBUTES}


def measure_subject(
    world: World,
    method: str,
    subject: StudySubject,
    pictures: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    others: Sequence[StudySubject] = (),
    seconds: float = float("nan"),
) -> list[Record]:
    """A record for each image (B, H, W, 3) that a method made of one person. seconds: per image."""
    sight = see(pictures, world.judge)
    scores = score_sight(sight, subject.judged, [other.judged.mean for other in others])
    own = score_sight(see(pictures, world.analysis), subject.conditioned)
    copies = mean_copy(sight.embeddings, subject.judged.embeddings, subject.judged_given.embeddings)
    to_given = scores.cosine_to(subject.judged_given.embeddings)
    to_held_out = scores.cosine_to(subject.judged.embeddings)
    seen = world.read(pictures)
    obeyed = attributes(pictures, [asked(prompt) for prompt in prompts], lambda _: seen)
    varied = diversity(pictures, lambda images: unit(world.observer_features(images)))
    records = []
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        face = sight.faces[row]
        angles = [float("nan")] * len(POSE) if face is None else pose(face).tolist()
        measures = {
            "found": float(sight.found[row]),
            "id": float(scores.cosines[row]),
            "id_other": float(to_held_out[row]),
            "id_ref": float(to_given[row]),
            "percent": float(scores.percents[row]),
            "id_conditioner": float(own.cosines[row]),
            "attributes": float(obeyed[row]),
            "obeys_pose": float(seen[row]["expression"] == wanted(prompt)["expression"]),
            "copy": float(copies[row]),
            "diversity": varied,
            "seconds": seconds,
            **dict(zip(POSE, angles, strict=True)),
        }
        if others:
            measures |= {
                "margin": float(scores.margins[row]),
                "rank": float(scores.ranks[row]),
                "rank1": float(scores.ranks[row] == 1),
                "gallery": float(scores.gallery),
            }
        image = f"{method}/{subject.name}-{row + 1}.png"
        records.append(Record(method, subject.name, prompt, seed, image, measures, sight.reasons[row]))
    return records
