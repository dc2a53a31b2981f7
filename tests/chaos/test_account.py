"""The outsider's account sees what it is there to see."""

from dataclasses import replace

import pytest

from tests.chaos.account import Account

# Of five groups one each is prompted, generated, scored, trained and dropped.
WHOLE = Account(
    admitted=5,
    ledger={"prompted": 40, "trained": 8, "dropped:stale": 8},
    in_flight={"00000000/0": 8, "00000001/0": 8, "00000002/0": 8},
    streams=[["00000000/0"], ["00000001/0"], ["00000002/0"]],
    ended=[("00000003/0", "trained"), ("00000004/0", "dropped:stale")],
)


def test_a_whole_account_has_no_findings() -> None:
    assert WHOLE.findings() == []
    assert WHOLE.acknowledged == 1 + 2 + 3 + 4 + 4
    assert WHOLE.trained == ["00000003/0"]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"ledger": {"prompted": 48, "trained": 8, "dropped:stale": 8}}, "does not balance"),
        ({"admitted": 6}, "1 groups were admitted, and are nowhere: 00000005/0"),
        ({"streams": [["00000000/0"], [], ["00000002/0"]]}, "group 00000001/0: entries 0, ends 0, in flight 1"),
        ({"streams": [["00000000/0"] * 2, ["00000001/0"], ["00000002/0"]]}, "group 00000000/0: entries 2"),
        ({"ended": [*WHOLE.ended, ("00000003/0", "trained")]}, "group 00000003/0: entries 0, ends 2"),
        ({"ended": [*WHOLE.ended, ("00000002/0", "trained")]}, "group 00000002/0: entries 1, ends 1, in flight 1"),
    ],
)
def test_each_fault_of_the_account_is_found(change: dict[str, object], finding: str) -> None:
    found = replace(WHOLE, **change).findings()  # type: ignore[arg-type]  # fields by their names
    assert any(finding in line for line in found), found


def test_what_a_redis_forgot_is_counted_in_writes() -> None:
    forgot = replace(WHOLE, streams=[["00000000/0"], ["00000001/0", "00000002/0"], []], ended=WHOLE.ended[:1])
    assert forgot.lost(WHOLE) == 1 + 4
    assert WHOLE.lost(forgot) == 0
