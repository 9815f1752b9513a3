"""New clusters among the rows that none explains.

Density peaks: a row is a peak if the nearest denser row is far away against its own neighbours; every other row goes with its
nearest denser row. There is no length in it that would have to be set, so neither scale nor density matters. Pieces of one
cluster are put together, and a group is a cluster only if its rows are so close that noise would hardly have it.

References:
    Rodriguez and Laio, "Clustering by fast search and find of density peaks", Science 344, 2014. Deviation: the density is one
    over the distance to the NEIGHBOUR-th neighbour, and a peak is told by the ratio of two distances instead of by eye.
"""

from __future__ import annotations

import tensorflow as tf

from models.learners.cluster_shapes import (
    Wide,
    column_pairs,
    covariances,
    is_full,
    join,
    moments,
    separations,
    shrunk,
    whitening,
    widen,
    widened,
)
from models.learners.cluster_state import (
    BORN,
    LOG_NORMAL,
    LOG_UNIFORM,
    TINY,
    VARIANCE_FLOOR,
    State,
    Told,
    assign,
    correlated,
    precise,
)

LEAST_ROWS = 10  # of a new cluster
FIRST_ROWS = 150  # that are waited for before the first clusters: fewer of them look like one
NEIGHBOUR = 7  # whose distance is the density
PEAK_RATIO = 1.6  # distance to a denser row, against that to the neighbour
CORE_RATIO = 2.5  # rows whose neighbour is farther off, against that of their peak, are left out: noise
ONE_PIECE = 4.0  # neighbouring pieces, however small, are 3.46 deviations apart; less what few rows make of it
SHAPE_PASSES = 2  # in which the first clusters' shape is found
EVIDENCE = 5.0  # log likelihood ratio against noise, penalised for the choice of rows
PRIOR_ROWS = 5.0  # with which a new cluster's variances are drawn to their mean over the columns
GROUPS = 48  # that are looked at
REFINEMENTS = 3


def may_be_born(state: State) -> tf.Tensor:
    """Whether there are enough rows to look for new clusters."""
    return (state.far_fresh >= LEAST_ROWS) & (tf.reduce_any(state.alive) | (state.far_count >= FIRST_ROWS))


def births(state: State, told: Told, limit: float) -> tuple[State, Told]:
    """Looks for new clusters and puts them in free slots."""
    count = tf.cast(state.far_count, tf.int32)
    rows = state.far[:count]
    size, mean, spread = _in_their_own_shape(rows, state)
    order = tf.argsort(-size, stable=True)
    size, mean, spread = (tf.gather(values, order) for values in (size, mean, spread))
    floor = state.column_floor
    spread = _less_certain(size, spread, floor)
    # As many rows, as close as these, out of noise that is spread evenly over all that was seen.
    total = tf.cast(count, tf.float64)
    ratio = LOG_UNIFORM - LOG_NORMAL + 0.5 * tf.math.log(floor / spread[:, : state.width])
    choices = tf.math.lgamma(total + 1.0) - tf.math.lgamma(size + 1.0) - tf.math.lgamma(tf.maximum(total - size, 0.0) + 1.0)
    evidence = size * tf.reduce_sum(ratio, axis=1) - state.width * tf.math.log(tf.maximum(size, 1.0)) - choices
    largest = tf.range(tf.shape(size)[0]) == 0
    first = tf.logical_and(tf.logical_not(tf.reduce_any(state.alive)), largest)  # it needs no contrast
    taken = tf.where(tf.logical_and(size >= LEAST_ROWS, tf.logical_or(evidence >= EVIDENCE, first)))[:, 0]
    free = tf.where(tf.logical_not(state.alive))[:, 0]
    born = tf.minimum(tf.size(taken), tf.size(free))
    taken, slots = taken[:born], free[:born]
    state, told = _settle(state, told, slots, *(tf.gather(values, taken) for values in (size, mean, spread)))
    state = _refine(state, slots, widen(rows), limit)
    near = assign(state, widen(rows), state.mean, state.precision, limit).near
    left = tf.boolean_mask(rows, tf.logical_or(tf.logical_not(near), born == 0))
    number, room = tf.shape(left)[0], state.far.shape[0]
    far = tf.ensure_shape(tf.pad(left, [[0, room - number], [0, 0]]), [room, state.width])
    return state._replace(far=far, far_count=tf.cast(number, tf.int64), far_fresh=tf.constant(0, tf.int64)), told


def _less_certain(size: tf.Tensor, spread: tf.Tensor, floor: tf.Tensor) -> tf.Tensor:
    """Covariances (n, terms) of so many rows (n,), drawn to round ones and never flat."""
    width = floor.shape[0]
    even = tf.reduce_mean(spread[:, :width] / floor, axis=1, keepdims=True) * floor
    more = PRIOR_ROWS * even / (size[:, None] + PRIOR_ROWS) + VARIANCE_FLOOR * floor
    return widened(spread * (size / (size + PRIOR_ROWS))[:, None], width, more)


def _in_their_own_shape(rows: tf.Tensor, state: State) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Groups in a metric in which clusters are about round: that of the clusters that live, else of the groups themselves."""
    width, floor = state.width, state.column_floor

    def pooled(weight: tf.Tensor, spread: tf.Tensor) -> tf.Tensor:
        """Mean correlations with the geometric mean of the deviations, as what makes it round (width, width)."""
        part = (weight / tf.maximum(tf.reduce_sum(weight), TINY))[:, None]
        spread = widened(spread, width, VARIANCE_FLOOR * floor)
        log = tf.reduce_sum(part * tf.math.log(spread[:, :width]), axis=0)
        one, other = column_pairs(width)
        deviation = tf.sqrt(spread[:, :width])
        alike = spread / (tf.gather(deviation, one, axis=1) * tf.gather(deviation, other, axis=1))
        alike = tf.reduce_sum(part * alike, axis=0, keepdims=True)
        return _to_round(alike, tf.reduce_sum(weight)[None], width) * tf.exp(-0.5 * log)

    def living() -> tf.Tensor:
        return pooled(state.weight, state.spread)

    def from_rows() -> tf.Tensor:
        metric = tf.linalg.diag(1.0 / tf.sqrt(floor))
        for _ in range(SHAPE_PASSES):
            size, _, spread = _one_piece(*_groups(rows, metric), floor)
            metric = tf.where(tf.reduce_any(size > 0.0), pooled(size, spread), metric)
        return metric

    metric = tf.cond(tf.reduce_any(state.alive), living, from_rows)
    return _one_piece(*_groups(rows, metric), floor)


def _to_round(terms: tf.Tensor, rows: tf.Tensor, width: int) -> tf.Tensor:
    """What makes one covariance of unit variances (1, terms), known from so many rows (1,), round: (width, width)."""
    if not is_full(width):
        return tf.eye(width, dtype=tf.float64)
    return whitening(shrunk(terms, width, rows))[0]


def _groups(rows: tf.Tensor, metric: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The largest groups about density peaks, GROUPS at the most: size, mean, covariance; one of size 0 if there is none."""
    count = tf.shape(rows)[0]
    scaled = tf.matmul(rows, metric, transpose_b=True)
    lengths = tf.reduce_sum(scaled * scaled, axis=1)
    squared = tf.maximum(lengths[:, None] + lengths - 2.0 * tf.matmul(scaled, scaled, transpose_b=True), 0.0)
    squared = tf.linalg.set_diag(squared, tf.zeros_like(lengths))
    neighbours = -tf.math.top_k(-squared, k=tf.minimum(NEIGHBOUR + 1, count)).values
    radius = tf.sqrt(neighbours[:, -1]) + TINY
    rank = tf.argsort(tf.argsort(radius, stable=True), stable=True)
    denser = tf.where(rank[None] < rank[:, None], squared, tf.constant(float("inf"), tf.float64))
    parent = tf.argmin(denser, axis=1, output_type=tf.int32)
    peak = tf.sqrt(tf.reduce_min(denser, axis=1)) > PEAK_RATIO * radius
    root = tf.where(peak, tf.range(count), parent)
    for _ in range(9):  # pointers are followed 2^9 rows far
        root = tf.gather(root, root)
    core = radius <= CORE_RATIO * tf.gather(radius, root)
    member = tf.cast(tf.logical_and(root[:, None] == tf.range(count), core[:, None]), tf.float64)
    wide = widen(rows)
    size, mean = moments(member, wide)
    spread = covariances(member, wide, size, mean)
    enough = tf.reduce_sum(tf.cast(size >= LEAST_ROWS // 2, tf.int32))
    places = tf.math.top_k(size, k=tf.clip_by_value(enough, 1, GROUPS)).indices
    size, mean, spread = (tf.gather(values, places) for values in (size, mean, spread))
    return tf.where(size >= LEAST_ROWS // 2, size, tf.zeros_like(size)), mean, spread


def _one_piece(size: tf.Tensor, mean: tf.Tensor, spread: tf.Tensor, floor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Puts together the groups that are pieces of one cluster, the closest pair first."""
    width, groups = floor.shape[0], tf.shape(size)[0]

    def apart(size: tf.Tensor, mean: tf.Tensor, spread: tf.Tensor) -> tf.Tensor:
        shape = _less_certain(size, spread, floor)
        white = whitening(shrunk(shape, width, size)) if is_full(width) else shape
        return separations(mean, shape, precise(shape, white, width).terms, size > 0)

    def more(size: tf.Tensor, mean: tf.Tensor, spread: tf.Tensor, between: tf.Tensor) -> tf.Tensor:
        del size, mean, spread
        return tf.reduce_min(between) <= ONE_PIECE

    def put_together(size: tf.Tensor, mean: tf.Tensor, spread: tf.Tensor, between: tf.Tensor) -> tuple[tf.Tensor, ...]:
        place = tf.argmin(tf.reshape(between, [-1]), output_type=tf.int32)
        one, other = place // groups, place % groups
        total, middle, both = join(size, mean, spread, one, other)
        size = tf.tensor_scatter_nd_update(size, [[one], [other]], tf.stack([total, tf.zeros_like(total)]))
        mean = tf.tensor_scatter_nd_update(mean, [[one]], middle[None])
        spread = tf.tensor_scatter_nd_update(spread, [[one]], both[None])
        return size, mean, spread, apart(size, mean, spread)

    start = (size, mean, spread, apart(size, mean, spread))
    size, mean, spread, _ = tf.while_loop(more, put_together, start, maximum_iterations=GROUPS)
    return size, mean, spread


def _settle(
    state: State, told: Told, slots: tf.Tensor, size: tf.Tensor, mean: tf.Tensor, spread: tf.Tensor
) -> tuple[State, Told]:
    born = tf.size(slots, out_type=tf.int64)
    place, ids = slots[:, None], state.next_id + tf.range(born)

    def put(values: tf.Tensor, given: tf.Tensor) -> tf.Tensor:
        return tf.tensor_scatter_nd_update(values, place, given)

    state = state._replace(
        id=put(state.id, ids),
        next_id=state.next_id + born,
        weight=put(state.weight, size),
        mean=put(state.mean, mean),
        spread=put(state.spread, spread),
        anchor=put(state.anchor, mean),
        age=put(state.age, tf.zeros_like(size)),
    )
    return correlated(state), told.note(BORN, ids, ids)


def _refine(state: State, slots: tf.Tensor, wide: Wide, limit: float) -> State:
    """Fits the new clusters to all rows that are theirs; those of old ones stay as they are."""
    new = tf.scatter_nd(slots[:, None], tf.ones_like(slots), [state.slots]) > 0
    for _ in range(REFINEMENTS):
        share = assign(state, wide, state.mean, state.precision, limit).share
        count, mean = moments(share, wide)
        spread = _less_certain(count, covariances(share, wide, count, mean), state.column_floor)
        fits = tf.logical_and(new, count > 3.0)
        state = state._replace(
            mean=tf.where(fits[:, None], mean, state.mean),
            spread=tf.where(fits[:, None], spread, state.spread),
            weight=tf.where(fits, count, state.weight),
        )
        state = correlated(state)
    return state._replace(
        shape=tf.where(new[:, None], state.precision.terms, state.shape),
        anchor=tf.where(new[:, None], state.mean, state.anchor),
    )
