"""Flags of programs of one's own."""

import dataclasses

import pytest

from unet_core.errors import UserError
from unet_core.settings import command_line
from unet_core.settings.fields import binding_values, setting
from unet_core.training import NonFiniteError


@dataclasses.dataclass(frozen=True)
class Settings:
    name: str = setting("", "Any text.")
    kind: str = setting("a", "50% of what there is.", binds=True, choices=("a", "b"))
    epochs: int = setting(40, "How many.", binds=True, least=1, most=100)
    rate: float = setting(0.5, "How fast.", least=0, most=1)
    flip: bool = setting(False, "Whether.")


def parse(*argv):
    return command_line.parse(Settings, argv, name="mine", description="What it does.")


def run(program, *argv):
    return command_line.run(program, Settings, argv, name="mine", description="What it does.")


class TestParse:
    def test_takes_each_kind_and_keeps_the_defaults(self):
        assert parse() == Settings()
        found = parse("--name=x y", "--kind=b", "--epochs", "3", "--rate=0.25", "--flip")
        assert found == Settings("x y", "b", 3, 0.25, True)

    @pytest.mark.parametrize(
        ("flag", "message"),
        [
            ("--epochs=0", "`epochs` (0) must be at least 1"),
            ("--epochs=1.5", "invalid int value: '1.5'"),
            ("--rate=nan", "`rate` (nan) must be at least 0"),
            ("--kind=c", "must be one of a, b"),
            ("--epoch=3", "unrecognized arguments: --epoch=3"),
            ("file", "unrecognized arguments: file"),
        ],
    )
    def test_refuses_what_breaks_a_rule(self, flag, message):
        with pytest.raises(UserError) as error:
            parse(flag)
        assert message in str(error.value)

    def test_help_shows_the_description_and_every_setting(self, capsys):
        with pytest.raises(SystemExit) as ended:
            parse("--help")
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert "What it does." in shown
        for text in ("--name", "50% of what there is. Default: 'a'", "--no-flip", "a|b"):
            assert text in shown


class TestRun:
    def test_gives_the_settings_and_returns_0(self):
        seen = []
        assert run(seen.append, "--epochs=7") == 0
        assert seen == [Settings(epochs=7)]

    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (UserError("`epochs` and `other` differ."), 2, "mine: --epochs and `other` differ.\n"),
            (OSError(28, "No space left", "file"), 2, "mine: [Errno 28] No space left: 'file'\n"),
            (NonFiniteError(3), 2, "mine: Step 3: "),
            (KeyboardInterrupt(), 130, "mine: stopped"),
        ],
    )
    def test_makes_one_message_of_what_is_wrong(self, capsys, error, code, message):
        def fail(settings):
            raise error

        assert run(fail) == code
        shown = capsys.readouterr().err
        assert shown.startswith(message)
        assert shown.count("\n") == 1

    def test_leaves_mistakes_of_the_program_alone(self):
        with pytest.raises(TypeError):
            run(lambda: None)


class TestBindingValues:
    def test_are_those_that_bind(self):
        assert binding_values(Settings(epochs=3)) == {"kind": "a", "epochs": 3}
