"""What a recipe would do and need, without doing it."""

import shutil
from pathlib import Path

from transformers import PreTrainedConfig

from steadyrl import config
from steadyrl.build import open_pool
from steadyrl.config import Recipe
from steadyrl.consistency import check_kv_cache, recipe_warnings, refuse_contradictions
from steadyrl.model.attention import describe_rows, may_attend_by_block
from steadyrl.model.loading import skeleton
from steadyrl.model.trainable import left_out
from steadyrl.prepare import Prepared, prepare
from steadyrl.terminal import visible

SHOWN = 4000
"""Characters of the prompt that are shown; a longer one is cut in the middle."""


def describe(recipe: Recipe, *, run: Path) -> str:
    """The plan of a run, for people: model, data, a prompt, steps, memory and disk. Builds the task, but no weights.

    Args:
        recipe: what would run.
        run: where its directory would be made.

    Raises:
        TaskError, ModelError: the task or the model cannot be had, or prompts cannot be used.
        TemplateError: the chat template cannot be used.
        RecipeError: parts of the recipe contradict each other.
    """
    with prepare(recipe) as ready:
        return _described(ready, run)


def _described(ready: Prepared, run: Path) -> str:
    open_pool(ready.recipe, ready.task).close()  # rejects a reward function that cannot be called
    recipe, task, model = ready.recipe, ready.task, ready.config
    remote = isinstance(recipe.model, config.PretrainedModel) and recipe.model.trust_remote_code
    shapes = skeleton(model, trust_remote_code=remote)
    refuse_contradictions(recipe, shapes, task)
    count = sum(parameter.numel() for parameter in shapes.parameters())
    rollout, n = recipe.rollout, recipe.update.minibatches
    size = task.size("train")
    cold = sum(stage.steps for stage in recipe.cold_start.stages) if recipe.cold_start else 0
    lines = [
        f"model      {model.model_type}, {count:,} parameters, {recipe.runtime.dtype} on {recipe.runtime.device}",
        f"task       {recipe.task.kind}, {'endless' if size is None else f'{size:,}'} training problems",
        f"cold start {f'up to {cold} steps of {recipe.cold_start.batch}' if recipe.cold_start else 'none'}",
        f"training   {recipe.steps} global steps × {rollout.prompts} prompts × {rollout.responses} responses of up to "
        f"{rollout.max_new_tokens} tokens; {n} update(s) each",
        f"forward    {describe_rows(may_attend_by_block(shapes))}",
        f"objective  {recipe.objective.name}, replay {recipe.update.replay}",
        f"engine     {recipe.engine.kind}, precision {recipe.engine.precision}, cache {_cache(recipe, model)}",
        "memory",
        *(f"  {name:<28}{amount / 2**30:9.3f} GiB" for name, amount in _memory(recipe, model, count).items()),
        "disk",
        *_disk(recipe, count, run),
        *_prompt(ready),
        *(
            f"warning    {text}"
            for text in (*recipe_warnings(recipe), *ready.warnings, left_out(model, shapes))
            if text
        ),
    ]
    return "\n".join(lines)


def _prompt(ready: Prepared) -> list[str]:
    """A prompt as the model sees it, special tokens included, and what ends the answer."""
    chat = ready.prompts.chat
    (prompt,) = ready.prompts([ready.task.example("train", 0)])
    ids = prompt.token_ids
    text = str(chat.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    shown = text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}\n…\n{text[-SHOWN // 2 :]}"
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
    match recipe.engine:
        case config.LocalEngine(max_sequences=sequences):
            at_once = min(sequences, asked)
            cache = 2 * text.num_hidden_layers * heads * head_dim * length * at_once * width
        case config.VLLMEngine(cache_gib=gib):
            cache = int(gib * 2**30)
    kept = 1 if recipe.runtime.activation_checkpointing else 16
    parts = {
        "weights": count * width,
        "gradients": count * width,
        "AdamW's moments": 2 * count * width,
        "engine's copy of the weights": count * width,
        "engine's keys and values": cache,
        "activations (estimate)": kept * text.num_hidden_layers * text.hidden_size * recipe.update.micro_tokens * width,
    }
    return {**parts, "in all, at least": sum(parts.values())}
