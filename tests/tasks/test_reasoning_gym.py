import json
import os
import random
import subprocess
import sys

import pytest
from reasoning_gym.factory import DATASETS

from steadyrl.tasks.base import TaskError
from steadyrl.tasks.reasoning import HASH_ORDERED, UNREPEATABLE, ReasoningGym, extract_answer


def gym(dataset: str = "chain_sum", *, seed: int = 0, min_score: float = 1.0, **parameters: object) -> ReasoningGym:
    return ReasoningGym(seed=seed, dataset=dataset, parameters=parameters, min_score=min_score)


@pytest.mark.parametrize("dataset", ["chain_sum", "letter_counting", "simple_equations"])
def test_the_reference_answer_is_right_and_another_is_not(dataset: str) -> None:
    task = gym(dataset)
    for index in (0, 1, 70, 10**9):
        example = task.example("train", index)
        assert task.score("train", index, f"Well. <answer>{example.answer}</answer>") == 1.0
        assert task.score("train", index, example.solution) == 1.0
        assert task.score("train", index, f"<answer>{example.answer}1</answer>") == 0.0
        assert task.score("train", index, "") == 0.0


def test_splits_are_disjoint_and_problems_pure() -> None:
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    task, again = gym(**few), gym(**few)
    train = [task.example("train", index) for index in range(400)]
    held_out = [task.example("held_out", index) for index in range(200)]
    assert not {example.question for example in train} & {example.question for example in held_out}
    assert [again.example("train", index) for index in reversed(range(400))] == train[::-1]
    assert len({example.question for example in train}) > 100  # of 200, a quarter of them held out
    assert gym(seed=1, **few).example("train", 0) != train[0]


def test_parameters_reach_the_dataset() -> None:
    question = gym(min_terms=5, max_terms=5, min_digits=1, max_digits=1).example("train", 0).question
    expression = question.partition(":")[2]
    assert sum(character.isdigit() for character in expression) == 5


def test_min_score_decides_about_partial_credit() -> None:
    # chain_sum's verifier gives the whole point or 0.01; spell_backward rewards a part of the letters
    lenient, strict = gym("spell_backward", min_score=0.1), gym("spell_backward")
    answer = lenient.example("train", 0).answer
    nearly = answer[:-1] + "?"
    assert 0.1 <= lenient._verifier.score_answer(nearly, lenient._entry("train", 0)) < 1.0
    assert (lenient.score("train", 0, nearly), strict.score("train", 0, nearly)) == (1.0, 0.0)


def test_an_answer_the_verifier_cannot_read_is_wrong() -> None:
    assert gym("prime_factorization").score("train", 0, "two times three") == 0.0


def test_a_missing_reference_answer_is_empty() -> None:
    assert gym("graph_color").example("train", 0).answer == ""


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (" 42\n", "42"),
        ("<answer>1</answer> no: <answer> 2 </answer>.", "2"),
        ("<answer>3", "<answer>3"),
        ("<think><answer></think><answer>4</answer>", "4"),
    ],
)
def test_extract_answer(completion: str, answer: str) -> None:
    assert extract_answer(completion) == answer


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(TaskError, match="reasoning-gym dataset `chain_sun` is unknown; did you mean `chain_sum`"):
        gym("chain_sun")
    with pytest.raises(TaskError, match=r"parameter of reasoning-gym's chain_sum `min_term` .* `min_terms`"):
        gym(min_term=2)
    with pytest.raises(TaskError, match="`seed` is unknown"):
        ReasoningGym(seed=0, dataset="chain_sum", parameters={"seed": 1}, min_score=1.0)


def test_values_the_dataset_refuses() -> None:
    with pytest.raises(TaskError, match=r"chain_sum refuses parameters = .*'min_terms': 0.*must be positive"):
        gym(min_terms=0)


def test_too_few_problems_end_in_an_error() -> None:
    task = gym("chain_sum")
    task._generator = lambda split, block, round_: _Constant()  # type: ignore[assignment]
    with pytest.raises(TaskError, match=r"chain_sum gave no .* problem 0 in 1000 draws.*too few problems"):
        [task.example(split, 0) for split in ("train", "held_out")]


class _Constant:
    seed = 0

    def __getitem__(self, index: int) -> dict:
        return {"question": "always the same", "answer": "1"}


def test_the_global_random_state_is_left_alone() -> None:
    random.seed(5)
    before = random.getstate()
    gym("list_functions").example("train", 0)
    assert random.getstate() == before


def test_hash_ordered_datasets_need_a_fixed_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(TaskError, match=r"word_ladder .* PYTHONHASHSEED=0"):
        gym("word_ladder")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert gym("ransom_note").example("train", 0).question


@pytest.mark.parametrize("dataset", UNREPEATABLE)
def test_unrepeatable_datasets_are_refused(dataset: str) -> None:
    with pytest.raises(TaskError, match=f"reasoning-gym's {dataset} .*use another dataset"):
        gym(dataset)


DRAW_SOME = """
import hashlib, json, sys, time
from steadyrl.tasks.reasoning import ReasoningGym
found = {}
for name in sys.argv[1:]:
    task, found[name] = ReasoningGym(seed=0, dataset=name, parameters={}, min_score=1.0), []
    began = time.monotonic()
    while len(found[name]) < 24 and time.monotonic() < began + 1:
        example = task.example("train", len(found[name]))
        found[name].append(hashlib.sha256(repr(example).encode()).hexdigest())
print("\\n" + json.dumps(found))
"""


@pytest.mark.slow
def test_every_other_dataset_is_the_same_in_every_process() -> None:
    """A worker scores problems that another process drew: both must see the same ones."""
    names = sorted(set(DATASETS) - HASH_ORDERED - UNREPEATABLE.keys())
    first, second = (_draw_in_a_process(names, hash_seed) for hash_seed in ("1", "2"))
    # both stop a slow dataset after a second, maybe not at the same problem
    differ = [name for name in names if any(a != b for a, b in zip(first[name], second[name], strict=False))]
    assert differ == []


def _draw_in_a_process(names: list[str], hash_seed: str) -> dict[str, list[str]]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    program = [sys.executable, "-c", DRAW_SOME, *names]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
