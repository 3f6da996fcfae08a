"""Settings that Hydra composes: networks by their names, plain values, and what is wrong with an override."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from dtf.runs import errors
from dtf.runs.conf import network_settings
from dtf.text import nearest, program


def plain(cfg: Any) -> Any:
    """A config node as dicts, lists, numbers and strings, all references resolved."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def name_networks(conf: Path, arguments: Iterable[str]) -> None:
    """Let `model=NAME_resnet50` stand for `model=NAME_resnet model.depth=50`: by the name in its file.

    Hydra is told of an option for each network that the arguments name and that has no file of its own.
    """
    asked = {word for a in arguments if a.startswith("model=") for word in re.findall(r"\w+", a[6:])}
    for word in asked:
        node = network_settings(conf, word)
        if node is not None and not (conf / "model" / f"{word}.yaml").is_file():
            ConfigStore.instance().store(group="model", name=word, node=node)


@dataclass(frozen=True)
class Recipe:
    """What a file of `conf/experiment/` is for.

    Attributes:
        name: of the file.
        data: the option of `data` that it takes.
        network: registered name.
        clip_length: frames.
        settings: names of the network's settings that it gives itself.
    """

    name: str
    data: str
    network: str
    clip_length: int
    settings: frozenset[str]


@functools.cache
def recipes(conf: Path) -> tuple[Recipe, ...]:
    """The files of `conf/experiment/` that choose data and a network, by name.

    They are read with what they stand on, and not composed by Hydra, which takes seconds for all of them.
    """
    load = functools.cache(OmegaConf.load)

    def read(group: str, option: str, choices: dict[str, str]) -> Any:
        node: Any = load(conf / group / f"{option}.yaml")
        parts = []
        for entry in node.get("defaults", ["_self_"]):
            if OmegaConf.is_dict(entry):
                choices |= {str(key).removeprefix("override /"): value for key, value in entry.items()}
            else:
                parts.append(node if entry == "_self_" else read(group, entry, choices))
        return OmegaConf.merge(*parts)

    found = []
    for path in sorted((conf / "experiment").glob("*.yaml")):
        choices: dict[str, str] = {}
        own = read("experiment", path.stem, choices)
        if {"data", "model"} <= set(choices):
            data, model = (
                OmegaConf.merge(read(group, choices[group], {}), own.get(group, {}))
                for group in ("data", "model")
            )
            settings = frozenset(map(str, own.get("model", {})))
            found.append(Recipe(path.stem, choices["data"], model.name, data.clip_length, settings))
    return tuple(found)


def explain(error: BaseException, conf: Path | None = None) -> str | None:
    """`dtf.runs.errors.explain`, and errors of Hydra and OmegaConf.

    Args:
        error: any.
        conf: the folder of the configuration, to look up the nearest names in.
    """
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        inner = explain(error.__cause__, conf) or f"{type(error.__cause__).__name__}: {error.__cause__}"
        place = re.search(r"full_key: (\S+)", str(error))
        return f"{place.group(1)}: {inner}" if place else inner
    if isinstance(error, MissingConfigException):
        return _explain_option(error)
    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or str(error)
        return f"{key} has no value yet: add {key}=..."
    if isinstance(error, HydraException):
        return _explain_override(error, conf)
    if isinstance(error, OmegaConfBaseException):
        slurm = re.search(r"Environment variable '(SLURM_\w+)' not found", str(error))
        if slurm is None:
            return str(error)
        return (
            f"trainer=slurm works within a Slurm job, and {slurm[1]} is not set: start it with sbatch and "
            "srun and --ntasks-per-node (docs/distributed.md), or take trainer=ddp"
        )
    return errors.explain(error)


def _explain_option(error: MissingConfigException) -> str:
    """`model=dtf_tinny`: the option does not exist."""
    missing = error.missing_cfg_file
    options = list(error.options or [])
    name = str(missing).rsplit("/", 1)
    if len(name) == 1 or not options:
        return str(error)
    group, option = name
    return f"there is no {group}={option}{nearest(option, options)} (there are: {', '.join(options)})"


def _explain_override(error: HydraException, conf: Path | None) -> str:
    """`optim.lrr=1`: the setting does not exist, or the text is no setting at all."""
    if isinstance(error, OverrideParseException):
        return f"{error.override} is no setting KEY=VALUE: {str(error).splitlines()[0]}"
    key = re.search(r"Could not (?:override|delete) '([^']+)'", str(error))
    if key is None or conf is None:
        return str(error)
    name = key.group(1).lstrip("+~").split("@")[0]
    cause = str(error.__cause__).splitlines()[0] if error.__cause__ else ""
    if cause and "is not in struct" not in cause:
        return f"{name}: {cause}"
    return f"there is no setting {name}{_nearest_setting(conf, name)} ({program(_config_name())} --help)"


def _config_name() -> str:
    """Of the program that is running: "train" of train.py and of dtf-train."""
    return Path(sys.argv[0]).stem.removeprefix("dtf-")


def _nearest_setting(conf: Path, wrong: str) -> str:
    """`; did you mean optim.lr?` for `lr`, `optim.lrr` and `optm.lr`, or an empty text."""
    known = _known_settings(conf)
    # The last part decides more than a long common beginning does.
    parent, _, last = wrong.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    by_last: dict[str, list[str]] = {}
    for key in sorted(known, key=lambda k: k.count(".")):
        by_last.setdefault(key.rpartition(".")[2], []).append(key)
    if last not in by_last:
        if near := difflib.get_close_matches(wrong, siblings, n=1, cutoff=0.7):
            return f"; did you mean {near[0]}?"
        last = next(iter(difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)), last)
    found = by_last.get(last, [])
    # Values before the groups of the same name: optim.lr, not callbacks.lr.
    found = [k for k in found if not any(other.startswith(k + ".") for other in known)] or found
    return f"; did you mean {' or '.join(found[:3])}?" if found else nearest(wrong, siblings or known)


def _known_settings(conf: Path) -> list[str]:
    """All settings under the groups chosen on the command line: `optim.lr`, `model`, ..."""
    config_name = _config_name()
    groups = [p.name for p in conf.iterdir() if p.is_dir()]
    choices = [a for a in sys.argv[1:] if a.split("=")[0].lstrip("+") in groups and "," not in a]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            cfg = compose(config_name, overrides=choices)
        except HydraException:
            # A chosen option is wrong as well; the defaults still hold most names.
            cfg = compose(config_name)

    def keys(node: Any, prefix: str) -> Iterator[str]:
        for key in node:
            yield prefix + str(key)
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                child = node[key]
                if isinstance(child, DictConfig):
                    yield from keys(child, f"{prefix}{key}.")

    return list(dict.fromkeys([*keys(cfg, ""), *groups]))
