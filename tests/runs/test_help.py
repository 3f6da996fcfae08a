"""`--help`: settings with the comments of their files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hydra.errors import HydraException

from dtf.runs.conf import CONF
from dtf.runs.help import help_text


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_comments_follow_their_settings(tmp_path: Path) -> None:
    write(
        tmp_path,
        main="# not shown\ndefaults:\n  - part: b # which part\n  - over: null\n  - _self_\n"
        "# above it\nx: '#' # beside\nhydra:\n  help:\n    header: |\n      What it does.\n",
        part__a="# The base.\none: 1 # first\ntwo: {c: d, e: [1, 2]} # of base\nlist: # in lines\n  - 3\n",
        part__b="# Part b.\ndefaults: [a, _self_]\none: 2\ntwo:\n  c: 5 # of b\n",
        over__all="# @package _global_\n# Something.\npart:\n  one: 7 # from above\n",
    )
    text = help_text(tmp_path, "main", [])
    assert re.sub(" +#", " #", text).splitlines() == [
        *("What it does.", "", "== Groups (GROUP=OPTION) ==", "part: a, b", " # which part", "over: all", ""),
        *("== Settings (KEY=VALUE) ==", "part: # Part b.", "  one: 2 # first", "  two: # of base"),
        *("    c: 5 # of b", "    e: [1, 2]", "  list: [3] # in lines", "# above it", "# beside", "x: '#'"),
    ]
    assert re.search("^  one: 7 +# from above$", help_text(tmp_path, "main", ["over=all"]), flags=re.M)
    assert "  one: 9" in help_text(tmp_path, "main", ["part.one=9"])
    with pytest.raises(HydraException):
        help_text(tmp_path, "main", ["part=c"])


@pytest.mark.parametrize(
    "overrides", [[], ["experiment=ssv2_dtf_swin_base_32f", "data.root=x"], ["logger=[wandb,tensorboard]"]]
)
def test_settings_of_training_are_yaml_with_their_meaning(overrides: list[str]) -> None:
    text = help_text(CONF, "train", overrides).split("== Settings (KEY=VALUE) ==")[1]
    assert set(yaml.safe_load(text)) >= {"model", "data", "optim", "trainer", "quiet"}
    assert re.search("^  clip_length: [0-9]+ +# frames$", text, flags=re.M)
