"""Sweeps: every run in its own process and folder, killed and gone on with, searched, summed up.

Most of them sweep over a program whose runs are over at once; the machinery around a run is the same for all.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine import REPOSITORY, TINY_MODEL, Outcome, clean_environment, documented
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from dtf import sweep

# A run takes five steps, one line of steps.txt each, and goes on with them after a kill.
PROGRAM = """
import json, math, os, signal, sys, time
from dtf.runs import folder as machinery
from dtf.errors import RunError
from dtf.runs import resume
from dtf.runs.command import command
from dtf.runs.composing import plain
from dtf.runs.folder import run_folder
from dtf.sweep import summarize

machinery.SECONDS_TO_WAIT = float(os.environ.get("PATIENCE", "20"))

@command("work", finished=resume.finished, summarize=summarize)
def main(cfg):
    folder = run_folder()
    steps = folder / "steps.txt"
    (folder / "pid").write_text(str(os.getpid()))
    if cfg.part == "wrong":
        raise RunError("this part is [wrong]")
    if cfg.part == "crash":
        os.abort()
    if cfg.part == "exit":
        sys.exit(7)
    for step in range(len(steps.read_text().split()) if steps.exists() else 0, 5):
        if step == 3 and os.environ.get("KILL") == cfg.part:
            os.killpg(0, signal.SIGKILL)
        with steps.open("a") as file:
            print(step, file=file)
        while os.environ.get("WAIT") == cfg.part and not (folder / "go").exists():
            time.sleep(0.01)
    value = 1 - (math.log10(cfg.lr) + 2) ** 2
    metrics = {"val/top1_best": value, "train/clips_per_s": 8.0}
    results = {"top1": value, "top5": 1.0, "split": "test", "seconds": 61.0, "metrics": metrics}
    (folder / "results.json").write_text(json.dumps(results | {"config": plain(cfg)}))

main()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """work.py with Hydra's settings of train.py."""
    conf = tmp_path / "program" / "conf"
    conf.mkdir(parents=True)
    hydra = OmegaConf.load(REPOSITORY / "conf" / "train.yaml")["hydra"]
    work = {"defaults": [{"sweep": None}, "_self_"], "part": "a", "lr": 0.1, "output": "out", "hydra": hydra}
    OmegaConf.save(OmegaConf.create(work), conf / "work.yaml")
    for group in ("hydra", "sweep"):
        (conf / group).symlink_to(REPOSITORY / "conf" / group)
    (conf.parent / "work.py").write_text(PROGRAM)
    return conf.parent


def start(program: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A sweep in a process group of its own, which it may kill."""
    return subprocess.Popen(
        [sys.executable, "work.py", "-m", *arguments],
        cwd=program,
        env=clean_environment() | {"PYTHONPATH": str(REPOSITORY)} | environment,
        start_new_session=True,
        # A test suite that runs in the background was told to ignore Ctrl-C, and so would this be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def work(program: Path, *arguments: str, **environment: str) -> Outcome:
    process = start(program, *arguments, **environment)
    out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, out, err)


def wait_for(path: Path) -> str:
    for _ in range(3000):
        if path.is_file() and (text := path.read_text()):
            return text
        time.sleep(0.01)
    raise AssertionError(f"{path} did not come")


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "summary.csv").open() as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def test_a_killed_sweep_does_only_what_is_missing(program: Path) -> None:
    out = program / "out"
    arguments = ["part=a,wrong,b,crash,exit,c", "lr=0.01"]
    first = work(program, *arguments, KILL="b")
    assert first.code == -signal.SIGKILL
    assert (out / "part-a" / "results.json").exists()
    assert (out / "part-b" / "steps.txt").read_text().split() == ["0", "1", "2"]
    assert not (out / "part-c").exists()
    before = (out / "part-a" / "pid").stat().st_mtime_ns

    second = work(program, *arguments)
    assert second.code == 1
    assert (out / "part-a" / "pid").stat().st_mtime_ns == before, "a finished run is not even started"
    for part in "abc":
        assert (out / f"part-{part}" / "steps.txt").read_text().split() == ["0", "1", "2", "3", "4"]
    found = rows(out)
    assert {run: row["status"] for run, row in found.items()} == {
        "part-a": "skipped",
        "part-b": "finished",
        "part-c": "finished",
        "part-wrong": "failed",
        "part-crash": "failed",
        "part-exit": "failed",
    }
    assert found["part-wrong"]["reason"] == "this part is [wrong]"
    assert found["part-crash"]["reason"] == "its process was ended by signal SIGABRT"
    assert found["part-exit"]["reason"] == "its process ended with code 7"
    assert found["part-b"] | {"top1": "1", "seconds": "61", "clips_per_s": "8"} == found["part-b"]
    assert "lr" not in found["part-a"], "what is the same in all runs is no column"
    assert "error: this part is [wrong]\n" in second.err
    assert second.err.endswith("error: 3 run(s) of the sweep failed; the same command tries them again\n")
    assert "Traceback" not in second.err
    assert "failed  part-wrong: this part is [wrong]" in second.out
    assert "RunError" in (out / "part-wrong" / "failure.txt").read_text()

    # Another grid in the same folder: what failed in the first one is no failure of this one.
    third = work(program, "part=a,b", "lr=0.01")
    assert third.code == 0
    assert {row["status"] for row in rows(out).values()} == {"skipped", "failed"}


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_no_run_outlives_its_sweep(program: Path, signum: signal.Signals) -> None:
    """A signal to the sweep alone: started again, it would train beside a run that is still at work."""
    process = start(program, "part=a,b", WAIT="a")
    pid = int(wait_for(program / "out" / "part-a" / "pid"))
    wait_for(program / "out" / "part-a" / "steps.txt")
    process.send_signal(signum)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert ("1 unfinished" in out) == (signum == signal.SIGTERM)
    wait_for_end(pid)
    assert not (program / "out" / "part-b").exists()


def wait_for_end(pid: int) -> None:
    for _ in range(1000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        # Where nobody collects orphans it stays as a zombie.
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the run goes on without its sweep")


def test_ctrl_c_ends_the_sweep(program: Path) -> None:
    process = start(program, "part=a,b,c", WAIT="b")
    wait_for(program / "out" / "part-b" / "steps.txt")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.endswith("error: interrupted; the same command goes on where the sweep was left\n")
    assert "1 finished, 1 unfinished" in out
    assert not (program / "out" / "part-c").exists()


def test_two_sweeps_in_one_folder(program: Path) -> None:
    """Two processes must never train in one folder: the second sweep leaves the run to the first one."""
    first = start(program, "part=a,b", WAIT="a")
    pid = wait_for(program / "out" / "part-a" / "pid")
    wait_for(program / "out" / "part-a" / "steps.txt")
    second = work(program, "part=a,c", PATIENCE="0.3")
    assert second.code == 0, second.err
    folder = program / "out" / "part-a"
    assert f"error: another process is at work in {folder}: wait" in second.err
    assert "part-a is left to the process that is at work there" in second.out
    assert {run: row["status"] for run, row in rows(program / "out").items()} == {
        "part-a": "unfinished",
        "part-c": "finished",
    }
    (folder / "go").touch()
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert (folder / "steps.txt").read_text().split() == ["0", "1", "2", "3", "4"]
    assert (folder / "pid").read_text() == pid
    assert {row["status"] for row in rows(program / "out").values()} == {"finished"}


def test_a_run_waits_for_the_end_of_the_one_before(program: Path) -> None:
    """A sweep that was killed leaves a run that still saves."""
    first = start(program, "part=a,b", WAIT="a")
    wait_for(program / "out" / "part-a" / "steps.txt")
    second = start(program, "part=a,b")
    time.sleep(1.5)
    (program / "out" / "part-a" / "go").touch()
    for process in (first, second):
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert (program / "out" / "part-a" / "steps.txt").read_text().split() == ["0", "1", "2", "3", "4"]


def test_runs_look_their_settings_up_where_the_sweep_does(program: Path) -> None:
    """A recipe of one's own, and Hydra's settings for the run itself."""
    mine = program / "mine" / "recipe"
    mine.mkdir(parents=True)
    (mine / "low.yaml").write_text("# @package _global_\nlr: 0.01\n")
    more = program / "more" / "recipe"
    more.mkdir(parents=True)
    (more / "high.yaml").write_text("# @package _global_\nlr: 0.5\n")
    arguments = ["--config-dir", "mine", f"hydra.searchpath=[file://{program}/more]"]
    done = work(program, *arguments, "+recipe=low,high")
    assert done.code == 0, done.err
    found = {run.split("-")[1]: row for run, row in rows(program / "out").items()}
    results = {
        name: json.loads((program / "out" / row["run"] / "results.json").read_text())
        for name, row in found.items()
    }
    assert {name: r["config"]["lr"] for name, r in results.items()} == {"low": 0.01, "high": 0.5}


# ---- search ----------------------------------------------------------------------------------------------

SEARCH = ["sweep=optuna", "hydra.sweeper.startup_trials=2", "lr=tag(log,interval(1e-4,1))"]


@pytest.fixture
def search(program: Path) -> list[str]:
    """A search over what the program has; conf/sweep/optuna.yaml is about train.py."""
    (program / "conf" / "sweep").unlink()
    (program / "conf" / "sweep").mkdir()
    (program / "conf" / "sweep" / "optuna.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /hydra/sweeper: dtf_optuna\n"
    )
    return SEARCH


def names(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/results.json"))


def test_a_killed_search_goes_on_as_the_unbroken_one(program: Path, search: list[str]) -> None:
    import optuna

    arguments = [*search, "part=a", "hydra.sweeper.n_trials=3"]
    unbroken = work(program, *arguments, "output=unbroken")
    assert unbroken.code == 0, unbroken.err
    assert len(names(program / "unbroken")) == 3

    # Killed in the first trial.
    process = start(program, *arguments, "output=killed", KILL="a")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert names(program / "killed") == []
    again = work(program, *arguments, "output=killed")
    assert again.code == 0, again.err
    assert names(program / "killed") == names(program / "unbroken")

    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{program}/killed/study.db")
    assert len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) == 3
    best = max(rows(program / "killed").values(), key=lambda row: float(row["val/top1_best"]))
    assert float(best["val/top1_best"]) == pytest.approx(study.best_value, abs=1e-5)
    assert next(iter(rows(program / "killed"))) == best["run"], "the best trial stands first"
    assert f"best val top-1  killed/{best['run']}" in again.out
    # Trials of other ranges or of another part cannot be compared with these.
    other = work(program, *search, "part=b", "hydra.sweeper.n_trials=5", "output=killed")
    assert other.code == 1
    assert "holds a study with other settings" in other.err
    assert len(names(program / "killed")) == 3


def test_a_search_for_what_runs_do_not_measure(program: Path, search: list[str]) -> None:
    done = work(program, *search, "hydra.sweeper.objective=val/top_1")
    assert done.code == 1
    assert "the runs return no val/top_1; did you mean val/top1_best?" in done.err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["lr=tag(log,interval(0,1))"], "lr: a logarithmic range must start above 0, got 0.0"),
        (["lr=interval(2,1)"], "lr: a range goes from a smaller to a larger number, got lr=interval(2,1)"),
        (["lr=interval(1,2)", "hydra.sweeper.n_jobs=0"], "hydra.sweeper.n_jobs must be at least 1, got 0"),
        (["lr=interval(1,2)", "hydra.sweeper.direction=up"], "must be maximize or minimize, got 'up'"),
    ],
)
def test_searches_that_cannot_be(program: Path, wrong: list[str], told: str) -> None:
    done = work(program, "hydra/sweeper=dtf_optuna", *wrong)
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert done.err.endswith(f"{told}\n")
    assert done.err.count("\n") == 1


def test_two_searches_in_one_folder(program: Path, search: list[str]) -> None:
    """The second one would take the open trials of the first for what a killed search has left."""
    arguments = [*search, "part=a", "hydra.sweeper.n_trials=1"]
    first = start(program, *arguments, WAIT="a")
    while not (steps := list((program / "out").glob("*/steps.txt"))):
        time.sleep(0.01)
    second = work(program, *arguments, PATIENCE="0.3")
    assert second.code == os.EX_TEMPFAIL
    assert "another process is at work in out: wait" in second.err
    (steps[0].parent / "go").touch()
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert len(names(program / "out")) == 1


def test_the_search_of_the_documents_composes() -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=["sweep=optuna"], return_hydra_config=True)
    ranges = cfg.hydra.sweeper.params
    assert cfg.hydra.sweeper._target_ == "hydra_plugins.dtf_optuna.OptunaSweeper"
    assert cfg.hydra.sweeper.objective is cfg.hydra.sweeper.direction is None
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        assert compose("train", overrides=[f"{setting}=0.1" for setting in ranges]).optim.lr == 0.1


# ---- clusters --------------------------------------------------------------------------------------------

# A local job opens its log in a folder that submitit makes after starting it: with %j in that folder's name,
# the job loses the race on a busy machine.
LOCAL_JOBS = ["hydra/launcher=submitit_local", "hydra.launcher.submitit_folder=${hydra.sweep.dir}/.submitit"]


def test_jobs_of_a_launcher(program: Path) -> None:
    """As on a cluster, on this machine: submitit's processes know neither sys.argv nor this one's state."""
    done = work(program, "part=a,wrong", "lr=0.01", *LOCAL_JOBS, "output=jobs")
    assert done.code == 1
    assert {run: row["status"] for run, row in rows(program / "jobs").items()} == {
        "part-a": "finished",
        "part-wrong": "failed",
    }
    assert "failed  part-wrong: this part is [wrong]" in done.out


def test_a_job_that_runs_out_of_time_is_queued_again(program: Path) -> None:
    process = start(program, "part=a,b", *LOCAL_JOBS, "output=jobs", WAIT="a")
    run = int(wait_for(program / "jobs" / "part-a" / "pid"))
    wait_for(program / "jobs" / "part-a" / "steps.txt")
    job = int(Path(f"/proc/{run}/stat").read_text().rsplit(")", 1)[1].split()[1])
    # Slurm's warning reaches both.
    os.kill(run, signal.SIGUSR2)
    os.kill(job, signal.SIGUSR2)
    wait_for_end(run)
    (program / "jobs" / "part-a" / "go").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "2 finished" in out
    assert (program / "jobs" / "part-a" / "steps.txt").read_text().split() == ["0", "1", "2", "3", "4"]


def test_the_cluster_of_the_documents_composes() -> None:
    words = documented("sweeps.md", "submitit_slurm")
    overrides = [w for w in words[2:] if "," not in w]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=overrides, return_hydra_config=True)
    assert cfg.hydra.launcher._target_.endswith("SlurmLauncher")
    assert cfg.hydra.launcher.max_num_timeout > 0


# ---- the real thing --------------------------------------------------------------------------------------


def test_the_grid_of_the_documents(command, tiny_data: list[str], tmp_path: Path) -> None:
    words = documented("sweeps.md", "optim.lr=0.001,0.003")
    assert words[:2] == ["train.py", "-m"]
    # Its smallest part: two runs.
    words = ["optim.lr=0.003" if w.startswith("optim.lr=") else w for w in words]
    small = [*tiny_data, *(w for w in TINY_MODEL if "filter_groups" not in w), "debug=step", "logger=none"]
    arguments = [*words, *small, f"output={tmp_path}/grid"]
    done = command(*arguments)
    assert done.code == 0, done.err
    found = rows(tmp_path / "grid")
    assert {row["status"] for row in found.values()} == {"finished"}
    for name, row in found.items():
        results = json.loads((tmp_path / "grid" / name / "results.json").read_text())
        assert row["top1"] == f"{results['top1']:.6g}"
        assert 0 <= float(row["val/top1_best"]) <= 1
        assert float(row["clips_per_s"]) > 0
        assert float(row["seconds"]) > 0
    assert (tmp_path / "grid" / "summary.png").stat().st_size > 5000
    # Jobs of a launcher know a finished run as well.
    jobs = documented("sweeps.md", "submitit_local")
    again = command(*jobs, LOCAL_JOBS[1], "optim.lr=0.003", *small, f"output={tmp_path}/grid")
    assert again.code == 0
    assert {row["status"] for row in rows(tmp_path / "grid").values()} == {"skipped"}


def test_the_search_of_the_documents(command, tiny_data: list[str], tmp_path: Path) -> None:
    words = [w for w in documented("sweeps.md", "sweep=optuna") if "n_trials" not in w]
    small = [*tiny_data, *(w for w in TINY_MODEL if "filter_groups" not in w), "debug=step", "logger=none"]
    one = ["model=c2d_tiny", "hydra.sweeper.n_trials=1", f"output={tmp_path}/search"]
    done = command(*words, *small, *one)
    assert done.code == 0, done.err
    (row,) = rows(tmp_path / "search").values()
    assert row["status"] == "finished"
    for setting in ("optim.lr", "optim.weight_decay", "model.drop_path_rate"):
        assert f"{setting}-0." in row["run"]


# ---- summary ---------------------------------------------------------------------------------------------


def made_up(folder: Path, name: str, overrides: list[str], top1: float | None = None, **more: float) -> Path:
    run = folder / name
    (run / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), run / ".hydra" / "overrides.yaml")
    OmegaConf.save(OmegaConf.create({"seed": 0, "optim": {"lr": 0.1}}), run / ".hydra" / "config.yaml")
    choices = {"hydra": {"runtime": {"choices": {"model": "dtf_tiny"}}}}
    OmegaConf.save(OmegaConf.create(choices), run / ".hydra" / "hydra.yaml")
    if top1 is not None:
        results = {"top1": top1, "top5": 1.0, "split": "test", "seconds": 3700.0, "metrics": more}
        (run / "results.json").write_text(json.dumps(results))
    return run


def test_what_differs_becomes_a_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    made_up(tmp_path, "a", ["model=c2d_tiny", "data.root=/x", f"output={tmp_path}/a"], 0.5)
    made_up(tmp_path, "b", ["+optim.lr=0.2", "data.root=/x", f"output={tmp_path}/b"], 0.75)
    made_up(tmp_path, "c", ["data.root=/x", "seed=[/red]\x1b[31m"])
    assert sweep.summarize(tmp_path) == 0
    found = rows(tmp_path)
    keys = ["model", "optim.lr", "seed"]
    assert [list(row.values())[1:4] for row in found.values()] == [
        ["dtf_tiny", "0.2", "0"],
        ["c2d_tiny", "0.1", "0"],
        ["dtf_tiny", "0.1", "[/red]\\x1b[31m"],
    ]
    assert list(found["a"])[1:4] == keys
    assert [row["status"] for row in found.values()] == ["finished", "finished", "unfinished"]
    out = capsys.readouterr().out
    assert "75.00%" in out
    assert "1:01:40" in out
    assert "\x1b[31m" not in out
    assert "[/red]" in out


def test_a_damaged_run_is_one_line_of_the_summary(tmp_path: Path) -> None:
    made_up(tmp_path, "good", ["seed=1"], 0.5)
    damage = {
        "cut": ("results.json", '{"top1": 0.5'),
        "deep": ("results.json", '{"a":' * 100_000),
        "infinite": ("results.json", '{"top1": Infinity}'),
        "mistyped": ("results.json", '{"metrics": {"val/top1_best": "0.9"}}'),
        "overrides": (".hydra/overrides.yaml", "- &a [x]\n- *a\n"),
        "no_list": (".hydra/overrides.yaml", "seed: 1\n"),
    }
    for name, (file, text) in damage.items():
        (made_up(tmp_path, name, ["seed=2"], 0.5) / file).write_text(text)
    elsewhere = tmp_path / "private.txt"
    elsewhere.write_text("a secret")
    (made_up(tmp_path, "link", ["seed=2"], 0.5) / "failure.txt").symlink_to(elsewhere)
    sweep.summarize(tmp_path)
    found = rows(tmp_path)
    assert found["good"]["status"] == "finished"
    for name, (file, _) in damage.items():
        assert found[name]["status"] == "failed"
        assert f"{file} is damaged: " in found[name]["reason"]
    assert "it leads out of its folder" in found["link"]["reason"]
    (tmp_path / "good" / ".hydra" / "config.yaml").write_text("[1, 2]")
    (tmp_path / "multirun.yaml").write_text("- hydra")
    assert sweep.summarize(tmp_path) == 0, "nothing has failed since the sweep was last started"


def test_validation_is_not_called_a_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_up(tmp_path, "a", [], 0.5)
    found = json.loads((run / "results.json").read_text())
    for told, shown in (
        ("validation split (on which training chooses its best checkpoint)", "validation top-1"),
        ("test split", "test top-1"),
        ("[red]x[/red]", "[red]x[/red] top-1"),
    ):
        (run / "results.json").write_text(json.dumps(found | {"split_is": told}))
        assert sweep.summarize(tmp_path) == 0
        assert shown in capsys.readouterr().out
    (run / "results.json").write_text(json.dumps(found | {"split_is": ["test split"]}))
    sweep.summarize(tmp_path)
    assert "is damaged: split_is cannot be" in capsys.readouterr().out


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = documented("sweeps.md", "dtf.sweep")
    assert words[:2] == ["-m", "dtf.sweep"]
    made_up(tmp_path, "a", [], 0.5)
    assert sweep.main([str(tmp_path)]) == 0
    assert "1 finished" in capsys.readouterr().out
    assert (tmp_path / "summary.png").exists()
    for wrong in ([f"{tmp_path}/a", f"{tmp_path}"], [f"{tmp_path}/nowhere"], [f"{tmp_path}/a"]):
        with pytest.raises(SystemExit) as end:
            sweep.main(wrong)
        assert end.value.code == 1
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("kind", ["grid", "seeds", "search", "many"])
def test_pictures(tmp_path: Path, kind: str) -> None:
    grids = {
        "grid": [(f"model={m}", f"optim.lr={lr}") for m in ("a_$x", "b") for lr in (0.1, 0.2)],
        "seeds": [(f"seed={s}",) for s in range(4)],
        "search": [(f"model={m}", f"optim.lr={lr / 100}") for m in "ab" for lr in range(1, 12)],
        "many": [(f"model={m}", f"data={d}") for m in range(30) for d in "xyz"],
    }
    for i, overrides in enumerate(grids[kind]):
        made_up(tmp_path, f"{i:03}", list(overrides), i / 100, **{"val/top1_best": i / 90})
    sweep.summarize(tmp_path)
    from PIL import Image

    width, height = Image.open(tmp_path / "summary.png").size
    assert 300 < width < 2500
    assert 150 < height < 8000
