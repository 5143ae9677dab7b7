"""Builds record sets from public data: convert, and whatever commands COMMANDS lists. Knows nothing of jax."""

from mmed_jax.common.loading import end_at_once

end_at_once()
