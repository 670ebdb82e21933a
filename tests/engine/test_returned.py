"""What an engine returns wrongly never gets past here."""

import copy
import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from builders import dense_policy, tiny_policy
from recipes_for_tests import command, write_recipe
from steadyrl.engine.base import Answer, EngineError, Request
from steadyrl.engine.local import LocalEngine
from steadyrl.engine.returned import Asked, NotFinite, check_answers
from steadyrl.model.loading import Policy
from steadyrl.rollout.rollouter import Rollouter
from steadyrl.tasks.build import build_task
from steadyrl.types import Sampling

ANSWERS = 3
ENDS = {1}


@dataclasses.dataclass
class Wrong:
    """An engine whose answers are changed by `fault` after they were right."""

    engine: LocalEngine
    fault: Callable[[list[Answer]], Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def collect(self) -> Any:
        return self.fault(list(self.engine.collect()))


def changed(record: Any, **fields: Any) -> Any:
    """A copy with other fields, past what types would refuse; a function is given the old value."""
    found = copy.copy(record)
    for name, value in fields.items():
        object.__setattr__(found, name, value(getattr(record, name)) if callable(value) else value)
    return found


def group(change: Callable[[tuple], Any], *, place: int = 0) -> Callable[[list[Answer]], Any]:
    """The completions of one answer are other ones."""

    def fault(answers: list[Answer]) -> list[Answer]:
        return [changed(answer, completions=change) if answer.place == place else answer for answer in answers]

    return fault


def put(**fields: Any) -> Callable[[list], Any]:
    """Fields of the second response to the first prompt are other ones; a function is given the old value."""

    def change(completions: tuple) -> tuple:
        at = min(1, len(completions) - 1)
        return (*completions[:at], changed(completions[at], **fields), *completions[at + 1 :])

    return group(change)


def token(value: float, *, at: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(logprobs: torch.Tensor) -> torch.Tensor:
        return logprobs.index_fill(0, torch.tensor(at), value)

    return change


def routes(position: int, values: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(old: torch.Tensor) -> torch.Tensor:
        new = old.clone()
        new[position, 0] = torch.tensor(values, dtype=old.dtype)
        return new

    return change


WRONG: dict[str, tuple[Callable[[list[Answer]], Any], str]] = {
    "nothing": (lambda answers: None, "returned NoneType, not answers"),
    "lists of completions": (lambda answers: [list(answer.completions) for answer in answers], "list, not an Answer"),
    "no answer": (lambda answers: [], r"no answer to 2 of 2 prompts, such as \[0, 1\]"),
    "an answer less": (lambda answers: answers[:1], r"no answer to 1 of 2 prompts, such as \[1\]"),
    "an answer more": (lambda answers: [*answers, answers[0]], "an answer to prompt 0, which does not wait for one"),
    "an unknown place": (
        lambda answers: [changed(answers[0], place=7)],
        "an answer to prompt 7, which does not wait for one",
    ),
    "a place of another kind": (lambda answers: [changed(answers[0], place=[0])], r"to prompt \[0\]"),
    "a list in an answer": (group(list), "list as the responses to prompt 0, not a tuple"),
    "a response less": (group(lambda found: found[:-1], place=1), "2 responses to prompt 1; 3 were asked"),
    "a response more": (group(lambda found: found * 2), "6 responses to prompt 0; 3 were asked"),
    "something else": (group(lambda found: ("a",) * 3), "str as response 0 to prompt 0, not a Completion"),
    "no completion": (group(lambda found: (None,) * 3), "NoneType as response 0 to prompt 0"),
    "no token": (put(token_ids=(), logprobs=torch.zeros(0)), "returned no token"),
    "a list of tokens": (put(token_ids=list), "token_ids of list"),
    "tokens as text": (put(token_ids=lambda ids: tuple(map(str, ids))), "not a tuple of integers"),
    "tokens as floats": (put(token_ids=lambda ids: tuple(map(float, ids))), "not a tuple of integers"),
    "a token above": (put(token_ids=lambda ids: (45, *ids[1:])), "token ids from .* to 45; the vocabulary has 45"),
    "a token below": (put(token_ids=lambda ids: (-1, *ids[1:])), "token ids from -1 to"),
    "too long": (put(token_ids=lambda ids: ids + (3,) * 9), "at most 8 were asked"),
    "after the end": (put(token_ids=lambda ids: (1, *ids[1:])), "tokens after the end token 1"),
    "stopped without an end": (put(finish_reason="stop"), "finish_reason = 'stop' for 8 .* no end token"),
    "an end that is cut": (put(token_ids=lambda ids: (*ids[:-1], 1)), "finish_reason = 'length' .* an end token"),
    "another reason": (put(finish_reason="abort"), "finish_reason = 'abort'"),
    "no reason": (put(finish_reason=None), "finish_reason = None"),
    "cut before the limit": (
        put(token_ids=lambda ids: ids[:3], logprobs=lambda x: x[:3], routes=lambda x: x[:-5]),
        "finish_reason = 'length' for 3 of at most 8",
    ),
    "a foreign version": (put(policy_version=7), "policy_version = 7; its weights are of version 0"),
    "an old version": (put(policy_version=-1), "policy_version = -1"),
    "no version": (put(policy_version=None), "policy_version = None"),
    "plus five": (put(logprobs=token(5.0)), r"log-probability 5\.0 for token 0"),
    "a little above zero": (put(logprobs=token(0.01, at=7)), "for token 7; a sampled token's lies between -40 and 0"),
    "minus fifty": (put(logprobs=token(-50.0, at=2)), r"log-probability -50\.0 for token 2"),
    "not a number": (put(logprobs=token(math.nan)), "log-probability nan"),
    "minus infinity": (put(logprobs=token(-math.inf)), "log-probability -inf"),
    "plus infinity": (put(logprobs=token(math.inf)), "log-probability inf"),
    "no log-probabilities": (put(logprobs=None), "logprobs of NoneType"),
    "a list of log-probabilities": (put(logprobs=lambda x: x.tolist()), "logprobs of list"),
    "whole log-probabilities": (put(logprobs=lambda x: x.long()), r"logprobs of a tensor of torch\.int64"),
    "log-probabilities without data": (put(logprobs=lambda x: x.to("meta")), r"a tensor without data \(meta\)"),
    "sparse log-probabilities": (put(logprobs=lambda x: x.to_sparse()), r"a tensor of layout torch\.sparse_coo"),
    "routes without data": (put(routes=lambda x: x.to("meta")), r"routes of a tensor without data"),
    "sparse routes": (put(routes=lambda x: x.to_sparse()), r"routes of a tensor of layout torch\.sparse_coo"),
    "one log-probability less": (put(logprobs=lambda x: x[:-1]), r"logprobs of shape \(7,\) for 8 tokens"),
    "one log-probability more": (put(logprobs=lambda x: torch.cat([x, x[:1]])), r"shape \(9,\) for 8 tokens"),
    "a matrix of log-probabilities": (put(logprobs=lambda x: x[:, None]), r"shape \(8, 1\) for 8 tokens"),
    "no routes": (put(routes=None), "returned no routes; the model is a mixture of experts"),
    "a list of routes": (put(routes=lambda x: x.tolist()), "routes of list"),
    "flat routes": (put(routes=lambda x: x[:, 0]), r"routes of a tensor .* not unsigned \[positions, layers, slots\]"),
    "a row less": (put(routes=lambda x: x[:-1]), "routes of 9 positions; 10 were fed"),
    "a row more": (put(routes=lambda x: torch.cat([x, x[:1]])), "routes of 11 positions; 10 were fed"),
    "a layer less": (put(routes=lambda x: x[:, :1]), "wrong routes: routes have 1 layers"),
    "a slot less": (put(routes=lambda x: x[..., :1]), "wrong routes: routes have 1 slots"),
    "another type": (put(routes=lambda x: x.long()), r"routes of a tensor of torch\.int64"),
    "an unknown expert": (put(routes=routes(4, [8, 0])), "routes at position 4, layer 0 .* out of range"),
    "an expert twice": (put(routes=routes(9, [3, 3])), "routes at position 9, layer 0 .* an expert twice"),
    "half a row": (put(routes=routes(0, [255, 3])), "the sentinel in some slots"),
}
"""Wrong answers, and what is said of them."""


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


def groups_of(policy: Policy, fault: Callable[[list[Answer]], Any], *, temperature: float = 1.0) -> list:
    """Groups as a step makes them, of an engine that errs."""
    asked = SimpleNamespace(text="", token_ids=(5, 6, 7))
    sampling = Sampling(temperature=temperature, max_new_tokens=8)
    parts: dict[str, Any] = {
        "task": build_task("chains", seed=0, parameters={"min_terms": 2, "max_terms": 2, "teacher_noise": 0.0}),
        "prompts": lambda examples: [asked] * len(examples),
        "engine": Wrong(LocalEngine(policy.model, end_tokens=set(ENDS)), fault),
        "pool": None,
        "advantage": None,
    }
    rollouter = Rollouter(
        **parts,
        model=policy.model,
        tokenizer=policy.tokenizer,
        ends=frozenset(ENDS),
        sampling=sampling,
        seed=0,
    )
    return rollouter.groups("train", [0, 1], responses=ANSWERS, sampling=sampling, key="test")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_an_error_that_names_it(policy: Policy, name: str) -> None:
    fault, message = WRONG[name]
    with pytest.raises(EngineError, match=message) as refusal:
        groups_of(policy, fault)
    assert "the engine returned" in str(refusal.value)


def test_right_answers_are_taken_as_they_are(policy: Policy) -> None:
    kept = []
    groups = groups_of(policy, lambda answers: kept.extend(answers) or answers)
    assert [group.completions for group in groups] == [answer.completions for answer in kept]
    groups_of(policy, put(logprobs=token(5e-4)))  # rounding
    groups_of(policy, put(logprobs=token(-30.0)))
    groups_of(policy, put(routes=routes(4, [255, 255])))  # a row without routes


@pytest.mark.parametrize(("value", "kind"), [(math.nan, NotFinite), (-math.inf, NotFinite), (5.0, EngineError)])
def test_values_that_are_not_finite_have_an_error_of_their_own(policy: Policy, value: float, kind: type) -> None:
    with pytest.raises(EngineError) as refusal:
        groups_of(policy, put(logprobs=token(value)))
    assert type(refusal.value) is kind


def test_the_wrong_one_of_several_is_named(policy: Policy) -> None:
    def third(answers: list[Answer]) -> list[Answer]:
        wrong = answers[1].completions[2]
        object.__setattr__(wrong, "logprobs", token(math.nan)(wrong.logprobs))
        return answers

    with pytest.raises(EngineError, match=r"response 2 to prompt 1: .* nan for token 0"):
        groups_of(policy, third)


def test_after_a_wrong_answer_no_request_waits(policy: Policy) -> None:
    engine = LocalEngine(policy.model, end_tokens=set())
    prompt = {"token_ids": (5, 6), "responses": 2, "sampling": Sampling(temperature=1.0, max_new_tokens=3), "seed": 0}
    requests = [Request(**prompt, place=place) for place in range(3)]
    engine.submit(requests)
    asked = Asked(model=policy.model, requests=requests, ends=frozenset(), policy_version=7)
    with pytest.raises(EngineError, match="policy_version = 0") as refusal:
        list(check_answers(engine.collect(), asked))
    assert list(engine.collect()) == []
    assert refusal.traceback  # it keeps the iterator alive


def test_a_greedy_token_is_certain(policy: Policy) -> None:
    groups_of(policy, lambda answers: answers, temperature=0.0)
    with pytest.raises(EngineError, match="a greedy token's is 0"):
        groups_of(policy, put(logprobs=token(-0.5)), temperature=0.0)


def test_routes_of_a_dense_model(policy: Policy) -> None:
    dense = dense_policy()
    groups_of(dense, lambda answers: answers)
    with pytest.raises(EngineError, match="returned routes; the model is dense"):
        groups_of(dense, put(routes=torch.zeros(10, 2, 2, dtype=torch.uint8)))


def test_a_wrong_answer_stops_a_run_with_one_sentence(tmp_path, monkeypatch, capsys) -> None:
    collect, fault = LocalEngine.collect, put(policy_version=7)
    monkeypatch.setattr(LocalEngine, "collect", lambda self: fault(list(collect(self))))
    assert command("train", write_recipe(tmp_path), "--run", tmp_path / "run") == 2
    assert "policy_version = 7; its weights are of version 0" in capsys.readouterr().err
