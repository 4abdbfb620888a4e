"""The figures of a longer run, after the tests."""

from tests.support.fuzz import CASES, COUNTS


def pytest_terminal_summary(terminalreporter):
    if not CASES:
        return
    terminalreporter.section("cases")
    for target in dict.fromkeys(target for target, _ in COUNTS):
        accepted, refused = COUNTS[target, "accepted"], COUNTS[target, "refused"]
        terminalreporter.line(f"{target:32} {accepted + refused:6} cases, {refused:6} refused in one line")
    terminalreporter.line(f"{'in all':32} {COUNTS.total():6} cases")
