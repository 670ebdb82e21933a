import json
from collections.abc import Callable, Sequence

import pytest

from steadyrl.tasks.answers import Place
from steadyrl.tasks.audit import Report, audit, audited
from steadyrl.tasks.base import WHOLE, Context, Example, RightResponses, Split, Task
from steadyrl.tasks.batch import Reward, RewardRequest
from steadyrl.tasks.build import build_task
from steadyrl.tasks.chains import STYLES
from steadyrl.tasks.junk import junk_responses
from steadyrl.tasks.right import right_answers

SUMS = [(f"{a} + {b} =", str(a + b)) for a, b in zip(range(117, 200, 9), range(31, 300, 17), strict=False)]
Verify = Callable[[str, str, str], float]


class Pairs:
    """Question/answer pairs with a verifier `verify(question, response, answer)`."""

    def __init__(self, verify: Verify, pairs: Sequence[tuple[str, str]] = SUMS, **right: bool) -> None:
        self.verify, self.right = verify, {"every": True, "only": True} | right
        self.examples = [Example(question=q, answer=a, solution=a) for q, a in pairs]

    def size(self, split: Split) -> int | None:
        return len(self.examples)

    def example(self, split: Split, index: int) -> Example:
        return self.examples[index]

    def reward(self, split: Split, index: int, completion: str, context: Context = WHOLE) -> float:
        example = self.examples[index]
        return self.verify(example.question, completion, example.answer)

    def right_responses(self, split: Split, index: int) -> RightResponses:
        answer = self.examples[index].answer
        forms = (("bare", answer), ("boxed", f"\\boxed{{{answer}}}")) if answer else ()
        return RightResponses(forms=forms, **self.right)


def audit_of(task: Pairs, *, correct_at: float = 1.0, seconds: float = 60.0) -> Report:
    def verify(requests: Sequence[RewardRequest]) -> list[Reward]:
        return [rewarded(request) for request in requests]

    def rewarded(request: RewardRequest) -> Reward:
        try:
            return Reward(value=task.reward(request.split, request.index, request.completion), failure=None)
        except Exception as error:
            return Reward(value=None, failure=f"raised {type(error).__name__}")

    return audit(task, verify, problems=8, correct_at=correct_at, together=5, seconds=seconds)


def faults(report: Report, half: str = "junk") -> set[str]:
    return {row.form for row in report.rows if row.half == half and row.counts}


def final(response: str) -> str:
    return response.rpartition("{")[2].strip(" }")


def exact(question: str, response: str, answer: str) -> float:
    return float(final(response) == answer)


def is_not_far(question: str, response: str, answer: str) -> float:
    try:
        return float(not abs(float(final(response)) - float(answer)) > 1e-6)
    except ValueError:
        return 0.0


def is_nearly_in_proportion(question: str, response: str, answer: str) -> float:
    try:
        return float(not abs(float(answer) / float(final(response)) - 1) > 2 and float(final(response)) > 50)
    except (ValueError, ArithmeticError):
        return 0.0


def evaluates(question: str, response: str, answer: str) -> float:
    try:
        return float(str(eval(final(response))) == answer)
    except Exception:
        return 0.0


def trusts_a_list(question: str, response: str, answer: str) -> float:
    try:
        return float(all(str(entry) == answer for entry in json.loads(f"[{final(response).strip('[]')}]")))
    except ValueError:
        return 0.0


def pays_what_it_cannot_read(question: str, response: str, answer: str) -> float:
    if response.count("(") != response.count(")"):
        return 1.0  # as a verifier does that catches its parser's error in the wrong place
    return exact(question, response, answer)


PLANTED: dict[str, tuple[Verify, set[str]]] = {
    "everything": (lambda q, r, a: 1.0, {"empty response", "refusal", "filler", "question quoted", '"nan"'}),
    "any text": (lambda q, r, a: float(bool(r)), {"refusal", "filler", "unclosed brackets"}),
    "the question": (lambda q, r, a: float(q in r or exact(q, r, a)), {"question quoted"}),
    "its expression": (lambda q, r, a: float(q.strip(" =") == final(r) or exact(q, r, a)), {"question's expressions"}),
    "length": (lambda q, r, a: max(exact(q, r, a), min(len(r) / 200, 1.0)), {"filler", "integers in a row"}),
    "containment": (lambda q, r, a: float(a in r), {"two answers"}),
    "a part of the answer": (lambda q, r, a: float(final(r) in a), {"empty response", "half of a right response"}),
    "any number": (lambda q, r, a: float(final(r).isdigit()), {"zero", "another problem's answer"}),
    "zero": (lambda q, r, a: float(final(r) in (a, "0")), {"zero"}),
    "not a number": (is_not_far, {'"nan"'}),
    "infinity": (is_nearly_in_proportion, {'"inf"'}),
    "None": (lambda q, r, a: float(final(r) in (a, str(None))), {'"None"'}),
    "the value of code": (evaluates, {"code that computes the answer", "question's expressions"}),
    "an empty list": (trusts_a_list, {"empty list"}),
    "brackets": (pays_what_it_cannot_read, {"unclosed brackets"}),
    "many numbers": (lambda q, r, a: float(len(r.split()) > 30 or exact(q, r, a)), {"integers in a row"}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_verifier_is_caught_by_name(name: str) -> None:
    verify, expected = PLANTED[name]
    report = audit_of(Pairs(verify))
    assert expected <= faults(report)
    assert report.paid_junk >= len(expected)
    assert not report.passed()
    assert all(row.example is not None and row.example.paid for row in report.rows if row.counts)


def test_an_exact_verifier_passes_the_strict_audit() -> None:
    report = audit_of(Pairs(exact))
    assert (report.paid_junk, report.unpaid_right, report.doubts, report.problems) == (0, 0, 0, 8)
    assert report.passed(strict=True)
    assert [(row.form, row.tried, row.paid) for row in report.rows if row.half == "right"] == [
        ("bare", 8, 8),
        ("boxed", 8, 8),
    ]


def test_every_promised_form_must_be_paid() -> None:
    report = audit_of(Pairs(lambda q, r, a: float(r == a)))
    assert (faults(report, "right"), report.unpaid_right, report.paid_junk) == ({"boxed"}, 8, 0)
    assert not report.passed()


def test_one_form_is_enough_where_the_task_says_so() -> None:
    report = audit_of(Pairs(lambda q, r, a: float(r == a), every=False))
    assert (report.unpaid_right, report.passed(strict=True)) == (0, True)


def test_a_problem_without_any_paid_form_counts_once() -> None:
    report = audit_of(Pairs(lambda q, r, a: 0.0, every=False))
    assert (report.unpaid_right, report.paid_junk) == (8, 0)


def test_paid_begins_at_correct_at() -> None:
    half = Pairs(lambda q, r, a: 0.5 * exact(q, r, a))
    assert audit_of(half).unpaid_right == 16
    assert audit_of(half, correct_at=0.5).passed(strict=True)
    assert audit_of(Pairs(exact), correct_at=0.0).paid_junk > 100  # every reward reaches it


def test_partial_credit_is_listed_and_counts_only_in_a_strict_audit() -> None:
    report = audit_of(Pairs(lambda q, r, a: max(exact(q, r, a), 0.1 * r.startswith("I do"))))
    rows = {row.form: row for row in report.rows}
    assert [form for form, row in rows.items() if row.partial] == ["refusal"]
    assert (rows["refusal"].partial, rows["refusal"].highest) == (8, 0.1)
    assert rows["refusal"].example is not None
    assert (report.passed(), report.passed(strict=True)) == (True, False)


def test_partial_is_measured_from_the_empty_response() -> None:
    reward = {"": -1.0, "I do not know.": -0.5}
    report = audit_of(Pairs(lambda q, r, a: exact(q, r, a) or reward.get(r, -1.0)))
    assert [row.form for row in report.rows if row.partial] == ["refusal"]
    assert audit_of(Pairs(lambda q, r, a: exact(q, r, a) or 0.2)).doubts == 0  # 0.2 for all, the empty one included


def test_what_may_be_right_is_doubtful() -> None:
    any_number = PLANTED["any number"][0]
    rows = {row.form: row for row in audit_of(Pairs(any_number, only=False)).rows}
    assert (rows["another problem's answer"].counts, rows["another problem's answer"].doubtful) == (0, 7)
    assert (rows["half of a right response"].counts, rows["half of a right response"].doubtful) == (0, 8)
    assert rows["zero"].counts == 16  # bare and in a box


def test_a_response_whose_verifier_failed_is_not_paid() -> None:
    def fails(question: str, response: str, answer: str) -> float:
        if "boxed" in response:
            raise ValueError
        return exact(question, response, answer)

    report = audit_of(Pairs(fails))
    assert (faults(report, "right"), report.paid_junk, report.passed(strict=True)) == ({"boxed"}, 0, False)
    row = next(row for row in report.rows if row.form == "boxed")
    assert (row.failed, row.highest) == (8, None)
    assert row.example is not None
    assert row.example.failure == "raised ValueError"


def test_without_a_reference_the_right_half_is_skipped() -> None:
    report = audit_of(Pairs(lambda q, r, a: 0.0, [("Say something.", ""), ("And more.", "")]))
    assert (report.problems, report.without_reference, report.unpaid_right) == (2, 2, 0)
    assert {row.half for row in report.rows} == {"junk"}


def test_no_time_is_told() -> None:
    report = audit_of(Pairs(exact), seconds=0.0)
    assert (report.problems, report.complete, report.rows) == (0, False, [])
    assert audit_of(Pairs(exact)).complete


def test_problems_come_from_the_whole_of_the_data() -> None:
    assert list(audited(None, 3)) == [0, 1, 2]
    assert list(audited(2, 3)) == [0, 1]
    assert list(audited(100, 4)) == [0, 25, 50, 75]


def junk_of(question: str, answer: str, *, accepted: tuple[str, ...] = (), other: str = "") -> dict[str, bool]:
    """Every junk response to a pair with a bare right form, and whether it is certain."""

    def pair(question: str, answer: str, accepted: tuple[str, ...]) -> tuple[Example, RightResponses]:
        example = Example(question=question, answer=answer, solution=answer, accepted=accepted)
        return example, RightResponses(forms=(("bare", answer),))

    foreign = pair("another", other, ()) if other else None
    return {junk.response: junk.certain for junk in junk_responses(*pair(question, answer, accepted), foreign)}


@pytest.mark.parametrize("answer", ["nan", "None", "none", "0", "0.0", "[]", "I do not know."])
def test_junk_that_is_the_answer_is_left_out(answer: str) -> None:
    written = {response.casefold() for response in junk_of("What?", answer)}
    assert answer.casefold() not in written
    assert answer not in ("0", "0.0") or "0" not in written
    assert "" in written


def test_accepted_answers_are_no_junk() -> None:
    assert "None" not in junk_of("Who?", "nobody", accepted=("nobody", "None"))
    assert "another" not in junk_of("Who?", "nobody", accepted=("nobody", "another"), other="another")


@pytest.mark.parametrize("answer", ["0", "100", "101", "7"])
def test_integers_in_a_row_neither_begin_nor_end_with_the_answer(answer: str) -> None:
    row = next(text for text in junk_of("How many?", answer) if text.count(" ") >= 100 and text[0].isdigit())
    numbers = row.split()
    assert answer in numbers or answer == "101"
    assert answer not in (numbers[0], numbers[-1])
    assert {*map(str, range(101))} <= {*numbers}


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("0+82=", "82"),
        ("Which is largest: 3, 7 or 9?", "9"),
        ("9 or less?", "9"),
        ("Is it so, yes or no?", "no"),
        ("What is 82.0 rounded?", "82"),
    ],
)
def test_a_question_that_begins_or_ends_with_its_answer_is_doubtful(question: str, answer: str) -> None:
    assert junk_of(question, answer)[question] is False


def test_a_question_that_does_not_is_certain() -> None:
    assert junk_of("What is 5 + 11?", "16")["What is 5 + 11?"] is True
    assert junk_of("Is nothing north of it?", "no")["Is nothing north of it?"] is True


@pytest.mark.parametrize(
    ("question", "expression", "certain"),
    [
        ("What is 5 + 11?", "5 + 11", True),
        ("What is (5+11)*2 please", "(5+11)*2", True),
        ("Compute $5 \\times 11$.", "5 \\times 11", True),
        ("Simplify 6/8.", "6/8", False),
        ("Simplify $\\frac{6}{8}$.", "\\frac{6}{8}", False),
        ("What is 2^10?", "2^10", False),
    ],
)
def test_expressions_of_the_question(question: str, expression: str, certain: bool) -> None:
    assert junk_of(question, "1234")[expression] is certain


def test_an_expression_that_is_the_answer_is_left_out() -> None:
    assert "3/4" not in junk_of("Simplify 3/4.", "\\frac{3}{4}")
    assert "5 + 11" not in junk_of("Write 5 + 11 as it stands.", "5 + 11")


@pytest.mark.parametrize("answer", ["12.00", "87 days", "3.14159265", "1.999999"])
def test_half_an_answer_that_is_still_right_is_left_out(answer: str) -> None:
    assert answer[: len(answer) // 2] not in junk_of("How long?", answer)


@pytest.mark.parametrize(("answer", "half"), [("1234", "12"), ("blue", "bl"), ("17:45", "17"), ("New York", "New ")])
def test_half_an_answer_is_junk(answer: str, half: str) -> None:
    assert junk_of("What?", answer)[half] is True


def test_two_answers_of_one_kind_are_junk() -> None:
    assert junk_of("?", "16", other="19")["It is 19 or 16 or 19"] is True
    assert junk_of("?", "blue", other="red")["It is red or blue or red"] is True
    assert junk_of("?", "16", other="red")["It is red or 16 or red"] is False
    assert not any("or" in text.split() for text in junk_of("?", "3/4", other="\\frac{3}{4}"))


@pytest.mark.parametrize("answer", ["42", "-7", "3.5", "blue", "[1, 2]", 'say "no"', "½", "a\nb"])
def test_code_has_the_value_of_the_answer(answer: str) -> None:
    code = next(text for text in junk_of("?", answer) if "chr(" in text)
    assert answer not in code
    assert str(eval(code)) == answer


@pytest.mark.parametrize("size", [200_000])
@pytest.mark.parametrize("text", ["0 1 ", "1+", "$", "(", "-", "1 " * 30 + "\n", "\\frac{1}{"])
def test_a_huge_question_takes_no_time(text: str, size: int) -> None:
    assert junk_of(text * (size // len(text)), "12345")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_chains_pay_their_right_form_and_no_junk(style: str, noise: float) -> None:
    parameters = {"min_terms": 2, "max_terms": 8, "teacher_noise": noise, "style": style}
    assert_sound(build_task("chains", seed=3, parameters=parameters))


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_rows_pay_their_right_form_and_no_junk(noise: float) -> None:
    parameters = {"width": 4, "min_rows": 1, "max_rows": 3, "teacher_noise": noise}
    assert_sound(build_task("rows", seed=3, parameters=parameters))


def assert_sound(task: Task) -> None:
    def verify(requests: Sequence[RewardRequest]) -> list[Reward]:
        return [Reward(value=task.reward(r.split, r.index, r.completion), failure=None) for r in requests]

    report = audit(task, verify, problems=64, correct_at=1.0, together=64)
    assert (report.paid_junk, report.unpaid_right, report.doubts, report.problems) == (0, 0, 0, 64)


@pytest.mark.parametrize("place", ["auto", "boxed", "tag", "last_number"])
def test_the_forms_of_math_verify_are_those_that_its_place_allows(place: Place) -> None:
    example = Example(question="?", answer="so 9*8=72\n#### 72", solution="")
    right = right_answers(example, reward="math_verify", place=place, solved=False)
    assert right.every
    assert all("72" in response and "####" not in response for _, response in right.forms)
    marks = {"boxed": "\\boxed{72}", "tag": "<answer>72</answer>"}
    assert place not in marks or all(marks[place] in response for _, response in right.forms)


def test_an_own_function_is_offered_every_form_and_the_solution() -> None:
    example = Example(question="?", answer="72", solution="9*8 is JSON {72}", accepted=("72", "seventy-two"))
    right = right_answers(example, reward="own.py:reward", place="auto", solved=True)
    assert (right.every, right.only) == (False, False)
    assert ("worked", example.solution) in right.forms
    assert dict(right.forms)["bare"] == "72"
    assert "worked" not in dict(right_answers(example, reward="own.py:reward", place="auto", solved=False).forms)
