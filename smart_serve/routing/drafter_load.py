"""How busy each shared drafter is, and is about to be, by the targets that lease it."""

from __future__ import annotations

from smart_serve.messages import LoadReport

MILLION = 1_000_000


class DrafterLoads:
    """Running sums by drafter, in millionths: whole numbers do not drift."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, int, int]] = {}
        """(targets, their shares now, their shares soon)"""

    def add(self, report: LoadReport) -> None:
        self._change(report, 1)

    def take_away(self, report: LoadReport) -> None:
        self._change(report, -1)

    def others(self, report: LoadReport) -> tuple[int, float, float]:
        """Of the other targets of the same drafter: how many they are, for which part of the time
        they occupy it, and for which one once their backlogs run."""
        if report.drafter_id is None:
            return 0, 0.0, 0.0
        targets, now, soon = self._sums.get(report.drafter_id, (0, 0, 0))
        own_now, own_soon = _shares(report)
        return targets - 1, (now - own_now) / MILLION, (soon - own_soon) / MILLION

    def _change(self, report: LoadReport, sign: int) -> None:
        name = report.drafter_id
        if name is None:
            return
        targets, now, soon = self._sums.get(name, (0, 0, 0))
        own_now, own_soon = _shares(report)
        targets += sign
        if targets == 0:
            del self._sums[name]
        else:
            self._sums[name] = targets, now + sign * own_now, soon + sign * own_soon


def batch_soon(report: LoadReport) -> int:
    """Sequences that the replica is about to run: those that wait join as far as there is room."""
    return max(report.running, min(report.max_running, report.running + report.waiting))


def _shares(report: LoadReport) -> tuple[int, int]:
    """Part of its time for which a target occupies its drafter, now and soon."""
    if report.running == 0 or report.step_ms <= 0.0:
        return 0, 0
    share = min(1.0, report.draft_ms / report.step_ms)
    soon = min(1.0, share * batch_soon(report) / report.running)
    return round(MILLION * share), round(MILLION * soon)
