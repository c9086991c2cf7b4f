"""The Infinity transformer, whose ``forward`` is one scale step, its quantiser and image autoencoder."""
