"""The user's own reward function: how its file is loaded, what its parameters get, what it may return."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steadyrl.tasks import RewardPool, RewardRequest, TaskError, process
from steadyrl.tasks.base import Context, Example, Split
from steadyrl.tasks.calling import RewardFunction
from steadyrl.tasks.grading import NotANumber, grade
from steadyrl.tasks.own_reward import function_file, load_function
from steadyrl.tasks.questions import Questions

EXAMPLE = Example(
    question="1+1=",
    answer="2",
    solution="2",
    row={
        "question": "1+1=",
        "answer": "two",
        "level": 3,
        "tests": [1, 2],
        "prompt": "a column",
        "token_ids": "a column",
    },
)
CONTEXT = Context(prompt_text="<user>1+1=", finish_reason="length", token_ids=(7, 8))


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., dict]:
    """A task whose reward function is `reward` in a file with the code given."""

    def make(code: str, *, file: str = "mine.py", name: str = "reward") -> dict:
        pairs = "".join(f'{{"question": "{n}", "answer": "{n}"}}\n' for n in range(8))
        (tmp_path / "pairs.jsonl").write_text(pairs)
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(code)
        reward = f"{tmp_path / file}:{name}"
        return {"kind": "questions", "path": str(tmp_path / "pairs.jsonl"), "reward": reward, "held_out": 1}

    return make


def open_pool(task: dict, **options: Any) -> RewardPool:
    return RewardPool(task, seed=0, **{"workers": 1, "time_limit": 5, **options})


def ask(pool: RewardPool, *completions: str, index: int = 0, context: Context = CONTEXT) -> list:
    batch = [RewardRequest(split="train", index=index, completion=text, context=context) for text in completions]
    return [reward.failure or reward.value for reward in pool.rewards(batch)]


def rejected(task: dict, **options: Any) -> str:
    with pytest.raises(TaskError) as caught:
        open_pool(task, **options)
    return str(caught.value)


# ---- the file


def test_a_file_is_loaded_only_where_it_verifies(spec: Callable, tmp_path: Path) -> None:
    task = spec(f"open({str(tmp_path / 'ran')!r}, 'a').write('x')\ndef reward(prompt, completion):\n    return 1.0\n")
    pairs = Questions(**{key: value for key, value in task.items() if key != "kind"})
    assert pairs.size("train") == 7
    assert not (tmp_path / "ran").exists()
    with open_pool(task):
        assert (tmp_path / "ran").read_text() == "x"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import sys\nsys.exit()\n",
            "mine.py:reward': loading it called sys.exit(0); put what the file does as a script",
        ),
        ("raise SystemExit('done')\n", "loading it called sys.exit('done')"),
        ("raise SystemExit(3)\n", "loading it called sys.exit(3)"),
        ("raise KeyboardInterrupt\n", "loading it raised KeyboardInterrupt"),
        ("import os\nos._exit(0)\n", "ended with exit code 0 while building the task and loading reward = "),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "was killed by SIGKILL while building"),
        ("import os\nos.abort()\n", "was killed by SIGABRT while building"),
        ("\n\n1 / 0\n", "loading it raised ZeroDivisionError: division by zero (line 3)"),
        ("def reward(prompt, completion:\n", "loading it raised SyntaxError: '(' was never closed (mine.py, line 1)"),
        ("x = '\n", "line 1)"),
        ("import no_such_thing\n", "loading it raised ModuleNotFoundError: No module named 'no_such_thing' (line 1)"),
        ("from .helper import good\n", "write `from helper import …` without the dot"),
        (
            "class Odd(Exception):\n    def __str__(self):\n        return 1 / 0\nraise Odd\n",
            "raised Odd: its text cannot",
        ),
        ("def other(prompt, completion): return 1\n", "there is no reward in it; it has other"),
        ("reward = 3\n", "there is no reward in it"),
        (
            "class reward:\n    def __call__(self, prompt, completion): return 1\n",
            "reward is a class; name a function, or an",
        ),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named(spec: Callable, code: str, message: str) -> None:
    assert message in rejected(spec(code))


def test_an_import_that_hangs_is_stopped(spec: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOADING_LIMIT", 0.5)
    began = time.monotonic()
    told = rejected(spec("import time\ntime.sleep(60)\n"), time_limit=0.2)
    assert "mine.py:reward': loading it took longer than 0.5 s; raise verifier.time_limit" in told
    assert time.monotonic() - began < 5


def test_an_import_may_print_read_fork_and_leave_threads(spec: Callable) -> None:
    code = (
        "import os, sys, threading, time\nprint('[null]')\nsys.stdin.read()\nos.fork()\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "def reward(prompt, completion):\n    return len(completion)\n"
    )
    with open_pool(spec(code)) as pool:
        assert ask(pool, "a", "bb") == [1.0, 2.0]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("other.py:reward", "other.py:reward': there is no such file, seen from "),
        ("mine.txt:reward", "ends in .py"),
        ("folder.py:reward", "there is no such file"),
        ("mathverify", "neither `math_verify` nor `file.py:function`"),
        ("mine.py:", "neither `math_verify` nor `file.py:function`"),
        (":reward", "neither `math_verify` nor `file.py:function`"),
        ("", "neither `math_verify` nor `file.py:function`"),
        ("mine\0.py:reward", "neither `math_verify` nor `file.py:function`"),
    ],
)
def test_a_reward_that_names_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.py").mkdir()
    Path("mine.txt").touch()
    with pytest.raises(TaskError) as caught:
        function_file(reward)
    assert message in str(caught.value)


IMPORTS_A_NEIGHBOUR = "from helper_of_mine import good\ndef reward(prompt, completion):\n    return good(completion)\n"
LATE = "def reward(prompt, completion):\n    from helper_of_mine import good\n    return good(completion)\n"
RELATIVE = "from .helper_of_mine import good\ndef reward(prompt, completion):\n    return good(completion)\n"


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("code", [IMPORTS_A_NEIGHBOUR, LATE])
def test_a_file_imports_its_neighbour(spec: Callable, tmp_path: Path, code: str, closed: bool) -> None:
    (tmp_path / "helper_of_mine.py").write_text("def good(completion):\n    return len(completion)\n")
    with open_pool(spec(code), closed=closed) as pool:
        assert ask(pool, "abc") == [3.0]


def test_a_file_in_a_package_imports_relatively(spec: Callable, tmp_path: Path) -> None:
    task = spec(RELATIVE, file="package/mine.py")
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "helper_of_mine.py").write_text("def good(completion):\n    return len(completion)\n")
    with open_pool(task) as pool:
        assert ask(pool, "abc") == [3.0]


def test_a_neighbour_never_hides_an_installed_module(spec: Callable, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("1 / 0\n")
    (tmp_path / "colorsys.py").write_text("1 / 0\n")
    code = "import json, colorsys\ndef reward(prompt, completion):\n    return json.loads(completion)\n"
    with open_pool(spec(code)) as pool:
        assert ask(pool, "2.5") == [2.5]


@pytest.mark.parametrize("file", ["json.py", "colorsys.py", "steadyrl.py", "my-reward.py", "reward.v2.py", "1.py"])
def test_a_file_may_have_any_name(spec: Callable, file: str) -> None:
    with open_pool(
        spec("import json\ndef reward(prompt, completion):\n    return json.loads(completion)\n", file=file)
    ) as pool:
        assert ask(pool, "2.5") == [2.5]


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_child_processes_find_the_module_by_its_name(spec: Callable, method: str) -> None:
    code = (
        "import multiprocessing\n"
        "class Rule:\n    def __init__(self, weight):\n        self.weight = weight\n"
        "def work(rule):\n    return rule.weight * 2\n"
        "def reward(prompt, completion):\n"
        f"    with multiprocessing.get_context({method!r}).Pool(1) as pool:\n"
        "        return pool.map(work, [Rule(float(len(completion)))])[0]\n"
    )
    with open_pool(spec(code), time_limit=30) as pool:
        assert ask(pool, "abc") == [6.0]


def test_a_module_is_known_to_dataclasses_and_pickle(tmp_path: Path) -> None:
    (tmp_path / "own_module.py").write_text(
        "from __future__ import annotations\nimport dataclasses, pickle\n@dataclasses.dataclass\n"
        "class Rule:\n    weight: float\n"
        "def reward(prompt, completion):\n    return pickle.loads(pickle.dumps(Rule(0.5))).weight\n"
    )
    code = (
        "from steadyrl.tasks.own_reward import function_file, load_function\n"
        f"reward = load_function(function_file({str(tmp_path / 'own_module.py')!r} + ':reward'))\n"
        "print(reward('', ''), reward.__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0.5 own_module\n"


# ---- what the parameters get


def called(function: Callable[..., Any], *, example: Example = EXAMPLE, completion: str = "two") -> Any:
    """What a function returns for one response."""
    return RewardFunction(function, label="reward = 'f'", example=example, data_source="pairs.jsonl")(
        [example], [completion], [CONTEXT]
    )


def positional(prompt, completion, /, answer, *, level=0):
    return prompt, completion, answer, level


class Verifier:
    def __call__(self, completion, level):
        return completion, level

    def method(self, completion, answer):
        return completion, answer


def weighed(weight, completion, answer="none"):
    return weight, completion, answer


PLAIN: list[tuple[Callable[..., Any], Any]] = [
    (lambda prompt, completion: (prompt, completion), ("1+1=", "two")),
    (lambda completion, prompt: (prompt, completion), ("1+1=", "two")),
    (lambda completion: completion, "two"),
    (lambda completion, answer: (completion, answer), ("two", "2")),
    (lambda completion, answer="none": (completion, answer), ("two", "2")),
    (lambda completion, level: (completion, level), ("two", 3)),
    (lambda completion, level=9, other=5: (completion, level, other), ("two", 3, 5)),
    (lambda completion, prompt_text, finish_reason: (prompt_text, finish_reason), ("<user>1+1=", "length")),
    (lambda completion, token_ids: token_ids, [7, 8]),
    (lambda completion, question: question, "1+1="),
    (lambda prompt, completion, **kwargs: (kwargs["answer"], kwargs["level"], "prompt" in kwargs), ("2", 3, False)),
    (lambda **kwargs: (kwargs["prompt"], kwargs["completion"], kwargs["answer"]), ("1+1=", "two", "2")),
    (lambda completion, *rest: (completion, rest), ("two", ())),
    (lambda completion, *, tests: tests, [1, 2]),
    (positional, ("1+1=", "two", "2", 3)),
    (Verifier(), ("two", 3)),
    (Verifier().method, ("two", "2")),
    (__import__("functools").partial(weighed, 0.5), (0.5, "two", "2")),
    (__import__("functools").partial(weighed, 0.5, answer="fixed"), (0.5, "two", "fixed")),
]


@pytest.mark.parametrize(("function", "got"), PLAIN)
def test_parameters_are_told_by_their_names(function: Callable[..., Any], got: Any) -> None:
    assert called(function) == got


def test_accepted_answers_come_as_a_list() -> None:
    several = Example(question="q", answer="a", solution="a", accepted=("a", "b"))
    assert called(lambda completion, answer: answer, example=several) == ["a", "b"]
    one = Example(question="q", answer="a", solution="a")
    assert called(lambda completion, answer: answer, example=one) == "a"


def test_a_function_may_change_what_it_gets() -> None:
    def reward(completion, tests):
        return tests.pop()

    assert [called(reward), called(reward)] == [2, 2]


def test_verl_compute_score() -> None:
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        return data_source, solution_str, ground_truth, extra_info

    assert called(compute_score) == ("pairs.jsonl", "two", "2", None)
    row = {"data_source": "gsm8k", "extra_info": {"index": 1}, "solution_str": "a column"}
    example = Example(question="q", answer="4", solution="4", accepted=("4", "four"), row=row)
    assert called(compute_score, example=example) == ("gsm8k", "two", ["4", "four"], {"index": 1})
    assert called(lambda solution_str, ground_truth, **kwargs: kwargs["data_source"]) == "pairs.jsonl"


def test_trl_rewards_get_lists() -> None:
    def reward(prompts, completions, answer, level, completion_ids, **kwargs):
        return prompts, completions, answer, level, completion_ids, kwargs["tests"], "prompts" in kwargs

    function = RewardFunction(reward, label="f", example=EXAMPLE, data_source="x")
    found = function([EXAMPLE, EXAMPLE], ["a", "b"], [CONTEXT, CONTEXT])
    two = [[1, 2], [1, 2]]
    assert found == (["1+1="] * 2, ["a", "b"], ["2", "2"], [3, 3], [[7, 8]] * 2, two, False)


def test_trl_rewards_get_messages_where_the_data_have_them() -> None:
    talk = ({"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="})
    example = Example(question="1+1=", answer="2", solution="2", messages=talk)
    prompts, completions = called(lambda prompts, completions: (prompts, completions), example=example)
    assert prompts == [list(talk)]
    assert completions == [[{"role": "assistant", "content": "two"}]]


async def asynchronous(prompt, completion):
    return 1.0


def generator(prompt, completion):
    yield 1.0


class Asynchronous:
    async def __call__(self, prompt, completion):
        return 1.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda prompt, response: 1, "its signature (prompt, response) takes no `completion`"),
        (lambda a, b: 1, "takes no `completion`"),
        (lambda: 1, "its signature () takes no `completion`"),
        (lambda prompt, answer: 1, "takes no `completion`"),
        (lambda *args: 1, "takes no `completion`"),
        (lambda prompts, completions, references: 1, "its parameter `references` is no known name and no column"),
        (
            lambda completion, reference: 1,
            "`reference` is no known name and no column of the data (columns: `question`",
        ),
        (lambda solution_str, truth: 1, "its parameter `truth` is no known name"),
        (asynchronous, "it is asynchronous; write a plain function"),
        (Asynchronous(), "it is asynchronous"),
        (generator, "it is a generator"),
        (print, "takes no `completion`"),
        (dict.fromkeys, "takes no `completion`"),
    ],
)
def test_a_signature_that_cannot_be_called_is_rejected(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(TaskError) as caught:
        called(function)
    assert message in str(caught.value)
    for known in (
        "reward(prompt, completion)",
        "reward(prompts, completions)",
        "compute_score(data_source, solution_str",
    ):
        assert known in str(caught.value)


def test_columns_and_context_reach_the_worker(spec: Callable) -> None:
    code = (
        "def reward(prompt, completion, prompt_text, finish_reason, token_ids):\n"
        "    return len(prompt_text) * 100 + len(finish_reason) * 10 + sum(token_ids)\n"
    )
    with open_pool(spec(code)) as pool:
        assert ask(pool, "x") == [1000 + 60 + 15]


ASKS = {
    "plain": "def reward(completion, note):\n    return 1.0 if note is None else len(note)\n",
    "kwargs": "def reward(completion, **kwargs):\n    return 1.0 if kwargs['note'] is None else len(kwargs['note'])\n",
    "default": "def reward(completion, note='x'):\n    return len(note)\n",
    "trl": "def reward(completions, note):\n    return [1.0 if n is None else len(n) for n in note]\n",
    "verl": "def reward(solution_str, note):\n    return 1.0 if note is None else len(note)\n",
}


@pytest.mark.parametrize("form", ASKS)
@pytest.mark.parametrize("last", [False, True])
def test_a_row_that_lacks_a_column_has_none_there(form: str, last: bool, tmp_path: Path) -> None:
    rows = [{"question": f"{n}", "answer": f"{n}"} for n in range(8)]
    for row in rows[4:] if last else rows[:4]:
        row["note"] = "seven l"
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(ASKS[form])
    task = Questions(path=str(tmp_path / "pairs.jsonl"), reward=f"{tmp_path / 'mine.py'}:reward", held_out=1)
    pairs = range(task.size("train"))
    found = [task.reward("train", index, "any") for index in pairs]
    assert found == [7.0 if "note" in task.example("train", index).row else 1.0 for index in pairs]
    assert set(found) == {1.0, 7.0}


# ---- the trial


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 'good'", "returned 'good', not a number"),
        ("return None", "returned None, not a number"),
        ("return [1.0]", "returned [1.0], not a number"),
        ("return {'reward': 1.0}", "returned a mapping without `score`: {'reward': 1.0}"),
        ("return {'score': None}", "returned None, not a number as `score`"),
        ("raise ValueError('no')", "raised ValueError: no"),
        ("import sys; sys.exit(1)", "called sys.exit(1)"),
        ("import os; os._exit(4)", "worker died: it ended with exit code 4"),
        ("import time; time.sleep(60)", "took longer than 0.3 s"),
        ("return reward(prompt)", "raised TypeError: reward() missing 1 required positional argument"),
    ],
)
def test_a_function_that_pays_no_right_response_is_rejected(spec: Callable, body: str, message: str) -> None:
    told = rejected(spec(f"def reward(prompt, completion):\n    {body}\n"), time_limit=0.3)
    assert f"it gave the first problem's own solution no reward: {message}" in told
    assert "Known are" in told


def test_a_function_that_fails_on_the_first_problem_alone_is_kept(spec: Callable) -> None:
    task = spec("def reward(prompt, completion):\n    return 1.0\n")
    first = Questions(**{k: v for k, v in task.items() if k != "kind"}).example("train", 0).question
    task = spec(f"def reward(prompt, completion):\n    return None if prompt == {first!r} else 1.0\n")
    with open_pool(task) as pool:
        assert ask(pool, "x") == ["returned None, not a number"]
        assert ask(pool, "x", index=1) == [1.0]


@pytest.mark.parametrize("returned", ["1.0", "[1.0]", "[1.0] * 9", "'ab'", "{'a': 1, 'b': 2}", "None"])
def test_a_trl_reward_of_the_wrong_shape_is_rejected(spec: Callable, returned: str) -> None:
    told = rejected(spec(f"def reward(prompts, completions, **kwargs):\n    return {returned}\n"))
    assert "it gave the first problem's own solution no reward: returned " in told


# ---- TRL's form in workers


def test_a_trl_reward_gets_all_responses_to_a_prompt(spec: Callable) -> None:
    code = "def reward(completions, **kwargs):\n    return [len(completions) + len(c) / 10 for c in completions]\n"
    batch = [
        RewardRequest(split="train", index=index, completion="x" * n) for index in (0, 1) for n in range(3 + index)
    ]
    for workers in (1, 2):
        with open_pool(spec(code), workers=workers) as pool:
            found = [reward.value for reward in pool.rewards(batch)]
        assert found == [3.0, 3.1, 3.2, 4.0, 4.1, 4.2, 4.3]


def test_none_in_a_list_is_a_missing_reward(spec: Callable) -> None:
    code = "def reward(completions, **kwargs):\n    return [None if c == 'skip' else 0.5 for c in completions]\n"
    with open_pool(spec(code)) as pool:
        assert ask(pool, "a", "skip", "b") == [0.5, "returned None, not a number", 0.5]


@pytest.mark.parametrize(
    ("trouble", "failure"),
    [
        ("raise ValueError('bad')", "raised ValueError: bad"),
        ("time.sleep(60)", "took longer than 0.4 s"),
        ("os._exit(3)", "worker died: it ended with exit code 3"),
        ("sys.exit()", "called sys.exit()"),
    ],
)
def test_a_group_whose_call_fails_is_verified_one_by_one(spec: Callable, trouble: str, failure: str) -> None:
    code = (
        "import os, sys, time\ndef reward(prompts, completions):\n"
        f"    if 'bad' in completions:\n        {trouble}\n    return [float(len(c)) for c in completions]\n"
    )
    with open_pool(spec(code), time_limit=0.4) as pool:
        assert ask(pool, "a", "bad", "cc") == [1.0, failure, 2.0]
        assert ask(pool, "a", "bb", "cc") == [1.0, 2.0, 2.0]


def test_the_limit_of_a_group_grows_with_it(spec: Callable) -> None:
    body = "    time.sleep(0.25 * len(completions))\n    return [1.0] * len(completions)\n"
    code = "import time\ndef reward(completions):\n" + body
    with open_pool(spec(code), time_limit=0.6) as pool:
        assert ask(pool, *"abcd") == [1.0] * 4


def test_a_verl_function_in_a_worker(spec: Callable) -> None:
    code = (
        "def reward(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return {'score': float(solution_str == ground_truth), 'acc': solution_str == ground_truth}\n"
    )
    task = spec(code)
    answer = Questions(**{k: v for k, v in task.items() if k != "kind"}).example("train", 0).answer
    with open_pool(task) as pool:
        right, wrong = pool.rewards([RewardRequest(split="train", index=0, completion=c) for c in (answer, "no")])
    assert (right.value, dict(right.parts)) == (1.0, {"acc": 1.0})
    assert (wrong.value, dict(wrong.parts)) == (0.0, {"acc": 0.0})


# ---- what is returned


def numbers_of_libraries() -> list[tuple[Any, float]]:
    from decimal import Decimal
    from fractions import Fraction

    import numpy as np
    import torch

    return [
        (True, 1.0),
        (3, 3.0),
        (-2.5, -2.5),
        (2**100, float(2**100)),
        (3.4028234e38, 3.4028234e38),
        (np.True_, 1.0),
        (np.isclose(1.0, 1.0), 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(-3), -3.0),
        (np.float16(0.25), 0.25),
        (np.array(0.5), 0.5),
        (np.array(True), 1.0),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(True), 1.0),
        (torch.tensor(2), 2.0),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (Decimal("0.125"), 0.125),
        (Fraction(1, 4), 0.25),
    ]


def test_any_number_is_a_reward() -> None:
    for value, reward in numbers_of_libraries():
        assert grade(value) == (reward, {})
        assert grade({"score": value, "part": value}) == (reward, {"part": reward})


def test_what_is_no_finite_number_is_no_reward() -> None:
    from decimal import Decimal

    import numpy as np
    import torch

    values = [
        "1",
        b"1",
        None,
        1j,
        np.complex64(1),
        np.array([1.0, 2.0]),
        torch.tensor([1.0, 2.0]),
        [1.0],
        (),
        {},
        object(),
    ]
    values += [float("nan"), float("inf"), 1e39, 10**39, 10**400, Decimal("NaN"), Decimal("1e99"), np.float64(1e300)]
    values += [np.longdouble("1e4000"), torch.tensor(float("nan")), {"score": "1"}, {"score": float("inf")}, {1: 2.0}]
    for value in values:
        with pytest.raises(NotANumber, match=r"^returned "):
            grade(value)


def test_parts_are_numbers_with_plain_names() -> None:
    returned = {
        "score": 1,
        "acc": True,
        "format ok!": 0.5,
        "pred": "42",
        "nothing": None,
        "lost": float("nan"),
        "list": [1.0],
        "": 2.0,
        3: 4.0,
        "x" * 100: 1.0,
    }
    assert grade(returned) == (1.0, {"acc": 1.0, "format_ok": 0.5, "part": 2.0, "x" * 64: 1.0})
    many = {"score": 0.0} | {f"part{n}": 1.0 for n in range(100)}
    assert len(grade(many)[1]) == 32


def test_a_value_is_named_however_it_prints() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no text")

    with pytest.raises(NotANumber, match="returned a value of type Odd, not a number"):
        grade(Odd())
    with pytest.raises(NotANumber) as caught:
        grade("x" * 10_000)
    assert len(str(caught.value)) < 300


def test_questions_verify_in_this_process_too(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"q": "a", "a": "b"}\n{"q": "c", "a": "d"}\n')
    (tmp_path / "mine.py").write_text(
        "def compared(prompt, completion, answer=''):\n    return float(completion == prompt + answer)\n"
        "def alone(prompt, completion):\n    return float(completion == prompt)\n"
        "def listed(prompts, completions):\n    return [float(c == p) for p, c in zip(prompts, completions)]\n"
    )
    for name, right in (("compared", "ab"), ("alone", "a"), ("listed", "a")):
        pairs = Questions(
            path=str(tmp_path / "pairs.jsonl"),
            split="",
            question_column="q",
            answer_column="a",
            reward=f"{tmp_path / 'mine.py'}:{name}",
            held_out=1,
        )
        split: Split = "train" if pairs.example("train", 0).question == "a" else "held_out"
        assert [pairs.reward(split, 0, completion) for completion in (right, "x")] == [1.0, 0.0]


def test_a_loaded_function_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "lone_file.py").write_text("def reward(prompt, completion):\n    return 0.5 * (completion == prompt)\n")
    function = load_function(function_file(f"{tmp_path / 'lone_file.py'}:reward"))
    assert (function("a", "a"), function("a", "b")) == (0.5, 0.0)
