"""A ring of boosted trees over the latest rows: each window, the oldest trees are grown anew on what the others leave over.

The trees are oblivious: all nodes of a level ask the same question, so that a tree is `depth` comparisons and one table of
2^depth leaves, and predicting is a gather. The questions of a level are all tried at once: the gradients of every leaf
above every threshold are one matrix product, over every `STRIDE`-th row; the leaves' values are over all rows.

References:
    Friedman, "Greedy function approximation: a gradient boosting machine", 2001; Chen and Guestrin, "XGBoost", 2016, eq. 6, 7
    (gain and leaf values). Prokhorenkova et al., "CatBoost", 2018 (oblivious trees).
    Gunasekara et al., "Gradient boosted trees for evolving data streams", Machine Learning 113, 2024 (boosting on streams).
    Deviation: a fixed ring of trees is refitted cyclically (backfitting) instead of trees being grown and pruned in place.
"""

from __future__ import annotations

import tensorflow as tf

L2 = 1.0  # on leaf values
SHRINKAGE = 0.5
LARGEST_LEAF = 2.0  # in log-odds or standard deviations
SMALLEST_CURVATURE = 1e-3
STRIDE = 2
MAX_THRESHOLDS = 24
MAX_QUESTIONS = 640  # columns times thresholds
SORTED_ROWS = 256  # that tell where the thresholds are


class BoostedTrees(tf.Module):
    """See the module's docstring; `outputs` scores a row, log-odds against class 0 or, of a regression, one estimate."""

    def __init__(self, width: int, outputs: int, *, trees: int, depth: int, grown: int, logistic: bool) -> None:
        super().__init__(name="trees")
        self._trees, self._depth, self._outputs, self._grown, self._logistic = trees, depth, outputs, grown, logistic
        self._thresholds = max(3, min(MAX_THRESHOLDS, MAX_QUESTIONS // width))
        self.column = tf.Variable(tf.zeros((trees, depth), tf.int32), name="column")
        self.threshold = tf.Variable(tf.fill((trees, depth), tf.float32.max), name="threshold")
        self.leaf = tf.Variable(tf.zeros((trees, 2**depth, outputs)), name="leaf")
        self.oldest = tf.Variable(0, name="oldest")

    def scores(self, x: tf.Tensor) -> tf.Tensor:
        """(rows, outputs) for (rows, width)."""
        return tf.reduce_sum(self._each(x), axis=0)

    def learn(self, x: tf.Tensor, targets: tf.Tensor, weight: tf.Tensor, first: tf.Tensor, count: tf.Tensor) -> None:
        """Grows the oldest trees anew.

        Args:
            x: (size, width) rows as `scores` will be given rows.
            targets: (size, outputs).
            weight: (size,) how much each row counts; 0 for one that is none.
            first: () int64, the place of the first row that is one.
            count: () int64, how many of them are rows, one behind the other.
        """
        weight = weight[:, None]
        width = int(x.shape[1])
        thresholds = self._quantiles(x, first, count)
        some = x[::STRIDE]
        answers = tf.cast(some[:, None, :] > thresholds, tf.float32)
        answers = tf.reshape(answers, (some.shape[0], self._thresholds * width))
        each = self._each(x)
        total = tf.reduce_sum(each, axis=0)
        for _ in range(self._grown):
            rest = total - each[self.oldest]
            slope, bend = self._slope(rest, targets)
            gradients = tf.concat([slope, bend], axis=1) * weight
            asked = self._ask(answers, gradients[::STRIDE])
            columns, places = tf.math.floormod(asked, width), tf.gather(tf.reshape(thresholds, [-1]), asked)
            above = tf.cast(tf.gather(x, columns, axis=1) > places, tf.int32)
            leaf = tf.reduce_sum(above * [2**level for level in range(self._depth)], axis=1)
            sums = tf.matmul(tf.one_hot(leaf, 2**self._depth), gradients, transpose_a=True)
            values = SHRINKAGE * sums[:, : self._outputs] / (sums[:, self._outputs :] + L2)
            values = tf.clip_by_value(values, -LARGEST_LEAF, LARGEST_LEAF)
            self.column.scatter_nd_update([[self.oldest]], columns[None])
            self.threshold.scatter_nd_update([[self.oldest]], places[None])
            self.leaf.scatter_nd_update([[self.oldest]], values[None])
            total = rest + tf.gather(values, leaf)
            self.oldest.assign(tf.math.floormod(self.oldest + 1, self._trees))

    def _quantiles(self, x: tf.Tensor, first: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """(thresholds, width): where the questions of each column are."""
        sample = first + tf.cast(tf.linspace(0.0, 1.0, SORTED_ROWS) * tf.cast(count - 1, tf.float32), tf.int64)
        in_order = tf.sort(tf.gather(x, sample), axis=0)
        places = tf.linspace(0.0, 1.0, self._thresholds + 2)[1:-1] * (SORTED_ROWS - 1.0)
        return tf.gather(in_order, tf.cast(places, tf.int32))

    def _ask(self, answers: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
        """(depth,) int32: the questions that split the leaves best, one after the other."""
        leaf, asked = tf.zeros(answers.shape[0], tf.int32), []
        # By leaf: the sums of the gradients of all its rows, and of those that answer each question with yes.
        every = tf.reduce_sum(gradients, axis=0)[None]
        yes = tf.matmul(answers, gradients, transpose_a=True)[:, None]
        for level in range(self._depth):
            if level:
                # Only of the leaves on the yes side; those on the no side are what is left of the level before.
                upper = tf.one_hot(leaf - 2 ** (level - 1), 2 ** (level - 1))
                upper_every = tf.matmul(upper, gradients, transpose_a=True)
                by_leaf = tf.reshape(upper[:, :, None] * gradients[:, None, :], (answers.shape[0], -1))
                upper_yes = tf.reshape(tf.matmul(answers, by_leaf, transpose_a=True), (-1, 2 ** (level - 1), 2 * self._outputs))
                every = tf.concat([every - upper_every, upper_every], axis=0)
                yes = tf.concat([yes - upper_yes, upper_yes], axis=1)
            asked.append(self._best(yes, every - yes))
            leaf += tf.cast(tf.gather(answers, asked[-1], axis=1), tf.int32) * 2**level
        return tf.stack(asked)

    def _slope(self, scores: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Downhill gradient and curvature of the loss at these scores."""
        if not self._logistic:
            return targets - scores, tf.ones_like(scores)
        # Log-odds against class 0, whose score is none of the outputs but always 0.
        p = tf.nn.softmax(tf.pad(scores, [[0, 0], [1, 0]]))[:, 1:]
        return targets - p, tf.maximum(p * (1.0 - p), SMALLEST_CURVATURE)

    def _best(self, *sides: tf.Tensor) -> tf.Tensor:
        """The question with the highest gain; each side is (questions, leaves, slopes and curvatures)."""
        parts = [(side[:, :, : self._outputs], side[:, :, self._outputs :]) for side in sides]
        gain = sum(tf.reduce_sum(slope**2 / (tf.maximum(bend, 0.0) + L2), axis=(1, 2)) for slope, bend in parts)
        return tf.argmax(gain, output_type=tf.int32)

    def _each(self, x: tf.Tensor) -> tf.Tensor:
        """(trees, rows, outputs): the leaf value that each tree gives each row."""
        # A column after the other, and rows side by side: thrice as quick as a row after the other.
        values = tf.gather(tf.transpose(x), tf.reshape(tf.transpose(self.column), [-1]))
        above = tf.cast(values > tf.reshape(tf.transpose(self.threshold), (-1, 1)), tf.int32)
        leaf = tf.constant([[tree * 2**self._depth] for tree in range(self._trees)])
        for level, answers in enumerate(tf.split(above, self._depth)):
            leaf += answers * 2**level
        return tf.gather(tf.reshape(self.leaf, (-1, self._outputs)), leaf)
