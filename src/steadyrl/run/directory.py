"""A run directory: the recipe, the measurements, and everything that `resume` needs.

RUN/recipe.json  engine.json  metrics.jsonl  ledger.jsonl  eval.jsonl  cold_start.jsonl  samples.jsonl  rollouts.jsonl
        failures.jsonl  changes.jsonl  report.html  checkpoints/  lock  incident/ (of a run that stopped)
        tracker_id.txt (of trackers that name runs)
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from torch.optim import Optimizer

from steadyrl.measure.glossary import LOGS
from steadyrl.measure.trouble import Watch, fields, unreached
from steadyrl.model.loading import Policy
from steadyrl.model.moved import unmoved
from steadyrl.preflight import RunDirectoryError, refuse_existing_run, require_run
from steadyrl.recipe import SEEN, Recipe, load
from steadyrl.renamed import translate_inputs
from steadyrl.rollout.groups import Group, Rewards
from steadyrl.run import checkpoint
from steadyrl.run.inputs import Inputs, changes, told
from steadyrl.run.lock import Lock, runs
from steadyrl.run.logs import MetricsLog, Row, Value, read_jsonl, stream_jsonl, write_atomically
from steadyrl.run.progress import Display
from steadyrl.run.record import Step
from steadyrl.run.rows import Text, chosen_groups, rollout_rows
from steadyrl.run.trackers import TrackerError, forget_curves, open_trackers, require_trackers
from steadyrl.terminal import tell
from steadyrl.types import Trajectory


def _recipe_text(recipe: Recipe, inputs: Inputs) -> str:
    """The resolved recipe and, in a separate section, digests of what the run reads."""
    return json.dumps(json.loads(recipe.model_dump_json()) | {SEEN: dict(inputs)}, indent=2, ensure_ascii=False)


def _inputs_before(path: Path) -> dict[str, str] | None:
    """The digests in a recipe.json; None in one that has none."""
    found = json.loads(path.read_text(encoding="utf-8")).get(SEEN)
    if found is not None and not (isinstance(found, dict) and all(isinstance(v, str) for v in found.values())):
        raise RunDirectoryError(f"{path}: `{SEEN}` must hold digests by name; delete the section to begin without")
    return None if found is None else translate_inputs(found)


def _sweep_unmade(path: Path) -> None:
    """Delete what kills have left of a run directory that was being made: the processes that made it are gone."""
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d{{1,9}})\.part")
    for other in path.parent.glob(".*.part"):
        found = name.fullmatch(other.name)
        if found and not runs(int(found.group(1))):
            shutil.rmtree(other, ignore_errors=True)


class Run:
    """An open run directory. One process at a time has it open.

    Raises:
        LockedError: another process has.
        RunDirectoryError: `start_from` names no checkpoint.
        TrackerError: a tracker cannot be opened.
    """

    def __init__(self, path: Path, recipe: Recipe, *, start_from: str | None = None):
        self.path, self.recipe, self.bar = path, recipe, Display().bar
        self._lock = Lock(path)
        try:
            self._open(start_from)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, start_from: str | None) -> None:
        """Sweep up what a kill has left, and open the logs and the trackers."""
        path, recipe = self.path, self.recipe
        self._start_from = start_from
        self._checkpoints = path / "checkpoints"
        checkpoint.sweep(self._checkpoints)
        for part in path.glob(".*.part"):
            part.unlink()  # a file that a kill kept from its final name
        if start_from is not None:
            known = [folder.name for folder in checkpoint.listed(self._checkpoints)]
            if start_from not in known:
                raise RunDirectoryError(f"{path} has no checkpoint {start_from}; it has {known}")
            forget_curves(path)
        self._trackers = open_trackers(recipe.trackers, path, recipe.model_dump(mode="json"))
        self._logs = {name: MetricsLog(path / name) for name in LOGS}
        self.cold_start = self._logs["cold_start.jsonl"]
        self._watch = Watch(minibatches=recipe.update.minibatches)
        self._told: set[str] = set()  # kinds of trouble that this process has spoken of
        self.on_step: Callable[[Step], None] | None = None
        self.on_evaluation: Callable[[list[Row]], None] | None = None

    @classmethod
    def create(cls, path: Path, recipe: Recipe, *, inputs: Inputs) -> Self:
        """Make a new run directory: complete, or not at all.

        Args:
            path: where.
            recipe: the recipe of the run.
            inputs: digests of what the run reads.

        Raises:
            RunDirectoryError: it exists, or cannot be written.
            MissingTracker, TrackerError: a tracker's package is not installed, or it cannot be opened; no directory is
                left.
        """
        refuse_existing_run(path)
        require_trackers(recipe.trackers)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            _sweep_unmade(path)
            part.mkdir(parents=True)
            write_atomically(part / "recipe.json", _recipe_text(recipe, inputs))
            part.rename(path)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise RunDirectoryError(f"cannot make the run directory {path}: {error}") from error
        try:
            return cls(path, recipe)
        except TrackerError:
            shutil.rmtree(path)
            raise

    @classmethod
    def reopen(cls, path: Path, *, start_from: str | None = None) -> Self:
        """Continue a run, from its newest checkpoint or from `start_from`.

        Raises:
            RunDirectoryError: it is not a run directory.
        """
        require_run(path)
        return cls(path, load(path / "recipe.json"), start_from=start_from)

    def compare_inputs(self, recipe: Recipe, inputs: Inputs, *, accept: bool) -> str | None:
        """Compare what the run reads now with what it read before, and note it in recipe.json.

        Args:
            recipe: of the run, with what was filled in since it was read.
            inputs: current digests.
            accept: continue with the changes, and add them to changes.jsonl.

        Returns:
            A warning where there was nothing to compare with, or where changes were accepted.

        Raises:
            RunDirectoryError: something has changed; the message names all of it.
        """
        before = _inputs_before(self.path / "recipe.json")
        changed = {} if before is None else changes(before, inputs)
        if changed and not accept:
            raise RunDirectoryError(
                f"what {self.path} reads has changed:\n{told(changed)}\nRestore it, or accept the changes with "
                f"`steadyrl resume {self.path} --accept-changes`"
            )
        if changed:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            line = {"step": self._first_step(), "time": now, "changed": changed}
            with (self.path / "changes.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if before != inputs or recipe != self.recipe:
            write_atomically(self.path / "recipe.json", _recipe_text(recipe, inputs))
            self.recipe = recipe
        if before is None:
            return "this run kept no digests of its data and model, so changes since it began are not noticed"
        return f"continuing with what has changed:\n{told(changed)}" if changed else None

    def _first_step(self) -> int:
        """The step of the checkpoint to start from; 0 without one."""
        known = [folder.name for folder in checkpoint.listed(self._checkpoints)]
        name = self._start_from or (known[-1] if known else "step-0")
        return int(name.removeprefix("step-"))

    def restore(self, policy: Policy, optimizer: Optimizer) -> dict[str, Any]:
        """Load the checkpoint to start from, drop what was logged after it, and return where the run stood.

        A run without a checkpoint starts from its beginning.

        Raises:
            CheckpointError: the checkpoint is damaged; the message offers the one before.
            RunDirectoryError: steps were logged, and their checkpoints are gone.
        """
        known = checkpoint.listed(self._checkpoints)
        if not known:
            if logged := read_jsonl(self.path / "metrics.jsonl"):
                raise RunDirectoryError(
                    f"{self.path} has {len(logged)} steps in metrics.jsonl and no checkpoint in {self._checkpoints}: "
                    "put the checkpoints back, or start a new run with a different --run"
                )
            for log in self._logs.values():
                log.truncate(-1)
            return {}
        chosen = known[-1] if self._start_from is None else self._checkpoints / self._start_from
        state = checkpoint.restore(chosen, policy, optimizer)
        checkpoint.drop_after(self._checkpoints, chosen)  # before the logs: a kill in between leaves lines too many
        for log in self._logs.values():
            if log is not self.cold_start:
                log.truncate(state["step"])
        rows = stream_jsonl(self.path / "metrics.jsonl")
        self._watch = Watch(rows, minibatches=self.recipe.update.minibatches)
        return state

    def save(self, policy: Policy, optimizer: Optimizer, state: Mapping[str, Any], *, doubtful: bool = False) -> None:
        """Write a checkpoint, then drop the oldest beyond the recipe's number; none while the weights are doubtful.

        Raises:
            CheckpointError: it could not be written; the earlier ones are intact.
        """
        self._logs["ledger.jsonl"].sync()
        self._logs["rollouts.jsonl"].sync()
        checkpoint.save(self._checkpoints / f"step-{state['step']:06d}", policy, optimizer, state)
        if not doubtful:
            checkpoint.prune(self._checkpoints, self.recipe.checkpoints.keep)

    def log(self, step: int, metrics: Mapping[str, Value], ledger: Sequence[Row]) -> None:
        """Write down a global step, and what trouble it has; of each kind, the first time is told in the terminal."""
        found = self._watch.see({"step": step, **metrics})
        metrics = {**metrics, **fields(trouble.kind for trouble in found)}
        self._logs["ledger.jsonl"].log(step, *ledger, sync=False)  # many lines, and no checkpoint rests on them yet
        self._logs["metrics.jsonl"].log(step, metrics)
        for tracker in self._trackers:
            tracker.log(step, metrics)
        for trouble in found:
            self._tell_once(trouble.kind.name, f"step {step}: {trouble.says}. {trouble.kind.advice}")
        warm = step * self.recipe.update.minibatches > self.recipe.optimizer.warmup_steps
        if warm and (lost := unmoved(metrics, step=step, dtype=self.recipe.runtime.dtype)):
            self._tell_once("unmoved", lost)
        if self.on_step is not None:
            self.on_step(Step(step, metrics))

    def _tell_once(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            tell(message)

    def note_engine(self, facts: Mapping[str, str | int | float]) -> None:
        """Write down what samples: engine, version, device and precision as they are in force."""
        write_atomically(self.path / "engine.json", json.dumps(dict(facts), indent=2))

    def log_rollouts(
        self,
        step: int,
        groups: Sequence[Group],
        rewards: Rewards,
        responses: Sequence[Sequence[Trajectory]],
        *,
        text: Text,
    ) -> None:
        """Write down some responses of a step, and why the verifier failed."""
        for reason, count in Counter(rewards.failed).items():
            self._logs["failures.jsonl"].log(step, {"reason": reason, "responses": count})
        options = self.recipe.rollouts
        chosen = chosen_groups(step, len(groups), groups=options.groups, every=options.every)
        rows = rollout_rows(text, groups, rewards, responses, chosen=chosen)
        self._logs["rollouts.jsonl"].log(step, *rows, sync=False)  # as the ledger

    def log_evaluation(self, step: int, rows: Sequence[Row], samples: Sequence[Row]) -> None:
        """Write down an evaluation."""
        self._logs["eval.jsonl"].log(step, *rows)
        self._logs["samples.jsonl"].log(step, *samples)
        for tracker in self._trackers:
            tracker.log(step, {name: value for row in rows for name, value in _evaluation_curves(row).items()})
        if warning := unreached(rows, correct_at=self.recipe.task.correct_at):
            self._tell_once("unreached", f"evaluation at step {step}: {warning}.")
        if self.on_evaluation is not None:
            self.on_evaluation([{"step": step, **row} for row in rows])

    def close(self) -> None:
        """Flush the trackers, and let others open it; once more does nothing."""
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []
        self._lock.close()


def _evaluation_curves(row: Row) -> dict[str, Value]:
    """The numbers of an evaluation by the names that trackers show: the accuracy has the name of its set."""
    place = f"{row['mode']}/{row['precision']}"
    place = place if row["set"] == "held_out" else f"{row['set']}/{place}"
    several = [name for name in row if name == "reward" or "@" in name]
    return {f"eval/{place}": row["accuracy"], **{f"eval/{name}/{place}": row[name] for name in several}}
