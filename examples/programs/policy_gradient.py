"""Data that the current weights make: a policy plays, and learns from what it has just played.

`loop.update` makes one step on a given batch; there is no dataset.
"""

import keras
import tensorflow as tf
from keras import layers

from unet_core import training

WALKERS, MOVES = 64, 20


def make_policy():
    hidden = [layers.Dense(64, "tanh"), layers.Dense(64, "tanh")]
    return keras.Sequential([keras.Input((2,)), *hidden, layers.Dense(2)])


def make_play(policy):
    """Returns a function that plays one game with the policy as it is.

    Walkers with a place and a speed are pushed to the left or right, and should stay at 0.
    (number of the game) -> ((states [N, 2], actions [N], advantages [N]), mean reward).
    """

    @tf.function
    def play(game):
        seeds = tf.random.split(tf.stack([tf.constant(1, game.dtype), game]), MOVES + 1)
        state = tf.random.stateless_uniform([WALKERS, 2], seeds[MOVES], -1, 1)
        states, actions, rewards = [], [], []
        for move in range(MOVES):
            logits = policy(state)
            action = tf.random.stateless_categorical(logits, 1, seeds[move], tf.int32)[:, 0]
            states.append(state)
            actions.append(action)
            speed = 0.9 * state[:, 1] + 0.2 * tf.cast(2 * action - 1, tf.float32)
            state = tf.stack([state[:, 0] + 0.2 * speed, speed], 1)
            rewards.append(-tf.abs(state[:, 0]))
        returns = tf.cumsum(tf.stack(rewards), reverse=True)
        advantages = returns - tf.reduce_mean(returns, 1, keepdims=True)
        batch = tf.concat(states, 0), tf.concat(actions, 0), tf.reshape(advantages, [-1])
        return batch, tf.reduce_mean(rewards)

    return play


def policy_gradient(logits, batch):
    """Its gradient is that of REINFORCE.

    Source: Williams 1992, Simple statistical gradient-following algorithms.
    """
    _, actions, advantages = batch
    return advantages * tf.nn.sparse_softmax_cross_entropy_with_logits(actions, logits)


def main(steps=300, every=50, show=print):
    """Trains the policy and returns it."""
    keras.utils.set_random_seed(0)
    policy = make_policy()
    play = make_play(policy)
    # training
    loop = training.Loop(policy, keras.optimizers.Adam(1e-3), loss=policy_gradient)
    for game in range(steps):
        batch, reward = play(tf.constant(game))
        report = loop.update(batch)
        if report.step % every == 0:
            show(f"game {report.step}: mean reward {reward:.3f}")
    # end of training
    return policy


if __name__ == "__main__":
    main()
