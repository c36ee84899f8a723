from __future__ import annotations

import time

import pytest
from jinja2.exceptions import SecurityError

from dropless.text import template_sandbox
from dropless.text.template_sandbox import TemplateSandbox, render_bounded


def render(source: str, **variables: object) -> str:
    return render_bounded(TemplateSandbox().compile_template(source), variables)


DOUBLED = "{%% set ns = namespace(s='ab') %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ ns.s }}"

GROWING = {
    "product": "{{ 'a' * 10**10 }}",
    "sum": DOUBLED % "{% set ns.s = ns.s + ns.s %}",
    "concat": DOUBLED % "{% set ns.s = ns.s ~ ns.s %}",
    "block": DOUBLED % "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}",
    "lists": DOUBLED % "{% set ns.s = [ns.s, ns.s] %}",
    "constant": "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "replace": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "replace_method": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "join": "{{ range(100000) | join('a' * 1000000) }}",
    "join_method": "{{ ('a' * 1000000).join(['b'] * 1000000) }}",
    "indent": "{{ [1] | tojson(indent=10**9) }}",
    "integer": DOUBLED % "{% set ns.s = (ns.s | int + 7) ** 9 %}",
    "power": "{{ 10 ** 10000000000 }}",
    "width": "{{ '%9999999999d' % 1 }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
    "center": "{{ 'a'.center(10 ** 10) }}",
    "center_by_name": "{{ ('a' | attr('center'))(10 ** 10) }}",
}


@pytest.mark.parametrize("name", GROWING)
def test_no_template_eats_the_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_RENDERED_CHARS", 1 << 20)
    started = time.monotonic()
    with pytest.raises(SecurityError):
        render(GROWING[name])
    assert time.monotonic() - started < 5  # a runaway would take minutes


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macro": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_no_template_runs_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_RENDER_SECONDS", 0.1)
    with pytest.raises(SecurityError, match=r"longer than 0\.1 s"):
        render(ENDLESS[name])


@pytest.mark.parametrize(
    "source",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ ''.__init__.__globals__ }}"],
)
def test_no_way_out(source: str) -> None:
    with pytest.raises(SecurityError):
        render(source, messages=[])


D_JSON = '{"k": 1, "n": null}'


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for a in x %}{{ loop.index }}/{{ loop.length }}{{ a }} {% endfor %}", "1/2a 2/2b "),
        ("{% for a in x %}{% if loop.last %}{{ a }}{% endif %}{% endfor %}", "b"),
        ("{% for a in x %}{% if a == 'b' %}{% break %}{% endif %}{{ a }}{% endfor %}", "a"),
        ("{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "k=1;n=None;"),
        ("{{ x | join('-') }} {{ d | tojson }} {{ x[::-1] }}", "a-b " + D_JSON + " ['b', 'a']"),
        ("{{ '<é>' | tojson }} {{ ' a '.strip() ~ 1 ~ none }}", '"<é>" a1None'),
        ("{% generation %}g{% endgeneration %}{{ missing }}", "g"),
        ("{% set c = namespace(n=0) %}{% for a in x %}{% set c.n = 2 %}{% endfor %}{{ c.n }}", "2"),
        ("{% macro m(a, b='z') %}<{{ a }}{{ b }}>{% endmacro %}{{ m('q') }}", "<qz>"),
        ("  {% if true %}\n  y\n  {% endif %}\n", "  y\n"),
        ("{{ 'a' in x and 'a,b'.split(',') == x }}", "True"),
        ("{{ (x | selectattr('upper') | list | length) + x | map('upper') | list | length }}", "4"),
    ],
)  # fmt: skip
def test_ordinary_templates_work(source: str, text: str) -> None:
    assert render(source, x=["a", "b"], d={"k": 1, "n": None}) == text
