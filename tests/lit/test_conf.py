"""Every option of every group in conf/ composes, and builds what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from engine import REPOSITORY
from hydra import compose, initialize_config_dir
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.strategies import DDPStrategy
from quick import quick

from dtf.data.clip_view import CLIP_KEYS
from dtf.lit import build
from dtf.lit.callbacks import BestCheckpoint
from dtf.lit.optim import OptimConfig
from dtf.lit.report import next_commands
from dtf.lit.survival import LastCheckpoint
from dtf.models import list_models
from dtf.runs.composing import explain, name_networks, plain, recipes
from dtf.runs.conf import network_settings
from dtf.runs.measure import measures
from dtf.runs.process import RUN_FOLDER

CONF = REPOSITORY / "conf"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def settings(*overrides: str, name: str = "train"):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=list(overrides))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's folder, for builders that write there."""
    # As a process that was started by the first one would find it.
    monkeypatch.setenv(RUN_FOLDER, str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "1")
    return tmp_path


class Sizes:
    """Of a network."""

    num_classes, clip_length = 3, 8


def test_no_group_is_forgotten() -> None:
    groups = {p.name for p in CONF.iterdir() if p.is_dir()}
    tested = {"model", "data", "optim", "trainer", "logger", "callbacks", "debug", "task"}
    elsewhere = {"experiment", "sweep", "hydra"}  # test_experiments.py, test_sweep.py
    assert groups <= tested | elsewhere


@pytest.mark.parametrize("option", options("model"))
def test_model(option: str) -> None:
    small = {
        "resnet": ["model.depth=18"],
        "sifa_resnet": ["model.layers=[1,2,1,2]", "model.widths=[8,8,8,8]"],
        "swin": ["data.crop_px=64", "model.embed_dim=24"],
        "tadaconvnextv2": ["model.depths=[1,1,1,1]", "model.widths=[8,8,8,8]", "model.head_dim=2"],
        "c2d_convnext": ["model.depths=[1,1,1,1]", "model.widths=[8,8,8,8]"],
        "tadaformer": ["data.crop_px=64", "model.embed_dim=24", "model.blocks=1", "model.head_dim=2"],
        "c2d_vit": ["data.crop_px=64", "model.embed_dim=24", "model.blocks=1"],
        "tada2d_resnet": ["model.layers=[1,1,1,1]", "model.widths=[8,8,8,8]"],
        "ddf_resnet": ["model.layers=[1,1,1,1]", "model.widths=[8,8,8,8]"],
        "ptv_slow_r50": ["model.width=8"],
        "ptv_slowfast_r50": ["model.width=8", "model.depth=18"],
        "ptv_x3d_s": ["model.width_factor=1", "model.depth_factor=0.5"],
        "ptv_x3d_m": ["model.width_factor=1", "model.depth_factor=0.5"],
        "ptv_csn_r101": ["model.width=8", "model.depth=50"],
        "ptv_r2plus1d_r50": ["model.width=8"],
        "ptv_mvit_b": ["data.crop_px=64", "model.embed_dim=16", "model.depths=[1,1]"],
    }
    cfg = settings(f"model={option}", *small.get(option, small.get(option.split("_")[-1], [])))
    network = build.build_network(cfg.model, Sizes.num_classes, Sizes.clip_length)
    assert network.name == option or network_settings(CONF, network.name)["defaults"][0] == option
    assert network.arguments["num_classes"] == 3
    assert network.arguments["clip_length"] == 8
    if "depth" in cfg.model and option.startswith("ptv"):
        assert network.arguments["depth"] == (cfg.model.depth or 50)
    if any(kind in option for kind in ("swin", "vit", "former")):
        assert network.arguments["image_size"] == 64
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, 8, 64, 64)).shape == (1, 3)


@pytest.mark.slow
def test_every_registered_network_has_a_config() -> None:
    name_networks(CONF, [f"model={name}" for name in list_models()])
    for name in list_models():
        assert settings(f"model={name}").model.name == name


def test_what_the_name_says_is_no_argument_besides() -> None:
    name_networks(CONF, ["model=ddf_add_resnet50"])
    cfg = settings("model=ddf_add_resnet50", "model.layers=[1,1,1,1]", "model.widths=[8,8,8,8]")
    assert (cfg.model.combine, cfg.model.depth) == ("add", 50)
    network = build.build_network(cfg.model, 3, 1)
    assert network.name == "ddf_add_resnet50"
    assert "combine" not in network.arguments


@pytest.mark.slow
def test_every_argument_of_a_network_can_be_set() -> None:
    from dtf.models.registry import architecture

    for option in options("model"):
        cfg = settings(f"model={option}").model
        arguments = set(architecture(cfg.name).defaults) - {"num_classes", "clip_length"}
        assert arguments - set(cfg) == set(), option


@pytest.mark.parametrize("option", options("data"))
def test_data(option: str) -> None:
    cfg = settings(f"data={option}", "data.root=/no/where")
    assert cfg.data.name == option
    data = build.instantiate(cfg.data)
    assert isinstance(data, pl.LightningDataModule)
    assert data.view.settings().keys() == set(CLIP_KEYS)


@pytest.mark.parametrize("option", options("optim"))
def test_optim(option: str) -> None:
    cfg = settings(f"optim={option}")
    assert OptimConfig.from_mapping(plain(cfg.optim)).name == option


RECIPES = recipes(CONF)


@pytest.mark.parametrize(
    ("network", "data", "overrides", "nearest"),
    [
        ("dtf_swin_tiny", "k400", ["model=dtf_swin", "data=k400"], "k400_dtf_swin_small_16f"),
        ("dtf_resnet50", "ssv2", ["data.clip_length=32"], "ssv2_dtf_resnet50_32f"),
        ("c2d_resnet101", "diving48", [], "diving48_dtf_resnet50_16f model=c2d_resnet101"),
        ("dtf_resnet50", "folder", [], "k400_dtf_resnet50_16f data=folder"),
        ("sifa_resnet101", "ssv2", [], "ssv2_sifa_resnet50_16f"),
        ("ddf_add_resnet101", "imagefolder", [], "imagenet_ddf_add_resnet101"),
        ("ddf_mul_resnet50", "digits", [], "imagenet_ddf_mul_resnet50 data=digits"),
        ("c2d_resnet50", "imagefolder", [], "imagenet_ddf_mul_resnet50 model=c2d_resnet50"),
    ],
)
def test_the_default_recipe_names_one_that_fits(network, data, overrides, nearest) -> None:
    clip = 32 if "data.clip_length=32" in overrides else 1 if data in ("imagefolder", "digits") else 16
    hint = build.recipe_hint(network, data, clip, overrides, RECIPES)
    assert hint is not None
    assert hint.endswith(f"experiment={nearest}")
    own = ("experiment=x", "optim=sgd", "optim.lr=1", "++trainer.max_epochs=9", "model.pretrained=true")
    for given in own:
        assert build.recipe_hint(network, data, clip, [*overrides, given], RECIPES) is None


def test_the_default_recipe_is_right_for_small_networks() -> None:
    assert build.recipe_hint("dtf_tiny", "motion", 8, [], RECIPES) is None
    assert build.recipe_hint("c2d_tiny", "folder", 8, [], RECIPES) is None
    for network, data in (("dtf_tiny", "k400"), ("ptv_slow_r50", "motion")):
        assert (build.recipe_hint(network, data, 8, [], RECIPES) or "").endswith("docs/recipes.md has others")


def test_the_table_shows_every_group(folder: Path, capsys, caplog: pytest.LogCaptureFixture) -> None:
    overrides = ["model=c2d_tiny", "optim.lr_scale={backbone.fc:10,*.bias:2}", "optim.layer_decay=0.5"]
    cfg = settings(
        *overrides, "optim.lr=0.08", "optim.weight_decay=0.07", "trainer=cpu", "data.root=/no/where"
    )
    data = build.instantiate(cfg.data)
    network = build.build_network(cfg.model, data.num_classes, data.clip_length)
    trainer = build.build_trainer(cfg.trainer, folder, [], [])
    build.print_start(network, data, plain(cfg.optim), trainer, folder)
    assert capsys.readouterr().out == ""
    caplog.set_level("INFO")
    build.print_start(network, data, plain(cfg.optim), trainer, folder)
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["layer_5/backbone.fc/decay", "1", "1,280", "0.8", "0.07"] in rows
    assert ["layer_5/*.bias/no_decay", "1", "10", "0.16", "0"] in rows
    assert ["layer_0/decay", "1", "1,200", "0.0025", "0.07"] in rows


def test_pictures_are_called_so(folder: Path, capsys, caplog: pytest.LogCaptureFixture) -> None:
    """And more views of one are other crops: it has one frame."""
    cfg = settings(
        "model=ddf_tiny", "data=digits", "data.class_names=[a,b]", "trainer=cpu", "data.root=/no/where"
    )
    data = build.instantiate(cfg.data)
    network = build.build_network(cfg.model, data.num_classes, data.clip_length)
    caplog.set_level("INFO")
    build.print_start(
        network, data, plain(cfg.optim), build.build_trainer(cfg.trainer, folder, [], []), folder
    )
    assert "2 classes, pictures of 32 px, batch" in capsys.readouterr().out
    views, predict = next_commands(data, Path("best.ckpt"))
    assert views == ("more views", "python eval.py checkpoint=best.ckpt views=1x3")
    assert predict == ("your picture", "python -m dtf.predict PICTURE checkpoint=best.ckpt")


@pytest.mark.parametrize("option", options("trainer"))
def test_trainer(option: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK")
    here = [] if option in ("auto", "cpu") else ["trainer.accelerator=cpu"]
    if option == "slurm":
        # As in a job of two nodes with two tasks each, started by srun.
        task = {"JOB_ID": 7, "JOB_NAME": "train", "NNODES": 2, "NTASKS": 4, "NTASKS_PER_NODE": 2}
        task |= {"PROCID": 3, "LOCALID": 1, "NODEID": 1, "NODELIST": "node[1-2]"}
        for name, value in task.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
    cfg = settings(f"trainer={option}", *here, *(["trainer.devices=2"] if option == "ddp" else []))
    trainer = build.build_trainer(cfg.trainer, folder, [], [])
    assert trainer.max_epochs == cfg.trainer.max_epochs
    assert trainer.num_devices == (2 if option in ("ddp", "ddp_sim", "slurm") else 1)
    if trainer.num_devices > 1:
        assert isinstance(trainer.strategy, DDPStrategy)
        found = trainer.strategy._ddp_kwargs
        assert found == {"find_unused_parameters": False, "gradient_as_bucket_view": True}
    if option == "slurm":
        environment = trainer.strategy.cluster_environment
        assert isinstance(environment, SLURMEnvironment)
        assert not environment.auto_requeue
        assert (trainer.world_size, trainer.global_rank, trainer.local_rank) == (4, 3, 1)


def test_one_task_of_slurm_may_start_several_processes(folder: Path, monkeypatch) -> None:
    """A job of one task, as a sweep submits it, whose run takes two devices."""
    monkeypatch.delenv("LOCAL_RANK")
    for name, value in {"JOB_ID": 7, "JOB_NAME": "train", "NTASKS": 1, "PROCID": 0, "LOCALID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    trainer = build.build_trainer(settings("trainer=ddp_sim").trainer, folder, [], [])
    assert trainer.world_size == 2
    assert isinstance(trainer.strategy.cluster_environment, LightningEnvironment)


def test_slurm_outside_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    with pytest.raises(OmegaConfBaseException, match="'SLURM_NTASKS_PER_NODE' not found") as error:
        plain(settings("trainer=slurm").trainer)
    assert explain(error.value) is not None


def test_torchrun_decides_how_many_processes_there_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": 1, "RANK": 3, "GROUP_RANK": 1}
    worker |= {"WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    for name, value in worker.items():
        monkeypatch.setenv(name, str(value))
    cfg = settings("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=7")
    trainer = build.build_trainer(cfg.trainer, folder, [], [])
    assert (trainer.num_devices, trainer.num_nodes, trainer.world_size) == (2, 2, 4)
    assert (trainer.global_rank, trainer.local_rank) == (3, 1)


def test_sync_batchnorm_on_the_cpu(folder: Path, monkeypatch, caplog) -> None:
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(ValueError, match="sync_batchnorm=true needs GPUs"):
        build.build_trainer(
            settings("trainer=ddp_sim", "trainer.sync_batchnorm=true").trainer, folder, [], []
        )
    build.build_trainer(settings("trainer=cpu", "trainer.sync_batchnorm=true").trainer, folder, [], [])
    assert "trainer.sync_batchnorm=true has no effect" in caplog.text


@pytest.mark.parametrize("option", options("logger"))
def test_logger(option: str, folder: Path) -> None:
    offline = ["logger.wandb.offline=true"] if option == "wandb" else []
    loggers = build.build_loggers(settings(f"logger={option}", *offline).logger, folder)
    kinds = {"csv": 1, "none": 0, "tensorboard": 2, "wandb": 2}
    assert len(loggers) == kinds[option]


@pytest.mark.parametrize("option", options("callbacks"))
def test_callbacks(option: str) -> None:
    name = "eval" if option == "eval" else "train"
    cfg = settings(f"callbacks={option}", name=name)
    callbacks = build.build_callbacks(cfg.callbacks, build.task_class(cfg.task).headline())
    checkpoints = [c for c in callbacks if isinstance(c, Checkpoint)]
    # `last` holds the state of `best`, so it must be saved after it.
    kinds = [] if option == "eval" else [BestCheckpoint, LastCheckpoint]
    assert [type(c) for c in checkpoints] == kinds
    assert [(c.monitor, c.mode) for c in checkpoints if isinstance(c, BestCheckpoint)] in (
        [],
        [("val/top1", "max")],
    )


@pytest.mark.parametrize("option", options("task"))
def test_task(option: str) -> None:
    for name in ("train", "eval"):
        task = build.task_class(settings(f"task={option}", name=name).task)
        assert task.name == option
        assert measures(task.description()) == list(task.measures)


def test_another_metric_may_choose_the_checkpoint() -> None:
    cfg = settings("callbacks.best.monitor=val/loss", "callbacks.best.mode=min")
    callbacks = build.build_callbacks(cfg.callbacks, build.task_class(cfg.task).headline())
    assert [(c.monitor, c.mode) for c in callbacks if isinstance(c, BestCheckpoint)] == [("val/loss", "min")]


@pytest.mark.parametrize("option", options("debug"))
@pytest.mark.parametrize("data", quick(options("data"), "motion"))
def test_debug(option: str, data: str, folder: Path) -> None:
    cfg = settings(f"debug={option}", f"data={data}", "data.root=/no/where")
    build.instantiate(cfg.data)
    callbacks = build.build_callbacks(cfg.callbacks, build.task_class(cfg.task).headline())
    build.build_trainer(cfg.trainer, folder, callbacks, [])
    assert OptimConfig.from_mapping(plain(cfg.optim))


@pytest.mark.parametrize("option", options("debug"))
def test_a_short_run_has_no_cool_down_longer_than_itself(option: str) -> None:
    cfg = settings("experiment=imagenet_ddf_mul_resnet50", f"debug={option}")
    assert OptimConfig.from_mapping(plain(cfg.optim)).cooldown_epochs < cfg.trainer.max_epochs


@pytest.mark.parametrize(("name", "known"), [("train", build.TRAIN_SETTINGS), ("eval", build.EVAL_SETTINGS)])
def test_top_level(name: str, known: tuple[str, ...]) -> None:
    assert set(settings(name=name)) == set(known)


@pytest.mark.slow
def test_nothing_is_typed_twice() -> None:
    """Classes and clip length belong to the data set alone."""
    for option in options("model"):
        model = OmegaConf.to_container(settings(f"model={option}").model, resolve=False)
        assert isinstance(model, dict)
        assert "num_classes" not in model
        assert "clip_length" not in model
        assert model.get("image_size") in (None, "${data.crop_px}")
