"""Right responses to a question/answer pair, for the audit of its verifier."""

from steadyrl.tasks.answers import Place
from steadyrl.tasks.base import Example, RightResponses

_THOUGHTS = "<think>\nFirst I look at what is given.\n</think>\n"


def right_answers(example: Example, *, reward: str, place: Place, solved: bool) -> RightResponses:
    """The reference answer in the usual forms.

    `math_verify` must pay each form that `place` allows. A user's own function must pay one of all forms, or the
    worked solution: it may want its answers in a certain place.

    Args:
        example: The pair.
        reward: `math_verify`, or the user's function.
        place: Where `math_verify` looks.
        solved: The data have a worked solution.
    """
    reference = (example.accepted or (example.answer,))[0]
    single = len(example.accepted) <= 1
    if reward == "math_verify":
        from steadyrl.tasks.math_answers import right_responses

        return RightResponses(forms=tuple(right_responses(reference, place=place)), only=single)
    forms = usual_forms(reference.rpartition("####")[2].strip())
    worked = {"as the data have it": example.answer, **({"worked": example.solution} if solved else {})}
    return RightResponses(forms=(*forms.items(), *worked.items()), every=False, only=single)


def usual_forms(answer: str) -> dict[str, str]:
    """The same answer as people and models write it."""
    return {
        "bare": answer,
        "boxed": rf"\boxed{{{answer}}}",
        "in a sentence": f"The answer is {answer}.",
        "after thoughts": f"{_THOUGHTS}The answer is {answer}.",
        "boxed after thoughts": rf"{_THOUGHTS}\boxed{{{answer}}}",
        "tag": f"<answer>{answer}</answer>",
        "tag after thoughts": f"{_THOUGHTS}<answer>{answer}</answer>",
        "behind ####": f"#### {answer}",
        "thoughts and answer in tags": f"<think>\nI add.\n</think>\n<answer>\n{answer}\n</answer>",
    }
