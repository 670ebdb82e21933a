"""What a recipe would do and need, without doing it."""

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from steadyrl.build import open_pool
from steadyrl.consistency import check_kv_cache, recipe_warnings, refuse_contradictions
from steadyrl.model.attention import describe_rows, may_attend_by_block
from steadyrl.model.loading import skeleton
from steadyrl.model.trainable import left_out
from steadyrl.prepare import Prepared, prepare
from steadyrl.recipe import PretrainedModel, Recipe
from steadyrl.recipe.building import arguments
from steadyrl.tasks.base import Task
from steadyrl.terminal import visible

SHOWN, BRIEF = 4000, 400
"""Characters of the prompt that the plan and the start show; a longer prompt is cut in the middle."""
IN_ALL = "in all, at least"


def describe(recipe: Recipe, task: Task | None = None, *, run: Path) -> str:
    """The plan of a run, for people: model, data, a prompt, steps, memory and disk. Builds no weights.

    Args:
        recipe: what would run.
        task: its task, where it has been built.
        run: where its directory would be made.

    Raises:
        TaskError, ModelError: the task or the model cannot be had, or prompts cannot be used.
        TemplateError: the chat template cannot be used.
        RecipeError: parts of the recipe contradict each other.
    """
    with prepare(recipe, task) as ready:
        open_pool(ready.recipe, ready.task).close()  # rejects a reward function that cannot be called
        shapes = _shapes(ready)
        memory = _memory(recipe, ready.config, _count(shapes))
        said = (*recipe_warnings(recipe), *ready.warnings, left_out(ready.config, shapes))
        lines = [
            *_begins(ready, shapes, run),
            f"forward    {describe_rows(may_attend_by_block(shapes))}",
            "memory",
            *(f"  {name:<28}{amount / 2**30:9.3f} GiB" for name, amount in memory.items()),
            "disk",
            *_disk(recipe, _count(shapes), run),
            *_prompt(ready, most=SHOWN),
            *(f"warning    {text}" for text in said if text),
        ]
        return "\n".join(lines)


def summary(ready: Prepared, *, run: Path) -> str:
    """What begins, for people: the first lines of the plan, the memory in all, and the beginning of a prompt.

    Args:
        ready: what `prepare` found out.
        run: the run directory.

    Raises:
        RecipeError: parts of the recipe contradict each other.
    """
    shapes = _shapes(ready)
    least = _memory(ready.recipe, ready.config, _count(shapes))[IN_ALL]
    lines = [*_begins(ready, shapes, run), f"memory     at least {least / 2**30:.3f} GiB", *_prompt(ready, most=BRIEF)]
    return "\n".join(lines)


def _shapes(ready: Prepared) -> PreTrainedModel:
    """The model without weights, held against the other parts of the recipe."""
    model = ready.recipe.model
    remote = isinstance(model, PretrainedModel) and model.trust_remote_code
    shapes = skeleton(ready.config, trust_remote_code=remote)
    refuse_contradictions(ready.recipe, shapes, ready.task)
    return shapes


def _count(shapes: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in shapes.parameters())


def _begins(ready: Prepared, shapes: PreTrainedModel, run: Path) -> list[str]:
    """Run directory, model, machine, data and what will be done with them."""
    recipe, model = ready.recipe, ready.config
    rollout, n = recipe.rollout, recipe.update.minibatches
    cold = sum(stage.steps for stage in recipe.cold_start.stages) if recipe.cold_start else 0
    return [
        f"run        {run}",
        f"model      {model.model_type}, {_count(shapes):,} parameters, {recipe.runtime.dtype} on {_device(recipe)}",
        f"task       {recipe.task.kind}, {_problems(ready.task, recipe)}",
        f"cold start {f'up to {cold} steps of {recipe.cold_start.batch}' if recipe.cold_start else 'none'}",
        f"training   {recipe.steps} global steps × {rollout.prompts} prompts × {rollout.responses} responses of up to "
        f"{rollout.max_new_tokens} tokens; {n} update(s) each",
        f"objective  {recipe.objective.described()}, replay {recipe.update.replay}",
        f"engine     {recipe.engine.kind}, precision {recipe.engine.precision}, cache {_cache(recipe, model)}",
        f"evaluation {_evaluated(recipe)}",
    ]


def _device(recipe: Recipe) -> str:
    """The device, with the threads of a CPU or the name of a GPU."""
    name = recipe.runtime.device
    if name == "cpu":
        return f"cpu, {torch.get_num_threads()} thread(s)"
    return f"{name} ({torch.cuda.get_device_name(name)})" if torch.cuda.is_available() else name


def _problems(task: Task, recipe: Recipe) -> str:
    """How many problems there are to train on, and how many are set aside."""
    size, aside = task.size("train"), task.size("held_out")
    sets = "".join(f", {task.size(other.name):,} of {other.name}" for other in recipe.evaluate.sets)
    held = "" if aside is None else f", {aside:,} held out"
    return f"{'endless' if size is None else f'{size:,}'} training problems{held}{sets}"


def _evaluated(recipe: Recipe) -> str:
    """What is evaluated, and when."""
    asked = recipe.evaluate
    sets = "".join(f", {other.prompts or 'all'} of {other.name}" for other in asked.sets)
    often = f", and every {asked.every} steps" if asked.every else ""
    return f"{asked.prompts} held-out prompts × {asked.samples}{sets}; before and after{often}"


def _prompt(ready: Prepared, *, most: int) -> list[str]:
    """A prompt as the model sees it, special tokens included, and what ends the answer."""
    chat = ready.prompts.chat
    (prompt,) = ready.prompts([ready.task.example("train", 0)])
    ids = prompt.token_ids
    text = str(chat.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    shown = text if len(text) <= most else f"{text[: most // 2]}\n…\n{text[-most // 2 :]}"
    ends = (f"{visible(str(chat.tokenizer.convert_ids_to_tokens(end)))} (token {end})" for end in sorted(ready.ends))
    date = [f"date       {ready.recipe.prompt.date}, which the chat template writes"] if chat.asks_for_date else []
    return [
        f"prompt     {len(ids)} tokens, the first as the model sees it:",
        *(f"  | {visible(line)}" for line in shown.split("\n")),
        f"ends       {', '.join(ends)}",
        *date,
    ]


def _cache(recipe: Recipe, model: PreTrainedConfig) -> str:
    """The precision of keys and values; of `auto`, what it takes here."""
    taken, reason = check_kv_cache(recipe, model)
    because = "" if reason is None else f": {reason}"
    return f"auto, which takes {taken}{because}" if recipe.engine.kv_precision == "auto" else taken


def _disk(recipe: Recipe, count: int, run: Path) -> list[str]:
    """What a checkpoint takes, how many there are at most, and the room there is."""
    one = 3 * count * (2 if recipe.runtime.dtype == "bfloat16" else 4)  # weights and AdamW's two moments
    there = next(folder for folder in run.absolute().parents if folder.exists())
    most = recipe.checkpoints.keep + 1  # a new one is written before the oldest goes
    return [
        f"  {'one checkpoint':<28}{one:>17,} bytes",
        f"  {'– in GiB':<28}{one / 2**30:9.3f} GiB",
        f"  {f'at most {most} checkpoints':<28}{most * one / 2**30:9.3f} GiB",
        f"  {'free':<28}{shutil.disk_usage(there).free / 2**30:9.3f} GiB at {there}",
    ]


def _memory(recipe: Recipe, model: PreTrainedConfig, count: int) -> dict[str, float]:
    """Bytes by purpose. Activations are an estimate: about 16 hidden vectors a layer and position are kept."""
    width = 2 if recipe.runtime.dtype == "bfloat16" else 4
    text = model.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    length = recipe.rollout.max_new_tokens  # the prompts' share is not known before they are drawn
    asked = max(recipe.rollout.prompts * recipe.rollout.responses, recipe.evaluate.prompts * recipe.evaluate.samples)
    told = arguments(recipe.engine)
    if "cache_gib" in told:
        cache = int(told["cache_gib"] * 2**30)
    else:
        at_once = min(recipe.engine.max_sequences, asked)
        cache = 2 * text.num_hidden_layers * heads * head_dim * length * at_once * width
    kept = 1 if recipe.runtime.activation_checkpointing else 16
    parts = {
        "weights": count * width,
        "gradients": count * width,
        "AdamW's moments": 2 * count * width,
        "engine's copy of the weights": count * width,
        "engine's keys and values": cache,
        "activations (estimate)": kept * text.num_hidden_layers * text.hidden_size * recipe.update.micro_tokens * width,
    }
    return {**parts, IN_ALL: sum(parts.values())}
