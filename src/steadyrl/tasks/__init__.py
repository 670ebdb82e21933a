"""Where prompts and rewards come from. Nothing here loads torch: scoring runs in light worker processes."""

from steadyrl.tasks.base import Example, Split, Task, TaskError
from steadyrl.tasks.build import build_task
from steadyrl.tasks.scoring import Score, ScorePool, ScoreRequest

__all__ = ["Example", "Score", "ScorePool", "ScoreRequest", "Split", "Task", "TaskError", "build_task"]
