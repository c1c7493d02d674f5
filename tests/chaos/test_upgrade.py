"""The processes of the commit before are replaced one by one under calls, streams, workflows and administration."""

from __future__ import annotations

import pytest

from bench.upgrade import NoHistoryError, earlier_commit, run

pytestmark = pytest.mark.integration


@pytest.mark.timeout(400)
def test_nothing_acknowledged_is_lost_in_an_upgrade() -> None:
    """``python -m bench.upgrade`` is the same for longer, and from any commit."""
    try:
        commit = earlier_commit()
    except NoHistoryError as error:
        pytest.skip(str(error))
    result = run(commit, calm_s=0.2, callers=1, workers=1)
    assert not any(result["lost"].values()), result
    assert result["failures"] == 0, result["first_failures"]
    acknowledged = result["acknowledged"]
    assert all(
        acknowledged.get(what, 0) > 0
        for what in ("calls", "streams", "runs", "keys", "revocations", "writes")
    ), result
    # Each ended in order. (Earlier control planes raised the signal again once all was done.)
    assert not any(status for name, status in result["exits"].items() if name != "control"), result
