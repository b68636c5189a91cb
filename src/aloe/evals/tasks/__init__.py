"""The evaluation tasks, one module a kind."""
