"""`ttc search --policy openai:...`: rows, the closing line, resuming, and what is refused before anything is asked."""

import pytest

from engine.results import journal_path, read_results, read_rows
from tests.cli.conftest import assert_refused
from tests.remote.server import refuses

PROBLEMS = "?3?5?=a", "d1?2?", "f0?1?4?"


@pytest.fixture
def bare(server, tmp_path) -> list[object]:
    """A search by no strategy in particular."""
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(f'{{"problem": "{text}", "answer": "60"}}\n' for text in PROBLEMS))
    options = ["--policy", server.name, "--max-tokens", 16, "--num-blocks", 256]
    return ["search", file, "--out", tmp_path / "rows.jsonl", *options]


@pytest.fixture
def arguments(bare, folders) -> list[object]:
    return [*bare, "--strategy", "best-of-n", "--budget", 2, "--prm", folders["prm"]]


def test_rows_and_the_closing_line_say_what_is_counted(ttc, server, arguments, tmp_path):
    outcome = ttc(*arguments)
    assert outcome.status == 0, outcome.err
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["estimated"] for row in rows] == [["flops.generated", "flops.prefilled"]] * 3
    assert sum(row["ledger"]["tokens"]["generated"] for row in rows) == sum(
        map(sum, (r["completion_tokens"] for r in rows))
    )
    said = "not counted by the endpoint, so estimated or 0: flops.generated flops.prefilled, "
    assert said in outcome.last_line
    reported = ttc("report", tmp_path / "rows.jsonl", "--out", tmp_path / "report.html")
    assert f"3 rows, {said.removesuffix(', ')}: " in reported.last_line
    assert "flops.generated, flops.prefilled" in (tmp_path / "report.html").read_text()


def test_rows_of_models_here_say_nothing_of_it(ttc, folders, arguments, tmp_path):
    outcome = ttc(*arguments, "--policy", folders["policy"])
    assert outcome.status == 0, outcome.err
    assert all("estimated" not in row for row in read_rows(tmp_path / "rows.jsonl"))
    assert "estimated" not in outcome.out


def test_a_run_that_broke_off_goes_on(ttc, server, arguments, tmp_path):
    want = ttc(*arguments, "--out", tmp_path / "whole.jsonl")
    assert want.status == 0, want.err
    server.faults.extend([None] * 5 + [refuses(401)])  # the list of models, two answers each of two problems
    broken = ttc(*arguments, "--max-batch", 1)
    assert broken.status == 2
    assert broken.err.endswith("wants a key: set OPENAI_API_KEY (401)\n")
    before = len(server.asked)
    outcome = ttc(*arguments)
    assert outcome.status == 0, outcome.err
    assert ", resumed 2: " in outcome.last_line
    assert len(server.asked) - before == 2, "what is done is not asked again"
    assert (tmp_path / "rows.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_run_is_known_by_the_url_and_the_model_without_what_is_secret(
    ttc, server, arguments, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    outcome = ttc(*arguments, "--policy", server.name.replace("//", "//me:hidden@"))
    assert outcome.status == 0, outcome.err
    held = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()).decode()
    assert server.name in journal_path(tmp_path / "rows.jsonl").read_text()
    assert not any(secret in held + outcome.out + outcome.err for secret in ("sesame", "hidden"))
    assert ", resumed 3: " in ttc(*arguments).last_line
    server.model_fields = {"id": "other"}
    assert_refused(ttc(*arguments, "--policy", f"openai:{server.url}"), "another configuration")


def test_a_prompt_over_the_context_is_a_row(ttc, server, arguments, tmp_path):
    server.faults.extend([None, refuses(400, "too long")])
    outcome = ttc(*arguments, "--on-error", "row", "--max-batch", 1)
    assert outcome.status == 0, outcome.err
    results, errors = read_results(tmp_path / "rows.jsonl")
    assert (len(results), len(errors)) == (2, 1)
    assert errors[0]["error"].endswith("refuses a request (400): too long")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--strategy beam", "strategy 'beam' forks answers after each step"),
        ("--strategy dvts", "strategy 'dvts' forks"),
        ("--strategy compute-optimal", "'compute-optimal' with predictor 'probe' reads the policy's hidden state"),
        ("--strategy revisions --verifier orm --orm home", "got 'plain'"),
        ("--strategy best-of-n --verifier trunk", "--verifier trunk is a head on the policy's trunk"),
        ("--strategy best-of-n", "needs --prm"),
        ("--strategy majority --tensor-parallel 2", "tensor_parallel"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused_before_it_is_asked(ttc, server, bare, options, said):
    assert_refused(ttc(*bare, *options.split()), said)
    assert not server.asked


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("rollouts", "an endpoint can only be the policy of a search"),
        ("calibrate", "FLOPs, which --policy openai:... does not tell"),
        ("serve", "a server samples with a policy that it has loaded"),
    ],
)
def test_other_commands_need_a_policy_here(ttc, server, command, said, tmp_path):
    assert_refused(ttc(command, "--policy", server.name), said)
    assert not server.asked
