"""From a conversation to the prompt that a model sees, and what the chat template says about answers."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from steadyrl.model.template import Conversation, EndlessTemplate, Renderer, TemplateError

DATE = "2026-01-01"
"""What `strftime_now` gives a template where no date is named: prompts never depend on the clock."""
QUESTION = "What is 271828 plus 314159?"
ANSWER = "The answer is 585987."
"""They are rendered to see what a template makes of a question and of an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPrompt:
    """What the model is shown."""

    text: str
    """The rendered conversation."""
    packed: "array[int]"
    """Its tokens, four bytes each."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Its tokens."""
        return tuple(self.packed)


def asked(question: str) -> Conversation:
    """The conversation of a bare question."""
    return ({"role": "user", "content": question},)


def contents(conversation: Conversation) -> list[str]:
    """What the user and the system say: text that must reach the model."""
    said = [turn["content"] for turn in conversation if turn["role"] != "assistant"]
    return [text for content in said for text in ([content] if isinstance(content, str) else map(_text_of, content))]


class Chat:
    """A tokenizer with its chat template, or without one.

    A template gets the content of a turn as text or, where that loses the question, as a list of parts
    `[{"type": "text", "text": …}]`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        renderer: Renderer,
        *,
        date: str | None = None,
        example: Conversation | None = None,
    ) -> None:
        """Check what the template makes of a question.

        Args:
            tokenizer: of the model.
            renderer: renders the template.
            date: the date that the template gets; None: `DATE`.
            example: a conversation of the data; the template may need its roles.

        Raises:
            TemplateError: the template raises, never ends, or loses the question.
        """
        self.tokenizer = tokenizer
        self.template = _template_of(tokenizer)
        self._renderer, self._date = renderer, date or DATE
        turns = list(example or asked(QUESTION))
        last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=len(turns) - 1)
        self._probe = [dict(turn) | {"content": QUESTION} if i == last else turn for i, turn in enumerate(turns)]
        self.parts = self.template is not None and self._wants_parts()

    @property
    def asks_for_date(self) -> bool:
        """Whether prompts depend on the date."""
        return self.template is not None and "strftime_now" in self.template

    def texts(self, conversations: Sequence[Conversation], *, header: bool = True) -> list[str]:
        """Rendered conversations; without a template, their only content.

        Raises:
            TemplateError: the template raises or never ends, or there is none for several turns.
        """
        if self.template is not None:
            return self._rendered(conversations, parts=self.parts, header=header)
        for turns in conversations:
            if len(turns) != 1:
                raise TemplateError(
                    f"the data hold a conversation of {len(turns)} turns, and the tokenizer has no chat template to "
                    "write it with. Give it one, or use bare questions"
                )
        return [_text_of(turns[0]["content"]) for turns in conversations]

    def encode(self, conversations: Sequence[Conversation]) -> list[EncodedPrompt]:
        """Prompts of conversations; special tokens come from the template or, without one, from the tokenizer.

        Raises:
            TemplateError: as `texts`.
        """
        texts = self.texts(conversations)
        special = self.template is None
        found = self._ids(texts, special=special)
        behind = self._appended(texts, found) if special else 0
        return [
            EncodedPrompt(text=text, packed=array("i", ids[: len(ids) - behind]))
            for text, ids in zip(texts, found, strict=True)
        ]

    @cached_property
    def closing(self) -> str:
        """What the template writes behind an answer; empty without a template or where it takes no answers."""
        if self.template is None:
            return ""
        try:
            (text,) = self.texts([[*self._probe, {"role": "assistant", "content": ANSWER}]], header=False)
        except TemplateError:
            return ""
        before, _, behind = text.rpartition(ANSWER)
        return behind if before else ""

    @property
    def closing_token(self) -> int | None:
        """The token that closes an answer, as `<|im_end|>` does."""
        behind = self.closing.lstrip()
        known = {str(token): index for index, token in self.tokenizer.added_tokens_decoder.items()}
        first = max((text for text in known if text.strip() and behind.startswith(text)), key=len, default=None)
        return None if first is None else known[first]

    def check_header(self) -> None:
        """Compare the end of a prompt with the text before an answer.

        A template may ignore `add_generation_prompt` where answers have no header, as in `[INST] question [/INST]`.

        Raises:
            TemplateError: answers have a header, and prompts end without it.
        """
        if self.template is None:
            return
        (prompt,), (bare,) = self.texts([self._probe]), self.texts([self._probe], header=False)
        if prompt != bare:
            return
        try:
            (whole,) = self.texts([[*self._probe, {"role": "assistant", "content": ANSWER}]], header=False)
        except TemplateError:
            return
        between = whole.removeprefix(prompt).partition(ANSWER)[0].strip()
        if whole.startswith(prompt) and between:
            raise TemplateError(
                f"the chat template writes {between!r} before an answer, and leaves it out of the prompt: it ignores "
                "add_generation_prompt. Add it to the template of the tokenizer"
            )

    def warnings(self) -> list[str]:
        """What the template does that its user may not expect."""
        if self.template is None:
            return []
        (text,), said = self.texts([self._probe]), []
        if text.count(QUESTION) > 1:
            said.append(f"the chat template writes the question {text.count(QUESTION)} times into the prompt")
        if self.closing.strip() and self.closing_token is None:
            said.append(
                f"the chat template closes an answer with {self.closing.strip()[:40]!r}, which is no single token: "
                "it does not end a response"
            )
        return said

    def _wants_parts(self) -> bool:
        """Which form of the content brings the question into the prompt."""
        try:
            (plain,) = self._rendered([self._probe], parts=False)
            if QUESTION in plain:
                return False
            reason = f"the chat template loses the question; it renders {plain[:200]!r}"
        except EndlessTemplate:
            raise
        except TemplateError as error:
            reason = str(error)
        try:
            (listed,) = self._rendered([self._probe], parts=True)
        except TemplateError:
            raise TemplateError(f"{reason}. Fix the chat template of the tokenizer") from None
        written_out = any(f"{quote}text{quote}: {quote}{QUESTION}" in listed for quote in "'\"")  # the list as such
        if QUESTION not in listed or written_out:
            raise TemplateError(f"{reason}. Fix the chat template of the tokenizer")
        return True

    def _rendered(self, conversations: Sequence[Conversation], *, parts: bool, header: bool = True) -> list[str]:
        assert self.template is not None
        return self._renderer.render(
            self.template,
            [[_as_parts(turn) for turn in turns] for turns in conversations] if parts else conversations,
            variables=self.tokenizer.special_tokens_map,
            date=self._date,
            header=header,
        )

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return encoded["input_ids"]

    def _appended(self, texts: Sequence[str], encoded: Sequence[Sequence[int]]) -> int:
        """How many tokens the tokenizer puts behind a text: the answer begins there, not after an end of sequence."""
        for text, ids in zip(texts, encoded, strict=True):
            (plain,) = self._ids([text], special=False)
            starts = range(len(ids) - len(plain) + 1)
            if plain and (at := next((i for i in starts if ids[i : i + len(plain)] == plain), None)) is not None:
                return len(ids) - at - len(plain)
        return 0


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    named: Any = tokenizer.chat_template
    if not isinstance(named, dict):
        return named
    if "default" not in named:
        raise TemplateError(f"the tokenizer has the chat templates {sorted(named)}, none of them named `default`")
    return named["default"]


def _as_parts(turn: Mapping[str, Any]) -> dict[str, Any]:
    content = turn["content"]
    return {**turn, "content": [{"type": "text", "text": content}] if isinstance(content, str) else content}


def _text_of(content: Any) -> str:
    return content if isinstance(content, str) else str(content.get("text", ""))
