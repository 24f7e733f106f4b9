"""The benchmarks' arithmetic, their tables and their marked place in docs/performance.md; not the servers."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import build, cores, plots, report, targets, tls
from benchmarks.__main__ import arguments, plan
from benchmarks.bench import Outcome
from benchmarks.load import Load, LoadError
from benchmarks.summary import absolute, quantile, relative, spread
from benchmarks.workloads import WORKLOADS
from tests.support.certificates import pem_file

ROOT = Path(__file__).parent.parent.parent
BUSY = WORKLOADS[0]
IDLE = next(work for work in WORKLOADS if work.mode == "idle")

needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")
needs_openssl = pytest.mark.skipif(not Path("/usr/include/openssl/ssl.h").exists(), reason="needs OpenSSL's headers")


def sample(cpu: float, **others: float) -> dict[str, float]:
    return {
        "cpu": cpu,
        "rate": 1e6 / cpu,
        "p50": 1,
        "p99": 2,
        "p99.9": 3,
        "resident": 1,
        "busy": 1,
        "ready": 0.25,
    } | others


def outcome() -> Outcome:
    return Outcome(
        BUSY,
        rounds={"floor": {0: sample(5.0), 1: sample(10.0)}, "echod": {0: sample(6.0), 1: sample(10.0)}},
        skipped={"go": "go is not installed"},
        failed={"node": ["it fell over"]},
    )


@pytest.mark.parametrize(("part", "value"), [(0.0, 1), (0.5, 51), (0.99, 100), (0.999, 100), (1.0, 100)])
def test_a_quantile_is_one_of_the_values(part: float, value: int) -> None:
    assert quantile(range(1, 101), part) == value


def test_a_spread_is_the_median_between_the_quartiles() -> None:
    assert spread([5, 1, 4, 2, 3]) == (3, 2, 4, 5)
    assert spread([1, 2]) == (1.5, 1.25, 1.75, 2)
    assert spread([7]) == (7, 7, 7, 1)


def test_ratios_are_of_the_same_round() -> None:
    """2 and 4 to 1 and 4 is 2 and 1; the medians alone would say 1.2."""
    rounds, floor = {0: {"cpu": 2.0}, 1: {"cpu": 4.0}}, {0: {"cpu": 1.0}, 1: {"cpu": 4.0}}
    assert relative(rounds, floor)["cpu"].median == 1.5


def test_a_round_that_either_missed_has_no_ratio() -> None:
    assert relative({0: {"cpu": 2.0}, 1: {"cpu": 9.0}}, {0: {"cpu": 1.0}, 2: {"cpu": 1.0}})["cpu"] == (2, 2, 2, 1)


def test_a_metric_that_the_floor_has_not_or_as_zero_has_no_ratio() -> None:
    assert relative({0: {"each": 2.0, "waited": 1.0}}, {0: {"waited": 0.0}}) == {}
    assert absolute({0: {"each": 2.0}})["each"].median == 2


def test_the_table_has_a_row_for_each_server() -> None:
    head, floor, echod = report.table(outcome())
    assert head[:3] == ["", "CPU us", "per s"]
    assert floor[:2] == ["floor", "7.50"]
    assert echod[:2] == ["echod", "8.00 x1.10 (1.05-1.15)"]


def test_what_is_missing_is_said_with_its_reason() -> None:
    written = report.text(["a head"], [], [outcome()], {"Beside": ["a line"]})
    for expected in (
        "a head",
        "go: skipped, go is not installed",
        "node: 1 runs failed, the first with: it fell over",
        "a line",
    ):
        assert expected in written


def test_markdown_tables_have_as_many_cells_in_each_row() -> None:
    rows = [
        line for line in report.markdown([], [], [outcome()], {}).split("### ")[-1].splitlines() if line.startswith("|")
    ]
    assert len(rows) == 4
    assert len({row.count("|") for row in rows}) == 1


def test_targets_are_judged_by_ratio_or_value() -> None:
    judged = targets.judge({"64B-50": outcome()})
    assert [row[0:2] + row[3:] for row in judged] == [
        ["64 B x 50: CPU per message, to the floor", "1.2 x", "met"],
        ["start to ready", "0.5 s", "met"],
    ]
    worse = Outcome(BUSY, rounds={"floor": {0: sample(5.0)}, "echod": {0: sample(6.1, ready=0.6)}})
    assert [row[3] for row in targets.judge({"64B-50": worse})] == ["missed", "missed"]


def test_each_target_is_of_a_workload_that_has_its_servers() -> None:
    kinds = {work.name: work.kinds for work in WORKLOADS}
    for target in targets.TARGETS:
        assert {target.kind, target.of or "floor"} <= {*kinds[target.workload]}


def test_the_drawings_are_xml_with_a_bar_for_each_server() -> None:
    drawn = plots.drawings([outcome()])
    assert set(drawn) == {"cpu.svg", "memory.svg"}
    bars = [each for each in ET.fromstring(drawn["cpu.svg"]).iter() if each.tag.endswith("rect")]  # noqa: S314 - our own
    assert len(bars) == 1 + 2


def test_the_json_has_samples_summaries_and_ratios() -> None:
    (whole,) = report.as_json([outcome()])
    echod = whole["servers"]["echod"]
    assert echod["samples"][1]["cpu"] == 10
    assert echod["summary"]["cpu"]["median"] == 8
    assert echod["ratio_to_floor"]["cpu"]["values"] == 2


def test_results_replace_what_is_between_the_marks() -> None:
    assert (
        report.replaced(f"a\n{report.BEGIN}old\n{report.END}z\n", "new") == f"a\n{report.BEGIN}\nnew\n{report.END}z\n"
    )
    with pytest.raises(ValueError, match="no lines"):
        report.replaced("a\n", "new")


def test_the_document_has_the_marks() -> None:
    report.replaced((ROOT / "docs" / "performance.md").read_text(), "new")


def test_a_quick_run_asks_everyone_once_and_then_few() -> None:
    first, *others = plan(arguments(["--quick"]))
    assert first == (BUSY, BUSY.kinds)
    assert all(work.quick and len(kinds) == 4 for work, kinds in others)


def test_a_choice_of_servers_keeps_the_floor() -> None:
    assert plan(arguments(["--only", "64B-50", "--servers", "go"])) == [(BUSY, ("floor", "go"))]


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(["--only", "64B"])
    assert "64B is none of" in capsys.readouterr().err


@pytest.mark.parametrize("compiler", [pytest.param("gcc", marks=needs_gcc), None])
def test_a_load_notices_a_wrong_byte(compiler: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiler:
        monkeypatch.setattr("benchmarks.build.built", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as executor:
        serving = executor.submit(echo_but_the_second_wrongly, listener)
        with pytest.raises(LoadError, match="not what was sent"):
            Load(cores.available(), listener.getsockname()[1], 1, 5000, "loop", 0.1).__enter__()
        serving.result()


@needs_gcc
@needs_openssl
def test_a_load_over_tls_notices_a_wrong_byte() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem_file())
    build.built("tls_load.c")  # beforehand, as it takes a second
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as executor:
        serving = executor.submit(echo_but_the_second_wrongly, listener, context)
        with pytest.raises(LoadError, match="not what was sent"):
            Load(cores.available(), listener.getsockname()[1], 1, 64, "loop", 0.1, source="tls_load.c").__enter__()
        serving.result()


def echo_but_the_second_wrongly(listener: socket.socket, context: ssl.SSLContext | None = None) -> None:
    accepted = listener.accept()[0]
    with (
        context.wrap_socket(accepted, server_side=True) if context else accepted as sock,
        sock.makefile("rb") as stream,
    ):
        sock.sendall(stream.read(64))
        data = stream.read(64 if context else 5000)
        sock.sendall(data[:-1] + bytes([data[-1] ^ 1]))
        with contextlib.suppress(OSError):  # the load ends at once, without close_notify
            stream.read(1)


def test_what_tls_adds_is_the_difference_of_the_same_round() -> None:
    def measured(*values: float) -> dict[str, float]:
        return dict(zip((*tls.WORKLOADS, *tls.MEMORY), values, strict=True))

    samples = {
        tls.WITHOUT: {0: measured(6, 8, 50, 1, 1), 1: measured(12, 16, 100, 1, 1)},
        "echod": {0: measured(8, 28, 300, 18, 44), 1: measured(16, 40, 400, 18, 44)},
        tls.REFERENCE: {0: measured(4, 14, 300, 45, 80), 1: measured(8, 20, 400, 45, 80)},
    }
    assert tls.surplus(samples)[0] == "TLS adds 3.0 us to an echo of 64 B, and 275 us to a connection."
    head, without, echod, reference = tls.costs(samples)
    assert len(head) == len(without) == len(echod) == len(reference)
    assert echod[:2] == ["echod", "12.0 x2.00 (2.00-2.00)"]
    assert reference[:2] == [tls.REFERENCE, "6.0"]


def test_the_echo_beside_a_flood_is_compared_with_that_alone() -> None:
    quiet, busy = {"p50": 50.0, "p99": 100.0}, {"p50": 60.0, "p99": 150.0, "rate": 1000.0}
    assert tls.beside({"alone": {0: quiet}, "handshakes": {0: busy}})[1:] == [
        ["alone", "50", "100", ""],
        ["handshakes", "60 x1.2", "150 x1.5", "1,000"],
    ]
