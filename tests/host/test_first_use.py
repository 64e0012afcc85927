"""What meets a user who begins: fresh nodes can run, lists say what is not installed, mistakes are read first."""

from __future__ import annotations

import asyncio
import traceback

import pytest

from likeness.errors import LikenessError

pytestmark = pytest.mark.host

SEARCHES = {  # what people type -> a node that does it
    "portrait": "LikenessApplyIdentity",
    "person": "LikenessApplyIdentity",
    "人像": "LikenessApplyIdentity",
    "人物": "LikenessIdentityFromPhotos",
    "InstantID": "LikenessApplyIdentity",
    "PuLID": "LikenessApplyIdentity",
    "人脸检测": "LikenessFindFaces",
    "示例照片": "LikenessExamplePhotos",
}


@pytest.fixture(scope="module")
def registered(host_nodes):
    """The node classes as the host gets them, by id."""
    from likeness.nodes import LikenessExtension

    nodes = asyncio.run(LikenessExtension().get_node_list())
    return {node.GET_SCHEMA().node_id: node for node in nodes}


def test_the_seed_of_a_fresh_training_stays_after_a_run(registered, object_info):
    from comfy_api.latest import io

    trainings = [name for name in registered if name.startswith("LikenessTrain")]
    assert len(trainings) > 3
    for name in trainings:
        _, options = object_info[name]["input"]["required"]["seed"]
        if hasattr(io, "ControlAfterGenerate"):
            assert options["control_after_generate"] == "fixed"
        else:  # the browser of such a host knows yes and no, and puts a control after everything that is called seed
            assert "control_after_generate" not in options


@pytest.mark.host(since="0.30")  # older hosts' nodes have no aliases
@pytest.mark.parametrize(("word", "node"), SEARCHES.items())
def test_what_people_search_for_finds_the_node_that_does_it(registered, word, node):
    schema = registered[node].GET_SCHEMA()
    assert word in [schema.display_name, *schema.search_aliases]


def test_a_mistake_has_no_module_and_no_trace_of_where_it_was_found(registered):
    import execution

    def deep() -> None:
        raise LikenessError("The photo is upside down: turn it.")

    class Mistaken(registered["LikenessLoadMiniature"]):
        @classmethod
        def execute(cls):
            deep()

    from likeness.nodes.inputs import checked

    node = checked(Mistaken)
    with pytest.raises(LikenessError) as raised:
        node.execute()
    if hasattr(execution, "full_type_name"):
        assert execution.full_type_name(type(raised.value)) == "LikenessError"
    assert str(raised.value) == "The photo is upside down: turn it."
    assert "deep" not in "".join(traceback.format_tb(raised.tb))


def test_everything_that_a_node_lacks_is_said_at_once(registered):
    said = registered["LikenessPortraitDataset"].validate_inputs(masks="parsing_gone.pth", folder="gone")
    assert "parsing_gone.pth" in said and "'gone'" in said
    assert registered["LikenessPortraitDataset"].validate_inputs(masks="ellipse", folder="") is True


@pytest.mark.parametrize("photos", ["a person, one photo", "another person, three photos", "a style, two images"])
def test_example_photos_come_with_the_pack(registered, photos):
    (batch,) = registered["LikenessExamplePhotos"].execute(photos=photos).result
    assert batch.shape[1:] == (128, 128, 3) and len(batch) == {"one": 1, "two": 2, "three": 3}[photos.split()[-2]]
    assert batch.std() > 0.05


def test_an_unknown_example_is_refused(registered):
    with pytest.raises(LikenessError, match="'a cat' is not a choice for photos"):
        registered["LikenessExamplePhotos"].execute(photos="a cat")
