"""Files to arrays to augmented samples to `tf.data`. Knows nothing of models or steps."""
