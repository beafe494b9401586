"""What stands beside every block: the state of the machine; and which percentiles so many queries may claim."""

import json

from test_profiles_latency import MS, Subject, World, measure

from profiles.thermal import State


def test_the_last_percentile_needs_its_6636_samples():
    for queries, claimed in ((6636, True), (6630, False)):
        world = World()
        row = measure(world, {"a": Subject("a", world, 1 * MS)}, min_queries=queries)["a"].row()
        assert row["n"] == queries
        assert (row["p99_9_ms"] is not None, row["p99_9_bound_ms"] is not None) == (claimed, claimed)
        assert (row["p99_ms"], row["p99_bound_ms"]) == (1.0, 1.0)


class Thermometer:
    """Tells at each block a degree more, and throttling from the fourth block on."""

    missing = {"governor": "simulated"}  # noqa: RUF012

    def __init__(self):
        self.read_at = []

    def read(self):
        self.read_at.append(len(self.read_at))
        hot = ("simulated heat",) if len(self.read_at) > 3 else ()
        return State(temperatures_c={"chip": 50.0 + len(self.read_at)}, throttle=hot, affinity={"0": 2})


def test_the_state_of_the_machine_is_kept_beside_every_block():
    world, sensors = World(), Thermometer()
    result = measure(world, {"a": Subject("a", world, 10 * MS)}, sensors=sensors)["a"]
    rows = result.state_rows()
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows) == result.blocks == len(sensors.read_at) == 6
    assert [row["temperatures_c"]["chip"] for row in rows] == [51.0, 52.0, 53.0, 54.0, 55.0, 56.0]
    assert (rows[0]["round"], rows[0]["p50_ms"], rows[0]["affinity"]) == (0, 10.0, {"0": 2})
    assert (rows[2]["throttle"], rows[3]["throttle"]) == ([], ["simulated heat"])
    assert result.row()["throttled_blocks"] == 3
    assert result.untold == {"governor": "simulated"}
