import json
import time

import pytest

from ast_fast.machine.timing import Stages


def test_seconds_add_up_by_stage():
    stages = Stages()
    for _ in range(2):
        with stages("features"):
            time.sleep(0.02)
    with stages("forward"):
        pass
    assert list(stages.seconds) == ["features", "forward"]
    assert stages.seconds["features"] >= 0.04
    assert 0 <= stages.seconds["forward"] < 0.04


def test_a_stage_that_raises_still_counts():
    stages = Stages()
    with pytest.raises(KeyError), stages("features"):
        raise KeyError
    assert "features" in stages.seconds


def test_what_an_earlier_process_took_is_added():
    earlier, stages = Stages(), Stages()
    with earlier("features"):
        time.sleep(0.02)
    state = json.loads(json.dumps(earlier.state()))
    assert state["elapsed"] >= state["seconds"]["features"] >= 0.02
    with stages("features"), stages("other"):
        time.sleep(0.02)
    stages.take_up(state)
    assert stages.seconds["features"] >= 0.04
    assert 0.02 <= stages.seconds["other"] < stages.seconds["features"]
    assert stages.elapsed >= stages.seconds["features"]
