"""Calling a user's reward function: which form it has, and what its parameters get."""

import copy
import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

from steadyrl.tasks.base import Context, Example, TaskError

Form = Literal["plain", "trl", "verl"]

KNOWN_FORMS = (
    "Known are `reward(prompt, completion)`, TRL's `reward(prompts, completions)` and verl's "
    "`compute_score(data_source, solution_str, ground_truth, extra_info)`; they may also ask for `answer`, "
    "`prompt_text`, `finish_reason`, `token_ids`, any column of the data, and `**kwargs`"
)
_RESPONSE: dict[Form, str] = {"plain": "completion", "trl": "completions", "verl": "solution_str"}
_MISSING = object()


class RewardFunction:
    """A function with a known form.

    The names of its parameters decide. `completions`: TRL's form, which gets lists and returns a list. `solution_str`:
    verl's. Else `prompt`, `completion`, and any parameter named like a column. The known names win over columns.
    `**kwargs` gets everything that no other parameter takes.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        label: str,
        example: Example,
        data_source: str,
        columns: Collection[str] = (),
    ) -> None:
        """Read the signature.

        Args:
            function: What is called.
            label: How messages name it.
            example: A problem, for the names of its columns.
            columns: Names of the columns of all rows. A row that lacks one has None there, unless the parameter has a
                default.
            data_source: What verl's `data_source` is where no column has that name.

        Raises:
            TaskError: it is asynchronous or a generator, or a parameter can be filled by nothing.
        """
        self._function, self._label, self._source = function, label, data_source
        self._bound = set(function.keywords) if isinstance(function, functools.partial) else set()
        signature = self._signature()
        self._parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_POSITIONAL]
        names = {parameter.name for parameter in self._parameters}
        self._open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._parameters)
        self.form: Form = "trl" if "completions" in names else "verl" if "solution_str" in names else "plain"
        if not self._open and _RESPONSE[self.form] not in names:
            raise self._rejected(f"its signature {signature} takes no `completion`")
        self.wants_tokens = self._open or bool(names & {"token_ids", "completion_ids"})
        defaults = {p.name for p in self._parameters if p.default is not p.empty}
        self._absent = dict.fromkeys(name for name in columns if name not in defaults)
        self._check(signature, example)

    def _signature(self) -> inspect.Signature:
        try:
            signature = inspect.signature(self._function)
        except (TypeError, ValueError) as error:
            raise self._rejected(f"its signature cannot be read: {error}") from error
        called = self._function.__call__  # of an instance, the method
        for kind, test in (
            ("asynchronous", inspect.iscoroutinefunction),
            ("an asynchronous generator", inspect.isasyncgenfunction),
            ("a generator", inspect.isgeneratorfunction),
        ):
            if test(inspect.unwrap(self._function)) or test(called):
                raise self._rejected(f"it is {kind}; write a plain function that returns the reward")
        return signature

    def _check(self, signature: inspect.Signature, example: Example) -> None:
        """Try to bind the arguments of one problem."""
        offers = self._offers(example, "", Context())
        unknown = [
            p.name
            for p in self._parameters
            if p.kind is not p.VAR_KEYWORD and p.default is p.empty and p.name not in offers
        ]
        if unknown:
            columns = ", ".join(f"`{name}`" for name in {**example.row, **self._absent}) or "none"
            raise self._rejected(
                f"its parameter `{unknown[0]}` is no known name and no column of the data (columns: {columns})"
            )
        positional, named = self._arguments(offers)
        try:
            signature.bind(*positional, **named)
        except TypeError as error:
            raise self._rejected(f"its signature {signature} cannot be called: {error}") from error

    def _rejected(self, reason: str) -> TaskError:
        return TaskError(f"{self._label}: {reason}. {KNOWN_FORMS}")

    def __call__(self, examples: Sequence[Example], completions: Sequence[str], contexts: Sequence[Context]) -> Any:
        """What the function returns: for one response, or in TRL's form a list for all of them.

        Raises:
            BaseException: whatever the function raises.
        """
        offers = [self._offers(*each) for each in zip(examples, completions, contexts, strict=True)]
        if self.form != "trl":
            (only,) = offers
            positional, named = self._arguments(only)
        else:
            names = {name for offer in offers for name in offer}
            positional, named = self._arguments({name: [offer.get(name) for offer in offers] for name in names})
        return self._function(*positional, **named)

    def _offers(self, example: Example, completion: str, context: Context) -> dict[str, Any]:
        """What there is for one response, by name; later entries win over columns of the same name."""
        answer = list(example.accepted) if example.accepted else example.answer
        known = {
            "answer": answer,
            "prompt_text": context.prompt_text,
            "finish_reason": context.finish_reason,
            "token_ids": list(context.token_ids),
        }
        row = example.row
        match self.form:
            case "plain":
                known |= {"prompt": example.question, "completion": completion}
            case "verl":
                known |= {"solution_str": completion, "ground_truth": answer, "extra_info": row.get("extra_info")}
                known["data_source"] = row.get("data_source", self._source)
            case "trl":
                talk = example.messages
                told = [{"role": "assistant", "content": completion}] if talk else completion
                known |= {"prompts": list(map(dict, talk)) if talk else example.question, "completions": told}
                known["completion_ids"] = known["token_ids"]
        return {**self._absent, **row, **known}

    def _arguments(self, offers: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments by position and by name. Values are copies: a function may change what it got."""
        positional, named, left_out = [], {}, False
        for parameter in self._parameters:
            offered = offers.get(parameter.name, _MISSING)
            if parameter.kind is parameter.VAR_KEYWORD or parameter.name in self._bound or offered is _MISSING:
                left_out = left_out or parameter.kind is parameter.POSITIONAL_ONLY
            elif parameter.kind is not parameter.POSITIONAL_ONLY:
                named[parameter.name] = copy.deepcopy(offered)
            elif not left_out:
                positional.append(copy.deepcopy(offered))
        if self._open:
            taken = self._bound | {parameter.name for parameter in self._parameters}
            named |= {name: copy.deepcopy(value) for name, value in offers.items() if name not in taken}
        return positional, named
