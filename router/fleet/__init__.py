"""What this router knows of every worker: columns, promises, learned speeds."""
