# SPDX-License-Identifier: Apache-2.0
#
# Writes goldens.json: what jinja2, with the settings that Hugging Face transformers uses for chat
# templates, makes of the templates below. Run it in this folder after a change of them:
#   pip install jinja2 && python3 make_goldens.py
# If NIBBLE_TEST_DATA names the folder of reference data, also writes model_goldens.json: what becomes
# of some conversations with the templates of real models, which stay in that folder.
import datetime
import json
import os

import jinja2
from jinja2 import ext, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_run"), [], [], body).set_lineno(line)

    def _run(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def strftime_now(format):
    return datetime.datetime(2024, 7, 6, 15, 4, 5).strftime(format)


def environment():
    result = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                           extensions=[Generation, ext.loopcontrols])
    result.filters["tojson"] = tojson
    result.globals["raise_exception"] = raise_exception
    result.globals["strftime_now"] = strftime_now
    return result


VARIABLES = {
    "s": "Hello, Wörld", "empty": "", "spaced": " \t a b\n ", "n": 7, "x": 2.5, "yes": True,
    "nothing": None, "xs": [3, 1, 2], "words": ["pear", "Apple", "fig", "apple"],
    "d": {"b": 1, "a": [1, "two", None], "C": {"k": "v"}, "items": 5},
    "people": [{"name": "Ann", "age": 31, "tags": ["x"]}, {"name": "bob", "age": 25},
               {"name": "Cy", "age": 31, "address": {"city": "Rome"}}],
    "quotes": "it's \"so\"\\n", "odd": "a\u00a0b\u200b\x07 \U0001F600", "html": "<b>&amp;</b>",
    "messages": [{"role": "system", "content": " Be brief. "},
                 {"role": "user", "content": "Hi"},
                 {"role": "assistant", "content": "<think>\nwell\n</think>\n\nHello."},
                 {"role": "user", "content": "2 + 2?\n"}],
}

# Expressions: each is printed by a template of its own.
EXPRESSIONS = r"""
1 + 2 * 3 - 4
7 / 2
7 // 2, -7 // 2, 7 // -2, 7.5 // 2
7 % 3, -7 % 3, 7 % -3, 7.5 % 2
2 ** 10, 2 ** -1, 2 ** 0.5, (-1) ** 101
2 ** 3 ** 2
-n, +n, -x, - -n
1_000 + 1
0.1 + 0.2, 1e3, 1.5e-7, 1e22, 123456789.125, 1e16, 100.0
1 / 3
true, false, none, True, False, None
yes + 1, yes == 1, 1 == 1.0, '1' == 1
s ~ n ~ x ~ none ~ yes ~ missing
s + '!' , 'ab' * 3, 3 * 'ab', [1] * 2, [1] + [2], (1,) + (2,)
'a' 'b' "c"
'\n\t\\\'\"\x41\u00e9\U0001F600\101\q'
1 < 2 < 3, 1 < 3 < 2, 1 == 1 != 2
'a' < 'b', [1, 2] < [1, 3], 'Z' < 'a'
1 in xs, 9 in xs, 9 not in xs, 'ell' in s, 'b' in d, 'zz' in d, '' in s
not yes, not empty, not nothing, not xs
yes and n, empty and n, empty or n, nothing or empty, n or missing.x
n if yes else x, n if not yes else x, n if not yes
(1 if yes else 2) if not yes else 3
[], [1], [1, 'a', none, true, 2.5, "it's"], {}, {'a': 1, 2: [3]}, (), (1,), (1, 2)
[1, 2,], {'a': 1,}
{'a': 1, 'a': 2}
quotes, [quotes], [odd], [s]
s[0], s[-1], s[7], s[99], xs[0], xs[-1], xs[99], d['b'], d['zz'], d.zz
s[1:4], s[:2], s[-3:], s[::-1], s[::2], s[4:1:-1], s[99:], s[-99:3], s[7:9]
xs[1:], xs[:-1], xs[::-1], xs[::2], xs[-2:], xs[5:], xs[:], xs[::-2]
messages[0].content, messages[-1]['role'], messages[0]['content'][1:3]
d.items is defined, d['items'], d.get('items'), d.get('zz'), d.get('zz', 4), d.get('b', 4)
d.keys() | list, d.values() | list, d.items() | list
'heLLo 1'.upper(), s.lower(), 'hello world'.title(), 'hELLO'.capitalize(), "it's 2nd".title()
spaced.strip() ~ '|' ~ spaced.lstrip() ~ '|' ~ spaced.rstrip() ~ '|'
'xxaxbxx'.strip('x'), 'abcHIcba'.lstrip('abc'), 'abcHIcba'.rstrip('abc'), 'äöä'.strip('ä')
'a,b,,c'.split(','), 'a,b,,c'.split(',', 1), ' a  b '.split(), ' a  b c '.split(none, 1)
'a,b,,c'.rsplit(',', 1), 'a--b--c'.split('--')[-1], ''.split(','), ''.split(), 'abc'.split('x')
'</think>' in messages[2].content, messages[2].content.split('</think>')[-1].lstrip('\n')
messages[2].content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n')
s.startswith('Hell'), s.endswith('ld'), s.startswith(('x', 'H')), s.endswith('x')
'aXbXc'.replace('X', '--'), 'aXbXc'.replace('X', '', 1), 'abc'.replace('', '-')
s.find('W'), s.find('r'), s.find('zz'), s.rfind('l'), s.count('l'), s.index('W')
', '.join(['a', 'b']), ''.join([]), '-'.join('abc')
'12'.isdigit(), '1a'.isdigit(), ''.isdigit(), 'ab'.isalpha(), ' '.isspace(), 'a1'.isalnum()
'äß你'.isalpha(), 'a\u0301'.isalpha(), '٣'.isdigit(), '½a'.isalnum(), '\u3000\x1f'.isspace(), ['\u00ad\u200b\u2028\ue000\U000e0001\u0378é½']
'ab'.isupper(), 'AB'.isupper(), 'ab'.islower(), 'prefix-x'.removeprefix('prefix-')
'a\nb\r\nc'.splitlines(), xs.count(1), 'aa'.count('a')
s | length, xs | length, d | length, empty | count, missing | length
spaced | trim, '  x ' | trim | upper, 'xxaxx' | trim('x'), n | trim
'hello big-world (x)' | title, 'hELLO wORLD' | capitalize, html | upper
missing | default('x'), empty | default('x'), empty | default('x', true), nothing | default('x')
missing | d(1), none | default('x', boolean=true), n | default(0)
xs | join, xs | join(', '), people | join('+', attribute='name'), 'abc' | join('.')
xs | first, xs | last, [] | first, s | first, s | last
xs | sort, xs | sort(reverse=true), words | sort, words | sort(case_sensitive=true)
people | sort(attribute='age') | map(attribute='name') | list
d | dictsort, d | dictsort(true), {'x': 2, 'y': 1} | dictsort(by='value', reverse=true)
words | unique | list, words | unique(true) | list, xs | reverse | list, 'abc' | reverse
people | map(attribute='name') | list, people | map(attribute='address.city', default='-') | list
words | map('upper') | list, words | map('replace', 'p', 'q') | join(' ')
people | selectattr('age', 'equalto', 31) | map(attribute='name') | list
people | selectattr('tags') | list | length, people | selectattr('tags', 'defined') | list
people | rejectattr('age', 'gt', 30) | list, xs | select('odd') | list, xs | reject('odd') | list
xs | select('in', [1, 2]) | list, words | select('equalto', 'fig') | first, [0, 1] | select | list
messages | selectattr('role', '==', 'user') | map(attribute='content') | list
d | items | list, missing | items | list, d | list, s | list, none | string, x | string | length
'42' | int, '4.7' | int, 'x' | int, 'x' | int(5), 2.9 | int, -2.9 | int, true | int, ' 42 ' | int
'2.5' | float, 'x' | float, 'x' | float(1.5), 3 | float, '1e3' | float
-5 | abs, -2.5 | abs, 2.567 | round(2), 2.5 | round, 3.5 | round, 2.1 | round(0, 'ceil')
2.9 | round(method='floor'), 25 | round, xs | sum, [1.5, 2] | sum, xs | min, xs | max, [] | max
'a\nb\n\nc' | indent, 'a\nb' | indent(2, true), 'a\n\nb' | indent(2, blank=true), 'a\nb' | indent('> ')
'aab' | replace('a', 'x'), 'aab' | replace('a', 'x', 1), 12 | replace('1', 'x')
d | tojson, xs | tojson, s | tojson, quotes | tojson, odd | tojson, none | tojson, x | tojson
d | tojson(indent=2)
d | tojson(indent=4, ensure_ascii=true), {} | tojson(indent=2), [] | tojson(indent=2)
s | tojson(ensure_ascii=true), odd | tojson(ensure_ascii=true), html | tojson
d | tojson(separators=(',', ':')), d | tojson(sort_keys=true), {1: 2, none: 3, true: 4} | tojson
html | safe
missing is defined, n is defined, missing is undefined, nothing is none, n is none
s is string, n is string, n is number, x is number, yes is number, s is number
n is integer, x is integer, yes is integer, x is float, yes is boolean, n is boolean
yes is true, n is true, false is false, d is mapping, xs is mapping
xs is sequence, s is sequence, d is sequence, n is sequence, missing is sequence
xs is iterable, s is iterable, d is iterable, n is iterable, none is iterable
n is odd, n is even, 8 is even, 8 is divisibleby 4, 8 is divisibleby(3)
n is in [7], n is not in [7], n is eq 7, n is ne(7), n is gt 6, n is lt 6, n is ge 7, n is le 6
n is sameas 7, s is lower, 'abc' is lower, 'ABC' is upper, n is not defined
none is not none and n is defined or false
range(3) | list, range(1, 4) | list, range(5, 0, -2) | list, range(0) | list
dict(a=1, b=2), namespace(a=1).a
strftime_now('%Y-%m-%d'), strftime_now('%d %b %Y'), strftime_now('%A, %B %d, %Y %H:%M:%S %j %p %I %y')
strftime_now('%-d %B %Y')
(xs | map('string') | list) is sequence, (xs | map('string')) is sequence
xs | map('string') and 'always', [] | select and 'always'
missing ~ '', [missing is defined], missing == missing2, missing == none
n.x is defined, s.x is defined, none.x is defined, xs.x is defined, d.C.k, d['C']['k'], d.C['zz']
xs.0, people.1.name
(messages | last).content | trim, (messages[1:] | first).role
1 if n > 5 and x < 3 or nothing else 2
'a' if 'b' == 'c' else 'd' if yes else 'e'
[1, 2] == [1, 2], [1, 2] == (1, 2), {'a': 1} == {'a': 1.0}, d == d
n | string | length + 1
-n | abs, (-n) | abs
{'a': {'b': {'c': [1]}}}.a.b.c[0]
words | map('length') | sum, words | map('first') | join
'0x1f' | int(base=16), '1f' | int(0, 16), 'z' | int(base=36), '0b11' | int(0, 0), '11' | int(base=2), 'x' | int(7, 16), '2.5' | int(base=16)
'9007199254740993' | int, '-9223372036854775808' | int, ' +1_000 ' | int, '1__0' | int, '_1' | int, '1e3' | int, '0o17' | int(base=8), '012' | int, '012' | int(base=0)
'.5' | float, '5.' | float, '1_0.5' | float, 'inf' | float, '-Infinity' | float, 'nan' | float, '1e999' | float, '.' | float, '1e' | float, '--1' | float
'inf' | int, 'nan' | int(3), [] | int(4), none | int, 'inf' | float == 'inf' | float
[9007199254740992, 1] | sum, [9007199254740993, 2, 4] | sum, [true, 2] | sum
people | sum(attribute='age'), people | sum('age', 100), [[1], [2, 3]] | sum(start=[]), [1, 2] | sum(start=0.5), [] | sum(start=3)
people | max(attribute='age'), people | min(attribute='name'), ['a', 'B'] | max, ['a', 'B'] | min, ['a', 'B'] | max(true), ['a', 'B'] | min(case_sensitive=true)
['a', 'A'] | max, ['A', 'a'] | max, ['a', 'A'] | min, [2, 1, 2.0] | max, [1.0, 1] | min
people | sort(attribute='age,name') | map(attribute='name') | list, people | sort(true, true, 'age,name') | map(attribute='name') | list
people | join(',', 'name'), xs | join(',', none), xs | sort(attribute=none), xs | sum(none)
people | map(attribute='zz', default=none) | list, people | map(attribute='zz', default=0) | list
'nan' | float == 'nan' | float, 'nan' | float != 'nan' | float, 'nan' | float < 1, 'nan' | float >= 1, 1 <= 'nan' | float, [1, 'nan' | float] < [1, 2], 'nan' | float is eq(1)
[1, 'nan' | float] | max, ['nan' | float, 1] | max, ['nan' | float, 1] | min
-yes, +yes, -2.5, - -n
[[1, 2], [3]] | map('map', 'string') | map('list') | list, [['a']] | map('map', 'upper') | map('join') | join
"%" ~ "{{ }}" ~ '{% x %}'
"""

# Whole templates.
TEMPLATES = {
    "white space": "a\n  {% if true %}\n  b\n  {% endif %}\n  c {# x #}\n  {# y #}\nd  {%- if true %} e {% endif -%}\n\n f\n\t{%+ if true %}\n g{% endif +%}\nh\n",
    "trimmed prints": "a  {{- 1 -}}  b {{ 2 }} c\n{{ 3 }}\n  {{ 4 }}\n",
    "line breaks": "a\r\nb\rc\n{% if true %}\r\nd\r\n{% endif %}e\r\n\r\n",
    "one line break at the end": "x\n\n",
    "raw": "{% raw %}\n {{ x }} {% if %} {% endraw %}\n{%- raw -%} a {%- endraw -%} b {%raw%}{{{%endraw%}",
    "comments": "a{# {{ x }} {% if %} #}b{#- c -#} d {#-#} e {# f -#}\n g{#\n\n#}\nh",
    "braces": "{{ {'a': {'b': 1}}.a.b }}{{'}}'}}{{ \"{{\" }} { % } {x}",
    "elif": "{% for i in range(4) %}{% if i == 0 %}a{% elif i == 1 %}b{% elif i == 2 %}c{% else %}d{% endif %}{% endfor %}",
    "loop variables": "{% for i in xs %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('x', 'y') }};{% endfor %}",
    "loop over": "{% for c in 'añ' %}{{ c }},{% endfor %}{% for k in d %}{{ k }},{% endfor %}{% for k, v in d.items() %}{{ k }}={{ v }},{% endfor %}{% for x in missing %}x{% endfor %}{% for (a, b) in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}",
    "loop with condition": "{% for i in range(10) if i is odd and i != 5 %}{{ i }}{{ ',' if not loop.last }}{% else %}none{% endfor %}{% for i in xs if i > 9 %}{{ i }}{% else %}none{% endfor %}",
    "loop else": "{% for i in [] %}x{% else %}empty{% endfor %}{% for i in [1] %}{% break %}{% else %}empty{% endfor %}{% for i in [1, 2] %}{% if loop.last %}{% break %}{% endif %}{% else %}empty{% endfor %}",
    "break and continue": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% for j in range(3) %}{% if j == 1 %}{% break %}{% endif %}.{% endfor %}{% endfor %}",
    "scopes": "{% set a = 1 %}{% for i in [1, 2] %}{{ a }}{% set a = a + 1 %}{{ a }}{% endfor %}{{ a }}{% if true %}{% set a = 9 %}{% endif %}{{ a }}{% for i in [1] %}{% set b = 1 %}{% endfor %}{{ b is defined }}{{ i is defined }}",
    "nested loops": "{% for i in [1, 2] %}{% for j in [1, 2] %}{{ loop.index }}{{ i }}{{ j }} {% endfor %}{{ loop.index }};{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, found=false) %}{% for i in xs %}{% set ns.n = ns.n + i %}{% set ns.new = i %}{% endfor %}{{ ns.n }}{{ ns.new }}{{ ns.found }}{{ ns.zz is defined }}{{ ns['n'] }}",
    "set": "{% set a, b = 1, 'two' %}{{ a }}{{ b }}{% set c = 1, 2 %}{{ c }}{% set t %} block {{ a }} {% endset %}[{{ t }}]{% set u | upper | trim %} x {{ b }} {% endset %}[{{ u }}]{% set ns = namespace() %}{% set ns.x %}y{% endset %}{{ ns.x }}",
    "macro": "{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c=4) }}{{ m(a=5, b=6) }}{{ m() }}{{ m(1) | upper | length }}",
    "macro scopes": "{% set g = 1 %}{% macro m(x) %}{{ g }}{{ x }}{{ i is defined }}{% set g = 7 %}{{ g }}{% endmacro %}{% for i in [1, 2] %}{{ m(i) }}{% endfor %}{% set g = 5 %}{{ m(0) }}{{ g }}",
    "macro recursion": "{% macro tree(v, depth) %}{% if v is mapping %}{% for k, w in v | dictsort %}{{ '  ' * depth }}{{ k }}:\n{{ tree(w, depth + 1) }}{% endfor %}{% elif v is sequence and v is not string %}{% for w in v %}{{ tree(w, depth) }}{% endfor %}{% else %}{{ '  ' * depth }}{{ v }}\n{% endif %}{% endmacro %}{{ tree(d, 0) }}",
    "macro later": "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}b{% endmacro %}{{ a() }}",
    "macro in a loop": "{% set ns = namespace(f=none) %}{% for i in [1, 2] %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% if loop.first %}{% set ns.f = m %}{% endif %}{% endfor %}",
    "call": "{% macro box(title) %}<{{ title }}>{{ caller() }}</>{% endmacro %}{% call box('t') %}in{{ n }}{% endcall %}{% macro each(xs) %}{% for x in xs %}{{ caller(x, loop.index) }}{% endfor %}{% endmacro %}{% call(x, i) each(xs) %}{{ i }}:{{ x }} {% endcall %}",
    "filter block": "{% filter upper %}a{{ d.C.k }}{% endfilter %}{% filter replace('a', 'b') | trim %} aa {% endfilter %}",
    "generation": "a{% generation %}\nb{{ n }}{% set z = 1 %}{% endgeneration %}\nc{{ z is defined }}",
    "refused": "{{ raise_exception('roles must alternate') }}",
    "undefined attribute": "{{ missing.x }}",
    "undefined sum": "{{ 'a' + missing }}",
    "undefined call": "{{ missing() }}",
    "no such method": "{{ s.nope() }}",
    "no such filter": "{{ s | nope }}",
    "no such test": "{{ s is nope }}",
    "not iterable": "{% for x in 5 %}{% endfor %}",
    "wrong types": "{{ 1 + 'a' }}",
    "no order": "{{ 1 < 'a' }}",
    "division by zero": "{{ 1 // 0 }}",
    "too few values": "{% for a, b in [(1,)] %}{% endfor %}",
    "lists do not change": "{% set xs = [1] %}{{ xs.append(2) }}",
    "no namespace": "{% set xs.x = 1 %}",
    "unknown argument": "{% macro m(a) %}{% endmacro %}{{ m(1, b=2) }}",
    "too many arguments": "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
    "a generator has no length": "{{ xs | map('string') | length }}",
    "json of undefined": "{{ missing | tojson }}",
    "no sign of a string": "{{ -'abc' }}",
    "no sign of a list": "{{ -[1] }}",
    "a filter with an unknown argument": "{{ s | upper(1) }}",
    "length with an argument": "{{ s | length(x=1) }}",
    "first with an argument": "{{ xs | first(1) }}",
    "sum with an unknown argument": "{{ xs | sum(by='x') }}",
    "max with an unknown argument": "{{ xs | max(key='x') }}",
    "no sum of strings": "{{ words | sum }}",
    "no sum of strings from a string": "{{ words | sum(start='') }}",
    "a method with too many arguments": "{{ s.upper(1) }}",
    "isdigit with an argument": "{{ s.isdigit(1) }}",
    "keys with an argument": "{{ d.keys(1) }}",
    "infinite int": "{{ 'inf' | float | int }}",
    "long range": "{{ range(10 ** 9) }}",
}


TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "The \"weather\" <now>",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "e.g. São Paulo"},
        "days": {"type": "integer", "default": 1.5}}, "required": ["city"]}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "call00001", "function": {
    "name": "get_weather", "arguments": {"city": "Paris", "days": 2}}}]}

# Conversations for the templates of models.
CONVERSATIONS = {
    "one turn": {"messages": [{"role": "user", "content": " Hi\n"}]},
    "turns": {"messages": [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Größe?"},
                           {"role": "assistant", "content": "1 m"}, {"role": "user", "content": "你好 🙂"}]},
    "no prompt": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                  "add_generation_prompt": False},
    "thoughts": {"messages": [{"role": "user", "content": "a"},
                              {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nb"},
                              {"role": "user", "content": "c"},
                              {"role": "assistant", "content": "d", "reasoning_content": "so"}]},
    "no thinking": {"messages": [{"role": "user", "content": "a"}], "enable_thinking": False},
    "tools": {"messages": [{"role": "system", "content": "Be nice."}, {"role": "user", "content": "Weather?"}], "tools": TOOLS},
    "tool call": {"messages": [{"role": "user", "content": "Weather?"}, CALL,
                               {"role": "tool", "content": "21", "tool_call_id": "call00001", "name": "get_weather"}],
                  "tools": TOOLS},
    "refused": {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
}


def rendered(source, variables=VARIABLES):
    try:
        return {"text": environment().from_string(source).render(**json.loads(json.dumps(variables)))}
    except Exception:
        return {}  # an error


def main():
    cases = []
    for line in EXPRESSIONS.strip().split("\n"):
        source = "{{ " + line + " }}"
        cases.append({"name": line, "template": source, **rendered(source)})
    for name, source in TEMPLATES.items():
        cases.append({"name": name, "template": source, **rendered(source)})
    with open("goldens.json", "w", encoding="utf-8") as out:
        out.write('{"variables": ' + json.dumps(VARIABLES, ensure_ascii=False) + ",\n\"cases\": [\n")
        out.write(",\n".join(json.dumps(case, ensure_ascii=False) for case in cases))
        out.write("\n]}\n")

    data = os.environ.get("NIBBLE_TEST_DATA")
    if not data:
        return
    cases = []
    for model in ["gemma3", "llama3_1", "qwen3"]:
        path = os.path.join(data, "tokenizers/hf", model, "tokenizer_config.json")
        source = json.load(open(path, encoding="utf-8"))["chat_template"]
        for name, conversation in CONVERSATIONS.items():
            variables = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, **conversation}
            cases.append({"model": model, "name": name, "variables": variables, **rendered(source, variables)})
    with open("model_goldens.json", "w", encoding="utf-8") as out:
        out.write("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]\n")


main()
