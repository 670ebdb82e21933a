"""Measures the verifiers of reasoning-gym: do they pay junk, run answers as code, and pay right answers?

    python -m steadyrl.tasks.gym_audit > reasoning_gym.json
    python -m steadyrl.tasks.gym_audit chain_sum n_queens
    python -m steadyrl.tasks.gym_audit --markdown   # the shipped table, as docs/verifiers.md shows it

Measures in another process and in a temporary directory, because code in an answer may run there.
"""

import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from steadyrl.tasks.base import Example, RightResponses
from steadyrl.tasks.gym_table import GymTable, GymVerdict, Own, markdown, table
from steadyrl.tasks.junk import junk_responses
from steadyrl.tasks.reasoning import UNREPEATABLE, ReasoningGym

PROBLEMS = 8
"""Problems of a dataset that are tried."""
_PLANTED = 3  # of these, those that code is planted in
_SECONDS = 900.0  # all datasets take about half a minute
_SHOWN = 60  # characters of a response in the table
_EXAMPLES = ("possible_answer", "example_answer", "example_correct_answer")  # where metadata hold a right answer
_NEAR = ("half of a right response", "two answers", "another problem's answer")  # junk that may hold some of the answer


def measure(names: Sequence[str]) -> GymTable:
    """Measure datasets, where nothing can be harmed but a temporary directory."""
    with tempfile.TemporaryDirectory() as folder:
        package = str(Path(__file__).parents[2])
        environment = {"PATH": os.defpath, "PYTHONHASHSEED": "0", "HOME": folder, "PYTHONPATH": package}
        program = [sys.executable, "-m", "steadyrl.tasks.gym_audit", "--here", *names]
        done = subprocess.run(
            program, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, timeout=_SECONDS, check=True
        )
    verdicts = json.loads(done.stdout.splitlines()[-1])
    found = {name: GymVerdict(**verdict) for name, verdict in verdicts.items()}
    return GymTable(version=importlib.metadata.version("reasoning-gym"), datasets=found)


def all_datasets() -> list[str]:
    """Every dataset with a distinct name."""
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - UNREPEATABLE.keys())


def planted(answer: str, mark: str) -> list[str]:
    """Answers that leave the file `mark` behind if they are run as Python, or by a shell, YAML or a template."""
    code = f'open("{mark}", "w").close()'
    statement = f'import os\nos.close(os.open("{mark}", os.O_CREAT))'
    return [
        code,
        f'__import__("os").mkdir("{mark}")',
        f"[{code}]",
        f"[[{code}]]",
        f'{{"0": {code}}}',
        f"({answer}) + 0*len(str({code}))",
        f"{answer}, {code}",
        f"{answer}\n{code}",
        f"[{answer}, {code}]",
        f"(lambda: {code})()",
        f"eval({code!r})",
        statement,
        f"{answer}\n{statement}",
        f"exec({statement!r})",
        f"'+str({code})+'",
        f'"+str({code})+"',
        f"{{{code}}}",
        f"{{{{{code}}}}}",
        f"!!python/object/apply:os.mkdir [{mark}]",
        f"$(touch {mark})",
        f"`touch {mark}`",
        f"; touch {mark}",
        f"{answer}; touch {mark}",
    ]


def _here(name: str) -> GymVerdict:
    """Measure a dataset in this process. Code comes last: where it runs, it could change the verifier."""
    task = ReasoningGym(seed=0, dataset=name, parameters={}, min_reward=math.inf, allow_code=True)
    best, form, response, near = 0.0, "", "", 0.0
    own: list[float] = []
    examples: list[float] = []
    before: tuple[Example, RightResponses] | None = None
    for index in range(PROBLEMS):
        example, right = task.example("train", index), task.right_responses("train", index)
        for junk in junk_responses(example, right, before):
            reward = task.raw_reward("train", index, junk.response) if junk.certain else 0.0
            if junk.form in _NEAR and reward < 1.0:
                near = max(near, reward)
            elif reward > best:
                best, form, response = reward, junk.form, junk.response[:_SHOWN]
        before = example, right
        own.extend(task.raw_reward("train", index, text) for _, text in right.forms)
        metadata = task.metadata("train", index)
        found = (metadata[key] for key in _EXAMPLES if key in metadata)
        texts = (text if isinstance(text, str) else json.dumps(text) for text in found)
        examples.extend(task.raw_reward("train", index, text) for text in texts)
    return GymVerdict(
        junk=_up(best),
        form=form,
        response=response,
        near=_up(near),
        code=_runs_code(task, mark=name),
        own=_own(own, examples),
    )


def _up(reward: float) -> float:
    """Rounded up, so that a `min_reward` of this size still pays."""
    return math.ceil(reward * 1000) / 1000


def _own(own: Sequence[float], examples: Sequence[float]) -> Own:
    """In a word what right answers earned."""
    if own:
        return "paid" if min(own) >= 1.0 else "unpaid"
    return "example paid" if examples and min(examples) >= 1.0 else "untested"


def _runs_code(task: ReasoningGym, mark: str) -> bool:
    """Whether one of the planted answers, bare or in tags, leaves its file in the working directory."""
    for index in range(_PLANTED):
        for text in planted(task.example("train", index).answer, mark):
            for response in (text, f"<answer>{text}</answer>"):
                task.raw_reward("train", index, response)
                if Path(mark).exists():
                    return True
    return False


def main(arguments: Sequence[str]) -> None:
    """Print the table of the datasets named, or of all."""
    if arguments[:1] == ["--here"]:
        verdicts = {name: asdict(_here(name)) for name in arguments[1:]}
        print("\n" + json.dumps(verdicts))  # some datasets print too
    elif arguments[:1] == ["--markdown"]:
        print(markdown(table()))
    else:
        print(json.dumps(asdict(measure(arguments or all_datasets())), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main(sys.argv[1:])
