from __future__ import annotations

from likeness.adapters.edit_models.grounding import IDENTITY_EDIT, KREA2_LABELS, VISION, template_length


def test_labels_count_the_pictures_in_order():
    assert KREA2_LABELS.turn("she waves", 2) == f"Picture 1: {VISION}Picture 2: {VISION}she waves"
    assert IDENTITY_EDIT.turn("she waves", 2) == f"{VISION}{VISION}she waves"


def test_braces_of_a_prompt_survive_the_template():
    assert "a {red} hat" in IDENTITY_EDIT.template.format(IDENTITY_EDIT.turn("a {red} hat", 1))


def test_what_the_encoder_cuts_off_ends_behind_the_users_turn():
    assert template_length([151644, 9, 9, 151644, 872, 198, 5]) == 6
    assert template_length([151644, 9, 9, 151644, 5]) == 3
