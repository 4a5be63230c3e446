"""What `peer simulate` says is what happened (P7)."""

from pathlib import Path

import pytest

from node.errors import ConfigError
from node.sim.links import PRESETS, LinkKind, deal, links_named, load_links
from node.sim.report import Progress, simulate
from protocol.rules import Quorum, Rules

MIX = """
[[link]]
name = "home"
share = 3
down_mbit = 40
up_mbit = 10
delay_ms = 30
jitter_ms = 20

[[link]]
name = "campus"
down_mbit = 1000
up_mbit = 1000
delay_ms = 5
"""


def test_a_calm_swarm_commits_what_it_makes() -> None:
    """P1, P3, P7: all rounds close, all states agree, all work is committed or in hand."""
    report = simulate(peers=10, rounds=6, rules=Rules(), links=[PRESETS["home"]], seed=1)
    assert report.rounds >= 6
    assert report.digests_equal
    assert report.members == report.up == 10
    assert report.work.lost == 0
    assert report.work.committed == 10 * report.rounds
    assert report.work.made == report.work.committed + report.work.in_hand
    assert report.round_s_median is not None
    assert 5.0 <= report.round_s_median < 7.0
    assert "work itself" in report.bottleneck
    # A round's entry holds ten payloads of 67 bytes, each with a signature, and all must get it.
    assert report.received_per_round.mean > 10 * (67 + 64)


def test_a_narrow_link_is_named() -> None:
    """P7: the one peer whose uplink cannot carry its share is what the report points at."""
    thin = LinkKind(name="thin", down_mbit=0.05, up_mbit=0.05, delay_ms=30)
    report = simulate(peers=12, rounds=4, rules=Rules(window_ms=2_000), links=[thin], seed=2)
    assert "thin" in report.bottleneck
    assert "Mbit/s" in report.bottleneck


@pytest.mark.parametrize("quorum", list(Quorum))
def test_faults_are_survived_and_counted(quorum: Quorum) -> None:
    """P1, P4, P7: peers crash and come back, links are cut; states still agree where they stand."""
    rules = Rules(quorum=quorum, window_ms=2_000)
    report = simulate(
        peers=12, rounds=40, rules=rules, links=[PRESETS["home"]], seed=3, faults=True
    )
    assert report.rounds >= 40
    assert report.work.committed > 0.7 * report.work.made
    assert report.work.lost < 0.05 * report.work.made


def test_a_mix_of_links(tmp_path: Path) -> None:
    """Shares are kept to the peer, in an order that follows from the seed."""
    path = tmp_path / "links.toml"
    path.write_text(MIX)
    kinds = load_links(path)
    dealt = deal(kinds, 10, seed=4)
    assert [kind.name for kind in dealt] == [kind.name for kind in deal(kinds, 10, seed=4)]
    assert dealt != deal(kinds, 10, seed=5)
    assert sorted(kind.name for kind in dealt) in (
        ["campus"] * 2 + ["home"] * 8,
        ["campus"] * 3 + ["home"] * 7,
    )
    seen: list[Progress] = []
    report = simulate(
        peers=8, rounds=3, rules=Rules(), links=links_named(str(path)), tell=seen.append
    )
    assert report.links == {"home": 6, "campus": 2}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (MIX.replace("up_mbit", "upp_mbit", 1), "upp_mbit"),
        (MIX.replace("jitter_ms = 20", "jitter_ms = 31"), "jitter_ms"),
        (MIX.replace("share = 3", "share = -1"), "share"),
        ("[[link]\n", "TOML"),
        ("", "link"),
    ],
)
def test_a_bad_file_of_links_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    """The message names what is wrong."""
    path = tmp_path / "links.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_links(path)


def test_the_file_that_ships_can_be_read() -> None:
    """And has a peer that nobody can dial, and one whose delays have a heavy tail."""
    kinds = load_links(Path(__file__).parents[2] / "configs" / "links-home.toml")
    assert any(kind.nat for kind in kinds)
    assert any(kind.heavy_tail for kind in kinds)


def test_unknown_kinds_of_links_are_refused() -> None:
    """With a hint."""
    with pytest.raises(ConfigError) as caught:
        links_named("hoem")
    assert "home" in caught.value.hint
