"""Pictures of what only some families have: calibrations and predicted filters, and their numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dtf.apply.explain import Clip
from dtf.data.clip_view import ClipView
from dtf.explain import main
from dtf.layers import DDFPack, Kernels, Maps
from dtf.models import create_model, layer_maps, save_weights
from dtf.view.explain import _inner, _tiles, draw_calibrations, draw_kernels, order_of_channels

FRAMES = np.full((4, 32, 32, 3), 90, np.uint8)
CLIP = Clip(FRAMES, np.arange(4), None)


def colours(path: Path) -> tuple[bool, bool]:
    """Whether a picture has red, and blue."""
    with Image.open(path) as image:
        red, _, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(int), 2, 0)
    return bool((red - blue > 100).any()), bool((blue - red > 100).any())


def test_channels_that_change_alike_are_neighbours() -> None:
    source = np.random.default_rng(0)
    courses = np.array([[1, 1, 0, 0, -1], [0, 1, 2, 1, 0], [-1, -1, 0, 0, 1]], float)
    kinds = source.permutation(np.repeat(np.arange(3), 6))
    change = (courses[kinds] * source.uniform(0.5, 2, (18, 1))).T
    ordered = kinds[order_of_channels(change)]
    assert (np.diff(ordered) != 0).sum() == 2, "each kind stands together"
    assert sorted(order_of_channels(change)) == list(range(18))
    assert order_of_channels(np.array([[0.1, -0.2, 0.3]])).tolist() == [2, 0, 1], "of one step, by size"
    assert sorted(order_of_channels(np.zeros((3, 4)))) == [0, 1, 2, 3]


def test_calibrations_of_a_network(tmp_path: Path) -> None:
    model = create_model("tada_tiny", 2, clip_length=4, widths=[8, 8, 8, 8], stem_width=8).eval()
    video = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    having = {n: m for n, m in layer_maps(model, video).items() if m.calibration is not None}
    assert having
    for maps in having.values():
        assert maps.calibration is not None
        assert torch.equal(maps.calibration, torch.ones(2, 4, 8)), "a fresh one calibrates nothing"
    draw_calibrations(tmp_path / "fresh.png", "x", CLIP, having)
    assert colours(tmp_path / "fresh.png") != (False, False), "the bars have all colours"

    layer = model.get_submodule(next(iter(having)))
    torch.nn.init.constant_(layer.rf.b.weight, 0.5)
    torch.nn.init.constant_(layer.rf.a.bias, 1.0)
    x = torch.randn(1, 8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    calibration = layer.explain(x).calibration
    assert calibration.shape == (1, 4, 8)
    assert (calibration != 1).any()
    scaled = x * calibration.transpose(1, 2)[..., None, None]
    weight = layer.conv.weight[0, 0]
    for step in range(4):
        expected = F.conv2d(scaled[:, :, step], weight, padding=1)
        torch.testing.assert_close(layer(x)[:, :, step], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("steps", "clips"), [(1, False), (2, True)])
def test_kernels_are_what_filters_the_clip(steps: int, clips: bool) -> None:
    pack = DDFPack(4, se_ratio=0.5, clip_filter=clips).double().eval()
    x = torch.randn(2, 4, steps, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernels = pack.explain(x).kernels
    assert kernels is not None
    assert kernels.by_pixel.shape == (2, steps, 1, 3, 3, 6, 7)
    assert kernels.by_channel.shape == (2, steps, 4, 3, 3)
    windows = F.pad(x, (1, 1, 1, 1)).unfold(3, 3, 1).unfold(4, 3, 1)  # (B, C, T, H, W, K, K)
    expected = torch.einsum(
        "bcthwij,btijhw,btcij->bcthw", windows, kernels.by_pixel[:, :, 0], kernels.by_channel
    )
    torch.testing.assert_close(pack(x), expected)


@pytest.mark.parametrize(("steps", "size", "heads", "channels"), [(1, 7, 1, 5), (4, 3, 2, 100)])
def test_kernels_are_drawn(tmp_path: Path, steps: int, size: int, heads: int, channels: int) -> None:
    source = torch.Generator().manual_seed(0)
    by_pixel = torch.randn(1, steps, heads, 3, 3, size, size, generator=source)
    kernels = Kernels(by_pixel, torch.randn(1, steps, channels, 3, 3, generator=source))
    maps = Maps("taps", "", torch.zeros(1, 1, size, size), ("0",), kernels=kernels)
    draw_kernels(tmp_path / "k.png", "x", Clip(FRAMES[:steps], np.arange(steps), None), {"a": maps})
    assert colours(tmp_path / "k.png") == (True, True)


@pytest.mark.parametrize(("name", "picture"), [("tada_tiny", "calibration"), ("ddf_tiny", "kernels")])
def test_the_command_draws_what_a_layer_has(tmp_path: Path, name: str, picture: str) -> None:
    model = create_model(name, 2, clip_length=2, widths=[8, 8, 8, 8], stem_width=8)
    view = ClipView(2, 1, 32, None, None, {}, (0.45,) * 3, (0.225,) * 3)
    save_weights(tmp_path / "w.safetensors", model, {"class_names": ["a", "b"], "data": view.settings()})
    (tmp_path / "video").mkdir()
    for number in range(1, 4):
        Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(tmp_path / "video" / f"{number:05}.jpg")
    given = [f"checkpoint={tmp_path}/w.safetensors", "block=layer3.0.conv2", f"output={tmp_path}/out"]
    assert main([str(tmp_path / "video"), *given]) == 0
    (record,) = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert list(record["pictures"]) == ["filters", picture, "gradcam"]
    assert (tmp_path / "out" / record["pictures"][picture]).read_bytes().startswith(b"\x89PNG")


def test_sizes_of_kernels_are_checked() -> None:
    with pytest.raises(ValueError, match=r"must fit, got \(1, 2, 1, 3, 3, 4, 4\) and \(1, 2, 8, 5, 5\)"):
        Kernels(torch.zeros(1, 2, 1, 3, 3, 4, 4), torch.zeros(1, 2, 8, 5, 5))


def test_places_and_tiles() -> None:
    for size in range(1, 70):
        places, distance = _inner(size, 6)
        assert 1 <= len(places) <= 6
        assert (np.diff(places) == distance).all()
        assert places[0] >= 0
        assert abs(places[0] - (size - 1 - places[-1])) <= 1, "in the middle"
    tiles = _tiles(np.arange(9 * 4, dtype=float).reshape(9, 2, 2))
    assert tiles.shape == (5, 23)
    assert tiles[:2, :2].tolist() == [[0, 1], [2, 3]]
    assert tiles[3:, :2].tolist() == [[32, 33], [34, 35]]
    assert np.isnan(tiles[2]).all()
    assert np.isnan(tiles[3:, 3:]).all()
