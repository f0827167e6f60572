"""Chat templates in the manner of well-known models, for engines that render what a request brings."""

# Tools, tool calls, results, reasoning and template variables, as in Qwen 3.
TOOLS = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content is string %}
            {{- '<think>' + message.reasoning_content + '</think>' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{{- call | tojson }}
        {%- endfor %}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>' + content + '</tool_response>' + message.tool_call_id }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- for document in documents or [] %}{{- document | tojson }}{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
    {{- reasoning_effort }}
{%- endif %}
"""

# Contents as lists of parts, and everything of a message in the text.
PARTS = """
{{- bos_token }}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['content'] is string %}{{- message['content'] | trim }}
    {%- else %}
        {%- for part in message['content'] %}{{- part['text'] }}{{- part | tojson }}{%- endfor %}
    {%- endif %}
    {{- message | tojson }}<|im_end|>
{% endfor %}
{%- if tools is not none %}{{- tools | tojson(indent=2) }}{%- endif %}
"""

# A template with the role of developers, loop controls and a macro that is given the content.
DEVELOPER = """
{%- macro show(parts, mark) %}
    {%- if parts is string %}{{- mark + parts }}
    {%- else %}{%- for part in parts %}{{- mark + part.text }}{%- endfor %}{%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- if loop.index > 20 %}{% break %}{% endif %}
    {%- if message.role == 'developer' %}{{- show(message.content, 'dev: ') }}{{- message.tools }}
    {%- elif message.role == 'assistant' %}{% generation %}{{- show(message.content, 'a: ') }}{% endgeneration %}
    {%- else %}{{- show(mark=message.role, parts=message.content) }}{%- endif %}
    {{- eos_token }}
{%- endfor %}
"""

ALL = {"tools": TOOLS, "parts": PARTS, "developer": DEVELOPER}
