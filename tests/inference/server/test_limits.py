"""Requests in a minute."""

from dsv3_plugin.inference.server.limits import Rate


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_so_many_in_a_minute_at_once_or_spread():
    clock = Clock()
    rate = Rate(3, clock)
    assert [rate.seconds_to_wait("a") for _ in range(3)] == [0, 0, 0]
    assert rate.seconds_to_wait("a") == 20
    assert rate.seconds_to_wait("a") == 20  # to be refused costs nothing
    assert rate.seconds_to_wait("b") == 0
    clock.now = 20
    assert rate.seconds_to_wait("a") == 0
    assert rate.seconds_to_wait("a") == 20
    clock.now = 200
    assert [rate.seconds_to_wait("a") for _ in range(4)] == [0, 0, 0, 20]


def test_an_even_pace_is_never_refused():
    for per_minute in (1, 7, 60, 1000):
        clock = Clock()
        rate = Rate(per_minute, clock)
        for number in range(3 * per_minute):
            clock.now = number * 60 / per_minute
            assert rate.seconds_to_wait("a") == 0


def test_clients_that_left_are_forgotten():
    clock = Clock()
    rate = Rate(60, clock)
    for number in range(10_000):
        clock.now += 1
        assert rate.seconds_to_wait(str(number)) == 0
    assert len(rate._even) < 2000
