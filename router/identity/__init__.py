"""Who asks, what they may have, and what they have used."""
