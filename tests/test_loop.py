import json
import math
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes_for_tests import COIN, DENSE, MACHINE, coin_questions, command, comparable, merged, train, tree
from steadyrl import loop
from steadyrl.measure import step as measure_step
from steadyrl.measure.glossary import COLD_START_FIELDS, EVAL_FIELDS, LEDGER_FIELDS, METRICS, SAMPLE_FIELDS
from steadyrl.recipe import load, resolve
from steadyrl.rollout import rollouter
from steadyrl.rollout.rollouter import Rollouter
from steadyrl.run.logs import read_jsonl
from steadyrl.training import trainer
from steadyrl.training.schedule import Schedule

NAMES = {metric.name for metric in METRICS} - {"reward/<name>"}  # of verifiers that return more than a number


def documented(row: dict) -> set[str]:
    """The names of a row as the documentation writes them."""
    return {re.sub(r"layer_\d+$", "layer_<n>", name) for name in row}


OF_UPDATES = {
    name for name in NAMES if name.startswith(("staleness/", "weight/", "surrogate/", "clip/", "update/moved"))
}
QUIET = {"evaluate": {"every": 0, "prompts": 8}, "checkpoints": {"every": 100}}
"""No evaluation and no checkpoint but the first and the last."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with everything on: a cold start, N=2, evaluations and checkpoints on the way."""
    folder = tmp_path_factory.mktemp("whole")
    return train(folder, report=True, **everything(folder))


def everything(folder):
    return {
        "task": coin_questions(folder),
        "update": {"minibatches": 2},
        "cold_start": {"batch": 16, "check_every": 2, "aux_loss": 0.01, "stages": [{"steps": 1}, {"steps": 3}]},
        "optimizer": {"warmup_steps": 3, "schedule": "cosine"},
    }


def close(one, other, rel):
    """Rows of numbers that agree to a relative tolerance, with an absolute one of the same size for those near 0."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=rel, abs=rel)


# ---- what a run leaves behind


def test_a_run_directory_holds_its_files(whole):
    found = {path.name for path in whole.iterdir()}
    logs = {f"{name}.jsonl" for name in ("metrics", "ledger", "eval", "samples", "rollouts", "cold_start", "failures")}
    assert found == logs | {"recipe.json", "engine.json", "report.html", "checkpoints", "lock"}
    assert not (whole / "failures.jsonl").read_text()
    assert "<html" in (whole / "report.html").read_text()
    assert not list(whole.rglob("*.part"))


def test_the_recipe_is_kept_resolved(whole):
    assert load(whole / "recipe.json") == resolve(tree(**everything(whole.parent)), source="test")


def test_every_line_of_the_metrics_has_exactly_the_documented_names(whole):
    rows = read_jsonl(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert documented(row) == NAMES
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in row.values())


def test_the_ledger_has_the_documented_names_and_agrees_with_the_metrics(whole):
    metrics, rows = read_jsonl(whole / "metrics.jsonl"), read_jsonl(whole / "ledger.jsonl")
    assert all(set(row) == {field.name for field in LEDGER_FIELDS} for row in rows)
    prefixes = {"mismatch": "mismatch", "staleness": "staleness", "product": "weight"}
    wholes = [row for row in rows if row["split"] == "all"]
    assert [(row["step"], row["factor"]) for row in wholes] == [
        (n, f) for n in (1, 2, 3, 4) for f in ("mismatch", "product", "staleness")
    ]
    for row in wholes:
        said = metrics[row["step"] - 1]
        shared = [name for name in row if f"{prefixes[row['factor']]}/{name}" in said]
        assert len(shared) >= 12
        assert all(row[name] == said[f"{prefixes[row['factor']]}/{name}"] for name in shared)
        if row["factor"] == "mismatch":
            assert row["tokens"] == round(said["response/length"] * 32)


def test_the_ledger_is_split_in_four_ways(whole):
    rows = [row for row in read_jsonl(whole / "ledger.jsonl") if row["step"] == 4]
    tokens = {(r["factor"], r["split"], r["bucket"]): r["tokens"] for r in rows}
    for factor in ("mismatch", "product", "staleness"):
        everything = tokens[factor, "all", "all"]
        for split in ("position", "advantage", "version", "routes"):
            assert sum(n for key, n in tokens.items() if key[:2] == (factor, split)) == everything
        versions = {bucket for f, split, bucket in tokens if (f, split) == (factor, "version")}
        assert versions == ({"0"} if factor == "mismatch" else {"0", "1"})
    by_version = {r["bucket"]: r["k3"] for r in rows if (r["factor"], r["split"]) == ("staleness", "version")}
    assert by_version["0"] == 0.0
    assert by_version["1"] > 1e-6
    assert {bucket for _, split, bucket in tokens if split == "routes"} == {"agreed", "differed"}


def test_the_policy_version_counts_gradient_steps(whole):
    rows = read_jsonl(whole / "metrics.jsonl")
    assert [row["policy_version"] for row in rows] == [0, 2, 4, 6]
    state = json.loads((whole / "checkpoints" / "step-000004" / "state.json").read_text())
    assert state == {"step": 4, "policy_version": 8, "skipped_in_a_row": 0, "broken": False}


def test_the_learning_rate_follows_the_gradient_steps(whole):
    rows = read_jsonl(whole / "metrics.jsonl")
    schedule = Schedule(peak=1e-3, total=8, warmup=3, shape="cosine")
    expected = [schedule.at(2 * n) for n in (1, 2, 3, 4)]
    assert [row["update/learning_rate"] for row in rows] == expected


def test_the_phases_of_a_step_add_up(whole):
    for row in read_jsonl(whole / "metrics.jsonl"):
        phases = ("sampling", "rewards", "logprobs", "update", "sync")
        assert 0.0 < sum(row[f"seconds/{phase}"] for phase in phases) <= row["seconds/step"]
        sampled = row["response/length"] * 32
        assert row["throughput/tokens_per_second"] == pytest.approx(sampled / row["seconds/step"])
        assert row["memory/peak_gib"] > 0.05


def test_evaluations_are_complete(whole):
    rows = read_jsonl(whole / "eval.jsonl")
    assert all(set(row) == {field.name for field in EVAL_FIELDS if "@" not in field.name} for row in rows)
    assert all(0.0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1.0 for row in rows)
    every = {(mode, precision) for mode in ("sampled", "greedy") for precision in ("fp8", "native")}
    by_step = {step: [(r["mode"], r["precision"]) for r in rows if r["step"] == step] for step in (0, 2, 4)}
    assert len(rows) == sum(map(len, by_step.values()))
    assert set(by_step[0]) == set(by_step[4]) == every
    assert by_step[2] == [("sampled", "fp8")]


def test_samples_and_the_cold_start_are_written_down(whole):
    samples = read_jsonl(whole / "samples.jsonl")
    assert [row["step"] for row in samples] == [0] * 8 + [2] * 8 + [4] * 8
    assert all(set(row) == {field.name for field in SAMPLE_FIELDS} for row in samples)
    rows = read_jsonl(whole / "cold_start.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [("accuracy" in row) for row in rows] == [False, True, False, True]
    assert {name for row in rows for name in row} == {field.name for field in COLD_START_FIELDS}


def test_the_last_two_checkpoints_are_kept_and_transformers_loads_them(whole):
    folder = whole / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000004"]
    model = AutoModelForCausalLM.from_pretrained(folder / "step-000004" / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "step-000004" / "model")
    ids = tokenizer("7+1=", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 4)
    earlier = AutoModelForCausalLM.from_pretrained(folder / "step-000002" / "model")
    assert torch.isfinite(model(ids).logits).all()
    assert not torch.equal(model(ids).logits, earlier(ids).logits)


# ---- the same again, and not


def test_the_same_recipe_gives_the_same_run(whole, tmp_path):
    again = train(tmp_path, **everything(whole.parent))
    assert comparable(again) == comparable(whole)


def test_another_seed_gives_another_run(whole, tmp_path):
    other = train(tmp_path, **everything(whole.parent), seed=1, steps=1, evaluate={"every": 0})
    assert comparable(other)["metrics"][0] != comparable(whole)["metrics"][0]


def test_every_step_has_its_own_problems_and_its_own_random_numbers(tmp_path, monkeypatch):
    seen, original = [], Rollouter.groups

    def note(self, split, indices, **options):
        seen.append((split, tuple(indices), options["key"]))
        return original(self, split, indices, **options)

    monkeypatch.setattr(Rollouter, "groups", note)
    train(tmp_path, steps=3, **QUIET)
    seen = [one for one in seen if one[0] == "train"]
    assert [indices for _, indices, _ in seen] == [tuple(range(start, start + 8)) for start in (0, 8, 16)]
    assert len({key for _, _, key in seen}) == 3


def noted_denominators(monkeypatch, *names: str) -> list[tuple[int, ...]]:
    """What the updates are divided by, in order."""
    seen, original = [], trainer.denominators

    def note(groups):
        found = original(groups)
        seen.append(tuple(found[name] for name in names))
        return found

    monkeypatch.setattr(trainer, "denominators", note)
    return seen


@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_an_update_divides_by_the_responses_and_groups_of_its_mini_batch(tmp_path, monkeypatch, minibatches):
    seen = noted_denominators(monkeypatch, "responses", "groups")
    train(tmp_path, task=coin_questions(tmp_path), update={"minibatches": minibatches}, steps=1, **QUIET)
    assert seen == [(32 // minibatches, 8 // minibatches)] * minibatches


def test_dapo_may_divide_by_the_tokens_of_the_mini_batch(tmp_path, monkeypatch):
    seen = noted_denominators(monkeypatch, "batch_tokens")
    task, objective = coin_questions(tmp_path), {"name": "dapo", "token_mean": "batch"}
    run = train(tmp_path, task=task, objective=objective, steps=1, update={"minibatches": 2}, **QUIET)
    (metrics,) = read_jsonl(run / "metrics.jsonl")
    assert len(seen) == 2
    assert sum(tokens for (tokens,) in seen) == round(metrics["response/length"] * 8 * 4)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_engines_are_compared_on_every_token_once(tmp_path, monkeypatch, minibatches):
    """On those of responses without advantage too."""
    seen, original = [], measure_step.old_pass_metrics

    def note(passes):
        seen.append((sum(len(s.old_logprobs) for s in passes), {s.micro.moves for s in passes}))
        return original(passes)

    monkeypatch.setattr(measure_step, "old_pass_metrics", note)
    changes = {"update": {"minibatches": minibatches}, "rollout": {"responses": 2}, "steps": 2}
    run = train(tmp_path, task=coin_questions(tmp_path), **changes, **QUIET)
    rows = read_jsonl(run / "metrics.jsonl")
    assert [count for count, _ in seen] == pytest.approx([row["response/length"] * 16 for row in rows])
    assert {True, False} in [moves for _, moves in seen]


# ---- variants


def test_a_dense_model_trains_without_routes(tmp_path):
    changes = merged(DENSE, {"update": {"replay": "none"}} | QUIET | {"steps": 2})
    run = train(tmp_path, task=coin_questions(tmp_path), **changes)
    for row in read_jsonl(run / "metrics.jsonl"):
        assert set(row) == {name for name in NAMES if not name.startswith(("routes/", "replay/"))}
        assert row["staleness/max"] == 1.0
        assert row["mismatch/k3"] > 0.0


@pytest.mark.parametrize(
    ("name", "replay"), [("minirl", "none"), ("minirl", "R2"), ("minirl", "R3"), ("grpo", "R3"), ("cispo", "R2")]
)
def test_two_updates_a_step(tmp_path, name, replay):
    changes = {"objective": {"name": name}, "update": {"replay": replay, "minibatches": 2}, "steps": 2}
    optimizer = {"optimizer": {"learning_rate": 1e-2}}
    run = train(tmp_path, task=coin_questions(tmp_path), **changes, **optimizer, **QUIET)
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["policy_version"] for row in rows] == [0, 2]
    for row in rows:
        assert documented(row) == NAMES
        assert {"routes/layer_0", "routes/layer_1"} <= set(row)
        assert row["staleness/k3"] > 0.0  # the second mini-batch is off-policy
        assert row["update/grad_norm"] > 0.0
        assert (row["clip/high"] == 0.0) == (name == "cispo")  # which cuts weights, and masks no token
        if name != "minirl":
            assert (row["weight/truncated"] > 0.0) == (name == "cispo")


def test_advantages_are_divided_by_the_deviation_for_grpo_and_not_for_minirl(tmp_path, monkeypatch):
    seen = []

    def note(groups, rewards, *, normalise, **options):
        seen.append(normalise)
        return original(groups, rewards, normalise=normalise, **options)

    original = loop.with_advantages
    monkeypatch.setattr(loop, "with_advantages", note)
    for name in ("minirl", "grpo", "cispo"):
        train(tmp_path, name, task=coin_questions(tmp_path), objective={"name": name}, steps=1, **QUIET)
    assert seen == [False, True, True]


def test_r2_and_none_are_the_same_on_policy_and_r3_is_closer_to_the_engine(tmp_path):
    rows = {}
    for replay in ("none", "R2", "R3"):
        task = coin_questions(tmp_path)
        run = train(tmp_path, replay, task=task, update={"replay": replay}, steps=1, **QUIET)
        rows[replay] = comparable(run)["metrics"][0]
    assert rows["none"] == pytest.approx(rows["R2"], rel=1e-4, abs=1e-5)  # as the paper says of N=1
    assert rows["none"]["routes/disagreement"] > 0.0
    assert rows["R3"]["mismatch/k3"] < 0.9 * rows["none"]["mismatch/k3"]


def test_recomputing_activations_changes_nothing(tmp_path):
    task, engine = coin_questions(tmp_path), {"precision": "native"}
    changes = {"task": task, "engine": engine, "update": {"minibatches": 2}, "steps": 3} | QUIET
    plain = comparable(train(tmp_path, "plain", **changes))
    spared = comparable(train(tmp_path, "spared", **changes, runtime={"activation_checkpointing": True}))
    close(plain["metrics"], spared["metrics"], rel=1e-4)


def test_the_size_of_the_micro_batches_changes_nothing(tmp_path):
    changes = {"task": coin_questions(tmp_path), "engine": {"precision": "native"}, "steps": 2} | QUIET
    large = comparable(train(tmp_path, "large", **changes))["metrics"]
    small = comparable(train(tmp_path, "small", **changes, update={"micro_tokens": 40}))["metrics"]
    packing = {"update/padding": 0, "update/computed": 0}
    close([r | packing for r in large], [r | packing for r in small], rel=1e-3)


def test_bfloat16_runs(tmp_path):
    changes = {"runtime": {"dtype": "bfloat16"}, "update": {"minibatches": 2}, "steps": 2}
    run = train(tmp_path, task=coin_questions(tmp_path), cold_start={"stages": [{"steps": 1}]}, **changes, **QUIET)
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["policy_version"] for row in rows] == [0, 2]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    saved = load_file(run / "checkpoints" / "step-000002" / "model" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}


def test_the_cold_start_stops_once_it_is_good_enough(tmp_path):
    cold = {"batch": 8, "stop_at": 0.0, "check_every": 3, "stages": [{"steps": 2}, {"steps": 20}]}
    run = train(tmp_path, task=coin_questions(tmp_path), cold_start=cold, steps=1, **QUIET)
    assert [row["step"] for row in read_jsonl(run / "cold_start.jsonl")] == [1, 2, 3]


def test_the_cold_start_learns_and_the_engine_has_its_weights(tmp_path, capfd):
    cold = {"batch": 64, "check_every": 30, "stages": [{"steps": 40, "learning_rate": 1e-2}]}
    run = train(tmp_path, cold_start=cold, steps=1, rollout={"temperature": 0.5}, **QUIET)
    capfd.readouterr()
    assert command("eval", run / "checkpoints" / "step-000000", "--evaluate.prompts", "64") == 0
    of_checkpoint = [line.split("accuracy")[1] for line in capfd.readouterr().out.splitlines()]
    whole = train(tmp_path, "whole", cold_start=cold, steps=1, evaluate={"every": 0, "prompts": 64})
    of_engine = [row for row in read_jsonl(whole / "eval.jsonl") if row["step"] == 0]
    assert any(row["accuracy"] > 0.0 for row in of_engine)
    for line, row in zip(of_checkpoint, of_engine, strict=True):
        assert line.startswith(f" {row['accuracy']:.3f} [{row['low']:.3f}, ")
    losses = [row["loss"] for row in read_jsonl(run / "cold_start.jsonl")]
    assert losses[0] > 2.0
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(("limit", "learns"), [(1e-12, False), (1.0, True), (math.inf, True)])
def test_the_cold_start_scales_its_gradient_to_the_limit_of_the_recipe(tmp_path, limit, learns):
    """So small a gradient is nothing beside the 1e-8 that Adam adds to its root."""
    cold = {"batch": 16, "check_every": 30, "stages": [{"steps": 6, "learning_rate": 1e-2}]}
    limited = {"optimizer": {"max_grad_norm": limit}}
    run = train(tmp_path, task=coin_questions(tmp_path), cold_start=cold, steps=0, **limited, **QUIET)
    losses = [row["loss"] for row in read_jsonl(run / "cold_start.jsonl")]
    assert (losses[-1] < 0.9 * losses[0]) == learns


@pytest.mark.parametrize(("filtered", "groups"), [(False, [4, 4]), (True, [2, 4])])
def test_groups_of_equal_rewards_count_unless_they_are_filtered(tmp_path, monkeypatch, filtered, groups):
    """Two of the first four groups get equal rewards."""
    seen, original = noted_denominators(monkeypatch, "responses", "groups"), Rollouter.rewards

    def planted(*args):
        rewards = original(*args)
        if rewards.values.shape != (8, 4):
            return rewards  # of an evaluation
        values = torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat(8, 1)
        values[:2] = 1.0
        return replace(rewards, values=values)

    monkeypatch.setattr(Rollouter, "rewards", planted)
    changes = {"advantage": {"filter_groups": filtered}, "update": {"minibatches": 2}, "steps": 1}
    train(tmp_path, task=coin_questions(tmp_path), **changes, **QUIET)
    assert seen == [(4 * n, n) for n in groups]


# ---- what learning looks like, and what it does when there is nothing to learn

SEVENS = "def reward(prompt, completion):\n    return float(completion.count('7') >= 2)\n"


@pytest.mark.parametrize("name", ["minirl", "grpo", "cispo"])
def test_the_reward_rises(tmp_path, name):
    changes = {"optimizer": {"learning_rate": 1e-2}, "objective": {"name": name}, "steps": 16}
    run = train(tmp_path, task=coin_questions(tmp_path, reward=SEVENS), **changes, **QUIET)
    rewards = [row["reward/mean"] for row in read_jsonl(run / "metrics.jsonl")]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.3
    accuracies = {row["step"]: row["accuracy"] for row in read_jsonl(run / "eval.jsonl") if row["mode"] == "sampled"}
    assert accuracies[16] > accuracies[0] + 0.3


def test_equal_rewards_leave_the_weights_alone(tmp_path):
    task = coin_questions(tmp_path, reward="def reward(prompt, completion):\n    return 0.5\n")
    run = train(tmp_path, task=task, steps=2, optimizer={"weight_decay": 0.1}, **QUIET)
    for row in read_jsonl(run / "metrics.jsonl"):
        assert documented(row) == NAMES - OF_UPDATES
        assert row["policy_version"] == 0
        assert row["reward/uniform_groups"] == 1.0
        assert row["reward/mean"] == 0.5
        assert row["reward/accuracy"] == 0.0
        assert row["update/objective"] == row["update/grad_norm"] == row["update/skipped"] == 0
    assert {row["factor"] for row in read_jsonl(run / "ledger.jsonl")} == {"mismatch"}
    first, last = (load_file(p / "model" / "model.safetensors") for p in sorted((run / "checkpoints").iterdir()))
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_updates_that_are_not_finite_are_skipped_and_the_run_goes_on(tmp_path, monkeypatch):
    """Three of them, but not in a row."""
    poison_rollouts(monkeypatch, steps={2, 3, 5})
    run = train(tmp_path, task=coin_questions(tmp_path, reward=COIN), steps=6, **QUIET)
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["update/skipped"] for row in rows] == [0, 1, 1, 0, 1, 0]
    assert [row["policy_version"] for row in rows] == [0, 1, 1, 1, 2, 2]
    assert rows[1]["mismatch/k3"] is None  # JSON has no NaN
    assert [row["update/grad_norm"] is None for row in rows] == [False, True, True, False, True, False]
    assert not (run / "incident").exists()


def with_nan(one):
    """The same completion with log-probs of NaN."""
    return replace(one, logprobs=torch.full_like(one.logprobs, math.nan))


def poison_rollouts(monkeypatch, *, steps):
    """The checked log-probabilities are NaN in these of the rollouts, which are the calls for 4 responses."""
    check, count = rollouter.check_answers, 0

    def poisoned(answered, asked):
        nonlocal count
        out = list(check(answered, asked))
        responses = asked.requests[0].responses
        count += responses == 4
        if responses != 4 or count not in steps:
            return out
        return [replace(one, completions=tuple(map(with_nan, one.completions))) for one in out]

    monkeypatch.setattr(rollouter, "check_answers", poisoned)


def test_machine_metrics_are_the_only_ones_left_out_of_comparisons():
    assert {name for name in NAMES if name.startswith(MACHINE)} == {
        *(f"seconds/{phase}" for phase in ("sampling", "rewards", "logprobs", "update", "sync", "step")),
        "throughput/tokens_per_second",
        "memory/peak_gib",
    }


def test_training_on_the_cpu_repeats_its_bits(tmp_path, monkeypatch):
    seen, original = [], loop.global_step

    def note(*arguments):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return original(*arguments)

    monkeypatch.setattr(loop, "global_step", note)
    train(tmp_path, task=coin_questions(tmp_path), steps=1, **QUIET)
    assert seen == [True]
