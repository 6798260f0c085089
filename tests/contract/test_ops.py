"""Alert rules, dashboard and runbooks: each metric is one that is served, each alert has its page.

That the page of metrics is what is served is held by tests/integration/test_http_metrics.py.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[2]
RULES: Final = ROOT / "ops" / "prometheus" / "alerts.yaml"
RULES_TEST: Final = RULES.with_name("alerts_test.yaml")
EXAMPLE: Final = RULES.with_name("prometheus.yaml")
DASHBOARD: Final = ROOT / "ops" / "grafana" / "holdfast.json"
METRICS_PAGE: Final = (ROOT / "docs" / "operating" / "metrics.md").read_text("utf-8")
ALERTS_PAGE: Final = (ROOT / "docs" / "operating" / "alerts.md").read_text("utf-8")

REQUIRE_PROMTOOL: Final = "HOLDFAST_REQUIRE_PROMTOOL"
"""Set where promtool must be there, so that a test that misses it fails and is not skipped."""

PROMTOOL_SECONDS: Final = 60.0

RUNBOOK_SECTIONS: Final = (
    "What it means",
    "How to look",
    "What to do",
    "How to know that it is over",
    "Followed once",
)

_METRIC: Final = re.compile(r"\bholdfast_[a-z_]+\b")
_DOCUMENTED: Final = re.compile(r"^\| `(holdfast_\w+)` \| (\w+) \|", re.MULTILINE)


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text("utf-8"))["panels"])


def expressions() -> Iterator[str]:
    """Yield what the dashboard asks, with its variables filled in as Grafana does."""
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    asked += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    for text in asked:
        yield text.replace("$__rate_interval", "1m").replace("$job", "holdfast")


def documented() -> set[str]:
    """Return the names of the series of every metric that is served."""
    names = set()
    for name, kind in _DOCUMENTED.findall(METRICS_PAGE):
        if kind == "histogram":
            names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
        else:
            names.add(name)
    return names


def promtool(*arguments: object) -> str:
    """Run promtool; return what it said. Skips where there is none, unless there must be."""
    found = shutil.which("promtool")
    if found is None:
        if not os.environ.get(REQUIRE_PROMTOOL):
            pytest.skip("no promtool on PATH; Debian's package prometheus has it")
        pytest.fail("no promtool on PATH")
    done = subprocess.run(
        [found, *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        timeout=PROMTOOL_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_finds_no_fault_in_the_rules_and_the_example() -> None:
    assert f"{len(rules())} rules found" in promtool(
        "check", "rules", "--lint=all", "--lint-fatal", RULES
    )
    promtool("check", "config", "--lint=all", "--lint-fatal", "--syntax-only", EXAMPLE)


def test_the_unit_tests_of_the_rules_pass() -> None:
    promtool("test", "rules", RULES_TEST)


def test_the_unit_tests_of_the_rules_can_fail(tmp_path: Path) -> None:
    shutil.copy(RULES_TEST, tmp_path)
    text = RULES.read_text("utf-8")
    for rule in rules():
        # An alert that never fires: its own test must notice.
        (tmp_path / RULES.name).write_text(
            text.replace(f"expr: {rule['expr']}\n", "expr: vector(1) > 2\n"), "utf-8"
        )
        if rule["expr"] not in text:
            continue
        with pytest.raises(AssertionError, match=rule["alert"]):
            promtool("test", "rules", tmp_path / RULES_TEST.name)


def test_each_alert_says_what_is_wrong_and_where_to_read_on() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert {"summary", "description", "runbook_url"} == set(rule["annotations"]), rule["alert"]
        page = ROOT / rule["annotations"]["runbook_url"]
        text = page.read_text("utf-8")
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert tuple(headings) == RUNBOOK_SECTIONS, page
        assert f"`{rule['alert']}`" in text, page
        assert f"| `{rule['alert']}` |" in ALERTS_PAGE
        assert page.name in ALERTS_PAGE
    named = re.findall(r"^\| `(Holdfast\w+)` \|", ALERTS_PAGE, re.MULTILINE)
    assert named == [rule["alert"] for rule in rules()]


def test_rules_and_dashboard_ask_for_nothing_that_is_not_served() -> None:
    asked = {name for rule in rules() for name in _METRIC.findall(rule["expr"])}
    asked |= {name for text in expressions() for name in _METRIC.findall(text)}
    assert asked <= documented()
    series = yaml.safe_load(RULES_TEST.read_text("utf-8"))["tests"]
    given = {
        name
        for one in series
        for put in one["input_series"]
        for name in _METRIC.findall(put["series"])
    }
    assert given <= documented()


def test_the_dashboards_questions_are_promql(tmp_path: Path) -> None:
    recorded = [
        {"record": f"asked:{number}", "expr": text} for number, text in enumerate(expressions())
    ]
    file = tmp_path / "asked.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": recorded}]}), "utf-8")
    assert f"{len(recorded)} rules found" in promtool("check", "rules", file)


def test_the_dashboards_panels_have_a_place_of_their_own() -> None:
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"], panel["title"]
            assert panel["targets"], panel["title"]
