import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tiny_loop import batches, make_loop, weights

from unet_core import training
from unet_core.errors import UserError
from unet_core.training import schedules
from unet_core.training.controls import (
    Controls,
    Decision,
    Dwell,
    EarlyStopping,
    ReduceOnPlateau,
    StopOnNan,
    higher_is_better,
)
from unet_core.training.host_controls import Ask, TimeBudget

NAN = math.nan


def decide(control, *values, monitor="dice", rate=1.0):
    """Asks a control with one score after the other, at steps 10, 20, ...; returns what it said."""
    controls = control if isinstance(control, Controls) else Controls([control])
    return [
        controls.decide(10 * number, {monitor: value}, rate=rate)
        for number, value in enumerate(values, 1)
    ]


def stops(decisions):
    return [decision.stop for decision in decisions]


def factors(decisions):
    return [decision.rate_factor for decision in decisions]


class TestDirection:
    @pytest.mark.parametrize(
        ("name", "higher"),
        [
            ("loss", False),
            ("train/loss", False),
            ("pixel_error", False),
            ("hausdorff_95/cell", False),
            ("dice/mean", True),
            ("accuracy", True),
            ("v_rand", True),
        ],
    )
    def test_follows_from_the_name(self, name, higher):
        assert higher_is_better(name) is higher


class TestEarlyStopping:
    def test_stops_after_so_many_evaluations_without_an_improvement(self):
        # 0.6 improves on 0.5 and 0.7 on 0.6; 0.7 again, 0.65 and 0.7 do not: three.
        found = decide(EarlyStopping("dice", patience=3), 0.5, 0.6, 0.55, 0.7, 0.7, 0.65, 0.7)
        assert stops(found) == [False] * 6 + [True]
        assert found[-1].reasons == ("dice has not improved in 3 evaluations",)

    def test_of_a_loss_lower_is_better(self):
        found = decide(EarlyStopping("loss", patience=2), 3, 2, 2.5, 2.1, monitor="loss")
        assert stops(found) == [False, False, False, True]

    def test_less_than_min_delta_does_not_count(self):
        # 0.58 is 0.08 above 0.5 and 0.11 above it is 0.61: only that improves.
        control = EarlyStopping("dice", patience=2, min_delta=0.1)
        assert stops(decide(control, 0.5, 0.58, 0.61, 0.7, 0.65)) == [False] * 4 + [True]

    def test_a_score_that_is_not_a_number_does_not_improve(self):
        control = EarlyStopping("dice", patience=2)
        assert stops(decide(control, NAN, 0.1, NAN, NAN)) == [False, False, False, True]

    def test_its_state_tells_that_training_has_ended_and_more_patience_goes_on(self):
        one = EarlyStopping("dice", patience=1)
        decide(one, 0.5, 0.4)
        assert one.stopped
        same, patient = EarlyStopping("dice", patience=1), EarlyStopping("dice", patience=2)
        for other in (same, patient):
            for name, variable in other.state.items():
                variable.assign(one.state[name])
        assert same.stopped
        assert not patient.stopped

    @pytest.mark.parametrize("patience", [0, -1, 1.5, True])
    def test_patience_must_be_a_count(self, patience):
        with pytest.raises(UserError, match=r"`patience` .* at least 1"):
            EarlyStopping("dice", patience=patience)


class TestReduceOnPlateau:
    def test_multiplies_the_rate_and_counts_anew(self):
        # After 0.5: 0.5, 0.5 do not improve: reduced. Again two: reduced. 0.6 improves.
        control = ReduceOnPlateau("dice", patience=2, factor=0.1)
        found = decide(control, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6)
        assert factors(found) == [1, 1, 0.1, 1, 0.1, 1, 1]

    def test_rests_after_a_reduction(self):
        # Without the rest it would reduce at the 2nd, 3rd, 4th, 5th; two evaluations do not count.
        control = ReduceOnPlateau("dice", patience=1, factor=0.5, cooldown=2)
        assert factors(decide(control, 0.5, 0.5, 0.5, 0.5, 0.5)) == [1, 0.5, 1, 1, 0.5]

    def test_goes_no_lower_than_the_least_rate(self):
        # From 1.0 a tenth would be 0.1: 0.4 is the least, so the factor is 0.4; then 1.
        control = ReduceOnPlateau("dice", patience=1, factor=0.1, least_rate=0.4)
        controls = Controls([control])
        found = [
            controls.decide(step, {"dice": 0.5}, rate=rate)
            for step, rate in ((1, 1.0), (2, 1.0), (3, 0.4))
        ]
        assert factors(found) == [1, pytest.approx(0.4), 1]
        assert found[2] == Decision()

    def test_factor_must_reduce(self):
        with pytest.raises(UserError, match="`factor`"):
            ReduceOnPlateau("dice", patience=1, factor=1.0)


class TestDwell:
    def test_goes_back_whenever_a_score_is_worse_than_the_best(self):
        # 0.6 > 0.5; 0.55 < 0.6: back; 0.6 is not worse; 0.59 is: back.
        found = decide(Dwell("dice", factor=0.5), 0.5, 0.6, 0.55, 0.6, 0.59)
        assert [decision.restore_best for decision in found] == [False, False, True, False, True]
        assert factors(found) == [1, 1, 0.5, 1, 0.5]

    def test_has_nothing_to_go_back_to_before_the_first_score(self):
        found = decide(Dwell("dice"), NAN, 0.5, NAN)
        assert [decision.restore_best for decision in found] == [False, False, True]


class TestStopOnNan:
    def test_stops_at_the_first(self):
        control = StopOnNan("dice")
        assert stops(decide(control, 0.5, NAN)) == [False, True]
        assert control.stopped


class TestTogether:
    def test_factors_are_multiplied_and_each_sees_the_rate_of_those_before_it(self):
        # At the second evaluation the plateau halves 1.0, and dwell takes a tenth of 0.5.
        controls = Controls(
            [ReduceOnPlateau("dice", patience=1, factor=0.5), Dwell("dice", factor=0.1)]
        )
        found = decide(controls, 0.5, 0.4)[-1]
        assert found.rate_factor == pytest.approx(0.05)
        assert found.restore_best
        assert [reason.rpartition(" ")[2] for reason in found.reasons] == ["0.5", "0.05"]
        assert controls.rate_scale == pytest.approx(0.05)

    def test_a_stop_asks_no_further_and_restores_and_changes_nothing(self):
        later = Dwell("dice", factor=0.1)
        controls = Controls(
            [ReduceOnPlateau("dice", patience=1), EarlyStopping("dice", patience=1), later]
        )
        found = decide(controls, 0.5, 0.4)[-1]
        assert found == Decision(stop=True, reasons=("dice has not improved in 1 evaluation",))
        assert controls.rate_scale == 1
        assert controls.stopped_by == "early_stopping"

    def test_two_of_one_name_are_refused(self):
        with pytest.raises(UserError, match="names of their own"):
            Controls([Dwell("loss"), Dwell("dice")])

    def test_a_score_that_is_not_there_is_named(self):
        with pytest.raises(UserError, match=r"'dice'.*none of the scores loss"):
            Controls([Dwell("dice")]).decide(1, {"loss": 1.0}, rate=1.0)


class TestTimeBudget:
    def test_ends_in_time_for_an_evaluation_as_long_as_the_longest(self):
        now = [0.0]
        budget = TimeBudget(10, clock=lambda: now[0])
        controls = Controls([budget])

        def evaluate(began, ended):
            now[0] = began
            budget.evaluating()
            now[0] = ended
            return controls.decide(1, {}, rate=1.0).stop

        budget.begin()
        # 600 s in all, and evaluations that take up to 50 s: over from 550 s on.
        assert not evaluate(100, 150)
        assert not evaluate(300, 310)
        now[0] = 549
        assert not budget.is_over()
        now[0] = 550
        assert budget.is_over()
        assert evaluate(550, 590)
        assert budget.stopped

    def test_counts_the_parts_of_an_interrupted_run_together(self):
        now = [0.0]
        first, second, longer = (TimeBudget(m, clock=lambda: now[0]) for m in (10, 10, 20))
        first.begin()
        now[0] = 400
        Controls([first]).decide(1, {}, rate=1.0)
        for other in (second, longer):
            other.state["seconds"].assign(first.state["seconds"])
            other.begin()
        now[0] = 1000  # 400 s used before, and 600 s since.
        assert second.is_over()
        assert not longer.is_over()


class Person:
    """Types prepared lines."""

    def __init__(self, *lines):
        self.lines, self.shown = list(lines), []

    def __call__(self, _):
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)


def ask(person, *steps, after=10):
    control = Ask(after, ask=person, show=(person or Person()).shown.append)
    controls = Controls([control])
    return [controls.decide(step, {}, rate=0.1) for step in steps]


class TestAsk:
    def test_stop_ends_training(self):
        assert stops(ask(Person("stop"), 10)) == [True]

    def test_a_number_is_the_steps_before_it_asks_again(self):
        person = Person("30", "stop")
        # Asked at 10, then not before 40.
        assert stops(ask(person, 5, 10, 20, 39, 40)) == [False] * 4 + [True]

    def test_an_empty_line_asks_again_after_the_interval(self):
        assert stops(ask(Person("", "stop"), 10, 15, 20)) == [False, False, True]

    def test_rate_and_comment_can_be_given_before_going_on(self):
        found = ask(Person("rate 0.02", "say looks fine", "say so far", "5"), 10)[0]
        assert found.rate_factor == pytest.approx(0.2)
        assert found.comment == "looks fine so far"
        assert found.reasons == ("learning rate 0.02",)

    @pytest.mark.parametrize(
        "line",
        ["nonsense", "-3", "0", "rate", "rate -1", "rate nan", "rate inf", "say", "3.5", "²"],
    )
    def test_what_cannot_be_read_is_asked_again(self, line):
        person = Person(line, "stop")
        assert stops(ask(person, 10)) == [True]
        assert any(f"{line!r} cannot be read" in text for text in person.shown)

    def test_end_of_the_input_goes_on_and_asks_no_more(self):
        person = Person()
        assert stops(ask(person, 10, 20)) == [False, False]
        assert sum("input has ended" in text for text in person.shown) == 1

    def test_without_a_terminal_it_goes_on_and_says_so_once(self):
        shown = []
        controls = Controls([Ask(10, ask=None, show=shown.append)])
        for step in (10, 20):
            assert controls.decide(step, {}, rate=0.1) == Decision()
        assert shown == ["There is no terminal to ask at, so training goes on."]


SCORES = {2: 0.5, 4: 0.6, 6: 0.55, 8: 0.6, 10: 0.58, 12: 0.57}


def make(folder, strategy=None):
    """A loop whose controls are asked every two steps, with prepared scores."""
    controls = Controls(
        [
            EarlyStopping("dice", patience=4),
            ReduceOnPlateau("dice", patience=3, factor=0.5),
            Dwell("dice", factor=0.1),
        ]
    )
    loop = make_loop(
        strategy,
        optimizer=lambda: keras.optimizers.SGD(0.05, momentum=0.9),
        schedule=controls.scaled(schedules.constant(0.05)),
        ema_decay=0.5,
    )
    return controls, loop, training.Checkpoints(folder, loop, keep=20, controls=controls)


def train(parts, *, until=20):
    controls, loop, checkpoints = parts
    checkpoints.restore()
    found = {}
    for report in loop.train(batches, until_step=until, report_every_steps=2):
        decision = controls.decide(report.step, {"dice": SCORES[report.step]}, rate=report.rate)
        before = weights(loop)
        if decision.restore_best:
            checkpoints.restore_best_weights()
        checkpoints.save(score=SCORES[report.step])
        found[report.step] = (decision, report.rate, before, weights(loop))
        if decision.stop:
            break
    return found


class TestInALoop:
    def test_rates_weights_and_the_end_are_as_derived_by_hand(self, tmp_path):
        parts = make(tmp_path)
        found = train(parts)
        # 0.5, 0.6 improve. 6: 0.55 is worse: dwell. 8: 0.6 is not worse. 10: 0.58 is worse: dwell,
        # and the third without an improvement: plateau. 12: the fourth: stop.
        assert list(found) == [2, 4, 6, 8, 10, 12]
        assert [f[0].rate_factor for f in found.values()] == pytest.approx([1, 1, 0.1, 1, 0.05, 1])
        assert stops(f[0] for f in found.values()) == [False] * 5 + [True]
        # The rate of the steps before each evaluation.
        rates = [0.05, 0.05, 0.05, 0.005, 0.005, 0.00025]
        assert [f[1] for f in found.values()] == pytest.approx(rates)
        best = found[4][3]
        for step in (6, 10):
            _, _, before, after = found[step]
            assert not np.array_equal(before, best)
            np.testing.assert_array_equal(after, best)
        np.testing.assert_array_equal(found[12][2], found[12][3])

    def test_best_weights_come_with_slots_and_averages_while_step_and_data_go_on(self, tmp_path):
        controls, loop, checkpoints = make(tmp_path)
        state = {}
        for report in loop.train(batches, until_step=6, report_every_steps=2):
            averages = [v.numpy() for n, v in loop.state.items() if "average" in n]
            slots = [v.numpy() for v in loop.optimizer.variables]
            state[report.step] = (averages, slots)
            checkpoints.save(score=SCORES[report.step])
        assert checkpoints.restore_best_weights() == 4
        assert loop.step == 6
        for found, expected in zip(
            (
                [v.numpy() for n, v in loop.state.items() if "average" in n],
                [v.numpy() for v in loop.optimizer.variables],
            ),
            state[4],
            strict=True,
        ):
            assert found
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)
        assert controls.rate_scale == 1

    @pytest.mark.parametrize("killed_at", [2, 6, 8, 10])
    @pytest.mark.parametrize("replicas", [1, 2])
    def test_resumed_run_decides_as_the_undisturbed_one(
        self, tmp_path, mirrored, killed_at, replicas
    ):
        expected = train(make(tmp_path / "whole", mirrored(replicas)))
        train(make(tmp_path / "parts", mirrored(replicas)), until=killed_at)
        found = train(make(tmp_path / "parts", mirrored(replicas)))
        assert found
        for step, (decision, rate, _, after) in found.items():
            assert (decision, rate) == expected[step][:2]
            np.testing.assert_array_equal(after, expected[step][3])
        assert list(found)[-1] == 12

    def test_two_replicas_decide_and_end_as_one(self, tmp_path, mirrored):
        one, two = (train(make(tmp_path / str(n), mirrored(n))) for n in (1, 2))
        assert [f[0] for f in one.values()] == [f[0] for f in two.values()]
        np.testing.assert_allclose(one[12][3], two[12][3], rtol=1e-6)

    def test_stopped_run_tells_so_after_a_restore(self, tmp_path):
        train(make(tmp_path))
        controls, _, checkpoints = make(tmp_path)
        assert controls.stopped_by is None
        checkpoints.restore()
        assert controls.stopped_by == "early_stopping"

    def test_a_control_that_was_not_there_begins_anew(self, tmp_path):
        loop = make_loop(optimizer=lambda: keras.optimizers.SGD(0.05, momentum=0.9), ema_decay=0.5)
        list(loop.train(batches, until_step=4, report_every_steps=2))
        training.Checkpoints(tmp_path, loop).save()
        controls, loop, checkpoints = make(tmp_path)
        assert checkpoints.restore() == 4
        assert controls.rate_scale == 1
        assert math.isnan(float(controls.state["dwell"]["best"].numpy()))

    def test_a_control_that_is_not_used_any_more_is_said(self, tmp_path):
        train(make(tmp_path))
        loop = make_loop(optimizer=lambda: keras.optimizers.SGD(0.05, momentum=0.9), ema_decay=0.5)
        with pytest.warns(UserWarning, match=r"control_dwell.*not used any more"):
            assert training.Checkpoints(tmp_path, loop).restore() == 12

    def test_scale_is_read_at_each_step_of_a_compiled_schedule(self):
        controls = Controls([Dwell("dice", factor=0.5)])
        schedule = tf.function(controls.scaled(schedules.constant(0.4)))
        assert float(schedule(tf.constant(0))) == pytest.approx(0.4)
        decide(controls, 0.5, 0.4)
        assert float(schedule(tf.constant(0))) == pytest.approx(0.2)
