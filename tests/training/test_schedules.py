import pytest
import tensorflow as tf

from unet_core.training import schedules


def at(schedule, step):
    return float(schedule(tf.constant(step, tf.int64)))


class TestSchedules:
    def test_constant(self):
        assert at(schedules.constant(0.3), 10**9) == pytest.approx(0.3)

    def test_step_decay_falls_at_every_multiple(self):
        schedule = schedules.step_decay(1.0, every_steps=10, factor=0.5)
        assert [at(schedule, s) for s in (0, 9, 10, 19, 20)] == [1, 1, 0.5, 0.5, 0.25]

    def test_polynomial_matches_hand_values_and_stays_at_its_end(self):
        schedule = schedules.polynomial(1.0, total_steps=4, power=2.0, final=0.2)
        # The rate at step s is 0.2 + 0.8 (1 - s/4)^2.
        expected = [1.0, 0.65, 0.4, 0.25, 0.2, 0.2]
        assert [at(schedule, s) for s in range(6)] == pytest.approx(expected)

    def test_cosine_rises_linearly_then_falls_by_half_a_cosine(self):
        schedule = schedules.cosine(1.0, total_steps=8, warmup_steps=4)
        assert [at(schedule, s) for s in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
        # cos(0), cos(pi/2), cos(pi): 1, 1/2, 0.
        assert [at(schedule, s) for s in (4, 6, 8, 99)] == pytest.approx([1, 0.5, 0, 0], abs=1e-7)

    def test_scaled_from_a_step_on(self):
        schedule = schedules.scaled_from(
            schedules.step_decay(1.0, every_steps=2, factor=0.5), step=3, factor=0.1
        )
        expected = [1, 1, 0.5, 0.05, 0.025]
        assert [at(schedule, s) for s in range(5)] == pytest.approx(expected)

    def test_warm_up_that_never_ends_is_refused(self):
        with pytest.raises(ValueError, match=r"200 steps.*\(100\)"):
            schedules.cosine(1.0, total_steps=100, warmup_steps=200)
