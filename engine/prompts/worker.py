"""Renders chat templates in a separate process, with limits on processor time, memory and output.

A template comes with a checkpoint, which may come from anywhere. The sandbox keeps it from running code, but not
from looping or growing. The script is run by path and imports nothing of the package, since torch takes seconds.

One JSON object per line: `{"source", "variables"}` in, `{"text"}` or `{"error"}` out; `{"ready"}` comes first.
"""

import datetime
import json
import resource
import signal
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

MAX_SECONDS = 2.0  # of processor time, per request
MAX_BYTES = 512 << 20  # of memory
MAX_CHARACTERS = 1 << 20  # of output
TODAY = datetime.date(2024, 7, 26)  # Llama's own default: a prompt must not change from one day to the next


class Generation(jinja2.ext.Extension):
    """`{% generation %}` … `{% endgeneration %}`, which marks the assistant's text for training: the text itself."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def make_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """A sandbox that renders as transformers does, except for a fixed date."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: object) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    return environment


def render(environment: jinja2.Environment, templates: dict, request: dict) -> dict:
    """The reply to a request; `templates` caches compiled templates by their source."""
    source = request["source"]
    try:
        if source not in templates:
            templates[source] = environment.from_string(source)
        parts, length = [], 0
        for part in templates[source].generate(**request["variables"]):
            parts.append(part)
            length += len(part)
            if length > MAX_CHARACTERS:
                return {"error": f"it makes a text of more than {MAX_CHARACTERS} characters"}
        return {"text": "".join(parts)}
    except MemoryError:
        return {"error": f"it needs more than {MAX_BYTES >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "it is nested too deep"}
    except Exception as error:  # whatever a template can raise is the template's fault
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when its parent does
    environment, templates = make_environment(), {}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # its signal ends the process, even within C code
        answer = json.dumps(render(environment, templates, json.loads(line)))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
