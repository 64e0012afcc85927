from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from likeness.adapters.ip_adapter.embeds import (
    CombineMode,
    EmbedsScaling,
    ImageEmbeds,
    combine_uncond,
    join_embeds,
    join_tokens,
    load_embeds,
    renormalised,
    save_embeds,
)
from likeness.errors import LikenessError
from likeness.injection.attention import attend

modes = st.sampled_from(list(CombineMode))
scalings = st.sampled_from(list(EmbedsScaling))


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(scalings)
def test_weight_one_at_the_widest_layer_changes_nothing(scaling):
    keys, values = rows(2, 4, 8), rows(2, 4, 8, seed=1)
    scaled = scaling.function(keys, values, 1.0, 1280)
    torch.testing.assert_close(scaled, (keys, values))


@given(st.floats(-3, 3))
def test_the_mean_of_the_values_is_scaled_but_not_what_tells_them_apart(weight):
    values = rows(1, 5, 8)
    _, scaled = EmbedsScaling.K_MEAN_V_PENALISED.function(values, values, weight, 640)
    torch.testing.assert_close(scaled.mean(1), values.mean(1) * weight / 2, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scaled - scaled.mean(1, keepdim=True), values - values.mean(1, keepdim=True))


@given(scalings.filter(lambda s: s is not EmbedsScaling.K_MEAN_V_PENALISED), st.sampled_from([320, 640, 1280]))
def test_weight_zero_leaves_no_image_term(scaling, channels):
    keys, values = scaling.function(rows(1, 4, 8), rows(1, 4, 8), 0.0, channels)
    assert not attend(rows(1, 6, 8), keys, values, heads=2).any()


@given(modes)
def test_one_picture_stays_as_it_is(mode):
    one = rows(1, 3, 4)
    assert torch.equal(join_embeds(one, mode), one)


@given(modes, st.integers(2, 5), st.integers(1, 4))
def test_several_pictures_become_one_row_except_when_all_are_kept(mode, count, width):
    combined = join_embeds(rows(count, width), mode)
    assert combined.shape == (count if mode is CombineMode.CONCAT else 1, width)
    assert combined.isfinite().all()


@given(modes.filter(lambda m: m not in (CombineMode.CONCAT, CombineMode.SUBTRACT)), st.permutations(range(4)))
def test_the_order_of_pictures_matters_to_subtract_alone(mode, order):
    pictures = rows(4, 6)
    torch.testing.assert_close(join_embeds(pictures[list(order)], mode), join_embeds(pictures, mode))


def test_norm_average_of_zeros_is_zero():
    pictures = rows(3, 4)
    pictures[:, 1] = 0
    assert join_embeds(pictures, CombineMode.NORM_AVERAGE)[0, 1] == 0


def test_weights_are_proportions_in_an_average_and_factors_in_a_sum():
    pictures = torch.tensor([[1.0], [4.0]])
    assert join_embeds(pictures, CombineMode.AVERAGE, [2.0, 4.0]).item() == pytest.approx(3.0)
    assert join_embeds(pictures, CombineMode.AVERAGE, [1.0, 0.0]).item() == pytest.approx(1.0)
    assert join_embeds(pictures, CombineMode.ADD, [2.0, 4.0]).item() == pytest.approx(18.0)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1.0], "1 weights for 2"),
        ([1.0, math.nan], "image 2 is nan"),
        ([1e38, 1.0], "image 1 is 1e\\+38"),
        ([1.0, -1.0], "zero"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, says):
    with pytest.raises(LikenessError, match=says):
        join_embeds(rows(2, 3), CombineMode.AVERAGE, weights)


def test_nothing_to_combine_is_refused():
    with pytest.raises(LikenessError, match="no image"):
        join_embeds(torch.empty(0, 8), CombineMode.ADD)


def test_unconditioned_copies_are_dropped_and_attention_does_not_notice():
    one = rows(1, 4, 8)
    copies = one.expand(3, -1, -1)
    kept = combine_uncond(copies, CombineMode.CONCAT)
    assert len(kept) == 1
    q = rows(1, 6, 8, seed=1)
    shared, alone = join_tokens(copies), join_tokens(kept)
    torch.testing.assert_close(attend(q, shared, shared, 2), attend(q, alone, alone, 2))


@given(modes)
def test_the_unconditioned_counterpart_is_the_first_unless_all_are_kept(mode):
    different = rows(3, 4)
    kept = combine_uncond(different, mode)
    assert torch.equal(kept, different if mode is CombineMode.CONCAT else different[:1])


def test_joined_tokens_keep_their_order():
    assert join_tokens(torch.arange(12.0).reshape(3, 2, 2)).flatten().tolist() == list(range(12))


def test_a_mean_of_unit_vectors_can_be_made_a_unit_vector():
    unit = torch.nn.functional.normalize(rows(3, 16), dim=-1)
    mean = join_embeds(unit, CombineMode.AVERAGE)
    assert mean.norm() < 0.99
    assert renormalised(mean, unit).norm().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("with_uncond", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saved_embeddings_come_back(tmp_path, with_uncond, dtype):
    cond = rows(2, 5, 8).to(dtype)
    saved = ImageEmbeds(cond, cond[:1] if with_uncond else None, adapter="IP-Adapter Plus", encoder="ViT-H")
    save_embeds(tmp_path / "new folder" / "anna.safetensors", saved)
    loaded = load_embeds(tmp_path / "new folder" / "anna.safetensors")
    assert torch.equal(loaded.cond, cond)
    assert (loaded.uncond is not None) == with_uncond
    assert (loaded.adapter, loaded.encoder) == ("IP-Adapter Plus", "ViT-H")


def test_saving_never_replaces_a_file(tmp_path):
    path = tmp_path / "anna.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(LikenessError, match="exists already"):
        save_embeds(path, ImageEmbeds(rows(1, 4)))
    assert path.read_bytes() == b"mine"


def test_embeddings_of_another_encoder_or_kind_are_refused():
    embeds = ImageEmbeds(rows(1, 1024), adapter="IP-Adapter", encoder="ViT-H")
    embeds.check_fits(1024, hidden_states=False, adapter_name="IP-Adapter")
    with pytest.raises(LikenessError, match=r"1024 wide \(made with ViT-H for IP-Adapter\), but X reads width 1280"):
        embeds.check_fits(1280, hidden_states=False, adapter_name="X")
    with pytest.raises(LikenessError, match=r"hold one vector .* reads every token"):
        embeds.check_fits(1024, hidden_states=True, adapter_name="X")
    with pytest.raises(LikenessError, match=r"hold every token .* reads one vector"):
        ImageEmbeds(rows(1, 257, 1024)).check_fits(1024, hidden_states=False, adapter_name="X")


def test_ipadpt_files_of_another_pack_are_read(tmp_path):
    embeds = rows(2, 257, 1280)
    torch.save(embeds, tmp_path / "old.ipadpt")
    loaded = load_embeds(tmp_path / "old.ipadpt")
    assert torch.equal(loaded.cond, embeds)
    assert loaded.encoder is None


class Bomb:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


def test_a_pickle_with_code_is_refused_without_running_it(tmp_path, capsys):
    path = tmp_path / "evil.ipadpt"
    torch.save(Bomb(), path)
    with pytest.raises(LikenessError, match=r"evil\.ipadpt"):
        load_embeds(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(LikenessError, match=r"evil\.ipadpt"):
        load_embeds(path)
    assert "ran code" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": torch.ones(2, 3)}, "no single tensor"),
        (torch.ones(3), "not an image embedding"),
        (torch.ones(0, 3), "not an image embedding"),
        (torch.ones(2, 3, dtype=torch.int64), "not an image embedding"),
        (torch.full((2, 3), math.nan), "NaN"),
    ],
)
def test_ipadpt_files_with_something_else_are_refused(tmp_path, content, says):
    torch.save(content, tmp_path / "odd.ipadpt")
    with pytest.raises(LikenessError, match=says):
        load_embeds(tmp_path / "odd.ipadpt")


def test_files_that_hold_no_embeddings_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(LikenessError, match="does not exist"):
        load_embeds(tmp_path / "missing.safetensors")
    save_file({"cond": torch.ones(1, 2)}, tmp_path / "lora.safetensors", metadata={"format": "pt"})
    with pytest.raises(LikenessError, match="holds no image embeddings"):
        load_embeds(tmp_path / "lora.safetensors")
    for name in ("cut.safetensors", "cut.ipadpt"):
        (tmp_path / name).write_bytes(b"\x00\x01")
        with pytest.raises(LikenessError, match=name.replace(".", r"\.")):
            load_embeds(tmp_path / name)
    metadata = {"format": "likeness image embeddings", "version": "99"}
    save_file({"cond": torch.ones(1, 2)}, tmp_path / "future.safetensors", metadata=metadata)
    with pytest.raises(LikenessError, match="newer version"):
        load_embeds(tmp_path / "future.safetensors")


def test_an_ipadpt_tensor_larger_than_its_bytes_is_refused(tmp_path):
    torch.save(torch.zeros(1).expand(1 << 20, 1 << 10), tmp_path / "huge.ipadpt")
    with pytest.raises(LikenessError, match=r"huge\.ipadpt"):
        load_embeds(tmp_path / "huge.ipadpt")
