"""Every mistake of the user's ends with status 2, a message that names it and the way out, and nothing on the disk."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from recipes_for_tests import DENSE, TINY, coin_questions, command, comparable, merged, train, tree, write_recipe
from steadyrl import cold_start, plan
from steadyrl.build import load_config
from steadyrl.cli import main
from steadyrl.conformance.families import build, named_config
from steadyrl.model.tiny import character_tokenizer
from steadyrl.recipe import resolve
from steadyrl.recipe.shipped import find
from steadyrl.rollout import rollouter
from steadyrl.run.logs import read_jsonl

EXPERTS = TINY["model"]["config"]
FEW = {"steps": 1, "evaluate": {"every": 0, "prompts": 4}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps, which nothing here changes."""
    folder = tmp_path_factory.mktemp("finished")
    return train(folder, task=coin_questions(folder), steps=2, checkpoints={"every": 1})


@pytest.fixture
def refusal(tmp_path, capfd):
    """Call `train` on the tiny recipe with changes and flags; what it said as it refused, having made nothing."""

    def call(*flags: str, **changes) -> str:
        recipe, run = write_recipe(tmp_path, **changes), tmp_path / "run"
        assert status("train", recipe, "--run", run, *flags) == 2
        out, err = capfd.readouterr()
        assert not run.exists()
        assert "Traceback" not in out + err
        assert len(err.splitlines()) <= 16
        return unboxed(err)

    return call


def unboxed(text: str) -> str:
    """One line: tyro draws boxes, and breaks lines at the width of the terminal."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "╭╮╰╯│─"), " ")).split())


def status(*arguments: str | Path) -> int:
    """Exit status of a command in this process; argparse and tyro end by SystemExit."""
    try:
        return command(*arguments)
    except SystemExit as end:
        return int(str(end.code))


# ---- the command itself


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "no command 'trian'; did you mean `train`?"),
        (["train"], "usage: steadyrl train RECIPE"),
        (["train", "--run", "somewhere"], "RECIPE is a TOML file"),
        (["eval"], "usage: steadyrl eval CHECKPOINT"),
        (["resume"], "required: run"),
        (["show"], "required: run"),
        (["resume", "somewhere", "--checkpont", "x"], "unrecognized arguments: --checkpont x"),
        (["train", "nowhere.toml"], "cannot read the recipe nowhere.toml: [Errno 2] No such file"),
        (["eval", "nowhere"], "nowhere is neither a run directory nor a checkpoint of one"),
        (["show", "nowhere"], "nowhere is not a run directory"),
        (["resume", "nowhere"], "nowhere is not a run directory"),
    ],
)
def test_a_command_that_cannot_be_read(argv, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert status(*argv) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", [["--objective.name", "grpo"], ["--objective.name=grpo"], ["--task.kind", "rows"]])
def test_a_flag_cannot_choose_a_variant_and_says_which_there_are(flag, refusal):
    told = refusal(*flag)
    assert "cannot be set by a flag; set it in the recipe" in told
    assert "grpo, dr_grpo" in told or "chains, questions" in told


def test_a_reader_that_leaves_ends_a_command_quietly():
    script = f"{sys.executable} -m steadyrl train smoke --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


def test_no_command_prints_the_usage(capfd):
    assert main([]) == 2
    assert "usage: steadyrl COMMAND" in capfd.readouterr().out


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_no_mistake(flag, capfd):
    assert status(flag) == 0
    assert status("train", flag) == 0
    out, err = capfd.readouterr()
    assert "train RECIPE" in out
    assert err == ""


def test_the_help_of_train_shows_the_resolved_values(tmp_path, capfd):
    recipe = write_recipe(tmp_path, optimizer={"learning_rate": 0.0123})
    assert status("train", recipe, "--help") == 0
    out = unboxed(capfd.readouterr().out)
    assert "--optimizer.learning-rate" in out
    assert "0.0123" in out  # of the recipe
    assert "ε_low: with Â<0 a token is masked where" in out  # the line under the field
    assert "default: 0.27" in out  # of the house


# ---- recipes and flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizer.learning_rte", "1e-3"], "Perhaps you meant: --optimizer.learning-rate"),
        (["--steps", "-1"], "greater than or equal to 0"),
        (["--steps", "many"], "invalid literal for int() with base 10: 'many'"),
        (["--optimizer.learning_rate", "nan"], "finite number"),
        (["--update.replay", "R4"], "Expected one of ('none', 'R2', 'R3')"),
        (["--update.minibatches", "3"], "does not divide rollout.prompts = 8; use one of [1, 2, 4, 8]"),
        (["--rollout.responses", "1"], "greater than or equal to 2"),
        (["surplus"], "Unrecognized options: surplus"),
    ],
)
def test_a_wrong_flag(flags, message, refusal):
    assert message in refusal(*flags)


def test_an_unknown_key(refusal):
    assert "rollout.promts: unknown key; did you mean `prompts`?" in refusal(rollout={"promts": 8})


def test_flags_change_leaves(tmp_path):
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path), **FEW)
    flags = ["--optimizer.learning_rate", "2e-3", "--update.replay", "R2", "--rollout.responses", "2", "--seed", "5"]
    assert command("train", recipe, "--run", run, *flags) == 0
    kept = json.loads((run / "recipe.json").read_text())
    assert kept["optimizer"]["learning_rate"] == 2e-3
    assert kept["update"]["replay"] == "R2"
    assert (kept["rollout"]["responses"], kept["seed"], kept["steps"]) == (2, 5, 1)
    assert read_jsonl(run / "metrics.jsonl")[0]["update/learning_rate"] == 2e-3


def test_a_recipe_that_is_no_toml(tmp_path, capfd):
    path = tmp_path / "mine.toml"
    path.write_text("steps = \n")
    assert status("train", path, "--run", tmp_path / "run") == 2
    assert f"{path} is not valid TOML" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_run_directory_is_left_alone(finished, tmp_path, capfd):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert status("train", write_recipe(tmp_path), "--run", finished) == 2
    assert f"{finished} exists already. Continue it with `steadyrl resume {finished}`" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_run_directory_that_cannot_be_made(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path))
    assert status("train", recipe, "--run", tmp_path / "file" / "run") == 2
    assert "cannot make the run directory" in capfd.readouterr().err


# ---- parts that contradict each other, or are not there


@pytest.mark.parametrize("replay", ["R2", "R3"])
def test_replay_on_a_dense_model(replay, refusal):
    told = refusal(**merged(DENSE, {"update": {"replay": replay}}))
    assert f'update.replay = "{replay}", but Qwen3ForCausalLM is dense' in told
    assert 'Use "none"' in told


def test_a_balancing_loss_on_a_dense_model(refusal):
    cold = {"aux_loss": 0.01, "stages": [{"steps": 1}]}
    told = refusal(**merged(DENSE, {"update": {"replay": "none"}, "cold_start": cold}))
    assert "cold_start.aux_loss balances experts, and Qwen3ForCausalLM has no such loss. Use 0" in told


@pytest.mark.parametrize("objective", [{"name": "grpo"}, {"name": "dapo"}, {"name": "composed", "normalised": True}])
def test_a_baseline_of_the_others_under_an_objective_that_divides(objective, refusal):
    told = refusal(objective=objective, advantage={"leave_one_out": True})
    assert f'advantage.leave_one_out = true, but the objective "{objective["name"]}" divides' in told
    assert "Use false, or another objective" in told


@pytest.mark.parametrize("objective", [{"name": "minirl"}, {"name": "dr_grpo"}, {"name": "composed"}])
def test_a_baseline_of_the_others_otherwise(objective, tmp_path):
    recipe = write_recipe(tmp_path, objective=objective, advantage={"leave_one_out": True, "filter_groups": True})
    assert status("train", recipe, "--dry-run") == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime": {"device": "cuda:99"}}, "runtime.device = 'cuda:99', but"),
        ({"runtime": {"device": "gpu"}}, 'runtime.device: \'gpu\' is not supported; use "cpu", "cuda" or "cuda:1"'),
        ({"runtime": {"device": "mps"}}, "runtime.device: 'mps' is not supported"),
        ({"runtime": {"device": "cuda:" + "9" * 20}}, "is not supported"),
        ({"model": {"config": EXPERTS | {"num_experts_per_tok": 0}}}, "model.config takes 0 of 4 experts for a token"),
        ({"model": {"config": EXPERTS | {"num_experts_per_tok": 5}}}, "take 1 to 4"),
        ({"model": {"config": EXPERTS | {"hidden_size": 0}}}, "hidden_size = 0 makes no model; use at least 1"),
        (
            {"model": {"config": EXPERTS | {"num_hidden_layers": 10**9}}},
            "is above 1,024, the most that a tiny model may have",
        ),
        ({"task": {"kind": "questions", "path": ""}}, "task.path: must be printable text that is not empty"),
        ({"task": {"kind": "questions", "path": "a\0b"}}, "task.path: must be printable text"),
        ({"verifier": {"time_limit": 1e10}}, "verifier.time_limit: Input should be less than or equal to 86400"),
        ({"runtime": {"threads": 1e30}}, "runtime.threads: "),
        ({"update": {"micro_tokens": 1e30}}, "update.micro_tokens: "),
        ({"rollout": {"responses": 10**9}}, "rollout.responses: Input should be less than or equal to 65536"),
        ({"evaluate": {"samples": 10**9}}, "evaluate.samples: Input should be less than or equal to 65536"),
        ({"evaluate": {"top_k": 1e30}}, "evaluate.top_k: "),
        ({"steps": True}, "steps: must be a number (found true)"),
        ({"optimizer": {"betas": [True, 0.9]}}, "optimizer.betas.0: must be a number (found true)"),
        (
            {"rollout": {"learning_rate": 1}},
            "rollout.learning_rate: unknown key; did you mean `optimizer.",
        ),
        ({"verifier": {"max_failure": 1}}, "verifier.max_failure: unknown key; did you mean `max_failures`?"),
        ({"model": {"family": "qwen3_mo"}}, "model.family = 'qwen3_mo' is no model_type of transformers; did you mean"),
        ({"model": {"config": {"hiden_size": 3}}}, "model.config has ['hiden_size']"),
        ({"model": {"config": EXPERTS | {"hidden_size": "32"}}}, "expected int, got str"),
        (
            {"model": {"config": EXPERTS | {"num_attention_heads": 0}}},
            "num_attention_heads = 0 makes no model",
        ),
        ({"model": {"config": EXPERTS | {"num_experts_per_tok": 9}}}, "takes 9 of 4 experts"),
        ({"model": {"alphabet": "0011"}}, "model.alphabet has ['0', '1'] more than once"),
        ({"model": {"kind": "pretrained", "path": "/nowhere/model"}}, "model.path = '/nowhere/model' cannot be loaded"),
        ({"rollout": {"stop": ["@"]}}, "rollout.stop holds '@'"),
        ({"rollout": {"stop": ["+1"]}}, "rollout.stop holds '+1', which is 2 tokens; only a single known token"),
        (
            {"task": {"kind": "reasoning_gym", "dataset": "chain_summ"}},
            "reasoning-gym dataset `chain_summ` is unknown; did you mean `chain_sum`?",
        ),
        (
            {"task": {"kind": "reasoning_gym", "dataset": "chain_sum", "parameters": {"min_term": 2}}},
            "parameter of reasoning-gym's chain_sum `min_term` is unknown; did you mean `min_terms`?",
        ),
        (
            {"cold_start": {"stages": [{"steps": 1, "task": {"max_term": 3}}]}},
            "the task of stage 1 of cold_start: max_term: unknown key; did you mean `max_terms`?",
        ),
        ({"task": {"kind": "questions", "path": "/nowhere.jsonl"}}, "cannot read the questions in /nowhere.jsonl"),
    ],
)
def test_a_part_that_cannot_be_had(changes, message, refusal):
    assert message in refusal(**changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(refusal):
    assert "runtime.device = 'cuda', but no CUDA device is visible; use \"cpu\"" in refusal(runtime={"device": "cuda"})


def test_a_folder_that_holds_no_model(tmp_path, refusal):
    (tmp_path / "model").mkdir()
    path = str(tmp_path / "model")
    assert f"model.path = '{path}'" in refusal(model={"kind": "pretrained", "path": path})


def test_a_tracker_that_is_not_installed(refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # also where it is
    told = refusal(task={"max_terms": 3}, trackers=["wandb"])
    assert "trackers: 'wandb' needs a package that is not installed" in told
    assert 'pip install "steadyrl[wandb]"' in told


# ---- data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "1", "answer": "2"}\n{oops\n', "data.jsonl, line 2 is not JSON"),
        ('{"question": "1", "answer": "2"}\n\n{"question": "1"}\n', "data.jsonl, line 3 has no field `answer`"),
        ("", "data.jsonl holds no question/answer pairs"),
        ('{"question": "1", "answer": "2"}\n', "has 1 different question(s): set aside at least 1 and leave at least"),
    ],
)
def test_data_that_cannot_be_read(content, message, tmp_path, refusal):
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    assert message in refusal(task={"kind": "questions", "path": str(path), "held_out": 1})


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (8, "evaluate.prompts = 16, but the task has 8 held-out problem(s). Use at most 8; raise task.held_out"),
        (60, "rollout.prompts = 8, but the task has 4 train problem(s). Use at most 4"),
    ],
)
def test_too_few_problems(held_out, message, tmp_path, refusal):
    assert message in refusal(task=coin_questions(tmp_path, held_out=held_out))


LONG = "1+" * 42 + "0="  # its hash keeps it out of the 16 that are held out


@pytest.mark.parametrize("dry", [True, False])
def test_a_prompt_longer_than_the_context_is_named(dry, tmp_path, capfd):
    """Before the run begins: not when the run gets to it."""
    task = coin_questions(tmp_path, count=24)
    data = Path(task["path"])
    data.write_text(data.read_text() + json.dumps({"question": LONG, "answer": "0"}) + "\n")
    recipe = write_recipe(tmp_path, task=task, steps=8, evaluate={"every": 0})
    assert status("train", recipe, "--run", tmp_path / "run", *["--dry-run"] * dry) == 2
    err = capfd.readouterr().err
    assert f"{data}, line 25 has a prompt of 86 tokens; with rollout.max_new_tokens = 10 it exceeds the model" in err
    assert "context of 64" in err
    assert "task.skip_bad_rows = true" in err
    assert not (tmp_path / "run").exists()


def test_micro_batches_smaller_than_a_response(refusal):
    told = refusal(update={"micro_tokens": 10})
    assert "update.micro_tokens = 10 is too small for a prompt and a response of rollout.max_new_tokens = 10" in told
    assert "Raise it" in told


def test_micro_batches_smaller_than_prompt_and_response(refusal):
    told = refusal(update={"micro_tokens": 12})
    assert "has a prompt of 4 tokens; with rollout.max_new_tokens = 10 it exceeds update.micro_tokens = 12" in told
    assert "64 of the first 64 training problems cannot be used" in told


def test_weights_that_broke_in_the_cold_start(tmp_path, capfd):
    cold = {"stages": [{"steps": 9, "learning_rate": 1e12}], "batch": 4}
    assert status("train", write_recipe(tmp_path, cold_start=cold, **FEW), "--run", tmp_path / "run") == 2
    err = capfd.readouterr().err
    assert re.search(r"cold start, step \d: loss or gradient was not finite\. Lower learning_rate", err)


def test_a_gradient_that_broke_in_the_cold_start(tmp_path, monkeypatch, capfd):
    """The loss is finite still: only the norm tells before the weights are lost."""
    losses = cold_start._losses

    def steep(*args, **options):
        negative, balance = losses(*args, **options)
        return negative + (negative - negative.detach()).sqrt(), balance  # + 0, with an infinite slope

    monkeypatch.setattr(cold_start, "_losses", steep)
    cold = {"stages": [{"steps": 9}], "batch": 4}
    assert status("train", write_recipe(tmp_path, cold_start=cold, **FEW), "--run", tmp_path / "run") == 2
    assert "cold start, step 1: loss or gradient was not finite" in capfd.readouterr().err


def test_weights_that_were_broken_to_begin_with(finished, tmp_path, capfd):
    folder = tmp_path / "model"
    shutil.copytree(next((finished / "checkpoints").iterdir()) / "model", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = {"kind": "pretrained", "path": str(folder)}
    assert status("train", write_recipe(tmp_path, model=model, **FEW), "--run", tmp_path / "run") == 2
    assert "the logits of Qwen3MoeForCausalLM are not finite: its weights are broken" in capfd.readouterr().err


def test_a_line_of_the_metrics_that_is_damaged(finished, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    first, *rest = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([first[:40] + "\n", *rest]))
    assert status("show", run) == 2
    assert "metrics.jsonl, line 1 is not JSON" in capfd.readouterr().err


def test_an_evaluation_shows_rewards_as_they_are_and_counts_what_had_no_reward(tmp_path):
    body = "def reward(prompt, completion):\n    return 0.5 if prompt != '3+0=' else float('nan')\n"
    run = train(
        tmp_path, task=coin_questions(tmp_path, reward=body, held_out=16), **FEW, verifier={"max_failures": 1.0}
    )
    rows = read_jsonl(run / "eval.jsonl")
    assert {row["accuracy"] for row in rows} == {0.0}
    questions = {row["question"]: row["reward"] for row in read_jsonl(run / "samples.jsonl")}
    assert questions == {question: 0.0 if question == "3+0=" else 0.5 for question in questions}
    assert {row["failures"] for row in rows} == {1 if "3+0=" in questions else 0}


# ---- the user's own verifier

BAD_FILES = {
    "import": ("import no_such_module\ndef reward(prompt, completion):\n    return 1\n", "raised ModuleNotFoundError"),
    "syntax": ("def reward(prompt, completion:\n", "raised SyntaxError"),
    "name": ("def rewards(prompt, completion):\n    return 1\n", "there is no reward in it; it has rewards"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_file_of_ones_own_that_does_not_load(what, tmp_path, refusal):
    code, message = BAD_FILES[what]
    told = refusal(task=coin_questions(tmp_path, reward=code))
    assert message in told
    assert "own.py:reward" in told


# one response in some twenty, by its text alone
SOMETIMES = (
    "import time\ndef reward(prompt, completion):\n"
    "    if sum(map(ord, completion)) % 16 == 1:\n        {}\n    return 1.0\n"
)


@pytest.mark.parametrize(
    "failing", ["raise KeyError('lost')", "return float('nan')", "return 'right'", "time.sleep(9)"]
)
def test_a_verifier_that_fails_now_and_then_costs_those_responses_only(failing, tmp_path):
    limits = {"time_limit": 0.2, "max_failures": 0.5}
    task = coin_questions(tmp_path, reward=SOMETIMES.format(failing))
    run = train(tmp_path, task=task, verifier=limits, **FEW)
    rows, reasons = read_jsonl(run / "metrics.jsonl"), read_jsonl(run / "failures.jsonl")
    failures = rows[0]["reward/failures"]
    assert 0 < failures < 16
    assert rows[0]["reward/mean"] == 1.0  # of those that have a reward
    assert sum(row["responses"] for row in reasons) == failures
    assert all(row["reason"].startswith(("raised KeyError", "returned", "took longer than 0.2 s")) for row in reasons)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise KeyError('lost')", "raised KeyError: 'lost'"),
        ("return float('nan')", "returned nan"),
        ("import time; time.sleep(9)", "took longer than 0.3 s"),
        ("import os; os._exit(3)", "worker died"),
    ],
)
def test_a_verifier_that_always_fails_is_rejected_before_the_run(body, reason, tmp_path, refusal):
    task = coin_questions(tmp_path, reward=f"def reward(prompt, completion):\n    {body}\n")
    told = refusal(task=task, verifier={"time_limit": 0.3})
    assert f"it gave the first problem's own solution no reward: {reason}" in told
    assert "Known are `reward(prompt, completion)`" in told


def test_a_verifier_that_fails_on_responses_alone_stops_the_run_with_its_first_reason(tmp_path, capfd):
    body = "def reward(prompt, completion, answer):\n    return {answer: 1.0}[completion]\n"
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path, reward=body), **FEW)
    assert status("train", recipe, "--run", tmp_path / "run") == 2
    err = capfd.readouterr().err
    assert "the verifier failed on 4 of 4 responses, above verifier.max_failures = 0.1" in err
    assert "the first: raised KeyError: " in err
    assert "Traceback" not in err


# ---- a full disk

FULL = """
import resource, signal, sys
from recipes_for_tests import command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from steadyrl.run import checkpoint
save, calls = checkpoint.save, 0
def filling(*args):
    global calls
    calls += 1
    if calls == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
    save(*args)
checkpoint.save = filling
sys.exit(command(*sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_while_saving(tmp_path):
    """No file may grow beyond 40 kB from the third checkpoint on; its weights are larger."""
    changes = {"task": coin_questions(tmp_path), "steps": 3, "evaluate": {"every": 0}, "checkpoints": {"every": 1}}
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, **changes)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    argv = [sys.executable, "-c", FULL, "train", str(recipe), "--run", str(run)]
    full = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
    assert full.returncode == 1, full.stderr
    assert f"could not save {run / 'checkpoints' / 'step-000002'}" in full.stderr
    assert "Earlier checkpoints are intact; make room and resume" in full.stderr
    assert "Traceback" not in full.stderr
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000000", "step-000001"]
    assert command("resume", run) == 0
    assert comparable(run) == comparable(train(tmp_path, "undisturbed", **changes))


def test_a_disk_that_is_full_where_metrics_are_written(tmp_path, monkeypatch, capfd):
    from steadyrl.run.logs import MetricsLog

    def full(self, step, *rows, **options):
        raise OSError(28, "No space left on device", str(tmp_path / "run" / "metrics.jsonl"))

    monkeypatch.setattr(MetricsLog, "log", full)
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path), **FEW)
    assert status("train", recipe, "--run", tmp_path / "run") == 1
    err = capfd.readouterr().err
    assert "No space left on device" in err
    assert "make room and resume" in err


def test_a_file_that_may_not_be_read_is_no_matter_of_room(finished, monkeypatch, capfd):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    # whoever runs the tests may be allowed everything
    monkeypatch.setattr("steadyrl.report.reading.read_jsonl", denied)
    assert status("show", finished) == 2
    assert "Permission denied: " in (err := capfd.readouterr().err)
    assert "give the permission" in err


@pytest.mark.parametrize(("target", "message"), [("none/x.svg", "No such file or directory"), ("", "Is a directory")])
def test_a_picture_that_cannot_be_written(target, message, finished, tmp_path, capfd):
    folder = tmp_path / "pictures"
    folder.mkdir()
    assert status("show", finished, "--picture", folder / target) == 2
    assert f"--picture {folder / target} cannot be written: {message}" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_another_operating_system_error_is_not_hidden(tmp_path, monkeypatch):
    from steadyrl import loop

    def broken(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(loop, "global_step", broken)
    with pytest.raises(OSError, match="Input/output error"):
        train(tmp_path, task=coin_questions(tmp_path), **FEW)


# ---- updates that are not finite

BATCH_FIELDS = [
    "input_ids",
    "position_ids",
    "blocks",
    "cells",
    "targets",
    "predicting",
    "advantages",
    "rollout_logprobs",
    "old_logprobs",
]


def test_three_updates_in_a_row_that_are_not_finite_stop_the_run(tmp_path, monkeypatch, capfd):
    """Status 1: not the user's mistake. The last good weights and the batch are kept, also at a second time."""
    changes = {"task": coin_questions(tmp_path), "steps": 9, "evaluate": {"every": 0}, "checkpoints": {"every": 2}}
    run, good = tmp_path / "run", train(tmp_path, "good", **merged(changes, {"steps": 2}))
    poison(monkeypatch, first=3)
    recipe = write_recipe(tmp_path, **changes)
    for attempt in ("train", "resume"):
        argv = ["train", recipe, "--run", run] if attempt == "train" else ["resume", run]
        assert status(*argv) == 1
        err = capfd.readouterr().err
        assert "loss or gradient was not finite for 3 updates in a row" in err
        assert str(run / "incident") in err
        assert "Traceback" not in err
        poison(monkeypatch, first=1)
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["update/skipped"] for row in rows] == [0, 0, 1, 1]
    last = load_file(good / "checkpoints" / "step-000002" / "model" / "model.safetensors")
    kept = load_file(run / "incident" / "model" / "model.safetensors")
    assert all(torch.equal(last[name], kept[name]) for name in last)
    model = AutoModelForCausalLM.from_pretrained(run / "incident" / "model")
    assert model(torch.ones(1, 3).long()).logits.isfinite().all()
    state = json.loads((run / "incident" / "state.json").read_text())
    assert (state["policy_version"], state["skipped_in_a_row"]) == (2, 3)
    batch = load_file(run / "incident" / "batch.safetensors")
    fields = {*BATCH_FIELDS, "routes"}
    numbers = {name.split(".")[0] for name in batch}
    assert set(batch) == {f"{number}.{field}" for number in numbers for field in fields}
    assert batch["0.rollout_logprobs"].isnan().all()
    assert len(batch["0.targets"]) == len(batch["0.advantages"]) == len(batch["0.old_logprobs"])
    assert batch["0.routes"].shape == (*batch["0.input_ids"].shape, 2, 2)


def with_nan(one):
    """The same completion with log-probs of NaN."""
    return replace(one, logprobs=torch.full_like(one.logprobs, math.nan))


def poison(monkeypatch, *, first: int) -> None:
    """From this rollout on (a call for 4 responses), the checked log-probabilities are NaN."""
    monkeypatch.undo()
    check, count = rollouter.check_answers, 0

    def poisoned(answered, asked):
        nonlocal count
        out = list(check(answered, asked))
        responses = asked.requests[0].responses
        count += responses == 4
        if responses != 4 or count < first:
            return out
        return [replace(one, completions=tuple(map(with_nan, one.completions))) for one in out]

    monkeypatch.setattr(rollouter, "check_answers", poisoned)


# ---- commands that go well


def test_a_dry_run_prints_the_plan_and_makes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, cold_start={"stages": [{"steps": 5}, {"steps": 6}]})
    assert status("train", recipe, "--dry-run") == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert list(tmp_path.iterdir()) == [recipe]
    assert "qwen3_moe, 20,064 parameters, float32 on cpu" in out
    assert "endless training problems" in out
    assert "up to 11 steps of 128" in out
    assert "4 global steps × 8 prompts × 4 responses of up to 10 tokens; 1 update(s) each" in out
    assert "minirl, replay R3" in out
    assert "precision fp8" in out
    of_memory, of_disk = out.split("\ndisk\n")
    lines = [line for line in of_memory.splitlines() if "GiB" in line]
    memory = {line.rsplit(maxsplit=2)[0].strip(): float(line.split()[-2]) for line in lines}
    assert memory["AdamW's moments"] == pytest.approx(2 * memory["weights"], abs=1e-3)
    *parts, whole = memory.values()
    assert whole == pytest.approx(sum(parts), abs=5e-3)
    assert "240,768 bytes" in of_disk  # 3 × 20,064 weights of 4 bytes
    assert "free" in of_disk


def test_a_plan_reserves_keys_and_values_for_no_more_than_is_asked():
    def cache(sequences: int) -> float:
        recipe = resolve(merged(TINY, {"engine": {"max_sequences": sequences}}), source="test")
        return plan._memory(recipe, load_config(recipe), 20_064)["engine's keys and values"]

    assert cache(16) == cache(32) / 2  # 8 × 4 responses, 16 problems in an evaluation
    assert cache(32) == cache(10_000)


@pytest.mark.parametrize(("replay", "minibatches", "told"), [("R2", 1, True), ("R2", 2, False), ("R3", 1, False)])
def test_a_replay_that_does_nothing_is_noticed(replay, minibatches, told, tmp_path, capfd):
    update = {"replay": replay, "minibatches": minibatches}
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path), update=update, steps=1, evaluate={"every": 0})
    warning = 'update.replay = "R2" with update.minibatches = 1 does nothing'
    assert status("train", recipe, "--dry-run") == 0
    assert (warning in capfd.readouterr().out) == told
    assert status("train", recipe, "--run", tmp_path / "run") == 0
    assert (warning in capfd.readouterr().err) == told


def test_a_dry_run_meets_the_mistakes_of_task_and_model(tmp_path, capfd):
    recipe = write_recipe(tmp_path, task={"kind": "reasoning_gym", "dataset": "chain_summ"})
    assert status("train", recipe, "--dry-run") == 2
    recipe = write_recipe(tmp_path, model={"config": {"hiden_size": 3}})
    assert status("train", recipe, "--dry-run") == 2
    assert "hiden_size" in capfd.readouterr().err
    assert status("train", write_recipe(tmp_path, **DENSE), "--dry-run") == 2
    assert "Qwen3ForCausalLM is dense" in capfd.readouterr().err
    model = {"config": TINY["model"]["config"] | {"num_attention_heads": 0}}
    assert status("train", write_recipe(tmp_path, model=model), "--dry-run") == 2
    assert "num_attention_heads = 0 makes no model" in capfd.readouterr().err
    assert status("train", write_recipe(tmp_path, model={"alphabet": "0123"}), "--dry-run") == 2
    assert "model.alphabet is missing" in capfd.readouterr().err


def shown(rows) -> list[str]:
    return [f"{r['mode']:8} {r['precision']:8} accuracy {r['accuracy']:.3f} [{r['low']:.3f}, " for r in rows]


@pytest.mark.parametrize("place", [".", "checkpoints/step-000002"])
def test_eval_repeats_the_last_evaluation_of_the_run(place, finished, capfd):
    assert status("eval", finished / place) == 0
    lines = capfd.readouterr().out.splitlines()
    expected = shown([row for row in read_jsonl(finished / "eval.jsonl") if row["step"] == 2])
    assert len(lines) == len(expected) == 4
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))


def test_eval_takes_a_checkpoint_by_a_relative_path_and_flags(finished, monkeypatch, capfd):
    monkeypatch.chdir(finished / "checkpoints")
    assert status("eval", "step-000001", "--evaluate.samples", "3", "--evaluate.prompts", "5") == 0
    assert "5 prompts × 3" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("place", "message"),
    [("checkpoints/step-000009", "has no step-000009"), ("..", "is neither a run directory nor a checkpoint of one")],
)
def test_eval_of_what_is_no_checkpoint(place, message, finished, capfd):
    assert status("eval", finished / place) == 2
    assert message in capfd.readouterr().err


def test_eval_of_a_run_without_checkpoints(tmp_path, capfd):
    (tmp_path / "recipe.json").write_text(json.dumps(tree()))
    assert status("eval", tmp_path) == 2
    assert "has no checkpoint yet" in capfd.readouterr().err


def test_show_draws_the_report_anew(finished, tmp_path, capfd):
    path = finished / "report.html"
    path.unlink(missing_ok=True)
    picture = tmp_path / "picture.svg"
    assert status("show", finished, "--picture", picture) == 0
    out = capfd.readouterr().out
    assert f"the report is {path}" in out
    assert "held-out accuracy, step 0 → step 2, with 95% intervals" in out
    assert "<html" in path.read_text()
    assert "<svg" in picture.read_text()


def test_an_alphabet_that_lacks_the_tasks_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.toml"
    smoke = find("smoke")
    path.write_text(smoke.read_text().replace('"0123456789+-=;>"', '"0123456789+="'))
    assert main(["train", str(path), "--run", str(tmp_path / "run")]) == 2
    assert "model.alphabet is missing '-;>'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_alphabet_that_lacks_the_characters_of_a_stage_of_the_cold_start(refusal):
    rows = {"kind": "rows", "width": 2, "min_rows": 1, "max_rows": 3}
    stages = [{"steps": 1}, {"steps": 1, "task": {"min_rows": 6, "max_rows": 6}}]
    model = TINY["model"] | {"alphabet": "0123456789+-abcd"}
    assert "model.alphabet is missing 'efg'," in refusal(task=rows, model=model, cold_start={"stages": stages})


def test_experts_whose_choice_cannot_be_recorded_are_refused_without_replay_too(tmp_path, capfd):
    """Before the cold start: no sampled batch could be written down."""
    model = build(named_config("zaya"))
    model.save_pretrained(tmp_path / "model")
    character_tokenizer("0123456789+-=;>").save_pretrained(tmp_path / "model")
    changes = {"model": {"kind": "pretrained", "path": str(tmp_path / "model")}, "update": {"replay": "none"}}
    recipe = write_recipe(tmp_path, **changes, cold_start={"stages": [{"steps": 1}]}, **FEW)
    assert status("train", recipe, "--run", tmp_path / "run") == 2
    assert "no expert choice was seen" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["eval", "gap"])
def test_a_run_directory_cannot_allow_its_models_code_by_itself(name, finished, tmp_path, capfd):
    foreign = Path(shutil.copytree(finished, tmp_path / "foreign"))
    recipe = json.loads((foreign / "recipe.json").read_text())
    recipe["model"] = {"kind": "pretrained", "path": "somewhere", "trust_remote_code": True}
    (foreign / "recipe.json").write_text(json.dumps(recipe))
    assert status(name, foreign) == 2
    assert "runs its model's own Python code" in capfd.readouterr().err


def test_the_command_line_allows_a_models_code(finished, tmp_path):
    foreign = Path(shutil.copytree(finished, tmp_path / "foreign"))
    recipe = json.loads((foreign / "recipe.json").read_text())
    recipe["model"] = {"kind": "pretrained", "path": "somewhere", "trust_remote_code": True}
    (foreign / "recipe.json").write_text(json.dumps(recipe))
    assert status("eval", foreign, "--trust-remote-code") == 0
