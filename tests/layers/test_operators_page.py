"""docs/operators.md: its example runs, and its laws and figures of cost are what is counted."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from dtf.layers import DDFPack, DTFBlock, SIFABlock, TAdaConv2d
from dtf.layers.tada.family import RoutedConv2d
from dtf.models.cost import measure_cost

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text("utf-8")
LAYERS = {
    "1x3x3 convolution": lambda c, t: nn.Conv3d(c, c, (1, 3, 3), padding=(0, 1, 1), bias=False),
    "DTF": DTFBlock,
    "SIFA": lambda c, t: SIFABlock(c),
    "SIFA, `deform=False`": lambda c, t: SIFABlock(c, deform=False),
    "TAda": lambda c, t: RoutedConv2d(TAdaConv2d(c, c, 3, 1, 1, bias=False)),
    "DDF": lambda c, t: DDFPack(c),
}
# layer, law, millions, parameters
ROWS = re.findall(r"^\| ([^|]+) \| `([^`|]+)` \| ([\d.]+) \| (\d+) \|$", PAGE, flags=re.M)


def count(layer: str, channels: int, *size: int) -> tuple[int, int]:
    with torch.device("meta"):
        cost = measure_cost(LAYERS[layer](channels, size[0]).eval(), torch.empty(1, channels, *size))
    return cost.macs, cost.parameters


def test_every_layer_has_a_row():
    assert [row[0] for row in ROWS] == list(LAYERS)


@pytest.mark.parametrize(("layer", "law", "millions", "parameters"), ROWS)
def test_the_laws_are_what_is_counted(layer, law, millions, parameters):
    for channels, frames, height, width in [(64, 4, 56, 56), (160, 8, 14, 20)]:
        letters = {"C": channels, "T": frames, "H": height, "W": width, "K": 3, "F": frames // 2 + 1}
        letters |= {"G": 16, "r": 4, "M": channels // 5}
        assert eval(law, letters) == count(layer, channels, frames, height, width)[0]
    macs, size = count(layer, 64, 4, 56, 56)
    assert (f"{macs / 1e6:.1f}", str(size)) == (millions, parameters)


def test_the_example_of_the_page_runs():
    [example] = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    exec(example, {})


def test_what_the_page_points_to_is_there():
    linked = [x for x in re.findall(r"\]\(([^)#]+)\)", PAGE) if not x.startswith("http")]
    assert [x for x in linked if not (Path(__file__).parents[2] / "docs" / x).exists()] == []
