"""What all nodes of the pack have in common: words for everything, and an order that saved workflows rely on."""

from __future__ import annotations

import asyncio
import inspect

import pytest

INPUTS = {  # in the order of saved workflows, which must never change; new ones go to the end
    "LikenessLoadFaceAnalysis": ["model", "provider"],
    "LikenessFindFaces": ["face_analysis", "image", "choice", "index", "if_none", "min_size", "reference"],
    "LikenessIdentityFromPhotos": ["faces", "name", "outliers", "outlier_threshold"],
    "LikenessSaveIdentity": ["identity", "filename"],
    "LikenessLoadIdentity": ["file"],
    "LikenessCombineIdentities": [
        *("identity_1", "weight_1", "mode", "identity_2", "weight_2"),
        *("identity_3", "weight_3", "identity_4", "weight_4", "name"),
    ],
    "LikenessFaceKeypoints": ["faces", "width", "height"],
}
OUTPUTS = {
    "LikenessLoadFaceAnalysis": ["LIKENESS_FACE_ANALYSIS,INSIGHTFACE,FACEANALYSIS"],
    "LikenessFindFaces": ["LIKENESS_FACES", "IMAGE", "IMAGE", "MASK", "INT"],
    "LikenessIdentityFromPhotos": ["IDENTITY", "IMAGE", "STRING"],
    "LikenessSaveIdentity": ["STRING"],
    "LikenessLoadIdentity": ["IDENTITY", "IMAGE", "STRING"],
    "LikenessCombineIdentities": ["IDENTITY"],
    "LikenessFaceKeypoints": ["IMAGE"],
}


@pytest.fixture(scope="module")
def all_schemas(host_nodes):
    from likeness.nodes import LikenessExtension

    classes = asyncio.run(LikenessExtension().get_node_list())
    return {node.GET_SCHEMA().node_id: (node, node.GET_SCHEMA()) for node in classes}


def test_every_node_says_what_it_does_and_every_input_and_output_has_a_tooltip(all_schemas):
    assert set(INPUTS) <= set(all_schemas)
    for node_id, (_, schema) in all_schemas.items():
        assert node_id.startswith("Likeness") and schema.category.startswith("likeness/")
        assert schema.display_name and len(schema.description or "") > 30, node_id
        assert not [widget.id for widget in schema.inputs if len(widget.tooltip or "") < 10], node_id
        assert not [widget.display_name for widget in schema.outputs if not widget.display_name or not widget.tooltip]


def test_nodes_can_be_called_with_all_inputs_and_with_the_required_ones_alone(all_schemas):
    for node, schema in all_schemas.values():
        signature = inspect.signature(node.execute)
        signature.bind(**{widget.id: None for widget in schema.inputs})
        signature.bind(**{widget.id: None for widget in schema.inputs if not widget.optional})


def test_every_combo_has_options_and_its_default_is_one(all_schemas):
    for node_id, (_, schema) in all_schemas.items():
        for widget in schema.inputs:
            if hasattr(widget, "options"):
                assert len(set(widget.options)) == len(widget.options) > 0, (node_id, widget.id)
                assert widget.default is None or widget.default in widget.options, (node_id, widget.id)


def test_inputs_and_outputs_keep_the_order_of_saved_workflows(all_schemas):
    for node_id, inputs in INPUTS.items():
        schema = all_schemas[node_id][1]
        assert [widget.id for widget in schema.inputs][: len(inputs)] == inputs
        assert [widget.get_io_type() for widget in schema.outputs] == OUTPUTS[node_id]
        required_first = sorted(schema.inputs, key=lambda widget: bool(widget.optional))
        assert required_first == schema.inputs, "the host lists required inputs first"
