"""What a template makes of a question is looked at: lost, changed, doubled, or without a header for the answer."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tokenizers import normalizers

from chat_tokenizers import CHATML, INST, PARTS, SPECIAL, byte_tokenizer
from steadyrl.model.chat import Chat, asked, contents
from steadyrl.model.template import Renderer, TemplateError
from steadyrl.model.text import end_tokens

Make = Callable[..., Chat]
QWEN3 = CHATML.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}").replace(
    "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
)
"""Its generation prompt opens a thought, which is absent from a finished turn."""


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer() as made:
        yield made


@pytest.fixture
def chat(renderer: Renderer) -> Make:
    def make(template: Any = None, *, example: Any = None, date: str | None = None, **options: Any) -> Chat:
        return Chat(byte_tokenizer(template=template, **options), renderer, example=example, date=date)

    return make


def written(chat: Chat, question: str) -> str:
    (prompt,) = chat.encode([asked(question)])
    return str(chat.tokenizer.decode(list(prompt.token_ids)))


# ---- with a template


def test_a_template_writes_the_prompt(chat: Make) -> None:
    made = chat(CHATML)
    (prompt,) = made.encode([asked("1+1=")])
    assert prompt.text == "<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n"
    assert written(made, "1+1=") == prompt.text
    assert prompt.token_ids[0] == 1
    assert prompt.token_ids.count(2) == 1


def test_content_goes_in_parts_where_text_is_lost(chat: Make) -> None:
    made = chat(PARTS)
    assert made.parts
    assert "user\nhi<|im_end|>" in written(made, "hi")
    assert not chat(CHATML).parts


def test_content_goes_in_parts_where_text_raises(chat: Make) -> None:
    template = "{% if messages[0].content is string %}{{ raise_exception('parts') }}{% endif %}" + PARTS
    assert chat(template).parts


@pytest.mark.parametrize(
    "template",
    [
        "",
        "hello",
        "{{ messages[0].content[:10] }}",
        "{{ messages[0].content | upper }}",
        "{{ messages[0].content | lower }}",
        "{{ messages[0].content | replace(' ', '') }}",
        "{{ messages[0].text }}",
        "{{ messages[1:] }}",
        "{% for c in messages[0].content %}{{ c.image }}{% endfor %}",
        "{% if messages[0].content is string %}{{ messages[0].role }}{% else %}{{ messages[0].content }}{% endif %}",
        "{% if messages[0].content is not string %}{{ messages[0].content | tojson }}{% endif %}",
    ],
)
def test_a_lost_question_is_refused(template: str, chat: Make) -> None:
    with pytest.raises(TemplateError, match="the chat template loses the question"):
        chat(template)


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content | trim }}", "Q: {{ messages[0].content }} A:", INST, QWEN3, CHATML * 2]
)
def test_a_question_that_is_there_is_taken(template: str, chat: Make) -> None:
    assert not chat(template).parts


def test_a_template_that_raises_for_every_question_is_refused_in_its_words(chat: Make) -> None:
    system = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('A system message is needed') }}{% endif %}"
    with pytest.raises(TemplateError, match=r"A system message is needed\. Fix the chat template"):
        chat(system + CHATML)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1="}]
    made = chat(system + CHATML, example=turns)
    (prompt,) = made.encode([turns])
    assert "system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1=<|im_end|>" in prompt.text


def test_several_turns_go_to_the_template_as_they_are(chat: Make) -> None:
    turns = [
        {"role": "user", "content": "1+1="},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "and 2+2="},
    ]
    (prompt,) = chat(CHATML, example=turns).encode([turns])
    assert prompt.text.count("<|im_start|>") == 4
    assert "assistant\n2<|im_end|>" in prompt.text
    assert contents(turns) == ["1+1=", "and 2+2="]


def test_special_tokens_come_once_from_the_template(chat: Make) -> None:
    around = "<|im_start|> $A <|im_end|>"
    made = chat("{{ bos_token }}{{ messages[0].content }}", bos="<|im_start|>", around=around)
    assert written(made, "hi") == "<|im_start|>hi"


def test_the_template_named_default_is_taken_of_several(chat: Make) -> None:
    assert written(chat({"default": "<{{ messages[0].content }}>", "tool_use": "x"}), "hi") == "<hi>"
    with pytest.raises(TemplateError, match=r"\['rag', 'tool_use'\], none of them named `default`"):
        chat({"rag": CHATML, "tool_use": CHATML})


def test_a_thought_that_the_template_opens_is_in_the_prompt(chat: Make) -> None:
    (prompt,) = chat(QWEN3).encode([asked("1+1=")])
    assert prompt.text.endswith("assistant\n<think>\n")


def test_a_default_system_prompt_is_in_the_prompt(chat: Make) -> None:
    template = "{% if messages[0].role != 'system' %}You are kind.{% endif %}" + CHATML
    assert written(chat(template), "hi").startswith("You are kind.<|im_start|>user")


# ---- the date


def test_the_date_is_fixed(chat: Make) -> None:
    dated = "{{ strftime_now('%Y-%m-%d %H:%M:%S') }} " + CHATML
    assert written(chat(dated), "x").startswith("2026-01-01 00:00:00 ")
    assert written(chat(dated, date="2024-02-29"), "x").startswith("2024-02-29 00:00:00 ")
    assert chat(dated).asks_for_date
    assert not chat(CHATML).asks_for_date
    assert not chat().asks_for_date


# ---- the header of the answer

NO_HEADER = CHATML.split("{% if add_generation_prompt")[0]


@pytest.mark.parametrize(
    "template", [CHATML, INST, QWEN3, PARTS, "{% for m in messages %}{{ m.content }}\n{% endfor %}"]
)
def test_a_prompt_ends_where_answers_begin(template: str, chat: Make) -> None:
    chat(template, bos="<|im_start|>").check_header()


@pytest.mark.parametrize("template", [NO_HEADER, NO_HEADER.replace("<|im_start|>", "### "), f"{NO_HEADER}\n"])
def test_a_template_without_the_header_of_answers_is_refused(template: str, chat: Make) -> None:
    with pytest.raises(TemplateError, match=r"writes '(<\|im_start\|>|### )assistant' before an answer"):
        chat(template).check_header()


def test_a_template_that_takes_no_answers_has_no_header_to_miss(chat: Make) -> None:
    template = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content }}"
    made = chat(template)
    made.check_header()
    assert made.closing == ""
    assert made.closing_token is None


# ---- what closes an answer


@pytest.mark.parametrize(
    ("template", "closing", "token"),
    [
        (CHATML, "<|im_end|>\n", 2),
        (INST, "<|im_end|>", 2),  # by eos_token
        (CHATML.replace("<|im_end|>\n", " <|endoftext|>"), " <|endoftext|>", 0),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "\n", None),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }} END{% endfor %}", " END", None),
        (QWEN3, "<|im_end|>\n", 2),
        (PARTS, "<|im_end|>\n", 2),
        ("{{ messages[0].content }}", "", None),
        (None, "", None),
    ],
)
def test_what_closes_an_answer(template: str | None, closing: str, token: int | None, chat: Make) -> None:
    made = chat(template)
    assert made.closing == closing
    assert made.closing_token == token


def test_the_longest_token_closes(chat: Make) -> None:
    special = (*SPECIAL, "<|im_end|>|")
    made = chat(CHATML.replace("<|im_end|>\n", "<|im_end|>|\n"), special=special)
    assert made.closing_token == 3


def test_only_the_last_turn_tells_what_closes_an_answer(chat: Make) -> None:
    """Between turns another token may stand, which closes a part of an answer only."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.content }}"
        "{% if loop.last %}<|im_end|>{% else %}<|endoftext|>{% endif %}{% endfor %}"
    )
    assert chat(template).closing_token == 2


def test_the_closing_token_ends_a_response_beside_the_others(chat: Make) -> None:
    made = chat(CHATML, eos="<|endoftext|>")
    assert end_tokens(made.tokenizer, None, (), chat=made) == {0, 2}
    assert end_tokens(made.tokenizer, [1], ("a",), chat=made) == {0, 1, 2, made.tokenizer("a").input_ids[0]}


# ---- warnings


def test_a_doubled_question_is_noticed(chat: Make) -> None:
    assert chat("{{ messages[0].content }} {{ messages[0].content }}").warnings() == [
        "the chat template writes the question 2 times into the prompt"
    ]


def test_a_closing_text_that_ends_nothing_is_noticed(chat: Make) -> None:
    (warning,) = chat("{% for m in messages %}{{ m.role }}: {{ m.content }}\n###\n{% endfor %}").warnings()
    assert "closes an answer with '###', which is no single token" in warning


@pytest.mark.parametrize("template", [CHATML, INST, QWEN3, PARTS, None])
def test_nothing_is_noticed_of_usual_templates(template: str | None, chat: Make) -> None:
    assert chat(template).warnings() == []


# ---- without a template


@pytest.mark.parametrize(
    ("around", "prompt"),
    [
        (None, "hi"),
        ("$A <|im_end|>", "hi"),
        ("<|im_start|> $A", "<|im_start|>hi"),
        ("<|im_start|> $A <|im_end|>", "<|im_start|>hi"),
        ("$A <|endoftext|> <|im_end|>", "hi"),
        ("<|im_start|> <|endoftext|> $A <|im_end|>", "<|im_start|><|endoftext|>hi"),
    ],
)
def test_the_tokenizer_adds_what_begins_a_text_and_not_what_ends_it(around: str, prompt: str, chat: Make) -> None:
    made = chat(around=around)
    assert written(made, "hi") == prompt
    both = made.encode([asked("hi"), asked("a longer one")])
    assert both[0].token_ids == made.encode([asked("hi")])[0].token_ids


def test_repeated_text_keeps_all_its_tokens(chat: Make) -> None:
    assert written(chat(around="$A <|im_end|>"), "aaaa") == "aaaa"


def test_nothing_is_cut_off_at_a_length_that_the_tokenizer_was_saved_with(chat: Make) -> None:
    made = chat()
    made.tokenizer.backend_tokenizer.enable_truncation(max_length=4)
    made.tokenizer.backend_tokenizer.enable_padding(length=99)
    made.tokenizer.model_max_length = 4
    assert written(made, "a long question") == "a long question"


def test_normalised_questions_are_compared_as_rendered(chat: Make) -> None:
    made = chat(CHATML)
    made.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    (prompt,) = made.encode([asked("É = E")])
    assert "É = E" in prompt.text


def test_several_turns_need_a_template(chat: Make) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1="}]
    with pytest.raises(TemplateError, match="a conversation of 2 turns, and the tokenizer has no chat template"):
        chat(example=turns).encode([turns])


def test_a_bare_tokenizer_starts_no_process() -> None:
    with Renderer() as renderer:
        Chat(byte_tokenizer(), renderer).encode([asked("hi")])
        assert renderer._process is None
