"""Which templates are proved to print texts and never to look into them. A wrong "yes" would let checks be skipped."""

from __future__ import annotations

import pytest
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError

from aloe.core.template import Template, marked_template, unmarked_template
from toys import CHATML, LLAMA3, THINKING

LOOP = "{% for m in messages %}<s>{{ m.role }}: BODY<e>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
PRINTING = {
    "as it is": "{{ m.content }}",
    "by name": "{{ m['content'] }}",
    "got": "{{ m.get('content') }}",
    "trimmed": "{{ m.content | trim }}",
    "stripped": "{{ m.content.strip() }}",
    "half stripped": "{{ 'x' + m.content.lstrip() }}",
    "in a variable": "{% set c = m.content %}{{ c }}",
    "joined": "{{ m.role ~ m.content ~ loop.index }}",
    "by role": "{% if m.role == 'user' %}{{ m.content }}{% else %}{{ m.content | trim }}{% endif %}",
    "if there is one": "{% if m.content is defined and m.content is not none and m.content != '' and m.content %}{{ m.content }}{% endif %}",
    "or nothing": "{{ m.content or '' }}",
    "if no tools": "{% if 'tool_calls' in m and m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ m.content }}",
    "of the neighbour": "{{ loop.previtem.role if loop.previtem }}{{ m.content }}",
    "counted turns": "{{ messages | length }}{{ m.content }}",
    "the first": "{% set first = messages[0].content if messages[0].role == 'system' else '' %}{% if first %}{{ first }}{% endif %}{{ m.content }}",
    "a flag": "{% set f = namespace(n=0) %}{% if m.role == 'user' %}{% set f.n = f.n + 1 %}{% endif %}{{ f.n }}{{ m.content }}",
    "skipping": "{% if m.role == 'tool' %}{% continue %}{% endif %}{{ m.content }}",
}
LOOKING = {
    "searched": "{% if 'x' in m.content %}{% else %}{{ m.content }}{% endif %}",
    "begins with": "{% if m.content.startswith('x') %}{% else %}{{ m.content }}{% endif %}",
    "compared": "{% if m.content == 'x' %}{% else %}{{ m.content }}{% endif %}",
    "compared with another": "{% if m.content == messages[0].content %}{% else %}{{ m.content }}{% endif %}",
    "ordered": "{% if m.content > 'x' %}{{ m.content }}{% endif %}",
    "measured": "{% if m.content | length < 9 %}{{ m.content }}{% endif %}",
    "cut": "{{ m.content[:9] }}",
    "first letter": "{{ m.content[0] }}",
    "parted": "{{ m.content.split('x')[-1] }}",
    "trimmed of letters": "{{ m.content.strip('x') }}",
    "trimmed of letters by filter": "{{ m.content | trim('x') }}",
    "replaced": "{{ m.content | replace('x', 'y') }}",
    "raised": "{{ m.content.upper() }}",
    "as JSON": "{{ m.content | tojson }}",
    "the message as JSON": "{{ m | tojson }}",
    "the message": "{{ m }}",
    "all messages": "{{ messages }}",
    "formatted": "{{ '%s' | format(m.content) }}",
    "formatted in place": "{{ '%s' % m.content }}",
    "repeated": "{{ m.content * 2 }}",
    "letter by letter": "{% for c in m.content %}{{ c }}{% endfor %}",
    "field by field": "{% for key in m %}{{ m[key] }}{% endfor %}",
    "values": "{% for value in m.values() %}{{ value }}{% endfor %}",
    "items": "{% set all = m.items %}{{ all() }}",
    "a computed field": "{% set key = 'con' + 'tent' %}{{ m[key] }}",
    "mapped": "{{ messages | map(attribute='content') | join }}",
    "chosen": "{{ (messages | selectattr('content') | first).content }}{{ m.content }}",
    "in a namespace": "{% set n = namespace(c='') %}{% set n.c = m.content %}{{ n.c[:3] }}",
    "made with a namespace": "{% set n = namespace(c=m.content) %}{{ n.c }}",
    "in a list": "{% set l = [m.content] %}{{ l[0][:3] }}",
    "in a dict": "{% set d = {'a': m.content} %}{{ d.a[:3] }}",
    "in a dict made": "{% set d = dict(a=m.content) %}{{ d.a[:3] }}",
    "joined, then measured": "{% if (m.role + m.content) | length < 9 %}{{ m.content }}{% endif %}",
    "concatenated, then searched": "{% if 'x' in (m.role ~ m.content) %}{% else %}{{ m.content }}{% endif %}",
    "in a variable, then searched": "{% set c = m.content %}{% if 'x' in c %}{% else %}{{ c }}{% endif %}",
    "in a variable of a later turn": "{% if c and 'x' in c %}{% else %}{{ m.content }}{% endif %}{% set c = m.content %}",
    "through a chain": "{% set a = m %}{% set b = a.content %}{% set c = b | trim %}{% if c[0] == 'x' %}{% else %}{{ c }}{% endif %}",
    "of the neighbour": "{% if loop.previtem and 'x' in loop.previtem.content %}{% else %}{{ m.content }}{% endif %}",
    "of the neighbour by name": "{% if loop['nextitem'] and loop['nextitem']['content'][0] == 'x' %}{% endif %}{{ m.content }}",
    "through a second loop": "{% set l = loop %}{% if l.nextitem and 'x' in l.nextitem.content %}{% endif %}{{ m.content }}",
    "changed": "{% if loop.changed(m.content) %}{{ m.content }}{% endif %}",
    "in a macro": "{% macro say(c) %}{{ c[:9] }}{% endmacro %}{{ say(m.content) }}",
    "in a macro that reads": "{% macro say() %}{{ messages[0].content[:9] }}{% endmacro %}{{ say() }}{{ m.content }}",
    "captured": "{% set c %}{{ m.content }}{% endset %}{{ c[:9] }}",
    "filtered as a block": "{% filter upper %}{{ m.content }}{% endfilter %}",
    "by a test": "{% if m.content is in ['x'] %}{% else %}{{ m.content }}{% endif %}",
    "by a test of letters": "{% if m.content is lower %}{{ m.content }}{% endif %}",
    "raised as an error": "{{ raise_exception(m.content) }}",
    "as a bound": "{{ range(m.content) }}",
    "or a message": "{{ (m.content or m) }}",
    "conditionally": "{{ m.content if 'x' not in m.content else '' }}",
    "of a renamed list": "{% set messages = messages | map(attribute='content') %}{{ m.content }}",
    "by a call": "{% call(x) loop.cycle() %}{{ m.content }}{% endcall %}",
    "with": "{% with c = m.content %}{{ c[:9] }}{% endwith %}",
    "a tuple": "{% set a, b = m.content, 1 %}{{ a[:9] }}",
}


@pytest.mark.parametrize("name", PRINTING)
def test_a_template_that_prints_texts_is_proved_to(name: str) -> None:
    assert Template(LOOP.replace("BODY", PRINTING[name]), {}).prints_only


@pytest.mark.parametrize("name", LOOKING)
def test_a_template_that_looks_into_a_text_is_never_taken_for_one_that_prints(name: str) -> None:
    assert not Template(LOOP.replace("BODY", LOOKING[name]), {}).prints_only


@pytest.mark.parametrize("template", [CHATML, LLAMA3])
def test_the_common_templates_print(template: str) -> None:
    assert Template(unmarked_template(template), {"bos_token": "<s>"}).prints_only
    marked = marked_template(template)
    assert marked is None or Template(marked, {"bos_token": "<s>"}).prints_only


def test_a_thinking_template_looks_for_tags() -> None:
    assert not Template(unmarked_template(THINKING), {}).prints_only


def test_a_template_that_writes_our_placeholders_is_not_believed() -> None:
    assert not Template(LOOP.replace("BODY", "{{ m.content }}\ue0a2"), {}).prints_only


def test_templates_are_sandboxed() -> None:
    for body in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% set n = namespace() %}{% set n.__class__ = 1 %}"):
        with pytest.raises((SecurityError, TemplateError)):
            Template(body, {}).render([{"role": "user", "content": "a"}], None, False)
    with pytest.raises(SecurityError):
        Template("{% set n = namespace(_x=1) %}", {}).render([], None, False)
