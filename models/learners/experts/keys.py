"""Which slot of a bounded table belongs to which key: the first keys that come get one, in order."""

from __future__ import annotations

import tensorflow as tf

FREE = 0  # the fingerprint of a slot without a key


class Keys(tf.Module):
    """Slots for `most` keys. Two keys with the same fingerprint share one: of a million keys, with probability 1e-7."""

    def __init__(self, most: int) -> None:
        super().__init__(name="keys")
        self.most = most
        self.fingerprints = tf.Variable(tf.fill([most], tf.constant(FREE, tf.int64)), name="fingerprints")
        self.used = tf.Variable(0, dtype=tf.int64, name="used")  # slots that have a key, the first ones
        self.refused = tf.Variable(0, dtype=tf.int64, name="refused")  # rows of keys that found no slot

    def fingerprints_of(self, keys: tf.Tensor) -> tf.Tensor:
        """(rows,) int64, never `FREE`, for (rows,) texts."""
        return tf.strings.to_hash_bucket_fast(keys, 2**62) + 1

    def slots(self, prints: tf.Tensor) -> tf.Tensor:
        """(rows,) int64: the slot of each key; `most` for a key without one."""
        same = tf.cast(prints[:, None] == self.fingerprints, tf.float32)
        none = 1.0 - tf.reduce_sum(same, axis=1, keepdims=True)
        return tf.argmax(tf.concat([same, none], axis=1), axis=1)

    def admit(self, prints: tf.Tensor) -> tf.Tensor:
        """Gives new keys the next free slots, in the order in which they came; the slots of all rows."""
        new, _ = tf.unique(tf.boolean_mask(prints, self.slots(prints) == self.most))
        room = tf.minimum(tf.size(new, tf.int64), self.most - self.used)
        places = self.used + tf.range(room)
        self.fingerprints.scatter_nd_update(places[:, None], new[:room])
        self.used.assign_add(room)
        slots = self.slots(prints)
        self.refused.assign_add(tf.reduce_sum(tf.cast(slots == self.most, tf.int64)))
        return slots
