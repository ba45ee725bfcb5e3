"""What docs/embedding.md says: what training leaves alone, its table of programs, its snippets."""

import pathlib
import re
import sys
from importlib.util import find_spec

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))

import foreign_programs
from helpers import forked

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "embedding.md").read_text()

PROCESS = """
import atexit, collections, logging, os, random, signal, sys, tempfile
import keras, numpy as np, tensorflow as tf
from absl import logging as absl_logging
from unet_core import training

# TensorFlow (2.21) logs when it saves, and absl then gives a root logger without handlers one.
logging.basicConfig()
handlers = collections.Counter()

def noting(original, note):
    def noted(function, *args):
        if function.__module__.startswith("unet_core"):
            note(function)
        return original(function, *args)
    return noted

atexit.register = noting(atexit.register, lambda function: handlers.update([function]))
atexit.unregister = noting(atexit.unregister, lambda function: handlers.pop(function, None))

def state():
    root, config = logging.getLogger(), tf.config
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "random": random.getstate(),
        "numpy": str(np.random.get_state()),
        "precision": (keras.config.dtype_policy().name, keras.config.floatx()),
        "layout": (keras.config.epsilon(), keras.config.image_data_format()),
        "eager": config.functions_run_eagerly(),
        "graph": (config.optimizer.get_jit(), config.optimizer.get_experimental_options()),
        "tf32": config.experimental.tensor_float_32_execution_enabled(),
        "devices": (config.get_visible_devices(), config.get_soft_device_placement()),
        "logging": (root.level, list(root.handlers), absl_logging.get_verbosity()),
        "signals": [signal.getsignal(name) for name in signal.valid_signals()],
        "strategy": tf.distribute.has_strategy(),
    }

def draws():
    everywhere = tf.random.uniform([]), keras.random.uniform([])
    return [random.random(), np.random.rand(), *map(float, everywhere)]

def data(start_step, context):
    def batch(step):
        return tf.random.stateless_normal([8, 3], [1, step]), tf.ones([8, 1])

    return tf.data.Dataset.range(start_step, 10**6).map(batch)

def squared_error(outputs, batch):
    return tf.square(outputs - batch[1])[:, 0]

def train():
    optimizer, schedule = keras.optimizers.AdamW(), training.schedules.constant(0.1)
    options = {"ema_decay": 0.9, "clip_norm": 1.0, "schedule": schedule}
    loop = training.Loop(model, optimizer, loss=squared_error, **options)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = training.Checkpoints(folder, loop)
        checkpoints.restore()
        with training.SummaryWriter(folder) as writer:
            for report in loop.train(data, until_step=4, report_every_steps=2):
                writer.scalars(report.step, {"loss": report.loss})
                checkpoints.save(score=report.loss)
        with loop.averaged_weights():
            loop.evaluate(data(0, None).take(2))
        checkpoints.restore(best=True)
    loop.update(next(iter(data(0, None))))

def seeded(work):
    keras.utils.set_random_seed(4)
    work()
    return draws()

model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])
without = seeded(lambda: None)
before = state()
train()
after = state()
print("changed:", [name for name in before if before[name] != after[name]])
train()
print("same draws:", seeded(train) == without)
print("handlers:", sum(handlers.values()))
"""


class TestProcess:
    def test_is_left_as_it_was_but_for_one_handler(self):
        code, out = forked.run_code(PROCESS)
        assert code == 0, out
        assert out.endswith("changed: []\nsame draws: True\nhandlers: 1\n")


class TestPage:
    def test_table_has_the_lines_of_every_program(self):
        rows = re.findall(r"^\| `(\w+)` \|.*?\| (\d+) \|", PAGE, re.MULTILINE)
        lines = {name: foreign_programs.training_lines(name) for name in foreign_programs.BY_NAME}
        assert {name: int(count) for name, count in rows} == lines
        assert f"| all | | {sum(lines.values())} |" in PAGE

    def test_names_of_the_loop_exist(self):
        from unet_core import training

        for name in re.findall(r"`?training\.([A-Za-z_]+)", PAGE):
            # Modules that the package does not import by itself are found all the same.
            assert hasattr(training, name) or find_spec(f"unet_core.training.{name}"), name
