"""Your own reward function: `reward = "reward_exact.py:reward"` in the task section of a recipe."""

import re


def reward(prompt: str, completion: str) -> float:
    """1 if the completion ends in the result of the prompt, such as `37+25=`, else 0."""
    problem = re.fullmatch(r"(\d+)([+-])(\d+)=", prompt)
    if problem is None:
        raise ValueError(f"not a sum or a difference: {prompt!r}")
    left, sign, right = problem.groups()
    result = int(left) + int(right) if sign == "+" else int(left) - int(right)
    return float(completion.rpartition("=")[2].strip() == str(result))
