"""What a user reads when something is wrong: the sentence, at once, and everything that is missing together."""

from __future__ import annotations

from helpers.browser_pages import card, with_values

STARTER = "1 Portrait from one photo"
REFUSED = "() => JSON.parse(JSON.stringify(app.lastNodeErrors ?? app.extensionManager.lastNodeErrors ?? null))"


def test_a_mistake_in_our_node_is_its_sentence_without_a_path_or_our_trace(editor):
    editor.load(with_values(card(STARTER), "LikenessFindFaces", index=5), "mistake")
    [error] = [told for kind, told in editor.queue() if kind == "execution_error"]
    assert error["exception_type"] == "LikenessError"
    assert error["exception_message"].startswith("Face number 5 was asked for in the photo, but 1 were found")
    assert "found.py" not in "".join(error["traceback"])
    details = editor.page.get_by_role("button", name="View details").first
    details.wait_for()
    details.click()
    editor.page.get_by_text("Face number 5 was asked for").first.wait_for()
    assert "custom_nodes" not in editor.run("() => document.body.innerText.split('Face number 5')[0]")


def test_a_mistake_in_a_node_of_the_hosts_names_no_module_either(editor):
    editor.load(with_values(card(STARTER), "CLIPTextEncode", text="a photo of a dinosaur"), "mistake")
    [error] = [told for kind, told in editor.queue() if kind == "execution_error"]
    assert error["exception_type"] == "LikenessError"
    assert error["exception_message"].startswith("The miniature world does not know 'dinosaur'")


def test_everything_that_is_missing_is_said_before_anything_runs(editor):
    workflow = with_values(card(STARTER), "LikenessLoadFaceAnalysis", model="buffalo_l (not installed)")
    workflow = with_values(workflow, "LikenessLoadIdentityAdapter", adapter_file="ip-adapter-faceid_sd15.bin")
    editor.load(workflow, "missing")
    editor.run("() => app.queuePrompt(0, 1)")
    editor.page.wait_for_function(f"() => Object.keys(({REFUSED})() ?? {{}}).length")
    said = {error["details"].partition(" - ")[2] for node in editor.run(REFUSED).values() for error in node["errors"]}
    assert len(said) == 2
    for file in ("buffalo_l", "ip-adapter-faceid_sd15"):
        [sentence] = [text for text in said if file in text]
        assert f"likeness models get {file}" in sentence
