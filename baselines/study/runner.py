r"""The jobs of the study and their runner: tune the regulariser, carry out what a plan lacks, collect the results."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from baselines.common.distributed import from_first, place
from baselines.common.runner import Advance, Executor, Result, StoredJob, carry_out
from baselines.study.config import SALIENCY_TARGET, Nu, Plan
from baselines.study.parts import RUN_PARTS, STANDALONE_PARTS
from baselines.study.runs import TRAINING, Run, finished, measure_part, subject, train_run
from baselines.study.search import STRONGEST, Search
from baselines.study.tables import paper_label


@dataclass(frozen=True)
class RunJob:
    r"""What is missing of a run: its training, if that is among `parts`, and what is measured of it."""

    run: Run
    parts: tuple[str, ...]
    out: Path

    @property
    def steps(self) -> int:
        r"""Epochs, and one for each measure."""
        return (self.run.recipe.epochs if TRAINING in self.parts else 0) + sum(p != TRAINING for p in self.parts)

    def carry_out(self, advance: Advance) -> dict[str, Result]:
        r"""Train and measure; every part is on the disk as soon as it is done."""
        results = {}
        if TRAINING in self.parts:
            results[TRAINING] = train_run(self.run, self.out, advance)
        others = [part for part in self.parts if part != TRAINING]
        if others and place()[0] == 0:
            for number, part in enumerate(others):
                results[part] = measure_part(part, RUN_PARTS[part].measure, subject(self.run, self.out), self.out)
                advance(self.steps - len(others) + number + 1)
        return from_first(results)


@dataclass(frozen=True)
class StandaloneJob:
    r"""A job of a part that trains what it needs by itself."""

    part: str
    job: StoredJob

    @property
    def steps(self) -> int:
        return self.job.steps

    def carry_out(self, advance: Advance) -> Result:
        r"""Its result; under torchrun the first process has it for all."""
        return from_first(self.job.carry_out(advance) if place()[0] == 0 else {})


class StudyRunner:
    r"""One invocation of the study: the results found in the folder, and those it adds."""

    def __init__(self, console: Console, out: Path, executor: Executor, *, resume: bool) -> None:
        self.console, self.out, self.executor, self.resume = console, out, executor, resume
        self.known: dict[tuple[Run, str], Result] = {}

    def tune(self, plan: Plan) -> Plan:
        r"""The plan with, for each group and form without a nu, the weakest found by bisection to reach the target SI.

        That is SI on validation images, of seed 0; all groups and forms are searched side by side. Where none reaches
        it, which is said, the nu with the highest SI is taken: too strong a regulariser leaves nothing to look at.
        """
        searches = {key: Search(SALIENCY_TARGET, plan.first_nu) for key in self.without_nu(plan)}
        while weights := {key: nu for key, search in searches.items() if (nu := search.following()) is not None}:
            runs = {key: run for key, nu in weights.items() if (run := plan.first(key[0], "IR", key[1], nu))}
            self.carry_out({run: ["table"] for run in runs.values()}, [], "tuning nu")
            for (group, form), run in runs.items():
                measures, nu = self.known[run, "table"]["measures"], weights[group, form]
                searches[group, form].tried[nu] = similarity = measures["validation_SI"]
                tried = f"{paper_label(group)} IR {form} nu = {nu:g}"
                self.console.print(f"{tried}: SI {similarity:.3f} on validation images")
        chosen: Nu = {key: search.chosen() for key, search in searches.items()}
        for (group, form), nu in chosen.items():
            if searches[group, form].tried[nu] < SALIENCY_TARGET:
                missed = f"no nu up to {STRONGEST:g} reaches SI {SALIENCY_TARGET}; {nu:g} is nearest"
                self.console.print(f"{paper_label(group)} {form}: {missed}")
        return plan.with_nu(chosen)

    def without_nu(self, plan: Plan) -> list[tuple[str, str]]:
        r"""The groups and forms that some part of the plan wants a nu for, and that have none."""
        guess = plan.with_nu({(group, form): 1.0 for group, form, nu in plan.nu if nu is None})
        more = {run for name in plan.parts for run in {*_runs(name, guess)} - {*_runs(name, plan)}}
        wanted = {(run.group, run.recipe.form) for run in more}
        return [(group, form) for group, form, nu in plan.nu if nu is None and (group, form) in wanted]

    def results(self, plan: Plan) -> tuple[dict[str, list[Result]], dict[str, float]]:
        r"""The results of each part, and the seconds that each training took."""
        wanted: dict[Run, list[str]] = {}
        for name in plan.parts:
            for run in _runs(name, plan):
                of = wanted.setdefault(run, [])
                of += [part for part in _measured(name) if part not in of]
        alone = {name: STANDALONE_PARTS[name] for name in plan.parts if name in STANDALONE_PARTS}
        jobs = [StandaloneJob(name, job) for name, part in alone.items() for job in part.jobs(plan, self.out / name)]
        found = self.carry_out(wanted, jobs, "the study")
        results = {name: part.results([found[job] for job in jobs if job.part == name]) for name, part in alone.items()}
        for name in plan.parts:
            if name in RUN_PARTS:
                results[name] = [self._entry(run, _measured(name)) for run in _runs(name, plan)]
                if further := RUN_PARTS[name].further_runs(plan, results[name]):
                    self.carry_out({run: list(_measured(name)) for run in further}, [], f"{name}, chosen weights")
                    results[name] += [self._entry(run, _measured(name)) for run in further]
                    wanted |= {run: [] for run in further}
        ordered = {name: results[name] for name in plan.parts}
        return ordered, {run.name: self.known[run, TRAINING]["training_seconds"] for run in wanted}

    def _entry(self, run: Run, parts: tuple[str, ...]) -> Result:
        r"""What is known of a run: its settings and training, and the measures of these parts."""
        training = dict(self.known[run, TRAINING])
        del training["training_seconds"]  # the same run again is the same result
        entry: Result = {"name": run.name, **training}
        for part in parts:
            entry |= self.known[run, part]["measures"]
        return entry

    def carry_out(
        self, wanted: dict[Run, list[str]], alone: list[StandaloneJob], title: str
    ) -> dict[StandaloneJob, Result]:
        r"""Carry out what is not known yet of the runs, and the standalone jobs; return the results of the latter."""
        kept = {job: result for job in alone if self.resume and (result := job.job.finished()) is not None}
        known = self.known, self._missing(wanted), kept
        self.known, missing, results = from_first(known)  # so that all processes do the same
        jobs: list[RunJob | StandaloneJob] = [*(job for job in alone if job not in results), *missing]
        for job, result in carry_out(jobs, self.executor, self.console, f"{title}, epochs and measures"):
            if isinstance(job, StandaloneJob):
                results[job] = result
            else:
                self.known |= {(job.run, part): found for part, found in result.items()}
        return results

    def _missing(self, wanted: dict[Run, list[str]]) -> list[RunJob]:
        jobs = []
        for run, parts in wanted.items():
            for part in (TRAINING, *parts):
                if (run, part) not in self.known and self.resume and (found := finished(run, part, self.out / "runs")):
                    self.known[run, part] = found
            missing = tuple(part for part in (TRAINING, *parts) if (run, part) not in self.known)
            if TRAINING in missing:  # measures of other weights are worth nothing
                missing = (TRAINING, *parts)
            if missing:
                jobs.append(RunJob(run, missing, self.out / "runs"))
        return jobs


def _runs(name: str, plan: Plan) -> list[Run]:
    r"""The trainings that a part measures; none for one that stands alone."""
    return RUN_PARTS[name].runs(plan) if name in RUN_PARTS else []


def _measured(name: str) -> tuple[str, ...]:
    r"""Whose measures a part shows: its own, and those of others."""
    return (*RUN_PARTS[name].needs_measures_of, name)
