"""`--help` of a command: its groups and settings with what the comments of conf/ say about them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

_WIDTH = 120
_COLUMN = 44
"""Where comments begin, behind settings that are shorter."""


def help_text(conf: Path, config_name: str, overrides: Sequence[str]) -> str:
    """The header from the config, then groups with their options, then settings as `overrides` make them.

    Args:
        conf: the folder of the configuration.
        config_name: file in it, without ".yaml".
        overrides: groups and settings; what else is on a command line does not matter here.

    Raises:
        HydraException: there is no such group or setting.
    """
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose(config_name, overrides=list(overrides), return_hydra_config=True)
    settings: Any = OmegaConf.to_container(cfg, resolve=False)
    hydra = settings.pop("hydra")
    main = conf / f"{config_name}.yaml"
    comments = dict(_comments(main, ""))
    defaults = yaml.safe_load(main.read_text("utf-8"))["defaults"]
    groups = [group for item in defaults if isinstance(item, dict) for group in item]
    for group in groups:
        # Of several options of one group, logger=[csv,wandb], there is no choice: settings without comments.
        if path := _file(conf / group, hydra["runtime"]["choices"].get(group)):
            comments |= _comments(path, group)

    lines = [hydra["help"]["header"].rstrip(), "", "== Groups (GROUP=OPTION) =="]
    for group in groups:
        options = ", ".join(sorted(path.stem for path in (conf / group).glob("*.yaml")))
        lines += textwrap.wrap(f"{group}: {options}", _WIDTH, subsequent_indent=" " * (len(group) + 2))
        lines += [" " * (len(group) + 2) + f"# {text}" for text in comments.get(f"={group}", [])]
    lines += ["", "== Settings (KEY=VALUE) ==", *_lines(settings, "", comments)]
    return "\n".join(lines)


def _file(folder: Path, option: str | None) -> Path | None:
    """The file of an option; of one that stands for another, as model=NAME_resnet50, that of the other."""
    files = sorted(folder.glob("*.yaml"), key=lambda path: -len(path.stem))
    return next((path for path in files if path.stem == option), None) or next(
        (path for path in files if option and option.startswith(path.stem)), None
    )


def _comments(path: Path, group: str) -> Iterator[tuple[str, list[str]]]:
    """(setting, its comments) of a file and of those that it starts from, which come first.

    A setting is given as `optim.lr`, a group of the defaults as `=optim`, what a file says at its top about
    itself under the group that it belongs to.
    """
    text = path.read_text("utf-8")
    lines = text.splitlines()
    prefix = "" if "@package _global_" in lines[0] else f"{group}." if group else ""
    root = yaml.compose(text)

    def above(number: int) -> list[str]:
        found: list[str] = []
        while number and (match := re.fullmatch(r"\s*#(?! @package) ?(.*)", lines[number - 1])):
            found.insert(0, match[1])
            number -= 1
        return found

    def walk(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, list[str]]]:
        for key, value in node.value:
            # A value that begins below its key.
            mark = key.end_mark if value.end_mark.line > key.end_mark.line else value.end_mark
            behind = re.fullmatch(r":?\s*#\s*(.*)", lines[mark.line][mark.column :])
            first = key is root.value[0][0]
            found = [] if first else above(key.start_mark.line)
            if found := found + ([behind[1]] if behind else []):
                yield f"{prefix}{key.value}", found
            if isinstance(value, yaml.MappingNode):
                yield from walk(value, f"{prefix}{key.value}.")

    for key, value in root.value:
        if key.value == "defaults":
            for item in value.value:
                if isinstance(item, yaml.MappingNode):
                    yield from walk(item, "=")
                elif item.value != "_self_":
                    yield from _comments(path.parent / f"{item.value}.yaml", group)
    if group and (own := above(root.value[0][0].start_mark.line)):
        yield group, own
    yield from walk(root, prefix)


def _lines(settings: dict[str, Any], prefix: str, comments: dict[str, list[str]]) -> Iterator[str]:
    """Settings as lines of YAML, a short comment behind its setting, a longer one above it."""
    indent = "  " * prefix.count(".")
    for key, value in settings.items():
        inside = isinstance(value, dict) and value
        text = f"{indent}{_dumped(key)}:" + ("" if inside else f" {_dumped(value)}")
        found = comments.get(f"{prefix}{key}", [])
        if len(found) == 1 and len(text) < _COLUMN and len(found[0]) <= _WIDTH - _COLUMN - 2:
            yield f"{text:<{_COLUMN}}# {found[0]}"
        else:
            yield from (f"{indent}# {line}" for line in found)
            yield text
        if inside:
            yield from _lines(value, f"{prefix}{key}.", comments)


def _dumped(value: Any) -> str:
    """A value as one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()
