"""Keeps a broken model from being saved, and stops a run that cannot go on, with what was good."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from safetensors import SafetensorError

from steadyrl.engine.returned import NotFinite
from steadyrl.errors import RunStopped
from steadyrl.evaluation import Evaluator
from steadyrl.report.page import redraw
from steadyrl.rollout.rollouter import Rollouter
from steadyrl.run.checkpoint import CheckpointError, NoRoomError, NotFiniteError, require_finite
from steadyrl.run.directory import Run
from steadyrl.run.incident import save_incident
from steadyrl.training.forward import OldPass
from steadyrl.training.trainer import BROKEN, Diverged, LocalTrainer

BRIEF = 64
"""Tokens of the forward that checks a model before it is saved."""


class TrainingStopped(RunStopped):
    """The run had to stop; the run directory has what is needed to find out why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelGuard:
    """Checks the model with the prompts of the next step."""

    trainer: LocalTrainer
    """π and how far training has come."""
    rollouter: Rollouter
    """Where prompts come from."""
    run: Run
    """Where checkpoints go."""
    prompts: int
    """Prompts of a global step."""

    def finite(self, *, brief: bool = False) -> bool:
        """Tell whether π computes finite logits for the prompts of the next step; `brief`: for BRIEF tokens of one."""
        indices = self.rollouter.problems(self.trainer.progress.step + 1, self.prompts)[: 1 if brief else None]
        prompts = self.rollouter.prompts([self.rollouter.task.example("train", index) for index in indices])
        model = self.trainer.policy.model
        with torch.no_grad():
            ids = (torch.tensor([p.token_ids[: BRIEF if brief else None]], device=model.device) for p in prompts)
            return all(bool(model(input_ids=one, use_cache=False).logits.isfinite().all()) for one in ids)

    def skip(self, error: NotFinite) -> None:
        """Count a step whose responses came with log-probs that are not finite, where the trainer's are not either.

        Raises:
            NotFinite: the engine alone errs.
            TrainingStopped: too many steps in a row were like this.
        """
        if self.finite():
            raise error
        try:
            self.trainer.skip()
        except Diverged as diverged:
            self.stop(str(diverged))

    def evaluate(self, evaluator: Evaluator, *, every_mode: bool) -> None:
        """Evaluate the weights that the engine holds, and write down what came of it.

        Raises:
            TrainingStopped: the engine's log-probs are not finite, nor are the trainer's.
            NotFinite: the engine's alone.
            TaskError: the verifier fails too often.
        """
        try:
            found = evaluator.evaluate(every_mode=every_mode, bar=self.run.bar)
        except NotFinite:
            if self.finite():
                raise  # the engine alone errs
            self.stop(f"log-probabilities were not finite in the evaluation, {BROKEN}")
        self.run.log_evaluation(self.trainer.progress.step, found.rows, found.samples)
        with self.run.bar("drawing the report"):
            redraw(self.run.path)
        evaluator.require(found)

    def save(self) -> None:
        """Write a checkpoint, of weights that are finite and give finite logits.

        Raises:
            TrainingStopped: they are not, or do not.
        """
        if not self.finite(brief=True) and (fault := self._fault()):
            self.stop(fault)
        trainer = self.trainer
        doubtful = trainer.progress.skipped_in_a_row > 0
        try:
            with self.run.bar("writing a checkpoint"):
                self.run.save(trainer.policy, trainer.optimizer, trainer.state(), doubtful=doubtful)
        except NotFiniteError as error:  # in weights that those prompts do not need
            self.stop(str(error))

    def stop(self, what: str, minibatch: Sequence[OldPass] = (), *, step: int | None = None) -> NoReturn:
        """Keep the last good weights and the batch, and stop. No skipped update has touched the weights.

        Args:
            what: why.
            minibatch: the micro-batches that it was seen with.
            step: when; by default, the last step taken.

        Raises:
            TrainingStopped: always.
        """
        trainer = self.trainer
        broken = trainer.progress.broken or self._fault() is not None
        state = trainer.state()
        try:
            where = save_incident(self.run.path, trainer.policy, trainer.optimizer, state, minibatch, broken=broken)
            good = (where / "model").is_dir()
            kept = f"The last good state and the batch are in {where}" if good else "No good state was saved before"
        except (OSError, SafetensorError, NoRoomError, CheckpointError) as error:
            kept = f"The state could not be written to incident ({error}); the checkpoints are intact"
        raise TrainingStopped(
            f"step {trainer.progress.step if step is None else step}: {what}. {kept}. "
            "Lower optimizer.learning_rate, or use float32 weights"
        )

    def _fault(self) -> str | None:
        """What is wrong with the weights, or with what π computes with them; None: nothing."""
        try:
            require_finite(self.trainer.policy.model)
        except NotFiniteError as error:
            return str(error)
        return None if self.finite(brief=True) else "the model's logits are not finite: its weights overflow"
