import pytest

from steadyrl.tasks.base import TaskError
from steadyrl.tasks.math_answers import math_verify_reward


@pytest.mark.parametrize(
    ("answer", "completion", "reward"),
    [
        (r"\frac{1}{2}", "0.5", 1.0),
        ("0.5", r"so it is $\frac{1}{2}$.", 1.0),
        ("0.5", r"\boxed{\frac{2}{4}}", 1.0),
        (r"$\frac{1}{2}$", "1/2", 1.0),
        (r"\frac{1}{2}", "0.6", 0.0),
        (r"2\pi", r"$\pi + \pi$", 1.0),
        ("x^2+2x+1", "$(x+1)^2$", 1.0),
        ("x^2+2x+1", "$(x-1)^2$", 0.0),
        ("1,000", "the result is 1000", 1.0),
        ("She sold 48/2 = 24.\n#### 72", "The answer is 72", 1.0),
        ("She sold 48/2 = 24.\n#### 72", "The answer is 24", 0.0),
        ("-7", "-7", 1.0),
        ("-7", "7", 0.0),
        ("42", "37+5=42", 1.0),
        ("42", "", 0.0),
        ("42", "I do not know", 0.0),
    ],
)
def test_math_verify(answer: str, completion: str, reward: float) -> None:
    assert math_verify_reward(answer, completion) == reward


def test_an_answer_that_cannot_be_read() -> None:
    with pytest.raises(TaskError, match="cannot read the answer 'work ####'"):
        math_verify_reward("work ####", "5")
