"""What key-value state exists where: identities, leases and (later) the prefix index. Imports nothing of Headrace."""
