"""The one error a person can mend."""


class UserError(ValueError):
    """A wrong flag, file, mask or checkpoint; the message is complete in itself.

    It says what is wrong, with which value, the rule, and the way out. `train_loop.py` prints it
    and exits with code 2; a host program may catch it as a `ValueError`.
    """
