"""Why a request ran where it did: what is kept of each decision, and its words."""
