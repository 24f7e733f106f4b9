"""Which datagrams get an answer, and the books, on a clock that goes only when told to."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest

from echod.networks import Ranges
from echod.server.access import Rules
from echod.server.datagrams import DROPS, ECHOED, SLOTS, Datagrams, Sources
from tests.support.fakes import Clock
from tests.support.rig import Rig, settings

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENT = ("192.0.2.1", 40000)
NOW = 1000.0
NO_CLIENTS = ["0.0.0.0", "0.1.2.3", "255.255.255.255", "224.0.0.1", "239.255.255.250", "240.0.0.1"]  # noqa: S104
NO_CLIENTS += ["::", "ff02::1", "ff0e::1"]


class Answerer:
    """One whose socket is bound to this port, and whose queue has dropped so many."""

    def __init__(self, port: int, drops: int | None = 0) -> None:
        self.kernel_drops = drops
        self.listener = self
        self.endpoint = self
        self.port = port


def answerer(port: int, drops: int | None = 0) -> Any:
    return Answerer(port, drops)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def datagrams(rig: Rig, clock: Clock) -> Datagrams:
    assert clock.now == NOW
    datagrams = rig.datagrams
    datagrams.set(settings(udp__rate="10/s", udp__total_rate="100/s").udp)
    datagrams.add(answerer(7007))
    return datagrams


def refusal(
    datagrams: Datagrams,
    address: tuple[Any, ...] = CLIENT,
    now: float = NOW,
    *,
    fits: bool = True,
    unicast: bool = True,
) -> str | None:
    return datagrams.refusal(address, now, fits=fits, is_unicast=unicast)


def burst(take: Callable[[], object]) -> int:
    """Return how many are let through now, one after the other."""
    number = 0
    while take():
        number += 1
    return number


# The rate of one source


@pytest.mark.parametrize(("rate", "most"), [(100.0, 100), (1.0, 1), (0.5, 1), (2.5, 2)])
def test_a_source_has_a_burst_of_one_second(rate: float, most: int) -> None:
    """Or of one datagram."""
    sources = Sources()
    sources.set(rate)
    assert burst(lambda: sources.take("a", NOW)) == most


@pytest.mark.parametrize("rate", [0.5, 7.0, 100.0, 12345.0])
def test_a_source_gets_its_rate_and_no_more(rate: float) -> None:
    """However many it sends."""
    sources = Sources()
    sources.set(rate)
    burst(lambda: sources.take("a", NOW))
    seconds = 20000 / rate
    passed = sum(sources.take("a", NOW + seconds * number / 60000) for number in range(1, 60001))
    assert abs(passed - 20000) <= 1


def test_sources_do_not_share_a_rate() -> None:
    """But for those that happen to share a slot."""
    sources = Sources()
    sources.set(1.0)
    passed = sum(sources.take(f"192.0.2.{number}", NOW) for number in range(200))
    assert passed >= 190
    assert not sources.take("192.0.2.0", NOW)


def test_which_sources_share_a_slot_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can choose an address that takes away the tokens of another; not even if Python's hashes are known."""
    names = [f"192.0.2.{number}" for number in range(200)]

    def slots(secret: str) -> list[int]:
        monkeypatch.setattr("secrets.token_hex", lambda _: secret)
        sources = Sources()
        sources.set(1.0)
        for number, name in enumerate(names):
            sources.take(name, NOW + number)
        return [slot for slot, spent in enumerate(sources._spent) if spent]

    assert slots("a") == slots("a") != slots("b")


def test_the_table_has_one_size() -> None:
    """Whatever the number of sources."""
    sources = Sources()
    sources.set(10.0)
    for number in range(2 * SLOTS):
        sources.take(str(number), NOW)
    assert len(sources._spent) == SLOTS
    assert sources._spent.itemsize * SLOTS == 128 << 10


# Which datagrams get an answer


@pytest.mark.parametrize("port", [0, 7, 13, 19, 53, 1023, 7007])
def test_services_get_no_answer(datagrams: Datagrams, port: int) -> None:
    """Nor does a port of our own: the answer could be answered."""
    assert refusal(datagrams, ("192.0.2.1", port)) == "source_port"
    assert refusal(datagrams, ("2001:db8::1", port, 0, 0)) == "source_port"


@pytest.mark.parametrize("port", [1024, 7006, 7008, 65535])
def test_clients_get_an_answer(datagrams: Datagrams, port: int) -> None:
    """From all other ports."""
    assert refusal(datagrams, ("192.0.2.1", port)) is None


def test_our_own_ports_are_those_of_now(datagrams: Datagrams) -> None:
    """As long as any of the sockets has it."""
    other, same = answerer(8008), answerer(8008)
    datagrams.add(other)
    datagrams.add(same)
    assert refusal(datagrams, ("192.0.2.1", 8008)) == "source_port"
    datagrams.forget(other)
    assert refusal(datagrams, ("192.0.2.1", 8008)) == "source_port"
    datagrams.forget(same)
    assert refusal(datagrams, ("192.0.2.1", 8008)) is None


@pytest.mark.parametrize("address", NO_CLIENTS)
def test_an_address_that_no_client_has_gets_no_answer(datagrams: Datagrams, address: str) -> None:
    """Unspecified, broadcast and multicast addresses, also in the form of a dual-stack socket."""
    assert refusal(datagrams, (address, 40000) if "." in address else (address, 40000, 0, 0)) == "source_address"
    if "." in address:
        assert refusal(datagrams, (f"::ffff:{address}", 40000, 0, 0)) == "source_address"


def test_a_datagram_to_many_gets_no_answer(datagrams: Datagrams) -> None:
    """With one, a forged source would get the answers of all."""
    assert refusal(datagrams, unicast=False) == "destination"


def test_the_networks_of_access_hold(rig: Rig, datagrams: Datagrams) -> None:
    """As for connections."""
    rig.access.replace(Rules(Ranges([ip_network("192.0.2.0/24")]), Ranges([ip_network("192.0.2.9/32")]), 0, None))
    assert refusal(datagrams) is None
    for address in (("192.0.2.9", 40000), ("::ffff:192.0.2.9", 40000, 0, 0), ("198.51.100.1", 40000)):
        assert refusal(datagrams, address) == "denied"


def test_a_datagram_that_is_cut_gets_no_answer(datagrams: Datagrams) -> None:
    """It would not be an echo."""
    assert refusal(datagrams, fits=False) == "too_large"


def test_a_source_is_a_network_of_ipv6(datagrams: Datagrams) -> None:
    """As everywhere."""
    assert burst(lambda: refusal(datagrams, ("2001:db8::1", 40000, 0, 0)) is None) == 10
    assert refusal(datagrams, ("2001:db8::2", 40001, 0, 0)) == "rate"
    assert refusal(datagrams, ("2001:db8:0:1::2", 40001, 0, 0)) is None


def test_what_is_dropped_for_another_reason_takes_no_token(datagrams: Datagrams) -> None:
    """Only an answer does."""
    for _ in range(200):
        assert refusal(datagrams, unicast=False) == "destination"
        assert refusal(datagrams, fits=False) == "too_large"
    assert burst(lambda: refusal(datagrams) is None) == 10


def test_all_sources_share_a_rate(datagrams: Datagrams) -> None:
    """However many there are."""
    reasons = [refusal(datagrams, (f"192.0.2.{number // 10}", 40000)) for number in range(300)]
    assert reasons.count(None) == 100
    assert set(reasons[150:]) <= {"total_rate", "rate"}


def test_rates_can_be_changed_and_turned_off(datagrams: Datagrams) -> None:
    """One that stays the same keeps its tokens."""
    assert burst(lambda: refusal(datagrams) is None) == 10
    datagrams.set(settings(udp__rate="10/s", udp__total_rate="100/s").udp)
    assert refusal(datagrams) == "rate"
    datagrams.set(settings(udp__rate="20/s", udp__total_rate="off").udp)
    assert burst(lambda: refusal(datagrams, now=NOW + 0.5) is None) == 10
    datagrams.set(settings(udp__rate="off", udp__total_rate="off").udp)
    assert all(refusal(datagrams) is None for _ in range(1000))
    datagrams.set(settings(udp__rate="off", udp__total_rate="5/s").udp)
    assert burst(lambda: refusal(datagrams) is None) == 5


# The books and the log


def test_drops_of_the_kernel_are_those_of_all_sockets(rig: Rig) -> None:
    """Also of those that are closed."""
    datagrams = Datagrams(rig.loop.asyncio, rig.log, rig.access)
    first, second = answerer(1, 3), answerer(2, 4)
    datagrams.add(first)
    datagrams.add(second)
    datagrams.forget(first)
    assert datagrams.kernel_drops == 7
    unknown = answerer(3, None)
    datagrams.add(unknown)
    assert datagrams.kernel_drops is None
    datagrams.forget(unknown)
    assert datagrams.kernel_drops == 7


def dropped(rig: Rig) -> list[dict[str, int]]:
    return [line["reasons"] for line in rig.lines.events("udp.dropped")]


def test_drops_are_logged_at_most_once_a_second(rig: Rig, datagrams: Datagrams) -> None:
    """Each is in one line, with its reason."""
    datagrams.results["rate"] += 1
    datagrams.log_drops()
    rig.loop.advance(0)
    assert dropped(rig) == [{"rate": 1}]
    for _ in range(10):
        datagrams.results["rate"] += 2
        datagrams.results["denied"] += 1
        datagrams.results[ECHOED] += 1
        datagrams.log_drops()
        rig.loop.advance(0.09)
    assert len(dropped(rig)) == 1
    rig.loop.advance(0.2)
    assert dropped(rig)[1:] == [{"rate": 20, "denied": 10}]
    assert rig.loop.timers == 0


def test_without_a_drop_there_is_no_line(rig: Rig, datagrams: Datagrams) -> None:
    """A full batch is looked at, because the queue may have been full."""
    datagrams.results[ECHOED] += 100
    datagrams.log_drops()
    rig.loop.advance(1)
    assert dropped(rig) == []
    datagrams._answerers[0].kernel_drops = 5  # type: ignore[misc]
    datagrams.log_drops()
    rig.loop.advance(1)
    assert dropped(rig) == [{"kernel": 5}]


def test_at_the_end_the_last_drops_are_logged(rig: Rig, datagrams: Datagrams) -> None:
    """They wait for no second."""
    for reason in DROPS:
        datagrams.results[reason] += 1
        datagrams.log_drops()
        rig.loop.advance(0)
    datagrams.flush()
    datagrams.flush()
    assert dropped(rig) == [{DROPS[0]: 1}, dict.fromkeys(DROPS[1:], 1)]
    assert rig.loop.timers == 0
