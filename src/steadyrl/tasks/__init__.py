"""Where prompts and rewards come from. Nothing here loads torch: verifiers run in light worker processes."""

from steadyrl.tasks.base import Example, Split, Task, TaskError
from steadyrl.tasks.batch import Reward, RewardRequest
from steadyrl.tasks.build import build_task
from steadyrl.tasks.pool import RewardPool

__all__ = ["Example", "Reward", "RewardPool", "RewardRequest", "Split", "Task", "TaskError", "build_task"]
