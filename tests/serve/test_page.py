"""The page for people. What it looks like was looked at; here it is one file, filled in, that needs nothing else."""

import json
import re

from engine.serve.asked import Models
from engine.serve.page import make_page
from engine.tasks import get_task

from .builders import call


def test_it_is_one_file(server):
    status, page, headers = call(server, "GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    links = re.findall(r"""(?:src|href|url|import|fetch)\s*[=(]?\s*["']([^"']+)""", page)
    assert links == ["data:,", "v1/chat/completions"]
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "<!--" not in page
    assert 'const MODEL = "home";' in page
    assert "<option selected>beam</option>" in page
    assert "<option>revisions</option>" in page
    assert re.search(r"<textarea[^>]*>\S*\?", page), "an example of the task"


def test_names_are_quoted(home):
    page = make_page(Models(home, '</script>"&', "home"), get_task("math"))
    assert page.count("</script>") == 1
    assert json.loads(re.search(r"const MODEL = (.*);", page)[1]) == '</script>"&'
    assert '"problem" required spellcheck="false"></textarea>' in page
