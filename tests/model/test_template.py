"""A chat template is somebody else's program: it runs apart, and neither hangs nor crashes the run."""

import time
from collections.abc import Callable, Iterator

import pytest

from chat_tokenizers import CHATML, HANGS, INST, PARTS, byte_tokenizer
from steadyrl.model.template import Renderer, TemplateError

TURNS = [{"role": "user", "content": "1 & 2 <b>é\n"}]
Render = Callable[..., str]


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer(time_limit=0.3) as made:
        made.render("x", [TURNS], variables={}, date="2026-01-31", header=True)  # what it imports takes a second
        yield made


@pytest.fixture
def render(renderer: Renderer) -> Render:
    def one(template: str, *, header: bool = True, date: str = "2026-01-31") -> str:
        variables = {"eos_token": "<|im_end|>", "bos_token": "<s>"}
        (text,) = renderer.render(template, [TURNS], variables=variables, date=date, header=header)
        return text

    return one


AGREED = {
    "chatml": CHATML,
    "inst": INST,
    "loop control": "{% for m in messages %}{% if loop.first %}{{ m.content }}{% continue %}{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "json": "{{ messages | tojson }}",
    "tools": "{{ tools is none }}{{ tools is defined }}{{ documents is defined }}{{ add_generation_prompt }}",
    "blocks": "{% if true %}\n    {{ messages[0].content }}\n{% endif %}\n",
    "not in the context": "[{{ nothing }}]{{ pad_token }}",
}


@pytest.mark.parametrize("name", AGREED)
def test_it_renders_as_transformers_does(name: str, renderer: Renderer) -> None:
    tokenizer = byte_tokenizer(template=AGREED[name], bos="<|im_start|>")
    own = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    variables = tokenizer.special_tokens_map
    assert renderer.render(AGREED[name], [TURNS], variables=variables, date="2026-01-31", header=True) == [own]


def test_many_conversations_are_rendered_in_order(renderer: Renderer) -> None:
    turns = [[{"role": "user", "content": str(i)}] for i in range(3)]
    template = "<{{ messages[0].content }}>"
    assert renderer.render(template, turns, variables={}, date="2026-01-31", header=True) == ["<0>", "<1>", "<2>"]


@pytest.mark.parametrize("inside", ["{}", "{{% macro today() %}}{}{{% endmacro %}}{{{{ today() }}}}"])
def test_now_is_midnight_of_the_given_day(inside: str, render: Render) -> None:
    template = inside.format("{{ strftime_now('%d %b %Y %H:%M:%S') }}")
    assert render(template) == "31 Jan 2026 00:00:00"
    assert render(template, date="2024-02-29") == "29 Feb 2024 00:00:00"


@pytest.mark.parametrize(
    "template",
    [
        HANGS,
        "{% set s = namespace(t='ab') %}{% for i in range(99999) %}{% set s.t = s.t * 2 %}{% endfor %}{{ s.t }}",
        "{% macro f(n) %}{% for i in range(9) %}{{ f(n + 1) }}{% endfor %}{% endmacro %}{{ f(0) }}",
        "{% for i in range(99999) %}{{ messages | tojson | length }}{{ range(9999) | sum }}{% endfor %}",
        "{{ 'x' * 10**11 }}",
        "{% set n = 10**11 %}{{ 'x' * n }}",
        "{% for i in range(10**12) %}{% endfor %}",
        "{{ 'x' * 20000000 }}",
    ],
)
def test_a_template_without_end_is_stopped(template: str, render: Render) -> None:
    started = time.monotonic()
    with pytest.raises(
        TemplateError, match=r"takes more than 0\.3 s|MemoryError|RecursionError|Range too big|characters"
    ):
        render(template)
    assert time.monotonic() - started < 20
    assert render("{{ messages[0].role }}") == "user"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('A system message is needed') }}", "TemplateError: A system message is needed"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages.content.x }}", "UndefinedError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include 'other' %}", "cannot be rendered"),
    ],
)
def test_a_template_that_raises_is_refused_in_its_own_words(template: str, words: str, render: Render) -> None:
    with pytest.raises(TemplateError, match="the chat template cannot be rendered") as refusal:
        render(template)
    assert words in str(refusal.value)
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize("template", ["{{ range(99999) | random }}", "{{ lipsum() }}"])
def test_a_template_that_draws_gives_the_same_prompt_again(template: str, render: Render) -> None:
    first = render(template)
    render("{{ range(9) | random }}")
    assert render(template) == first


def test_no_worker_is_left_behind() -> None:
    with Renderer() as made:
        made.render("x", [TURNS], variables={}, date="2026-01-31", header=True)
        process = made._process
        assert process is not None
        assert process.poll() is None
    assert process.poll() is not None
    made.close()  # twice is once


def test_a_worker_that_died_is_told_and_replaced() -> None:
    with Renderer() as made:
        made.render("x", [TURNS], variables={}, date="2026-01-31", header=True)
        assert made._process is not None
        made._process.kill()
        with pytest.raises(TemplateError, match="ended with exit code -9"):
            made.render("x", [TURNS], variables={}, date="2026-01-31", header=True)
        assert made.render("{{ messages[0].role }}", [TURNS], variables={}, date="2026-01-31", header=True) == ["user"]


def test_parts_reach_a_template_that_wants_them(renderer: Renderer) -> None:
    turns = [[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]]
    (text,) = renderer.render(PARTS, turns, variables={}, date="2026-01-31", header=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
