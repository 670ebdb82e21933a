"""Responses as rows that a person can read: what `rollouts.jsonl` and `samples.jsonl` hold."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from steadyrl.rollout.groups import Group, Rewards
from steadyrl.run.logs import Row
from steadyrl.types import Completion, Trajectory

LONGEST = 8192
"""Bytes of a text that are kept, in UTF-8."""
Text = Callable[[Completion], str]
"""A response as people read it."""

MOST_FAILED = 32
"""Responses without a reward that are kept of a step or an evaluation, beside the chosen ones."""


@dataclass(frozen=True, slots=True)
class Shortened:
    """A text, cut in the middle if it was too long."""

    text: str
    """Its beginning and its end, and a note between them of what is left out."""
    left_out: int
    """Characters that were cut out."""


def shortened(text: str, longest: int = LONGEST) -> Shortened:
    """A text of at most `longest` bytes; of a longer one, about half of that from either end.

    For instance, `shortened("abcdefgh", 4)` has the text `ab[… 4 characters left out …]gh`.
    """
    if len(text) * 4 <= longest or len(text.encode("utf-8", "surrogatepass")) <= longest:
        return Shortened(text, 0)
    begin = _within(text, longest // 2)
    end = _within(text[::-1], longest // 2)[::-1]
    left_out = len(text) - len(begin) - len(end)
    return Shortened(f"{begin}[… {left_out} characters left out …]{end}", left_out)


def _within(text: str, size: int) -> str:
    """The longest beginning of a text that has at most `size` bytes, in whole characters."""
    used = 0
    for place, character in enumerate(text):
        used += len(character.encode("utf-8", "surrogatepass"))
        if used > size:
            return text[:place]
    return text


def chosen_groups(step: int, prompts: int, *, groups: int, every: int) -> list[int]:
    """Positions of the groups of a step that are kept: none between every `every`-th step, counted from step 1.

    They move on from step to step, so that in time each position is seen. A resumed run keeps the same ones.
    """
    turn, between = divmod(step - 1, every)
    if between:
        return []
    kept = min(groups, prompts)
    return sorted((turn * kept + number) % prompts for number in range(kept))


def rollout_rows(
    text: Text,
    groups: Sequence[Group],
    rewards: Rewards,
    responses: Sequence[Sequence[Trajectory]],
    *,
    chosen: Sequence[int],
) -> list[Row]:
    """Rows of `rollouts.jsonl`: the chosen groups, and up to `MOST_FAILED` other responses whose verifier failed."""
    return [
        _rollout_row(text, groups[place], sample, responses[place][sample].advantage, _reward(rewards, place, sample))
        for place, sample in _places(rewards, chosen)
    ]


def sample_rows(text: Text, groups: Sequence[Group], rewards: Rewards, *, first: int) -> list[Row]:
    """Rows of `samples.jsonl`: one response of each of the first groups, and those whose verifier failed."""
    rows: list[Row] = []
    firsts = [(place, 0) for place in range(min(first, len(groups)))]
    failed = [cell for cell in _places(rewards, []) if cell not in firsts]
    for place, sample in (*firsts, *failed):
        group, earned = groups[place], _reward(rewards, place, sample)
        completion = group.completions[sample]
        rows.append(
            {
                "question": shortened(group.example.question).text,
                "answer": shortened(group.example.answer).text,
                "completion": shortened(text(completion)).text,
                "reward": earned["reward"],
                "finish_reason": completion.finish_reason,
                "failure": earned["failure"],
            }
        )
    return rows


def _places(rewards: Rewards, chosen: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(group, response) of all responses of the chosen groups, and of the first that failed elsewhere."""
    samples = rewards.known.shape[1]
    for place in chosen:
        yield from ((place, sample) for sample in range(samples))
    failed = [divmod(number, samples) for number, reason in enumerate(rewards.failures) if reason is not None]
    yield from [cell for cell in failed if cell[0] not in chosen][:MOST_FAILED]


def _reward(rewards: Rewards, place: int, sample: int) -> dict[str, float | str | None]:
    """Reward, its parts, and why there is none."""
    known = bool(rewards.known[place, sample])
    parts = {f"reward/{name}": written(float(part[place, sample])) for name, part in rewards.parts.items()}
    return {
        "reward": written(float(rewards.values[place, sample])) if known else None,
        **{name: value for name, value in parts.items() if math.isfinite(value)},
        "failure": rewards.failures[place * rewards.known.shape[1] + sample],
    }


def written(value: float) -> float:
    """A float32 as its verifier wrote it: 0.9 rather than 0.8999999761581421, to seven digits."""
    return float(f"{value:.7g}")


def _rollout_row(
    text: Text, group: Group, sample: int, advantage: float, earned: Mapping[str, float | str | None]
) -> Row:
    completion = group.completions[sample]
    response = shortened(text(completion))
    return {
        "problem": group.index,
        "sample": sample,
        "prompt": shortened(group.prompt_text).text,
        "answer": shortened(group.example.answer).text,
        "response": response.text,
        "left_out": response.left_out,
        "tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "advantage": advantage,
        "policy_version": completion.policy_version,
        **earned,
    }
