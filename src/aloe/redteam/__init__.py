"""The red-team generator: base requests by topic, attack styles, and their splits. Everything was written for this project."""
