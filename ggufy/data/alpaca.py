"""Stanford Alpaca's prompts as a chat template, for bases that have none."""

from __future__ import annotations

from ggufy.data.rows.formats import ALPACA_INPUT

# Further turns follow in the same way; a system turn takes the place of the first line.
ALPACA = """\
{%- set ns = namespace(turns=messages, head="") %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.head = messages[0]['content'] | trim %}
    {%- set ns.turns = messages[1:] %}
{%- elif INPUT in messages[0]['content'] %}
    {%- set ns.head = "Below is an instruction that describes a task, paired with an input that provides" %}
    {%- set ns.head = ns.head + " further context. Write a response that appropriately completes the request." %}
{%- else %}
    {%- set ns.head = "Below is an instruction that describes a task." %}
    {%- set ns.head = ns.head + " Write a response that appropriately completes the request." %}
{%- endif %}
{{- ns.head }}
{%- for message in ns.turns %}
    {%- if message['role'] == 'user' %}
        {{- "\\n\\n### Instruction:\\n" + message['content'] | trim + "\\n\\n" }}
    {%- else %}
        {{- "### Response:\\n" + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "### Response:\\n" }}
{%- endif %}
""".replace("INPUT", repr(ALPACA_INPUT))
