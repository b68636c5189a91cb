"""Seeds from names: a random draw depends on what it is for, never on order, thread or device count."""

from __future__ import annotations

import hashlib


def seed_for(*parts: object) -> int:
    """A 63-bit seed for the named purpose, e.g. `seed_for(recipe.seed, "dare", model, tensor)`."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
