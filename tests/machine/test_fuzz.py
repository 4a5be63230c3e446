"""A small slice of the fuzzer, the same each time; tests/machine/fuzz.py runs millions (P6)."""

from tests.machine.fuzz import Report, fuzz


def test_hostile_frames_and_events_break_nothing() -> None:
    report = fuzz(6_000, seed=7)
    assert report.cases == 6_000
    assert report.faults > 1_000, "hostile frames are recognised"
    assert report.rounds > 20, "and the swarm goes on (P4)"
    assert len(report.kinds) > 25


def test_the_report_counts_on() -> None:
    report = Report(cases=10)
    assert fuzz(10, seed=7, report=report) is report
