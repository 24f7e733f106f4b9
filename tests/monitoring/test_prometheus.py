"""`config/prometheus/` is about echod as it is: its rules, dashboard and scrape configuration hold of the real one."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode, urlsplit

import pytest
from ruamel.yaml import YAML

from tests.support.certificates import pem_file
from tests.support.harness import DEADLINE, LOCAL, Echod, read_all, read_exactly, reserved_port, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

SHIPPED = Path(__file__).parents[2] / "config" / "prometheus"
RULES = SHIPPED / "echod.rules.yml"
RULE_TESTS = SHIPPED / "echod.rules.test.yml"
SCRAPING = SHIPPED / "prometheus.yml"
DASHBOARD = SHIPPED / "echod-dashboard.json"

OF_THE_TARGET = {"job", "instance"}
"""Labels that Prometheus adds to whatever it scrapes."""
PROMETHEUS_OWN = {"up": OF_THE_TARGET, "ALERTS": OF_THE_TARGET | {"alertname", "alertstate", "severity", "reason"}}
"""What expressions may use that nobody exposes, and the labels it has."""
GRAFANA = {"$__rate_interval": "5m", "$__range": "1h", "$instance": ".*"}
"""What the dashboard's expressions have that is Grafana's, and what stands for it in a check."""

ON_HTTP = ["--admin.http", f"{LOCAL}:0"]
EVERYTHING = [*ON_HTTP, "--udp.port", "0", "--tls.port", "0", "--tls.certificate", pem_file()]


def needs(program: str) -> pytest.MarkDecorator:
    """Skip without a program that Debian has in its package `prometheus`."""
    return pytest.mark.skipif(not shutil.which(program), reason=f"no {program}; on Debian: apt install prometheus")


def promtool(*words: str | Path, standard_input: str = "") -> subprocess.CompletedProcess[str]:
    """Run promtool to its end."""
    return subprocess.run(
        ["promtool", *words],  # noqa: S607 - wherever it is installed
        input=standard_input,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def assert_good(result: subprocess.CompletedProcess[str]) -> None:
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr


# What is shipped


@functools.cache
def load(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text())


@functools.cache
def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def rules() -> list[dict[str, Any]]:
    return [rule for group in load(RULES)["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def identity(rule: dict[str, Any]) -> str:
    """Return what tells a rule from others: one name may have several severities and reasons."""
    return " ".join([rule.get("record") or rule["alert"], *rule.get("labels", {}).values()])


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels, rows and what is in them included."""
    return [panel for outer in dashboard()["panels"] for panel in (outer, *outer.get("panels", ()))]


def targets() -> list[tuple[str, dict[str, Any]]]:
    """Return the queries of the dashboard, each with the title of its panel."""
    return [(panel["title"], target) for panel in panels() for target in panel.get("targets", ())]


def without_grafana(expression: str) -> str:
    """Return a dashboard's expression as Grafana would send it."""
    for variable, value in GRAFANA.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def expressions() -> dict[str, str]:
    """Return every expression of the rules and of the dashboard, under what it belongs to."""
    found = {identity(rule): rule["expr"] for rule in rules()}
    found |= {f"{title} {target['refId']}": without_grafana(target["expr"]) for title, target in targets()}
    found |= {mark["name"]: mark["expr"] for mark in dashboard()["annotations"]["list"] if "expr" in mark}
    for variable in dashboard()["templating"]["list"]:
        if query := re.fullmatch(r"label_values\((.*), \w+\)", variable.get("definition", "")):
            found[f"${variable['name']}"] = query[1]
    return found


# What an expression asks for

_NO_SELECTOR = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)|\[[^]]*\]")
_KEYWORDS = {"and", "or", "unless", "bool", "offset"}
_SELECTOR = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?![\w:])(?!\s*\()(?:\s*\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')

Selector = tuple[str, dict[str, list[str]]]
"""The name of a metric in an expression, and the values that are asked of its labels."""


def selectors(expression: str) -> list[Selector]:
    """Return what an expression asks for: its names that are neither functions nor keywords nor labels."""
    return [
        (name, {label: value.split("|") for label, value in _MATCHER.findall(matchers)})
        for name, matchers in _SELECTOR.findall(_NO_SELECTOR.sub(" ", expression))
        if name not in _KEYWORDS
    ]


def test_what_an_expression_asks_for() -> None:
    """The tests below rest on this."""
    assert selectors('sum without (le) (rate(a:b:c{x="y|z", v=~".+"}[5m])) >= 1e3 and on (job) time() - up') == [
        ("a:b:c", {"x": ["y", "z"], "v": [".+"]}),
        ("up", {}),
    ]


# What echod exposes

Exposed = dict[str, list[dict[str, str]]]
"""The labels of each series, by its name."""


def scrape(daemon: Echod) -> str:
    """Return what the daemon answers to a scrape in the text format."""
    connection = http.client.HTTPConnection(admin(daemon), timeout=DEADLINE)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics", headers={"Accept": "text/plain; version=0.0.4"})
        response = connection.getresponse()
        text = response.read().decode()
    assert response.status == http.HTTPStatus.OK, text
    return text


def admin(daemon: Echod) -> str:
    """Return host and port of the admin server, by the log."""

    def found() -> list[str]:
        lines = daemon.events("admin.started")
        return [url.netloc for line in lines if (url := urlsplit(line["listener"])).scheme == "http"]

    until(found, what="admin.started for http")
    return found()[0]


@pytest.fixture(scope="module")
def exposition(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a scrape of an echod that has done a little of everything."""
    with Echod("[pool]\nsize = 1", directory=tmp_path_factory.mktemp("scrape"), flags=EVERYTHING) as daemon:
        assert daemon.echo(b"hello") == b"hello"
        daemon.wait_for("connection.closed")
        with daemon.connect() as only:
            only.sendall(b"x")
            assert read_exactly(only, 1) == b"x"
            with daemon.connect() as second:
                assert read_all(second) == b""
            return scrape(daemon)


@pytest.fixture(scope="module")
def exposed(exposition: str) -> Exposed:
    """Return the series of that scrape."""
    series: Exposed = {}
    for name, labels in re.findall(r"(?m)^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ", exposition):
        series.setdefault(name, []).append(dict(re.findall(r'(\w+)="([^"]*)"', labels)))
    return series


def missing(selector: Selector, exposed: Exposed) -> str:
    """Say what of a selector is neither exposed, recorded nor Prometheus' own."""
    name, labels = selector
    if name in PROMETHEUS_OWN:
        return f"{name} has no {unknown}" if (unknown := labels.keys() - PROMETHEUS_OWN[name]) else ""
    recorded = [rule["expr"] for rule in rules() if rule.get("record") == name]
    if recorded:  # its labels are those of what it was recorded from
        reports = [missing((source, labels), exposed) for source, _ in selectors(recorded[0])]
        return "; ".join(filter(None, reports))
    if name not in exposed:
        return f"no {name}"
    for label, values in labels.items():
        there = {_value(series[label]) for series in exposed[name] if label in series}
        wanted = {_value(value) for value in values}
        if label not in OF_THE_TARGET and not wanted <= there:
            return f"{name} has no {label} {', '.join(map(str, wanted - there))}"
    return ""


def _value(label: str) -> str | float:
    """Return a bucket's bound as a number: there is more than one way to write it."""
    try:
        return float(label)
    except ValueError:
        return label


def test_expressions_ask_for_what_echod_exposes(exposed: Exposed) -> None:
    """Every name in a rule or on the dashboard is a metric of a real scrape or recorded by a rule, with such labels."""
    wrong = {
        where: reports
        for where, expression in expressions().items()
        if (reports := [report for asked in selectors(expression) if (report := missing(asked, exposed))])
        or not selectors(expression)
    }
    assert not wrong


def test_rules_are_tested_with_series_that_echod_exposes(exposed: Exposed) -> None:
    """No test of a rule passes on a metric, a reason or a bucket that only the test has."""
    asked = [
        selector
        for case in load(RULE_TESTS)["tests"]
        for series in case["input_series"]
        for selector in selectors(series["series"])
        if selector[1]["job"] == ["echod"]
    ]
    assert len(asked) > len(rules())
    assert not list(filter(None, (missing(selector, exposed) for selector in asked)))


@needs("promtool")
def test_promtool_finds_nothing_to_say_of_a_scrape(exposition: str) -> None:
    """Help and types, names and units are as Prometheus' own linter wants them."""
    assert_good(promtool("check", "metrics", standard_input=exposition))


# Rules


@needs("promtool")
def test_promtool_accepts_the_rules_and_the_scrape_configuration() -> None:
    """Syntax, expressions and templates; and the configuration finds its rules."""
    assert_good(promtool("check", "rules", RULES))
    assert_good(promtool("check", "config", SCRAPING))


@needs("promtool")
def test_rules_do_what_their_tests_say() -> None:
    """Series that fire and series that don't; `echod.rules.test.yml` has them."""
    assert_good(promtool("test", "rules", RULE_TESTS))


@needs("promtool")
@pytest.mark.parametrize("rule", rules(), ids=identity)
def test_no_rule_is_without_a_test(rule: dict[str, Any], tmp_path: Path) -> None:
    """The tests of a rule fail if it gives nothing any more, and if an alert fires at once or does not compare so."""
    name = rule.get("record") or rule["alert"]
    tests = load(RULE_TESTS)
    of_this_rule = [case for case in tests["tests"] if re.search(rf"\b{name}\b", json.dumps(case))]
    # JSON is YAML too.
    (tmp_path / RULE_TESTS.name).write_text(json.dumps(tests | {"tests": of_this_rule}))
    mutants = [{"expr": f"({rule['expr']}) and on () vector(0) > 0"}]
    if "alert" in rule:
        mutants.append({"for": "0s"})
        if strict := re.search(r"(.*) (>=|>|<|==) ([\d.]+\n?)$", rule["expr"], re.DOTALL):
            mutants.append({"expr": f"{strict[1]} {OTHER[strict[2]]} {strict[3]}"})
    for mutant in mutants:
        changed = [rule | mutant if other is rule else other for other in rules()]
        (tmp_path / RULES.name).write_text(json.dumps({"groups": [{"name": "echod", "rules": changed}]}))
        result = promtool("test", "rules", tmp_path / RULE_TESTS.name)
        assert result.returncode == 1, f"nothing fails with {mutant}"
        assert name in result.stderr


OTHER = {">=": ">", ">": ">=", "<": "<=", "==": ">"}


@pytest.mark.parametrize("rule", alerts(), ids=identity)
def test_an_alert_tells_whom_since_when_where_and_what_to_do(rule: dict[str, Any]) -> None:
    """A severity, a time that a restart does not reach, and annotations with instance and value."""
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert re.fullmatch(r"[1-9]\d*m", rule["for"])
    assert rule["annotations"].keys() == {"summary", "description"}
    if "absent(" not in rule["expr"]:
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
        assert "$value" in rule["annotations"]["description"]


def test_rules_can_be_told_apart() -> None:
    """Alerts of one name differ in their labels; a recording rule is named level:metric:operation."""
    names = [identity(rule) for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert "alert" in rule or re.fullmatch(r"instance(_reason)?:echod_\w+:\w+", rule["record"])


# The dashboard


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    """Ids are unique, every panel lies within the 24 columns, and no two share a cell."""
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert cells
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("panel", [panel for panel in panels() if panel["type"] != "row"], ids=lambda at: at["title"])
def test_a_panel_says_what_it_shows_and_asks_for_it(panel: dict[str, Any]) -> None:
    """Description, unit and thresholds, and queries with names of their own; all of the chosen data source."""
    assert panel["description"]
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == chosen
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["expr"]
        assert target["datasource"] == chosen
        assert 'instance=~"$instance"' in target["expr"]
    letters = [target["refId"] for target in panel["targets"]]
    assert len(set(letters)) == len(letters)
    assert panel["fieldConfig"]["defaults"]["unit"]


def test_the_dashboard_asks_where_and_for_which() -> None:
    """Data source and instances are variables, so that it fits any Grafana without a change."""
    assert [(variable["name"], variable["type"]) for variable in dashboard()["templating"]["list"]] == [
        ("datasource", "datasource"),
        ("instance", "query"),
    ]
    assert dashboard()["id"] is None
    assert dashboard()["uid"]


@needs("promtool")
def test_promtool_accepts_what_the_dashboard_asks(tmp_path: Path) -> None:
    """Each of its expressions would do as that of a recording rule."""
    asked = [without_grafana(target["expr"]) for _, target in targets()]
    written = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(asked)]
    file = tmp_path / "dashboard.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": written}]}))
    assert_good(promtool("check", "rules", file))


# Prometheus


class Prometheus:
    """A running server that scrapes one echod by the shipped configuration, but every second."""

    def __init__(self, target: str, *, port: int, directory: Path) -> None:
        shutil.copy(RULES, directory)
        config = json.loads(json.dumps(load(SCRAPING)))
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
        file = directory / SCRAPING.name
        file.write_text(json.dumps(config))
        self._port = port
        self._log = directory / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [  # noqa: S607 - wherever it is installed
                    "prometheus",
                    f"--config.file={file}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address={LOCAL}:{port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        until(self._is_ready, what="Prometheus ready", interval=0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(DEADLINE)
        finally:
            self._process.kill()

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        with contextlib.suppress(ConnectionRefusedError):
            return self._get("/-/ready")[0] == http.HTTPStatus.OK
        return False

    def _get(self, path: str) -> tuple[int, bytes]:
        with contextlib.closing(http.client.HTTPConnection(LOCAL, self._port, timeout=DEADLINE)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data that its API answers."""
        status, body = self._get(f"/api/v1/{path}?{urlencode(parameters)}")
        assert status == http.HTTPStatus.OK, body
        return json.loads(body)["data"]

    def values(self, expression: str) -> list[float]:
        """Return the values that an expression has now."""
        return [float(series["value"][1]) for series in self.ask("query", query=expression)["result"]]

    def wait_for(self, expression: str, value: float) -> None:
        """Wait until an expression has one value, and this one."""
        seen: list[float] = []

        def has_come() -> bool:
            seen[:] = self.values(expression)
            return seen == [value]

        try:
            until(has_come, what=f"{expression} == {value}", interval=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}, but has {seen}") from None

    def rules(self) -> Iterable[dict[str, Any]]:
        """Return what it makes of the rules."""
        return itertools.chain.from_iterable(group["rules"] for group in self.ask("rules")["groups"])


@pytest.fixture
def watched(echod: Daemon, tmp_path: Path) -> Iterator[tuple[Echod, Prometheus]]:
    """Return an echod with two workers, and the Prometheus that scrapes it."""
    with (
        echod("[pool]\nsize = 2", flags=EVERYTHING) as daemon,
        reserved_port() as port,
        Prometheus(admin(daemon), port=port, directory=tmp_path) as prometheus,
    ):
        yield daemon, prometheus


def without_data(prometheus: Prometheus) -> list[str]:
    """Return the titles of the panels that are empty now."""
    return [title for title, target in targets() if not prometheus.values(without_grafana(target["expr"]))]


@needs("prometheus")
def test_prometheus_sees_what_clients_did_and_that_echod_is_gone(watched: tuple[Echod, Prometheus]) -> None:
    """A real server takes the shipped files: counts are the clients', rules healthy, panels filled, alerts right."""
    daemon, prometheus = watched
    prometheus.wait_for('up{job="echod"}', 1)
    for _ in range(5):
        assert daemon.echo(b"hello") == b"hello"
    daemon.wait_for("connection.closed", count=5)
    with daemon.connect() as one, daemon.connect() as other:
        for sock in (one, other):
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
        with daemon.connect() as third:
            assert read_all(third) == b""
        for expression, value in (
            ("echod_connections_accepted_total", 7),
            ("echod_connections_in_use", 2),
            ("sum(echod_connections_closed_total)", 5),
            ('echod_connections_closed_total{reason="eof"}', 5),
            ('echod_connections_rejected_total{reason="pool_full"}', 1),
            ("echod_received_bytes_total", 27),
            ("echod_sent_bytes_total", 27),
            ("echod_connection_duration_seconds_count", 5),
            ("echod_config_reload_success", 1),
            ("instance:echod_connections_in_use_per_pool_size:ratio", 1),
            ('ALERTS{alertname="EchodPoolFull", alertstate="pending"}', 1),
        ):
            prometheus.wait_for(expression, value)

    until(lambda: all(rule["health"] != "unknown" for rule in prometheus.rules()), what="all evaluated", interval=0.1)
    assert [rule["health"] for rule in prometheus.rules()] == ["ok"] * len(rules())
    # After a scrape that has failed, panels are empty until the next one.
    until(lambda: not without_data(prometheus), what="data for each panel", interval=0.5)

    assert daemon.stop() == 0
    prometheus.wait_for('up{job="echod"}', 0)
    prometheus.wait_for('ALERTS{alertname="EchodDown", alertstate="pending"}', 1)
