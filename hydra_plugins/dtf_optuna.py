"""Hydra sweeper over Optuna, which must lie in this namespace package for Hydra to find it.

Not hydra-optuna-sweeper: its last release (1.3.0) asks for optuna<3, of 2021. Ranges are written as there.
"""

from __future__ import annotations

import logging
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Trials one after another (or `n_jobs` at a time), each chosen by what the earlier ones reached.

    The study is kept in study.db in the sweep's folder. The same command goes on with it: trials that were
    cut off or failed are run again first, in their own folders, where training resumes. Each proposal depends
    on `seed` and the results before it alone, so that a search that was killed ends as the unbroken one.

    Args:
        n_trials: trials in all, those of earlier parts of the study included.
        n_jobs: trials that are launched together.
        objective: name of the metric that a run returns; None: the best epoch's headline of the task.
        direction: "maximize" or "minimize"; None: as the task's headline has it.
        startup_trials: random trials before the search begins.
        seed: of the proposals.
        params: setting -> its range in Hydra's notation; what the command line says goes first.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        objective: str | None,
        direction: Literal["maximize", "minimize"] | None,
        startup_trials: int,
        seed: int,
        params: DictConfig | dict[str, Any] | None,
    ) -> None:
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.objective, self.direction = objective, direction
        if direction not in ("maximize", "minimize", None):
            raise ValueError(f"hydra.sweeper.direction must be maximize or minimize, got {direction!r}")
        if n_jobs < 1:
            raise ValueError(f"hydra.sweeper.n_jobs must be at least 1, got {n_jobs}")
        self.startup_trials, self.seed = startup_trials, seed
        self.params = {str(key): str(value) for key, value in (params or {}).items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's: what to run, and how."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that the study still lacks.

        Args:
            arguments: overrides of the command line.

        Raises:
            RunError: Optuna is missing, nothing is to be searched, the folder holds another study, or the
                runs do not return the objective.
        """
        from dtf.errors import RunError
        from dtf.runs.folder import alone_in

        assert self.hydra_context is not None
        assert self.config is not None
        if find_spec("optuna") is None:
            raise RunError("sweep=optuna needs a package: pip install -e '.[optuna]'")
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        texts = [f"{key}={value}" for key, value in self.params.items()]
        # The last one of a key wins.
        overrides = {o.key_or_group: o for o in parser.parse_overrides([*texts, *arguments])}
        space = {o.get_key_element(): _distribution(o) for o in overrides.values() if o.is_sweep_override()}
        fixed = [
            f"{o.get_key_element()}={o.get_value_element_as_str()}"
            for o in overrides.values()
            if not o.is_sweep_override()
        ]
        if not space:
            raise RunError("nothing to search: give a range, for instance 'optim.lr=interval(1e-4,1e-2)'")

        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        # Another search here would take this one's open trials for what a killed one has left.
        with alone_in(folder):
            self._search(folder, space, fixed)

    def _search(self, folder: Path, space: dict[str, BaseDistribution], fixed: list[str]) -> None:
        import optuna

        assert self.launcher is not None
        self._fill_objective()
        OmegaConf.save(self.config, folder / "multirun.yaml")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name="sweep",
            storage=f"sqlite:///{(folder / 'study.db').resolve()}",
            direction=self.direction,
            load_if_exists=True,
        )
        self._check_same_study(study, folder, space, fixed)

        # What an earlier part of the sweep did not finish.
        waiting: list[Any] = study.get_trials(states=[optuna.trial.TrialState.RUNNING])
        launched = 0
        while True:
            batch, waiting = waiting[: self.n_jobs], waiting[self.n_jobs :]
            while len(batch) < self.n_jobs and len(study.get_trials(deepcopy=False)) < self.n_trials:
                batch.append(self._ask(study, space))
            if not batch:
                return
            # Four digits, so that the folders' names stay readable.
            jobs = [[*fixed, *(f"{k}={_text(v)}" for k, v in t.params.items())] for t in batch]
            self.validate_batch_is_legal(jobs)
            for trial, job in zip(batch, self.launcher.launch(jobs, initial_job_idx=launched), strict=True):
                self._tell(study, trial.number, job.return_value)
            launched += len(batch)

    def _fill_objective(self) -> None:
        """Where the settings leave it open, the task's headline is what is searched for."""
        if self.objective is not None and self.direction is not None:
            return
        from dtf.runs.measure import measures

        assert self.config is not None
        task = OmegaConf.select(self.config, "task._target_")
        headline = measures(None if task is None else get_class(task).description())[0]  # type: ignore[attr-defined]
        self.objective = self.objective or f"val/{headline.name}_best"
        self.direction = self.direction or ("maximize" if headline.mode == "max" else "minimize")

    def _ask(self, study: Study, space: dict[str, BaseDistribution]) -> Any:
        from optuna.samplers import TPESampler

        number = len(study.get_trials(deepcopy=False))
        study.sampler = TPESampler(
            n_startup_trials=self.startup_trials,
            # Trials that run at the same time are kept apart.
            constant_liar=True,
            seed=zlib.crc32(f"{self.seed}/{number}".encode()),
        )
        return study.ask(space)

    def _tell(self, study: Study, number: int, metrics: dict[str, float | None] | None) -> None:
        from optuna.trial import TrialState

        from dtf.errors import RunError
        from dtf.text import nearest

        # A failed run stays open in the study: the next part of the sweep runs it again.
        if metrics is None:
            return
        assert self.objective is not None
        if self.objective not in metrics:
            raise RunError(
                f"the runs return no {self.objective}{nearest(self.objective, metrics)}: set "
                f"hydra.sweeper.objective (there are: {', '.join(sorted(metrics))})"
            )
        value = metrics[self.objective]
        if value is None:
            log.warning("trial %d: %s is not a finite number", number, self.objective)
            study.tell(number, state=TrialState.FAIL)
        else:
            study.tell(number, value)

    def _check_same_study(
        self, study: Study, folder: Path, space: dict[str, BaseDistribution], fixed: list[str]
    ) -> None:
        """Refuse to compare trials that had other settings or were measured otherwise."""
        from dtf.errors import RunError
        from dtf.runs.resume import is_free

        mine = {
            "objective": f"{self.direction} {self.objective}",
            "space": sorted(f"{key}: {distribution}" for key, distribution in space.items()),
            "fixed": sorted(f for f in fixed if not is_free(f.split("=")[0].lstrip("+~"))),
        }
        theirs = study.user_attrs.get("settings")
        if theirs is None:
            study.set_user_attr("settings", mine)
        elif theirs != mine:
            raise RunError(
                f"{folder} holds a study with other settings, {theirs} instead of "
                f"{mine}: start in a new folder (output=DIR)"
            )


def _distribution(override: Override) -> BaseDistribution:
    """Optuna's form of a range: interval, range, choice or comma-separated values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value, key = override.value(), override.key_or_group
    if isinstance(value, IntervalSweep):
        if value.start is None or value.end is None or value.start > value.end:
            raise ValueError(
                f"{key}: a range goes from a smaller to a larger number, got {override.input_line}"
            )
        logarithmic = "log" in value.tags
        if logarithmic and value.start <= 0:
            raise ValueError(f"{key}: a logarithmic range must start above 0, got {value.start}")
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=logarithmic)
        return FloatDistribution(float(value.start), float(value.end), log=logarithmic)
    if isinstance(value, RangeSweep) and isinstance(numbers := value.range(), range) and numbers:
        return IntDistribution(min(numbers), max(numbers), step=abs(numbers.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
