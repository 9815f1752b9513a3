import numpy as np
import pytest
import tensorflow as tf

from models.learners.adam import EPSILON, FIRST_DECAY, SECOND_DECAY, Adam


def slow_adam(parameter, gradients, learning_rate):
    """Kingma and Ba's algorithm 1 in double precision, in the order of computation of section 2."""
    first, second = np.zeros_like(parameter), np.zeros_like(parameter)
    for step, gradient in enumerate(gradients, 1):
        first = FIRST_DECAY * first + (1 - FIRST_DECAY) * gradient
        second = SECOND_DECAY * second + (1 - SECOND_DECAY) * gradient**2
        scale = learning_rate * np.sqrt(1 - SECOND_DECAY**step) / (1 - FIRST_DECAY**step)
        parameter = parameter - scale * first / (np.sqrt(second) + EPSILON)
    return parameter


@pytest.mark.parametrize("seed", range(3))
def test_steps_are_those_of_the_paper(seed):
    rng = np.random.default_rng(seed)
    starts = [rng.normal(size=(3, 4)), rng.normal(size=5)]
    gradients = [[rng.normal(size=start.shape) * 10.0 ** rng.integers(-4, 3) for start in starts] for _ in range(50)]
    parameters = [tf.Variable(start.astype(np.float32)) for start in starts]
    adam = Adam(parameters, 0.01)
    apply = tf.function(lambda first, second: adam.apply([first, second]))
    for pair in gradients:
        apply(*(tf.constant(gradient.astype(np.float32)) for gradient in pair))
    for place, start in enumerate(starts):
        expected = slow_adam(start, [pair[place] for pair in gradients], 0.01)
        np.testing.assert_allclose(parameters[place].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert adam.steps.numpy() == 50


def test_the_first_step_is_the_learning_rate_down_the_sign():
    parameter = tf.Variable([1.0, 1.0, 1.0])
    Adam([parameter], 0.1).apply([tf.constant([100.0, -0.01, 0.0])])
    np.testing.assert_allclose(parameter.numpy(), [0.9, 1.1, 1.0], atol=5e-5)


def test_a_gradient_for_every_parameter():
    with pytest.raises(ValueError, match="shorter"):
        Adam([tf.Variable(0.0), tf.Variable(0.0)], 0.1).apply([tf.constant(1.0)])
