import json
import math
import random
import re
import tracemalloc
from pathlib import Path

import pytest

from steadyrl.recipe import Recipe, resolve
from steadyrl.report import charts
from steadyrl.report import page as report
from steadyrl.report.reading import MOST_BUCKETS, Course, RunError
from steadyrl.run.logs import MetricsLog, last_step_rows

RECIPE = {
    "steps": 120,
    "model": {"kind": "tiny", "config": {"num_experts": 8}},
    "task": {"kind": "chains", "min_terms": 3, "max_terms": 9},
    "engine": {"precision": "fp8"},
    "update": {"minibatches": 4, "replay": "R3"},
    "optimizer": {"learning_rate": 2e-4},
}


ARM = {"name": "minirl", "clip": False, "length_norm": True}


def new_run(folder: Path, **changes) -> Path:
    recipe: Recipe = resolve(RECIPE | changes, source="test")
    folder.mkdir()
    (folder / "recipe.json").write_text(recipe.model_dump_json(indent=2))
    return folder


def step_metrics(step: int, draw: random.Random) -> dict[str, float]:
    """Numbers such as a healthy run of a small mixture of experts gives."""
    learnt = 1 - math.exp(-step / 40)
    near, seconds = draw.lognormvariate(0, 0.15), 2.1 + 0.3 * draw.random()
    return {
        "policy_version": step,
        "reward/mean": 0.36 + 0.55 * learnt + draw.gauss(0, 0.03),
        "reward/failures": 0,
        "reward/uniform_groups": 0.1 + 0.5 * learnt + draw.gauss(0, 0.04),
        "response/length": 31 - 6 * learnt + draw.gauss(0, 0.6),
        "response/truncated": max(0.0, 0.08 * (1 - learnt) + draw.gauss(0, 0.01)),
        "policy/entropy": 0.42 - 0.3 * learnt + draw.gauss(0, 0.008),
        "mismatch/k1": 2.0e-3 * near + draw.gauss(0, 1e-3),
        "mismatch/k3": 2.1e-3 * near,
        "staleness/k3": 8e-4 * near * (1 + learnt),
        "weight/mean": 1 + draw.gauss(0, 0.002),
        "weight/max": 1.6 + draw.lognormvariate(0, 0.8),
        "weight/ess": 0.985 - 0.02 * abs(draw.gauss(0, 0.5)),
        "clip/low": 0.002 * near,
        "clip/high": 0.0035 * near * (0.5 + learnt),
        "routes/disagreement": 0.09 + 0.02 * learnt + draw.gauss(0, 0.003),
        "update/grad_norm": 0.6 * draw.lognormvariate(0, 0.3),
        "update/skipped": 0,
        "seconds/sampling": 0.5 * seconds,
        "seconds/rewards": 0.03 * seconds,
        "seconds/logprobs": 0.12 * seconds,
        "seconds/update": 0.3 * seconds,
        "seconds/sync": 0.01 * seconds,
        "seconds/step": seconds,
    }


def evaluation(step: int, mode: str, precision: str) -> dict[str, float | str]:
    accuracy = 0.38 + 0.55 * (1 - math.exp(-step / 40)) + 0.03 * (mode == "greedy") - 0.01 * (precision == "fp8")
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / 256)
    bounds = {"low": accuracy - half, "high": min(1.0, accuracy + half)}
    return {
        "mode": mode,
        "precision": precision,
        "accuracy": accuracy,
        **bounds,
        "prompts": 256,
        "samples": 1,
    }


def fill(run: Path, steps: int, *, seed: int = 0) -> Path:
    """Train for `steps`, in appearance."""
    draw = random.Random(seed)
    log = MetricsLog(run / "metrics.jsonl")
    evals = MetricsLog(run / "eval.jsonl")
    samples = MetricsLog(run / "samples.jsonl")
    for step in range(steps + 1):
        if step:
            log.log(step, step_metrics(step, draw))
        if step % 20 == 0:
            for mode, precision in (("sampled", "fp8"), ("sampled", "native"), ("greedy", "native")):
                evals.log(step, evaluation(step, mode, precision))
            for index in range(3):
                right = draw.random() < 0.4 + step / 200
                text = f"{index}+4=4;4-7=7;>{7 if right else 3}"
                row = {"question": f"{index}+4-7=", "answer": "7", "completion": text, "reward": float(right)}
                samples.log(step, row)
    cold = MetricsLog(run / "cold_start.jsonl")
    for step in range(1, 201):
        looked = {"accuracy": 0.4 * step / 200} if step % 20 == 0 else {}
        cold.log(step, {"loss": 2.5 * math.exp(-step / 40) + 0.2 * draw.lognormvariate(0, 0.1), **looked})
    return run


def ledger_row(factor: str, split: str, bucket: str, k3: float | None, tokens: int = 100) -> dict:
    numbers = {"tokens": tokens, "k3": k3, "k3_margin": 2e-4, "max": 1.25}
    return {"factor": factor, "split": split, "bucket": bucket, **numbers}


def test_the_ledger_of_the_last_step(tmp_path: Path) -> None:
    """Splits stand together; one whose tokens are all in one bucket is left out; what was not measured is a dash."""
    run = new_run(tmp_path / "demo")
    log = MetricsLog(run / "ledger.jsonl")
    log.log(1, ledger_row("mismatch", "all", "all", 0.5))
    log.log(
        2,
        ledger_row("mismatch", "all", "all", 1e-3, tokens=2500),
        ledger_row("mismatch", "position", "0", 1e-3),
        ledger_row("mismatch", "version", "0", 1e-3),
        ledger_row("mismatch", "routes", "agreed", None),
        ledger_row("mismatch", "routes", "differed", 4e-3),
        ledger_row("product", "all", "all", 7e-3),
        ledger_row("staleness", "all", "all", 0.0),
        ledger_row("staleness", "version", "1", 6e-3),
    )
    page = report.write_report(run).read_text()
    table = page[page.index("Ledger of step 2") : page.index("More is in")]
    rows = [
        re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    ]
    cells = [[re.sub(r"<[^>]+>", "", cell).strip() for cell in row] for row in rows[1:]]
    assert [row[:2] for row in cells] == [
        ["all", ""],
        ["version", "0"],
        ["version", "1"],
        ["routes", "agreed"],
        ["routes", "differed"],
    ]
    assert cells[0][2:] == [
        "2.5 k",
        "1.0e-03 ± 2.0e-04",
        "1.25",
        "100",
        "0 ± 2.0e-04",
        "1.25",
        "7.0e-03 ± 2.0e-04",
        "1.25",
    ]
    assert cells[2][2:] == ["–", "–", "–", "100", "6.0e-03 ± 2.0e-04", "1.25", "–", "–"]
    assert cells[3][3] == "– ± 2.0e-04"
    assert "Ledger" not in report.write_report(new_run(tmp_path / "new")).read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = fill(new_run(tmp_path_factory.mktemp("runs") / "demo"), 60)
    with (run / "samples.jsonl").open("a") as file:
        row = {"step": 60, "question": "1<2?", "answer": "<b>", "completion": "<script>alert(1)</script>"}
        file.write(json.dumps({**row, "reward": None}) + "\n")
    assert report.write_report(run) == run / "report.html"
    return (run / "report.html").read_text()


def test_says_what_was_run_and_how_it_went(page: str) -> None:
    facts = [
        "qwen3_moe",
        "<dd>chains, max_terms = 9</dd>",
        "<dd>minirl</dd>",
        "R3",
        "16 × 8",
        "fp8",
        "float32",
        "0.0002",
    ]
    facts += ["37.0%", "79.7%", "31.1%–42.9%", '60 <span class="soft">/ 120', "update.replay"]
    assert [fact for fact in facts if fact not in page] == []


def test_shows_every_chart(page: str) -> None:
    titles = [chart.title for chart in (charts.ACCURACY, *charts.CHARTS, *charts.COLD_START)]
    assert re.findall(r"<figure.*?<h3>(.*?)</h3>", page, re.DOTALL) == titles


def test_responses_are_text_not_html(page: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page


def test_opens_offline_and_its_ids_are_its_own(page: str) -> None:
    linked = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')]*)""", page)
    assert {link[0] for link in linked} == {"#"}
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in linked} <= set(ids)
    assert "http" not in re.sub(r' xmlns(:\w+)?="[^"]*"', "", page)
    assert "c0ffe" not in page  # no stand-in colour is left


def test_nothing_but_a_recipe(tmp_path: Path) -> None:
    page = report.write_report(new_run(tmp_path / "demo")).read_text()
    assert "No step has finished yet." in page
    assert "No evaluation yet." in page
    assert "<figure" not in page


@pytest.mark.parametrize("value", [0.5, 0.0, None])
def test_one_step(tmp_path: Path, value: float | None) -> None:
    run = new_run(tmp_path / "demo")
    names = [name for chart in charts.CHARTS for name in chart.fields] + ["seconds/step"]
    MetricsLog(run / "metrics.jsonl").log(1, dict.fromkeys(names, value))
    row = {**evaluation(0, "sampled", "fp8"), "accuracy": value, "low": value, "high": value}
    MetricsLog(run / "eval.jsonl").log(0, row)
    page = report.write_report(run).read_text()
    assert ("<h3>Reward</h3>" in page) == (value is not None)
    assert "NaN" not in page
    assert not re.search(r"\bnan\b", page)


def test_a_torn_line_is_a_run_in_progress_and_a_broken_one_an_error(tmp_path: Path) -> None:
    run = fill(new_run(tmp_path / "demo"), 2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "reward/me')
    assert ">2 <span" in report.write_report(run).read_text()
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 3 is not JSON"):
        report.write_report(run)


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a run directory: it has no recipe\.json"):
        report.write_report(tmp_path / "missing")


@pytest.mark.parametrize(
    ("objective", "words"),
    [({"name": "grpo"}, "grpo"), (ARM, "minirl, clip = false, length_norm = true")],
)
def test_names_the_objective(tmp_path: Path, objective: dict, words: str) -> None:
    run = new_run(tmp_path / "demo", objective=objective)
    assert f"<dd>{words}</dd>" in report.write_report(run).read_text()


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"kind": "chains", "min_terms": 2, "max_terms": 9}, "chains, min_terms = 2, max_terms = 9"),
        ({"kind": "rows", "width": 7, "min_rows": 3, "max_rows": 4}, "rows, width = 7, min_rows = 3, max_rows = 4"),
        ({"kind": "reasoning_gym", "dataset": "chain_sum"}, "chain_sum"),
        ({"kind": "questions", "path": "pairs.jsonl"}, "pairs.jsonl"),
    ],
)
def test_names_the_task(tmp_path: Path, task: dict, words: str) -> None:
    assert words in report.write_report(new_run(tmp_path / "run", task=task)).read_text()


def test_dense_runs_have_no_router(tmp_path: Path) -> None:
    run = new_run(tmp_path / "demo")
    metrics = step_metrics(1, random.Random(0))
    del metrics["routes/disagreement"]
    MetricsLog(run / "metrics.jsonl").log(1, metrics)
    assert "Router" not in report.write_report(run).read_text()


def test_the_glossary_knows_metrics_that_are_numbered(tmp_path: Path) -> None:
    run = new_run(tmp_path / "demo")
    MetricsLog(run / "metrics.jsonl").log(1, {"reward/mean": 0.5, "routes/layer_0": 0.1})
    assert "routes/layer_&lt;n&gt;" in report.write_report(run).read_text()
    other = new_run(tmp_path / "dense")
    MetricsLog(other / "metrics.jsonl").log(1, {"reward/mean": 0.5})
    assert "routes/layer_" not in report.write_report(other).read_text()


def test_running_mean_skips_what_is_not_finite() -> None:
    assert charts._running_mean([1.0, math.nan, 3.0, 5.0], 1) == [1.0, 2.0, 4.0, 4.0]


def test_overview_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "overview.svg"
    report.figure_overview(fill(new_run(tmp_path / "demo"), 30), path)
    svg = path.read_text()
    for title in ("Held-out accuracy", "Reward", "Training–inference KL", "Entropy"):
        assert title in svg
    assert "var(" not in svg
    assert "c0ffe" not in svg
    assert "#ffffff" in svg


# ---- responses, further sets, and long runs


def response_row(step: int, problem: int, sample: int, **changes) -> dict:
    row = {"problem": problem, "sample": sample, "prompt": f"<|user|>{problem}+1=", "answer": str(problem + 1)}
    row |= {"response": f"I say {sample}", "left_out": 0, "tokens": 4, "finish_reason": "stop", "reward": 0.0}
    return row | {"advantage": 0.0, "policy_version": step - 1, "failure": None} | changes


def test_responses_of_a_group_stand_together_above_the_curves(tmp_path: Path) -> None:
    run = fill(new_run(tmp_path / "demo", rollout={"prompts": 16, "responses": 3}), 2)
    log = MetricsLog(run / "rollouts.jsonl")
    log.log(1, *(response_row(1, 5, sample, response="of an earlier step") for sample in range(3)))
    marks = {"reward": 1.0, "advantage": 0.75, "reward/form": 0.5, "finish_reason": "length"}
    failing = {"reward": None, "failure": "raised ValueError: \x1b[31m<b>"}
    log.log(2, response_row(2, 7, 0), response_row(2, 7, 1), response_row(2, 7, 2, **marks))
    log.log(2, response_row(2, 9, 1, **failing))
    page = report.write_report(run).read_text()
    part = page[page.index("Responses of step 2") : page.index("<h2>Curves")]
    assert part.index("I say 2") < part.index("I say 0") < part.index("I say 1")  # the best first
    for words in (
        "Problem 7",
        "reference: 8",
        "&lt;|user|&gt;7+1=",
        "reward 1",
        "Â +0.75",
        "form 0.5",
        "cut at 4 tokens",
    ):
        assert words in part
    assert "of an earlier step" not in page
    failed = part[part.index("without a reward") :]
    assert "no reward" in failed
    assert r'raised ValueError: <i class="unseen">\x1b</i>[31m&lt;b&gt;' in failed
    assert "Problem 9" not in part


def test_an_older_run_shows_its_held_out_responses(tmp_path: Path) -> None:
    run = fill(new_run(tmp_path / "demo"), 20)
    page = report.write_report(run).read_text()
    assert '<details class="card" open>' in page
    assert page.index("Held-out responses") < page.index("<h2>Curves")


def test_mean_reward_and_several_samples_have_columns(tmp_path: Path) -> None:
    run = new_run(tmp_path / "demo")
    row = {**evaluation(0, "sampled", "fp8"), "set": "held_out", "accuracy": 0.0, "low": 0.0, "high": 0.1}
    row |= {"reward": 0.65, "reward_low": 0.61, "reward_high": 0.69, "reward_max": 0.9}
    log = MetricsLog(run / "eval.jsonl")
    log.log(0, row | {"pass@2": 0.25, "pass@16": 0.5, "maj@2": None}, row | {"set": "hard", "reward": 0.125})
    page = report.write_report(run).read_text()
    heads = re.findall(r"<th[^>]*>(.*?)</th>", page[page.index("<h2>Evaluations") :])
    assert heads[5:10] == ["mean reward", "95% interval", "maj@2", "pass@2", "pass@16"]
    assert "<h3>Held-out reward</h3>" in page
    assert "sampled, fp8, hard" in page
    assert "the highest reward is 0.9, the mean 0.65" in page[: page.index("Held-out accuracy")]


def test_many_series_of_evaluations_share_six_colours(tmp_path: Path) -> None:
    run = new_run(tmp_path / "demo")
    log = MetricsLog(run / "eval.jsonl")
    log.log(0, *({**evaluation(0, "sampled", "fp8"), "set": f"set-{number}"} for number in range(9)))
    assert "set-8" in report.write_report(run).read_text()


def test_buckets_of_a_long_run_by_hand() -> None:
    course = Course()
    for step in range(1, 4 * MOST_BUCKETS + 2):
        row = {"step": step, "update/skipped": 1, "reward/mean": float(step)}
        course.add(row | ({"routes/margin": None} if step == 1 else {}))
    assert (course.rows, course.width) == (4 * MOST_BUCKETS + 1, 8)
    assert len(course.buckets) == MOST_BUCKETS // 2 + 1
    place, number = course.column("reward/mean")[1]
    assert (place, number.low, number.mean, number.high) == (12.5, 9.0, 12.5, 16.0)
    assert course.column("reward/mean")[-1][0] == course.rows
    assert course.total("update/skipped") == course.rows
    assert [number.count for _, number in course.column("routes/margin")] == [0]
    assert math.isnan(course.column("routes/margin")[0][1].mean)


def test_a_short_run_keeps_every_step() -> None:
    course = Course()
    for step in range(1, MOST_BUCKETS + 1):
        course.add({"step": step, "reward/mean": step / 7})
    assert course.width == 1
    assert [(place, number.mean) for place, number in course.column("reward/mean")] == [
        (step, step / 7) for step in range(1, MOST_BUCKETS + 1)
    ]


def long_run(folder: Path, steps: int) -> Path:
    """A run whose ledger has a megabyte for every 20 steps."""
    run, draw = new_run(folder), random.Random(0)
    metrics = [json.dumps({"step": step, **step_metrics(step, draw)}) for step in range(1, steps + 1)]
    (run / "metrics.jsonl").write_text("\n".join(metrics) + "\n")
    row = json.dumps(ledger_row("mismatch", "position", "0", 1e-3) | {"padding": "x" * 2400})
    with (run / "ledger.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            file.write(f'{{"step": {step}, {row[1:]}\n' * 20)
    return run


def test_a_report_does_not_hold_a_long_ledger(tmp_path: Path) -> None:
    """What it takes beyond a short run is for the points of the curves, far below the 25 MB of the ledger."""
    report.write_report(long_run(tmp_path / "warm", 10))
    taken = {}
    for steps in (100, 500):
        run = long_run(tmp_path / str(steps), steps)
        tracemalloc.start()
        page = report.write_report(run)
        taken[steps] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert f">{steps} <span" in page.read_text()
        assert page.stat().st_size < 1_000_000
    assert taken[500] < taken[100] + 8_000_000
    assert (tmp_path / "500" / "ledger.jsonl").stat().st_size > 20_000_000


@pytest.mark.parametrize("torn", ["", '{"step": 3, "fac'])
@pytest.mark.parametrize("width", [10, 70_000])
def test_the_last_step_is_read_from_the_end(tmp_path: Path, torn: str, width: int) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"step": step, "text": "π" * width, "place": place} for step in (1, 2) for place in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    assert last_step_rows(path) == rows[3:]
    path.write_text("")
    assert last_step_rows(path) == []
    assert last_step_rows(tmp_path / "none") == []


def test_many_evaluations_are_listed_in_part(tmp_path: Path) -> None:
    run = new_run(tmp_path / "demo")
    log = MetricsLog(run / "eval.jsonl")
    for step in range(60):
        log.log(step, evaluation(step, "sampled", "fp8"))
    table = report.write_report(run).read_text()
    table = table[table.index("<h2>Evaluations") :]
    steps = re.findall(r"<tr>\s*<td>(\d+)</td><td>sampled", table)
    assert steps == ["0", *map(str, range(45, 60))]
    assert "all are in" in table
