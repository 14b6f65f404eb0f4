"""Prints, when the tests have ended, how far each trace of the released code was missed."""

from __future__ import annotations


def pytest_terminal_summary(terminalreporter):
    reports = [r for rs in terminalreporter.stats.values() for r in rs if hasattr(r, "when")]
    listed = {
        value
        for report in reports
        if report.when == "call"
        for name, value in report.user_properties
        if name == "deviations"
    }
    if listed:
        terminalreporter.section("largest deviations from the released code's traces")
        for line in sorted(listed):
            terminalreporter.write_line(line)
